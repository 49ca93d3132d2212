"""A run that is stopped anywhere and resumed writes what the uninterrupted run writes, and nothing saved is hurt."""

import csv
import errno
import hashlib
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PATIENCE, TOY, pictures, save_all
from PIL import Image
from safetensors import safe_open

import rollnumber_04 as gan
from extras import diagnosis

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forked processes and their signals are POSIX's")
SPEEDS = ("images_per_s", "seconds")
STEPS = 15  # of `run_words`
PARTS = 8  # of what is slow, so that each core has some
QUICK_AND_PARTS = ["quick", *(pytest.param(part, marks=pytest.mark.slow) for part in range(PARTS))]
TELL, HOLD = "tell", "hold"  # what a process may do at a moment, beside sending itself a signal
EVERY = "every moment"  # of which a plan may say what to do, too
FIRST_HEARD = "start: write log.csv"  # from here on a run listens to signals
IN_A_SAVE = "save of step 8: sync checkpoints/last.pt.tmp"
OF_THE_STOP = [  # what a run that is told to stop in step 8 comes by then
    f"save of step 8: {change}"
    for name in ("generator.safetensors", "discriminator.safetensors", "checkpoints/last.pt")
    for change in (f"write {name}.tmp", f"sync {name}.tmp", f"rename {name}.tmp", f"sync the folder of {name}")
]


def run_words(data: Path, out: Path) -> list[str]:
    """Three epochs of five steps with everything that has a state: a head with dropout, flips, rows across a stop."""
    words = "--multitask --flip --epochs 3 --seed 7 --save-every 1".split()
    return [*TOY, *words, "--data", str(data), "--out", str(out)]


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Rows across a stop and checkpoints that make room for newer ones, in runs this short; `child` has the same."""
    monkeypatch.setattr(gan, "LOG_EVERY", 3)
    monkeypatch.setattr(gan, "KEPT", 2)


# ------------------------------------------------------------------------------------------------------------ moments


def before_steps(happens: Callable[[int], None]) -> None:
    """Call something with the number of each step that is about to begin, from 1."""
    step = gan.GAN.step

    def noticed(model, *batch):
        happens(int(model.steps) + 1)
        return step(model, *batch)

    gan.GAN.step = noticed


class Moments:
    """Names for the moments of a run that this process is to do; `reached` is called with each when it has come.

    They are the beginnings of steps, "step 7", and what is about to be done to a file of the run: "step 5: write
    samples/epoch_0001.png" after that step has begun, or "save of step 5: sync checkpoints/last.pt.tmp".
    """

    def __init__(self, out: Path, reached: Callable[[str], None]):
        self.out, self.reached, self.where, self.opened, self.renamed = out, reached, "start", out, out
        self.save_run, self.fsync = gan.save_run, os.fsync
        before_steps(self.at_step)
        gan.save_run, os.fsync = self.at_save, self.at_sync
        sys.addaudithook(self.at_event)

    def at_step(self, number):
        self.where = f"step {number}"
        self.reached(self.where)

    def at_save(self, run, *arguments, **options):
        outside, self.where = self.where, f"save of step {run.step}"
        self.save_run(run, *arguments, **options)
        self.where = outside

    def at_sync(self, descriptor):
        if self.opened.is_dir():
            self.at_change("sync the folder of", self.renamed)
        else:
            self.at_change("sync", self.opened)
        self.fsync(descriptor)

    def at_event(self, event, arguments):
        """What Python calls before it opens, renames, removes or makes something, among much else."""
        if event not in ("open", "os.rename", "os.remove", "os.mkdir") or isinstance(arguments[0], int):
            return
        path = Path(os.fsdecode(arguments[0]))
        if event == "os.remove":
            self.at_change("remove", path)
        elif event == "os.mkdir":
            if path.parent.exists() and not path.exists():  # else nothing will be made
                self.at_change("make", path)
        elif event == "os.rename":
            self.renamed = Path(arguments[1])
            self.at_change("rename", path)
        elif threading.current_thread() is threading.main_thread():
            self.opened = path  # which may be synced next
            if arguments[2] & (os.O_WRONLY | os.O_RDWR):
                self.at_change("write", path)

    def at_change(self, what, path):
        if path.is_relative_to(self.out) and path.parent.name != "tensorboard":  # a thread writes it
            self.reached(f"{self.where}: {what} {path.relative_to(self.out)}")


def child(words: list[str], plan: dict[str, int | str], status, line) -> None:
    """Run the command in this process; at the moments of a plan it sends itself a signal, tells of it, or waits too."""
    os.setpgrp()
    torch.set_num_threads(1)
    gan.LOG_EVERY, gan.KEPT = 3, 2
    sys.stdout = sys.stderr = open(os.devnull, "w")

    def reached(moment):
        action = plan.pop(moment, plan.get(EVERY))
        if action in (TELL, HOLD):
            line.send(moment)
        if action == HOLD:
            line.recv()
        elif isinstance(action, int):
            os.kill(os.getpid(), action)

    if plan:
        Moments(Path(words[words.index("--out") + 1]), reached)
    status.value = gan.main(words)
    assert not any(isinstance(action, int) for action in plan.values()), "a moment of the plan did not come"


@pytest.fixture(scope="module")
def fork():
    """Start the command in processes forked from one that has everything imported and has computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rollnumber_04", "torch.utils.tensorboard", "matplotlib.figure"])
    started = []

    def start(words, plan=None):
        status, (ours, theirs) = context.Value("i", -1), context.Pipe()
        process = context.Process(target=child, args=(words, plan or {}, status, theirs))
        process.start()
        theirs.close()
        process.status, process.line = status, ours
        started[:] = [*(other for other in started if other.is_alive()), process]  # each has files open
        return process

    yield start
    for process in started:  # what a test that failed has left behind
        process.kill()


def told(process) -> str:
    """The next moment that a process tells of. Raises EOFError when it has ended."""
    assert process.line.poll(PATIENCE), "it hangs"
    return process.line.recv()


def finish(process) -> int:
    """Wait for a process; its exit status as a shell would say it."""
    process.join(PATIENCE)
    assert not process.is_alive(), "it hangs"
    assert process.exitcode <= 0, "it failed, or a moment of its plan did not come"
    return 128 - process.exitcode if process.exitcode < 0 else process.status.value


def moments_of(process) -> Iterator[str]:
    """All moments that a process tells of until it ends."""
    with suppress(EOFError):
        while True:
            yield told(process)


def step_of(moment: str) -> int:
    """How many steps have begun by then."""
    number = re.search(r"step (\d+)", moment)
    return int(number[1]) if number else 0


def heard_at(moments: list[str]) -> list[str]:
    """Those at which a run listens to signals."""
    return moments[moments.index(FIRST_HEARD) :]


def saved_before(moments: list[str], moment: str) -> int | None:
    """The step that last.pt is of when a moment comes; None if there is none yet."""
    done = moments[: moments.index(moment)]
    saved = [step_of(one) for one in done if one.endswith(": rename checkpoints/last.pt.tmp")]
    return saved[-1] if saved else None


@dataclass
class Whole:
    """The run that nothing interrupts, its data, and the moments that it came by."""

    data: Path
    out: Path
    moments: list[str]
    contents: dict[str, object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, fork):
    folder = tmp_path_factory.mktemp("whole")
    for split, count in (("train", 20), ("test", 6)):
        for seed, name in enumerate(("cat", "dog")):
            save_all(pictures(count, seed=seed), folder / "data" / split / name)
    process = fork(run_words(folder / "data", folder / "run"), {EVERY: TELL})
    moments = [*moments_of(process)]
    assert finish(process) == 0
    assert len(set(moments)) == len(moments)
    return Whole(folder / "data", folder / "run", moments, contents(folder / "run"))


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


def assert_as_whole(out: Path, whole: Whole) -> None:
    ours = contents(out)
    assert ours.keys() == whole.contents.keys()
    for name in ours:
        assert ours[name] == whole.contents[name], name
    assert not [*out.rglob("*.tmp")]


def step_saved(out: Path) -> int:
    """The step that last.pt is of."""
    return gan.load_checkpoint(out / "checkpoints" / "last.pt")["progress"]["step"]


def assert_saved(out: Path, *steps: int | None) -> None:
    """last.pt is whole and of one of these steps; None stands for none."""
    last = out / "checkpoints" / "last.pt"
    assert (step_saved(out) if last.exists() else None) in steps


def assert_goes_on(fork, out: Path, whole: Whole) -> None:
    """What a run has left is resumed, and in the end is what the whole run wrote."""
    if not (out / "checkpoints" / "last.pt").exists():  # stopped before the first save: the same command begins again
        assert finish(fork(run_words(whole.data, out))) == 0
    assert finish(fork(["--resume", "--out", str(out)])) == 0
    assert_as_whole(out, whole)


# --------------------------------------------------------------------------------------------------- stopped anywhere


def any_of_kind(kind: str, moments: list[str], seed: str) -> str:
    """The beginning of some "step", or a moment before some change to a file of this kind."""
    kinds = {moment: moment.partition(": ")[2].partition(" ")[0] or "step" for moment in moments}
    return random.Random(seed).choice([moment for moment in moments if kinds[moment] == kind])


def some(moments: list[str], part: int, count: int) -> list[str]:
    """So many of the moments for one of PARTS; another has others."""
    return random.Random(0).sample(moments, count * PARTS)[part::PARTS]


def named(folder: Path, moment: str) -> Path:
    """A folder that has the name of a moment, so that a failure says which."""
    return folder / re.sub("[:/]", "-", moment)


@pytest.mark.parametrize("kind", ["step", "write", "sync", "rename", "remove"])
def test_killed_at_a_moment_it_goes_on_exactly(fork, whole, tmp_path, kind):
    moment = any_of_kind(kind, whole.moments, seed=kind)
    out = named(tmp_path, moment)
    assert finish(fork(run_words(whole.data, out), {moment: signal.SIGKILL})) == 128 + signal.SIGKILL
    assert_saved(out, saved_before(whole.moments, moment))
    assert_goes_on(fork, out, whole)


def tear(out: Path, moment: str) -> None:
    """Leave half of the file that a moment begins to write, and of the tables, which are open all the time."""
    for name in (moment.partition(": write ")[2], "log.csv", "epochs.csv"):
        if (out / name).is_file():
            os.truncate(out / name, (out / name).stat().st_size // 2)


def state_of(out: Path) -> str:
    """A digest of all files of a run but TensorBoard's, whose thread writes when it likes."""
    digest = hashlib.sha256()
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.parent.name != "tensorboard":
            digest.update(f"{path.relative_to(out)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def wrecks_of(process, out: Path, folder: Path, first: str) -> list[tuple[Path, int | None]]:
    """What a run leaves that is killed at any moment from the first on, and the step that last.pt is then of.

    They are copies of its folder at each moment, where the process holds, and copies with half of the file that it was
    about to write by then; all that differ.
    """
    moments, wrecks = [""], {}
    for moment in moments_of(process):
        if first in (moment, *moments):
            copies = [shutil.copytree(out, named(folder, moment))]
            if ": write " in moments[-1]:
                copies.append(shutil.copytree(out, named(folder, f"{moments[-1]} half")))
                tear(copies[1], moments[-1])
            for copy in copies:
                wrecks.setdefault(state_of(copy), (copy, saved_before([*moments, moment], moment)))
        moments.append(moment)
        process.line.send("go on")
    return [*wrecks.values()]


@pytest.fixture(scope="module")
def wrecks(fork, whole, tmp_path_factory) -> list[tuple[Path, int | None]]:
    """Those of a run that nothing else stops, and of some that were told to stop in the first or the second epoch."""
    found = []
    for plan, first in (
        ({}, FIRST_HEARD),
        ({"step 2": signal.SIGTERM}, "save of step 2: write generator.safetensors.tmp"),
        ({"step 8": signal.SIGTERM}, OF_THE_STOP[0]),
    ):
        folder = tmp_path_factory.mktemp("wrecks")
        process = fork(run_words(whole.data, folder / "run"), {EVERY: HOLD} | plan)
        found += wrecks_of(process, folder / "run", folder, first)
        assert finish(process) == (128 + signal.SIGTERM if plan else 0)
    return found


@pytest.mark.parametrize("moment", ["start: write .lock", "start: make samples"])
def test_killed_while_it_makes_its_folder_it_begins_again(fork, whole, tmp_path, moment):
    assert finish(fork(run_words(whole.data, tmp_path / "run"), {moment: signal.SIGKILL})) == 128 + signal.SIGKILL
    assert_goes_on(fork, tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_what_a_kill_leaves_at_any_moment_goes_on_exactly(fork, whole, wrecks, part):
    assert len(wrecks) > PARTS
    for out, saved in wrecks[part::PARTS]:
        assert_saved(out, saved)
        assert_goes_on(fork, out, whole)


@pytest.mark.parametrize("part", QUICK_AND_PARTS)
def test_told_to_stop_at_a_moment_it_saves_and_goes_on_exactly(fork, whole, tmp_path, part):
    moments = heard_at(whole.moments)
    quick = [any_of_kind(kind, moments, seed=kind) for kind in ("step", "write")]
    moments = quick if part == "quick" else some(moments, part, 2)
    for moment, number in zip(moments, (signal.SIGINT, signal.SIGTERM), strict=True):
        out = named(tmp_path, moment)
        in_the_end = step_of(moment) == STEPS  # after which nothing is left to be stopped
        assert finish(fork(run_words(whole.data, out), {moment: number})) == (0 if in_the_end else 128 + number)
        assert_saved(out, step_of(moment))
        assert_goes_on(fork, out, whole)


@pytest.mark.parametrize("part", QUICK_AND_PARTS)
def test_killed_twice_it_goes_on_exactly(fork, whole, tmp_path, part):
    out, draw = tmp_path / "run", random.Random(str(part))
    first = draw.choice([moment for moment in whole.moments if 0 < step_of(moment) <= 10])
    assert finish(fork(run_words(whole.data, out), {first: signal.SIGKILL})) == 128 + signal.SIGKILL
    saved = saved_before(whole.moments, first)
    assert_saved(out, saved)
    later = [moment for moment in whole.moments if step_of(moment) > saved]
    second = draw.choice([moment for moment in later if moment.startswith("save") or ":" not in moment])
    assert finish(fork(["--resume", "--out", str(out)], {second: signal.SIGKILL})) == 128 + signal.SIGKILL
    assert_saved(out, saved_before(whole.moments, second))
    assert_goes_on(fork, out, whole)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM"])
@pytest.mark.parametrize("part", QUICK_AND_PARTS)
def test_a_signal_comes_from_outside_at_any_instruction_between_two_moments(fork, whole, tmp_path, name, part):
    """The run tells of the first, goes on, and does not leave the second before the signal has been sent."""
    out, number, draw = tmp_path / "run", getattr(signal, name), random.Random(f"{part} {name}")
    before, after = draw.choice([pair for pair in pairwise(heard_at(whole.moments)) if step_of(pair[1]) < STEPS])
    process = fork(run_words(whole.data, out), {before: TELL, after: HOLD})
    assert told(process) == before
    os.kill(process.pid, number)
    if number != signal.SIGKILL:
        with suppress(ConnectionError):  # it has come to its end before the second moment
            process.line.send("go on")
    assert finish(process) == 128 + number
    if number == signal.SIGKILL:
        assert_saved(out, saved_before(whole.moments, before), saved_before(whole.moments, after))
    else:
        assert_saved(out, step_of(before), step_of(after))
    assert_goes_on(fork, out, whole)


@pytest.mark.parametrize(
    "moment", [m if m == IN_A_SAVE else pytest.param(m, marks=pytest.mark.slow) for m in OF_THE_STOP]
)
def test_a_second_signal_stops_at_once_and_hurts_nothing(fork, whole, tmp_path, moment):
    out = tmp_path / "run"
    plan = {"step 8": signal.SIGTERM, moment: signal.SIGTERM}
    assert finish(fork(run_words(whole.data, out), plan)) == 128 + signal.SIGTERM
    has_saved = moment == OF_THE_STOP[-1]
    assert_saved(out, 8 if has_saved else 5)  # else that of epoch 1: the save did not end
    assert not [*out.rglob("*.tmp")]
    assert_goes_on(fork, out, whole)


# ------------------------------------------------------------------------------------------- disks and numbers gone bad


@pytest.mark.parametrize("first", ["epoch_0001.pt", "last.pt"])
def test_a_disk_that_fills_up_during_a_save(whole, tmp_path, monkeypatch, capsys, fork, first):
    """In the save of step 5, at the first of its files that finds no room."""
    save_run, write_whole = gan.save_run, gan.write_whole
    saving = []

    def save(run, *arguments, **options):
        saving.append(run.step)
        save_run(run, *arguments, **options)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    def write(path, *arguments):
        if saving == [0, 5] and path.name == first:
            monkeypatch.setattr(gan.os, "fsync", full)
        write_whole(path, *arguments)

    monkeypatch.setattr(gan, "save_run", save)
    monkeypatch.setattr(gan, "write_whole", write)
    out = tmp_path / "run"
    assert gan.main(run_words(whole.data, out)) == 1
    said = capsys.readouterr().err
    assert said.startswith("rollnumber_04.py: stopped at step 5, for ")
    assert (
        f"(No space left on device); go on from what is saved with: python rollnumber_04.py --resume --out {out}"
        in said
    )
    assert_saved(out, 0)
    assert not [*out.rglob("*.tmp")]
    monkeypatch.undo()
    assert_goes_on(fork, out, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a thread of TensorBoard's may still have its file open


def test_a_small_disk_and_a_read_only_one(whole, small_disk, capsys):
    out = small_disk / "run"
    assert gan.main([*run_words(whole.data, out), "--epochs", "40"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("rollnumber_04.py: stopped at step ")
    assert "No space left on device" in said
    assert said.count("\n") == 1
    step = step_saved(out)
    assert 0 < step < 40 * 5
    subprocess.run(["mount", "-o", "remount,ro,size=2m", small_disk], check=True)
    assert gan.main(["--resume", "--out", str(out)]) in (1, 2)
    said = capsys.readouterr().err
    assert "Read-only file system" in said
    assert said.count("\n") == 1
    assert step_saved(out) == step


def test_resume_falls_back_to_the_newest_whole_checkpoint(whole, tmp_path, fork, capsys):
    out = tmp_path / "run"
    shutil.copytree(whole.out, out)
    checkpoints = out / "checkpoints"
    whole_bytes = (checkpoints / "last.pt").read_bytes()
    for name in ("last.pt", "epoch_0003.pt"):
        (checkpoints / name).write_bytes(whole_bytes[: len(whole_bytes) // 2])
    assert gan.config_from(["--resume", "--out", str(out)]).resume.name == "epoch_0002.pt"
    assert "last.pt: not a whole checkpoint" in (said := capsys.readouterr().out)
    assert "trying epoch_0002.pt" in said
    assert finish(fork(["--resume", "--out", str(out)])) == 0
    assert_as_whole(out, whole)
    (checkpoints / "last.pt").write_bytes(b"")
    assert gan.main(["--resume", str(checkpoints / "last.pt")]) == 2  # that one, and no other
    assert "last.pt: not a whole checkpoint" in capsys.readouterr().err


def test_a_resume_from_an_early_checkpoint_does_its_epochs_again(whole, tmp_path, fork):
    out = tmp_path / "run"
    shutil.copytree(whole.out, out)
    assert finish(fork(["--resume", str(out / "checkpoints" / "epoch_0002.pt")])) == 0
    assert_as_whole(out, whole)


@pytest.mark.parametrize("words", [["--batch-size", "30"], ["--optimizer", "rmsprop", "--translation"]])
def test_a_run_stopped_within_an_epoch_goes_on_with_other_options(whole, tmp_path, fork, words):
    out = tmp_path / "run"
    assert finish(fork(run_words(whole.data, out), {"step 2": signal.SIGINT})) == 130
    saved = gan.load_checkpoint(out / "checkpoints/last.pt")["progress"]
    assert (saved["step"], saved["seen"], saved["waiting"]) == (2, 16, 2)
    assert finish(fork(["--resume", "--out", str(out), *words])) == 0
    with open(out / "epochs.csv", newline="", encoding="utf-8") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    with open(out / "log.csv", newline="", encoding="utf-8") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps))
    assert steps[-1] == step_saved(out)


def test_other_data_begins_the_epoch_again(whole, tmp_path, fork, capsys):
    out = tmp_path / "run"
    assert finish(fork(run_words(whole.data, out), {"step 4": signal.SIGINT})) == 130
    for split, count in (("train", 5), ("test", 3)):
        for seed, name in enumerate(("cat", "dog")):
            save_all(pictures(count, seed=seed + 7), tmp_path / "data" / split / name)
    assert gan.main(["--resume", "--out", str(out), "--data", str(tmp_path / "data")]) == 0
    said = capsys.readouterr().out
    assert "note: --data " in said
    assert "note: the data is not what the checkpoint was trained on; its epoch begins again" in said


def test_a_second_run_in_the_same_folder_is_refused(whole, fork, tmp_path):
    out = tmp_path / "run"
    first = fork(run_words(whole.data, out), {"step 7": HOLD})
    assert told(first) == "step 7"
    before = state_of(out)
    for words in (["--resume", "--out", str(out)], run_words(whole.data, out)):
        assert finish(fork(words)) == 2
    assert state_of(out) == before
    first.line.send("go on")
    assert finish(first) == 0
    assert_as_whole(out, whole)


@pytest.mark.parametrize("metric", ["d_loss", "g_loss"])
def test_the_step_and_the_loss_that_went_wrong_are_named(whole, tmp_path, monkeypatch, capsys, metric):
    original = gan.GAN.step

    def step(model, *batch):
        metrics = original(model, *batch)
        if int(model.steps) == 6:  # the seventh
            metrics[model.columns(model.config).index(metric)].fill_(torch.inf)
        return metrics

    monkeypatch.setattr(gan.GAN, "step", step)
    assert gan.main(run_words(whole.data, tmp_path / "run")) == 1
    assert f"{metric} is not finite at step 7, epoch 2; the last checkpoint is whole" in capsys.readouterr().err
    assert step_saved(tmp_path / "run") == 5


def test_a_gradient_that_is_not_finite_is_never_saved(whole, tmp_path, monkeypatch, capsys):
    original = gan.GAN.step

    def step(model, *batch):
        metrics = original(model, *batch)
        if int(model.steps) == 9:  # the last of epoch 2: no later loss would show it
            next(model.generator.parameters()).data[0, 0] = torch.nan
        return metrics

    monkeypatch.setattr(gan.GAN, "step", step)
    assert gan.main(run_words(whole.data, tmp_path / "run")) == 1
    message = "state.model.generator.project.weight holds numbers that are not finite at step 10, epoch 2"
    assert message in capsys.readouterr().err
    saved = gan.load_checkpoint(tmp_path / "run/checkpoints/last.pt")
    assert saved["progress"]["step"] == 5
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())


def untrained(*words: str) -> gan.GAN:
    """What has a run's warnings."""
    return gan.GAN(gan.config_from([*TOY, "--seed", "0", *words]))


def history(count, **values):
    return [{"step": 400 * (i + 1), "d_loss": 0.1, "g_loss": 0.7, "diversity": 0.9} | values for i in range(count)]


@pytest.mark.parametrize(
    ("loss", "values", "word"),
    [
        ("ls", {"d_loss": 0.01, "g_loss": 0.9}, "D has won"),
        ("bce", {"d_loss": 0.05, "g_loss": 4.0}, "D has won"),
        ("ls", {"diversity": 0.1}, "the samples hardly differ"),
        ("ls", {"d_accuracy_seen": 0.9, "d_accuracy_unseen": 0.7}, "D knows its training images by heart"),
    ],
)
def test_a_warning_comes_once_each_time_a_trouble_begins(loss, values, word):
    rows, begun, model = [], [], untrained("--loss", loss)
    for row in history(6) + history(8, **values) + history(4) + history(8, **values):
        rows.append(row | {"step": 400 * (len(rows) + 1)})
        before = model.warnings(rows[:-1])
        new = [warning for warning in model.warnings(rows) if warning not in before]
        begun += [(len(rows), warning) for warning in new]
    assert [epoch for epoch, _ in begun] == [9, 21]  # three epochs of 400 steps after 6, and after 18
    assert all(word in warning for _, warning in begun)


def test_d_is_not_said_to_know_images_by_heart_where_it_may_not():
    assert not untrained().warnings(history(9, d_accuracy_seen=0.9, d_accuracy_unseen=0.8))
    assert not untrained().warnings(history(9, d_accuracy_seen=0.9, d_accuracy_unseen=""))  # nothing is unseen


def test_a_run_that_begins_grey_is_not_warned_of():
    assert not untrained().warnings(history(2, diversity=0.01))
    tiny_epochs = [row | {"step": i} for i, row in enumerate(history(300, diversity=0.01))]
    assert not untrained().warnings(tiny_epochs)


def test_diversity_tells_samples_that_are_alike_from_samples_that_are_dull():
    """By the classical split of a sum of squares: between the images, and of their mean image over its pixels."""
    images = pictures(200).astype(np.float64)
    images[:, 2:6, 2:6] *= 0.3  # a mean image that is not flat
    vivid = images.astype(np.uint8)
    about = vivid.mean((0, 1, 2))
    of_all = ((vivid - about) ** 2).sum()
    of_mean = len(vivid) * ((vivid.mean(0) - about) ** 2).sum()
    assert gan.share_between(vivid) == pytest.approx((of_all - of_mean) / of_all, rel=1e-4)

    data = gan.Images(torch.from_numpy(vivid), None, ())
    dull = (100 + vivid / 8).round().astype(np.uint8)
    assert gan.diversity(dull, data) == pytest.approx(1, abs=0.01)
    assert gan.diversity(np.repeat(vivid[:1], 64, 0), data) == 0
    nearly_alike = (vivid[:1] * 0.9 + vivid[:64] * 0.1).astype(np.uint8)
    assert gan.diversity(nearly_alike, data) < diagnosis.COLLAPSED / 4
    assert gan.diversity(vivid[..., 0], data) == pytest.approx(1, abs=0.1)  # grey images have no last axis


def test_the_warning_is_in_the_table_and_on_the_screen(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(diagnosis, "LASTING", 5)
    monkeypatch.setattr(diagnosis, "COLLAPSED", 100)
    words = run_words(whole.data, tmp_path / "run")
    words[words.index("--epochs") + 1] = "5"
    assert gan.main(words) == 0
    assert capsys.readouterr().out.count("warning: epoch 3/5: the samples hardly differ") == 1
    with open(tmp_path / "run/epochs.csv", newline="", encoding="utf-8") as file:
        warnings = [row["warning"] for row in csv.DictReader(file)]
    assert [bool(warning) for warning in warnings] == [False, False, True, False, False]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),  # on Windows
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_is_advice_and_a_smaller_batch_goes_on(whole, tmp_path, monkeypatch, capsys, error):
    original = gan.GAN.step

    def step(model, real, labels):
        if len(real) > 4:
            raise error
        return original(model, real, labels)

    monkeypatch.setattr(gan.GAN, "step", step)
    words = run_words(whole.data, tmp_path / "run")
    words[words.index("--batch-size") + 1] = "16"
    assert gan.main(words) == 2
    said = capsys.readouterr().err
    assert "--batch-size 16: not enough memory on cpu: try a lower --batch-size, --image-size or --width-*; " in said
    advised = shlex.split(said.partition("rollnumber_04.py --resume")[2])
    assert gan.main(["--resume", *advised, "--batch-size", "4", "--epochs", "1"]) == 0
