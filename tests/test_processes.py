"""Several processes that train one run together, as torchrun starts them (gloo, on the CPU)."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from conftest import PATIENCE, ROOT, TOY, pictures, save_all

import rollnumber_04 as gan

if sys.platform == "win32":
    pytest.skip("torchrun's processes are not stopped by signals there", allow_module_level=True)

# One step of each network on half of a batch, without batch norm, whose statistics are each process's own.
GRADIENTS = """
import sys, torch
import rollnumber_04 as gan

with gan.joined_processes("cpu"):
    options = gan.parse_options(sys.argv[2:])
    run, rank, count = gan.make_run(options, 3, torch.device("cpu"), False), gan.process_rank(), gan.process_count()
    draw = torch.Generator().manual_seed(0)
    real, z = torch.rand(8, 3, 8, 8, generator=draw) * 2 - 1, torch.randn(8, 8, generator=draw)
    mine = slice(rank * 8 // count, (rank + 1) * 8 // count)
    run.inputs = lambda count, labels=None: (z[mine],)
    gan.discriminator_step(run, real[mine], options)
    gan.generator_step(run, len(real[mine]), options)
    gradients = [weight.grad for network in run.networks.values() for weight in network.parameters()]
    weights = [weight.detach() for network in run.networks.values() for weight in network.parameters()]
    torch.save({"gradients": gradients, "weights": weights, "shared": gan.shared(rank), "said": gan.agreed(rank == 1)},
               f"{sys.argv[1]}{rank}.pt")
"""

# A whole run; each process keeps its weights at the end.
TRAIN = """
import sys, torch
import rollnumber_04 as gan

made, make = [], gan.make_run
gan.make_run = lambda *arguments: made.append(make(*arguments)) or made[-1]
status = gan.main(sys.argv[2:])
if made:
    torch.save({n: t for n, t in made[-1].generator.named_parameters()}, f"{sys.argv[1]}{gan.os.environ['RANK']}.pt")
sys.exit(status)
"""


PIPES = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def command_line(program, folder, *words):
    """A program as a file in a folder, what it writes to, and its words."""
    file = folder / "program.py"
    file.write_text(program, encoding="utf-8")
    return [str(file), str(folder / "of-rank-"), *map(str, words)]


def torchrun(*arguments):
    """Start two processes by torchrun."""
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*line, *command_line(*arguments)], env=environment, **PIPES)


def run_both(*arguments):
    """Run two processes as torchrun starts them, without its seconds; the worse status, and what both said."""
    # Where the two meet is at a port of this process, as of torchrun's: none is found free here and taken there later.
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {"PYTHONPATH": str(ROOT), "TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2"}
    common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    line, processes = [sys.executable, *command_line(*arguments)], []
    for rank in ("0", "1"):
        environment = os.environ | common | {"RANK": rank, "LOCAL_RANK": rank}
        processes.append(subprocess.Popen(line, env=environment, **PIPES))
    said = [process.communicate(timeout=PATIENCE) for process in processes]
    return max(process.returncode for process in processes), *map("".join, zip(*said, strict=True))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    save_all(pictures(70), folder / "images")
    return folder / "images"


def words(data, out, epochs):
    options = ["--replay", "16", "--dropout", "0.2", "--flip", "--log-every", "3", "--keep", "9"]
    return [*TOY, "--data", data, "--seed", "3", "--epochs", str(epochs), *options, "--out", out]


def test_two_processes_average_the_gradients_of_the_joined_batch(tmp_path):
    options = [*TOY, "--norm", "none", "--seed", "1"]
    status, _, err = run_both(GRADIENTS, tmp_path, *options)
    assert status == 0, err
    two = [torch.load(tmp_path / f"of-rank-{rank}.pt") for rank in (0, 1)]
    assert [part["shared"] for part in two] == [0, 0]
    assert [part["said"] for part in two] == [True, True]

    namespace = {}
    exec(
        GRADIENTS.replace("sys.argv[1]", repr(str(tmp_path / "alone-"))).replace("sys.argv[2:]", repr(options)),
        namespace,
    )
    one = torch.load(tmp_path / "alone-0.pt")
    assert one["shared"] == 0
    assert not one["said"]
    for mine, other, joined in zip(*(part["gradients"] for part in (*two, one)), strict=True):
        assert torch.equal(mine, other)
        torch.testing.assert_close(mine, joined, rtol=1e-4, atol=1e-7)
    assert any(gradient.abs().max() > 1e-3 for gradient in one["gradients"])
    assert all(map(torch.equal, two[0]["weights"], two[1]["weights"]))


def tensors(part, name=""):
    """All tensors of nested containers, by their place."""
    if isinstance(part, torch.Tensor):
        return {name: part}
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    return {k: v for key, value in items for k, v in tensors(value, f"{name}.{key}").items()}


def test_a_run_of_two_processes_resumes_exactly_and_with_another_number(data, tmp_path):
    status, out, err = run_both(TRAIN, tmp_path, *words(data, tmp_path / "whole", 3))
    assert status == 0, err
    assert out.count("device     2 × cpu") == 1
    assert "epoch 3/3" in out
    weights = [torch.load(tmp_path / f"of-rank-{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    whole = gan.load_checkpoint(tmp_path / "whole/checkpoints/last.pt")
    assert (whole["step"], whole["epoch"], len(whole["others"])) == (12, 3, 1)  # 70 images are 4 steps of 2 × 8
    assert not torch.equal(whole["rng"]["noise"], whole["others"][0]["rng"]["noise"])
    assert not torch.equal(whole["pools"]["fakes"]["images"], whole["others"][0]["pools"]["fakes"]["images"])

    for epochs in (1, 3):
        more = ["--resume"] if epochs == 3 else []
        again = words(data, tmp_path / "parts", epochs) if epochs == 1 else ["--out", tmp_path / "parts", "--epochs", 3]
        status, _, err = run_both(TRAIN, tmp_path, *again, *more)
        assert status == 0, err
    parts = gan.load_checkpoint(tmp_path / "parts/checkpoints/last.pt")
    expected, found = tensors(whole), tensors(parts)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    said = gan.main(["--resume", str(tmp_path / "parts"), "--epochs", "4", "--out", str(tmp_path / "alone")])
    assert said == 0
    alone = gan.load_checkpoint(tmp_path / "alone/checkpoints/last.pt")
    assert (alone["step"], alone["epoch"], alone["others"]) == (12 + 8, 4, [])


def test_two_processes_stop_together_and_save(data, tmp_path):
    process = torchrun(TRAIN, tmp_path, *words(data, tmp_path / "run", 10_000))
    hangs = threading.Timer(PATIENCE, process.terminate)  # at which torchrun ends the two as well, and the lines end
    hangs.start()
    try:
        assert any(line.startswith("epoch 1/10000 ") for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        hangs.cancel()
        process.terminate()
    assert process.returncode != 0
    assert err.count("go on from what is saved with") == 1
    saved = gan.load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert len(saved["others"]) == 1
    assert saved["step"] >= 4


def test_a_mistake_is_named_once(tmp_path):
    status, _, err = run_both(TRAIN, tmp_path, *TOY, "--data", tmp_path / "nothing", "--out", tmp_path / "run")
    assert status != 0
    assert err.count("there is no such file or folder") == 1
    assert "Traceback" not in err


def test_a_loss_that_is_not_finite_is_named_once(data, tmp_path):
    explosive = ["--optimizer", "sgd", "--lr-g", 10, "--lr-d", 10, "--norm", "none", "--init", "torch", "--epochs", 9]
    status, _, err = run_both(TRAIN, tmp_path, *TOY, "--data", data, "--out", tmp_path / "run", *explosive)
    assert status != 0
    assert err.count("is not finite") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("others", [3, [3], [{"rng": {}}], [{"rng": [], "pools": {}}]])
def test_others_of_the_wrong_kind_are_refused(data, tmp_path, others):
    gan.main([*map(str, words(data, tmp_path / "run", 1)), "--dry-run"])
    path = tmp_path / "run/checkpoints/last.pt"
    saved = torch.load(path)
    torch.save(saved | {"others": others}, path)
    with pytest.raises(gan.UserError, match="its others is wrong"):
        gan.load_checkpoint(path)
