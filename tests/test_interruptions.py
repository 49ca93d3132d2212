"""A run that is stopped anywhere and resumed writes what the uninterrupted run writes, and nothing saved is hurt."""

import csv
import errno
import itertools
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOY, pictures, save_all
from PIL import Image
from safetensors import safe_open

import rollnumber_04 as gan

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forked processes and their signals are POSIX's")
SPEEDS = ("images_per_s", "seconds")
SEEDS = {"quick": range(3), "all": range(3, 36)}


def run_words(data: Path, out: Path) -> list[str]:
    """Three epochs of five steps with everything that has a state: a head with dropout, flips, rows across a stop."""
    words = "--multitask --flip --epochs 3 --seed 7 --log-every 3 --save-every 1 --keep 2".split()
    return [*TOY, *words, "--data", str(data), "--out", str(out)]


def signalling(function, count: int, number: int):
    """The function, whose `count`-th call begins with a signal to this process."""
    calls = itertools.count(1)

    def call(*arguments):
        if next(calls) == count:
            os.kill(os.getpid(), number)
        return function(*arguments)

    return call


def child(words: list[str], plans: list[tuple[str, int, int]], status) -> None:
    """Run the command in this process; at a plan's n-th step or file operation the process sends itself a signal."""
    os.setpgrp()
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    for kind, count, number in plans:
        owner, name = {"step": (gan, "train_step"), "fsync": (os, "fsync"), "replace": (os, "replace")}[kind]
        setattr(owner, name, signalling(getattr(owner, name), count, number))
    status.value = gan.main(words)


@pytest.fixture(scope="module")
def fork():
    """Start the command in processes forked from one that has everything imported and has computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rollnumber_04", "torch.utils.tensorboard", "matplotlib.figure"])

    def start(words, *plans):
        status = context.Value("i", -1)
        process = context.Process(target=child, args=(words, plans, status))
        process.start()
        process.status = status
        return process

    return start


def finish(process, seconds=120) -> int:
    """Wait for a process; its exit status as a shell would say it."""
    process.join(seconds)
    assert not process.is_alive(), "it hangs"
    return 128 - process.exitcode if process.exitcode < 0 else process.status.value


@pytest.fixture(scope="module")
def whole(tmp_path_factory, fork):
    """The data and the run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    for split, count in (("train", 20), ("test", 6)):
        for seed, name in enumerate(("cat", "dog")):
            save_all(pictures(count, seed=seed), folder / "data" / split / name)
    assert finish(fork(run_words(folder / "data", folder / "run"))) == 0
    return folder / "data", folder / "run"


def contents(out: Path) -> dict[str, object]:
    """All that a run wrote, less what tells the time: tables without speeds, pictures' pixels, tensors' bytes."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                found[name] = [{k: v for k, v in row.items() if k not in SPEEDS} for row in csv.DictReader(file)]
        elif path.suffix in (".png", ".gif"):
            with Image.open(path) as image:
                found[name] = [np.asarray(image.convert("RGB")).tobytes() for _ in frames(image)]
        elif path.suffix == ".pt":
            found[name] = flat(torch.load(path, weights_only=True))
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:  # whose header has its parts in any order
                found[name] = [file.metadata(), flat({key: file.get_tensor(key) for key in sorted(file.keys())})]
    return found


def frames(image):
    for i in range(getattr(image, "n_frames", 1)):
        image.seek(i)
        yield image


def flat(value, name=""):
    """A checkpoint as {place: bytes or value}, less its speeds."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items() if key not in SPEEDS]
    elif isinstance(value, list):
        items = [(str(i), item) for i, item in enumerate(value)]
    else:
        return {name: value.numpy().tobytes() if isinstance(value, torch.Tensor) else value}
    return {place: leaf for key, item in items for place, leaf in flat(item, f"{name}.{key}").items()}


def assert_as_whole(out: Path, whole: Path) -> None:
    ours, theirs = contents(out), contents(whole)
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name] == theirs[name], name
    assert not [*out.rglob("*.tmp")]


def resume_to_the_end(fork, out: Path, data: Path) -> None:
    if not (out / "checkpoints" / "last.pt").exists():  # stopped before the first save: the same command begins again
        assert finish(fork(run_words(data, out))) == 0
    assert finish(fork(["--resume", "--out", str(out)])) == 0


# --------------------------------------------------------------------------------------------------- stopped anywhere


@pytest.mark.parametrize("instants", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_stopped_at_any_step_or_inside_any_save_it_goes_on_exactly(fork, whole, tmp_path, instants):
    data, reference = whole
    stopped = []
    for seed in SEEDS[instants]:
        draw = random.Random(seed)
        out = tmp_path / str(seed)
        words = run_words(data, out)
        for _ in range(draw.choice((1, 1, 2))):  # some are stopped twice
            kind, most = (("step", 15), ("fsync", 30), ("replace", 16))[seed % 3]  # of which a whole run has so many
            number = draw.choice((signal.SIGINT, signal.SIGTERM)) if kind == "step" else signal.SIGKILL
            plan = (kind, draw.randint(1, most), number)
            status = finish(fork(words, plan))
            assert status in (0, 128 + number), plan
            if status == 0:
                break
            stopped.append(plan)
            if kind == "step":
                saved = gan.load_checkpoint(out / "checkpoints" / "last.pt")
                assert status == 128 + number
                assert saved["step"] >= 1
            words = ["--resume", "--out", str(out)] if (out / "checkpoints" / "last.pt").exists() else words
            if words[0] != "--resume":
                break
        resume_to_the_end(fork, out, data)
        assert_as_whole(out, reference)
    assert len(stopped) >= len(SEEDS[instants]) * 2 / 3
    assert {kind for kind, _, _ in stopped} == {"step", "fsync", "replace"}


@pytest.mark.parametrize("instants", ["quick", pytest.param("all", marks=pytest.mark.slow)])
def test_killed_at_any_time_it_goes_on_exactly(fork, whole, tmp_path, instants):
    data, reference = whole
    killed = 0
    for seed in range(1) if instants == "quick" else range(1, 13):
        out = tmp_path / str(seed)
        process = fork(run_words(data, out))
        time.sleep(random.Random(seed).uniform(0.3, 4))
        process.kill()
        killed += finish(process) == 137
        resume_to_the_end(fork, out, data)
        assert_as_whole(out, reference)
    assert killed


def test_a_second_signal_stops_at_once_and_hurts_nothing(fork, whole, tmp_path):
    data, reference = whole
    out = tmp_path / "run"
    # The first comes in step 8; the second inside the save that follows, after those of the start and of epoch 1.
    assert finish(fork(run_words(data, out), ("step", 8, signal.SIGTERM), ("fsync", 19, signal.SIGTERM))) == 143
    assert gan.load_checkpoint(out / "checkpoints" / "last.pt")["step"] == 5  # that of epoch 1: the save did not end
    assert not [*out.rglob("*.tmp")]
    resume_to_the_end(fork, out, data)
    assert_as_whole(out, reference)


# ------------------------------------------------------------------------------------------- disks and numbers gone bad


def test_a_disk_that_fills_up_during_a_save(whole, tmp_path, monkeypatch, capsys, fork):
    data, reference = whole
    fsync, calls = os.fsync, itertools.count(1)

    def full(descriptor):
        if next(calls) >= 13:  # of the start 8, so within the save of epoch 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(descriptor)

    monkeypatch.setattr(gan.os, "fsync", full)
    out = tmp_path / "run"
    assert gan.main(run_words(data, out)) == 1
    said = capsys.readouterr().err
    assert said.startswith("rollnumber_04.py: stopped at step 5, for ")
    assert (
        f"(No space left on device); go on from what is saved with: python rollnumber_04.py --resume --out {out}"
        in said
    )
    assert gan.load_checkpoint(out / "checkpoints" / "last.pt")["step"] == 0
    assert not [*out.rglob("*.tmp")]
    monkeypatch.undo()
    resume_to_the_end(fork, out, data)
    assert_as_whole(out, reference)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_small_disk_and_a_read_only_one(whole, small_disk, capsys):
    data, _ = whole
    out = small_disk / "run"
    assert gan.main([*run_words(data, out), "--epochs", "40"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("rollnumber_04.py: stopped at step ")
    assert "No space left on device" in said
    assert said.count("\n") == 1
    step = gan.load_checkpoint(out / "checkpoints" / "last.pt")["step"]
    assert 0 < step < 40 * 5
    subprocess.run(["mount", "-o", "remount,ro,size=2m", small_disk], check=True)
    assert gan.main(["--resume", "--out", str(out)]) in (1, 2)
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert said.count("\n") == 1
    assert gan.load_checkpoint(out / "checkpoints" / "last.pt")["step"] == step


def test_resume_falls_back_to_the_newest_whole_checkpoint(whole, tmp_path, fork, capsys):
    _, reference = whole
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    checkpoints = out / "checkpoints"
    whole_bytes = (checkpoints / "last.pt").read_bytes()
    for name in ("last.pt", "epoch_0003.pt"):
        (checkpoints / name).write_bytes(whole_bytes[: len(whole_bytes) // 2])
    options = gan.parse_options(["--resume", "--out", str(out)])
    assert options.resume.name == "epoch_0002.pt"
    assert "last.pt: not a whole checkpoint" in (said := capsys.readouterr().out)
    assert "trying epoch_0002.pt" in said
    assert finish(fork(["--resume", "--out", str(out)])) == 0
    assert_as_whole(out, reference)
    (checkpoints / "last.pt").write_bytes(b"")
    assert gan.main(["--resume", str(checkpoints / "last.pt")]) == 2  # that one, and no other
    assert "last.pt: not a whole checkpoint" in capsys.readouterr().err


def test_a_resume_from_an_early_checkpoint_does_its_epochs_again(whole, tmp_path, fork):
    _, reference = whole
    out = tmp_path / "run"
    shutil.copytree(reference, out)
    assert finish(fork(["--resume", str(out / "checkpoints" / "epoch_0002.pt")])) == 0
    assert_as_whole(out, reference)


@pytest.mark.parametrize("words", [["--batch-size", "30"], ["--log-every", "1"]])
def test_a_run_stopped_within_an_epoch_goes_on_with_other_options(whole, tmp_path, fork, words):
    data, _ = whole
    out = tmp_path / "run"
    assert finish(fork(run_words(data, out), ("step", 2, signal.SIGINT))) == 130
    saved = gan.load_checkpoint(out / "checkpoints/last.pt")
    assert (saved["step"], saved["seen"], saved["waiting"]) == (2, 16, 2)
    assert finish(fork(["--resume", "--out", str(out), *words])) == 0
    with open(out / "epochs.csv", newline="", encoding="utf-8") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    with open(out / "log.csv", newline="", encoding="utf-8") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps))
    assert steps[-1] == gan.load_checkpoint(out / "checkpoints/last.pt")["step"]


def test_other_data_begins_the_epoch_again(whole, tmp_path, fork, capsys):
    data, _ = whole
    out = tmp_path / "run"
    assert finish(fork(run_words(data, out), ("step", 4, signal.SIGINT))) == 130
    for split, count in (("train", 5), ("test", 3)):
        for seed, name in enumerate(("cat", "dog")):
            save_all(pictures(count, seed=seed + 7), tmp_path / "data" / split / name)
    assert gan.main(["--resume", "--out", str(out), "--data", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    assert "note: --data " in said
    assert "note: the data is not what the checkpoint was trained on; its epoch begins again" in said


def test_a_second_run_in_the_same_folder_is_refused(whole, fork, tmp_path):
    data, _ = whole
    words = run_words(data, tmp_path / "run")
    words[words.index("--epochs") + 1] = "100000"
    first = fork(words)
    deadline = time.monotonic() + 60
    while not (tmp_path / "run/checkpoints/epoch_0001.pt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    try:
        assert finish(fork(["--resume", "--out", str(tmp_path / "run")])) == 2
    finally:
        os.kill(first.pid, signal.SIGTERM)
    assert finish(first) == 143
    assert gan.load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"] >= 5


@pytest.mark.parametrize("measure", ["d_loss", "g_loss"])
def test_the_step_and_the_loss_that_went_wrong_are_named(whole, tmp_path, monkeypatch, capsys, measure):
    data, _ = whole
    original, calls = gan.train_step, itertools.count(1)

    def step(run, *arguments):
        measures = original(run, *arguments)
        if next(calls) >= 7:
            measures[run.measures.index(measure)] = torch.inf
        return measures

    monkeypatch.setattr(gan, "train_step", step)
    assert gan.main(run_words(data, tmp_path / "run")) == 1
    assert f"{measure} is not finite at step 7, epoch 2; the last checkpoint is whole" in capsys.readouterr().err
    assert gan.load_checkpoint(tmp_path / "run/checkpoints/last.pt")["step"] == 5


def test_a_gradient_that_is_not_finite_is_never_saved(whole, tmp_path, monkeypatch, capsys):
    data, _ = whole
    original = gan.train_step

    def step(run, *arguments):
        measures = original(run, *arguments)
        if run.step == 9:  # the last of epoch 2: no later loss would show it
            next(run.generator.parameters()).data[0, 0] = torch.nan
        return measures

    monkeypatch.setattr(gan, "train_step", step)
    assert gan.main(run_words(data, tmp_path / "run")) == 1
    message = "state.networks.generator.project.weight holds numbers that are not finite at step 10, epoch 3"
    assert message in capsys.readouterr().err
    saved = gan.load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert saved["step"] == 5
    assert all(t.isfinite().all() for t in saved["networks"]["generator"].values())


def history(count, **values):
    return [{"step": 400 * (i + 1), "d_loss": 0.1, "g_loss": 0.7, "diversity": 0.9} | values for i in range(count)]


@pytest.mark.parametrize(
    ("loss", "values", "word"),
    [
        ("ls", {"d_loss": 0.01, "g_loss": 0.9}, "D has won"),
        ("bce", {"d_loss": 0.05, "g_loss": 4.0}, "D has won"),
        ("ls", {"diversity": 0.1}, "the samples hardly differ"),
    ],
)
def test_a_warning_comes_once_each_time_a_trouble_begins(loss, values, word):
    rows, begun, options = [], [], gan.parse_options(["--loss", loss])
    for row in history(6) + history(8, **values) + history(4) + history(8, **values):
        rows.append(row | {"step": 400 * (len(rows) + 1)})
        before = gan.troubles(rows[:-1], options)
        new = [trouble for trouble in gan.troubles(rows, options) if trouble not in before]
        begun += [(len(rows), trouble) for trouble in new]
    assert [epoch for epoch, _ in begun] == [9, 21]  # three epochs of 400 steps after 6, and after 18
    assert all(word in trouble for _, trouble in begun)


def test_a_run_that_begins_grey_is_not_warned_of():
    assert not gan.troubles(history(2, diversity=0.01), gan.parse_options([]))
    tiny_epochs = [row | {"step": i} for i, row in enumerate(history(300, diversity=0.01))]
    assert not gan.troubles(tiny_epochs, gan.parse_options([]))


def test_the_warning_is_in_the_table_and_on_the_screen(whole, tmp_path, monkeypatch, capsys):
    data, _ = whole
    monkeypatch.setattr(gan, "LONG", 5)
    monkeypatch.setattr(gan, "COLLAPSED", 100)
    words = run_words(data, tmp_path / "run")
    words[words.index("--epochs") + 1] = "5"
    assert gan.main(words) == 0
    assert capsys.readouterr().out.count("warning: epoch 3/5: the samples hardly differ") == 1
    with open(tmp_path / "run/epochs.csv", newline="", encoding="utf-8") as file:
        warnings = [row["warning"] for row in csv.DictReader(file)]
    assert [bool(warning) for warning in warnings] == [False, False, True, False, False]


def test_out_of_memory_names_a_batch_that_fits(whole, tmp_path, monkeypatch, capsys):
    data, _ = whole
    original = gan.train_step

    def step(run, batches, *arguments):
        if len(batches[0][0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(run, batches, *arguments)

    monkeypatch.setattr(gan, "train_step", step)
    words = run_words(data, tmp_path / "run")
    words[words.index("--batch-size") + 1] = "16"
    assert gan.main(words) == 2
    said = capsys.readouterr().err
    assert "--batch-size 16: not enough memory on cpu; 4 fits; go on from what is saved with: python" in said
    advised = shlex.split(said.partition("rollnumber_04.py --resume")[2])
    assert gan.main(["--resume", *advised, "--epochs", "1"]) == 0


def test_out_of_memory_beside_a_step_that_fits(whole, tmp_path, monkeypatch, capsys):
    def too_large(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes")  # on Windows

    monkeypatch.setattr(gan.BaseGenerator, "generate", too_large)
    data, _ = whole
    assert gan.main(run_words(data, tmp_path / "run")) == 2
    said = capsys.readouterr().err
    assert "not enough memory on cpu, though a step alone fits: leave out --evaluate-every" in said
    assert f"--resume --out {tmp_path / 'run'}" in said
