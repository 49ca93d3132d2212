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
from labs.parts import Pool

if sys.platform == "win32":
    pytest.skip("torchrun's processes are not stopped by signals there", allow_module_level=True)

# One step of each network on half of a batch, without batch norm, whose statistics are each process's own.
GRADIENTS = """
import contextlib, os, sys, torch
import rollnumber_04 as gan
from extras import processes

class Plain(gan.GAN):
    def build(self):
        super().build()
        for layers in (self.generator.layers, self.discriminator.features):
            for i, layer in enumerate(layers):
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layers[i] = torch.nn.Identity()

with processes.joined("cpu") if "TORCHELASTIC_RUN_ID" in os.environ else contextlib.nullcontext():
    model, rank, count = Plain(gan.config_from(sys.argv[2:])).on(torch.device("cpu")), gan.rank(), gan.process_count()
    draw = torch.Generator().manual_seed(0)
    real, z = torch.rand(8, 3, 8, 8, generator=draw) * 2 - 1, torch.randn(8, 8, generator=draw)
    mine = slice(rank * 8 // count, (rank + 1) * 8 // count)
    model.noise = lambda count: z[mine]
    model.step(real[mine], None)
    weights = [weight for name in model.networks for weight in getattr(model, name).parameters()]
    gradients, weights = [weight.grad for weight in weights], [weight.detach() for weight in weights]
    agreed = {"of_0": gan.broadcast(rank), "any": any(gan.all_gather(rank == 1))}
    torch.save({"gradients": gradients, "weights": weights} | agreed, f"{sys.argv[1]}{rank}.pt")
"""

# A whole run, with a pool of earlier images such as labs have; each process keeps its weights at the end.
TRAIN = """
import sys, torch
import rollnumber_04 as gan
from labs.parts import Pool

made, prepare, build, step = [], gan.prepare, gan.GAN.build, gan.GAN.step

def prepare_and_keep(*arguments):
    made.append(prepare(*arguments))
    return made[-1]

def build_with_pool(model):
    build(model)
    model.pools = {"reals": Pool(16, (3, 8, 8))}

def step_with_pool(model, real, labels):
    return step(model, *model.pools["reals"].swap(real, labels, model.rng))

gan.prepare, gan.GAN.build, gan.GAN.step = prepare_and_keep, build_with_pool, step_with_pool
status = gan.main(sys.argv[2:])
if made:
    weights = dict(made[-1].gan.generator.named_parameters())
    torch.save(weights, f"{sys.argv[1]}{gan.os.environ['RANK']}.pt")
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
    for seed, name in enumerate(("cat", "dog")):
        save_all(pictures(35, seed=seed), folder / "train" / name)
        save_all(pictures(3, seed=seed + 2), folder / "test" / name)
    return folder


def words(data, out, epochs):
    options = ["--multitask", "--flip", "--translation"]
    return [*TOY, "--data", data, "--epochs", str(epochs), *options, "--out", out]


def test_two_processes_average_the_gradients_of_the_joined_batch(tmp_path):
    options = [*TOY, "--seed", "1", "--no-translation"]
    status, _, err = run_both(GRADIENTS, tmp_path, *options)
    assert status == 0, err
    two = [torch.load(tmp_path / f"of-rank-{rank}.pt") for rank in (0, 1)]
    assert [part["of_0"] for part in two] == [0, 0]
    assert [part["any"] for part in two] == [True, True]

    namespace = {}
    exec(
        GRADIENTS.replace("sys.argv[1]", repr(str(tmp_path / "alone-"))).replace("sys.argv[2:]", repr(options)),
        namespace,
    )
    one = torch.load(tmp_path / "alone-0.pt")
    assert one["of_0"] == 0
    assert not one["any"]
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


def with_pool(build):
    """As in TRAIN."""

    def build_with_pool(model):
        build(model)
        model.pools = {"reals": Pool(16, (3, 8, 8))}

    return build_with_pool


def test_a_run_of_two_processes_resumes_exactly_and_with_another_number(data, tmp_path, monkeypatch, capsys):
    status, out, err = run_both(TRAIN, tmp_path, *words(data, tmp_path / "whole", 3))
    assert status == 0, err
    assert out.count("device     2 × cpu") == 1
    assert "epoch 3/3" in out
    weights = [torch.load(tmp_path / f"of-rank-{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    whole = gan.load_checkpoint(tmp_path / "whole/checkpoints/last.pt")
    assert (whole["progress"]["step"], whole["progress"]["epoch"]) == (12, 3)  # 70 images are 4 steps of 2 × 8
    first, second = whole["ranks"]
    for name in ("noise", "dropout"):
        assert not torch.equal(first["random"][name], second["random"][name])
    assert not torch.equal(first["pools"]["reals"]["images"], second["pools"]["reals"]["images"])

    for epochs in (1, 3):
        more = ["--resume"] if epochs == 3 else []
        again = words(data, tmp_path / "parts", epochs) if epochs == 1 else ["--out", tmp_path / "parts", "--epochs", 3]
        status, _, err = run_both(TRAIN, tmp_path, *again, *more)
        assert status == 0, err
    parts_saved = tmp_path / "parts/checkpoints/last.pt"
    parts = gan.load_checkpoint(parts_saved)
    expected, found = tensors(whole), tensors(parts)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []

    monkeypatch.setattr(gan.GAN, "build", with_pool(gan.GAN.build))
    assert gan.main(["--resume", str(tmp_path / "parts"), "--epochs", "4", "--out", str(tmp_path / "alone")]) == 0
    assert f"note: {parts_saved} is of 2 processes together, this run of 1" in capsys.readouterr().out
    alone = gan.load_checkpoint(tmp_path / "alone/checkpoints/last.pt")
    assert (alone["progress"]["step"], alone["progress"]["epoch"], len(alone["ranks"])) == (12 + 8, 4, 1)


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
    assert len(saved["ranks"]) == 2
    assert saved["progress"]["step"] >= 4


def test_a_mistake_is_named_once(tmp_path):
    status, _, err = run_both(TRAIN, tmp_path, *TOY, "--data", tmp_path / "nothing", "--out", tmp_path / "run")
    assert status != 0
    assert err.count("there is no such file or folder") == 1
    assert "Traceback" not in err


def test_a_loss_that_is_not_finite_is_named_once(data, tmp_path):
    explosive = ["--optimizer", "sgd", "--lr-g", 10, "--lr-d", 10, "--beta1", 0.99, "--epochs", 200]
    status, _, err = run_both(TRAIN, tmp_path, *TOY, "--data", data, "--out", tmp_path / "run", *explosive)
    assert status != 0
    assert err.count("is not finite") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("ranks", [[3], [[3]], [{"random": {}}], [{"random": [], "pools": {}}]])
def test_what_a_process_has_of_its_own_is_checked(data, tmp_path, capsys, ranks):
    gan.main([*map(str, words(data, tmp_path / "run", 1)), "--dry-run"])
    path = tmp_path / "run/checkpoints/last.pt"
    torch.save(torch.load(path) | {"ranks": ranks}, path)
    capsys.readouterr()
    assert gan.main(["--resume", str(path), "--out", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert f"{path}: its ranks" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "new").exists()
