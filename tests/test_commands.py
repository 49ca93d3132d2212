"""The real command at toy size: everything it writes is opened, resumed, drawn from, and refused when it is wrong."""

import contextlib
import csv
import io
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import PATIENCE, ROOT, TOY, assert_same, command, pictures, save_all
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rollnumber_04 as gan

METRICS = ["d_loss", "g_loss", "d_real", "d_fake", "d_accuracy_real", "d_accuracy_fake"]


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def checkpoint(out):
    """The last checkpoint of a run's folder."""
    return gan.load_checkpoint(out / "checkpoints" / "last.pt")


def assert_same_state(*outs):
    """The last checkpoints of two runs hold the same: weights, averages, optimizers, random numbers, pools."""
    first, second = map(checkpoint, outs)
    for part in ("model", "optimizers", "ranks"):
        assert_same(first[part], second[part])


@pytest.fixture(scope="module", autouse=True)
def short_rows():
    """A row of log.csv for every three steps, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "LOG_EVERY", 3)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs of four steps on two classes; its folder, and what it printed and complained of."""
    folder = tmp_path_factory.mktemp("trained")
    save_all(pictures(16), folder / "data" / "cat")
    save_all(pictures(17, seed=1), folder / "data" / "dog")
    words = [*TOY, "--data", folder / "data", "--epochs", 2, "--save-every", 1, "--seed", 5, "--out", folder / "run"]
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        assert gan.main([*map(str, words)]) == 0
    return folder / "run", said.getvalue(), complained.getvalue()


def test_a_run_writes_the_whole_contract(trained):
    out, said, complained = trained
    assert complained == ""
    for line in (
        "device     cpu",
        "33 colour images of 8×8 in 2 classes",
        "networks   G ",
        "seed       5",
        f"output     {out}",
    ):
        assert line in said
    assert "epoch 2/2  d_loss" in said
    options = json.loads((out / "options.json").read_text())
    assert (options["seed"], options["batch_size"], options["image_size"], options["precision"]) == (5, 8, 8, "fp32")
    assert options["versions"]["torch"] == torch.__version__
    assert options["data_fingerprint"]

    log = rows(out / "log.csv")
    assert [int(row["step"]) for row in log] == [3, 4, 7, 8]
    assert list(log[0]) == ["step", "epoch", *METRICS, "images_per_s"]
    epochs = rows(out / "epochs.csv")
    assert [int(row["epoch"]) for row in epochs] == [1, 2]
    for name in ("d_loss", "g_loss", "d_real", "d_fake"):
        mean = (3 * float(log[2][name]) + float(log[3][name])) / 4
        assert float(epochs[1][name]) == pytest.approx(mean)
    assert 0 < float(epochs[1]["diversity"]) < 2

    sheet = 8 * (64 + 2) + 2
    for epoch in (1, 2):
        with Image.open(out / "samples" / f"epoch_{epoch:04d}.png") as image:
            assert image.size == (sheet, sheet)
    with Image.open(out / "samples" / "progress.gif") as gif:
        assert gif.n_frames == 2
    for name in ("generator", "discriminator"):
        pictures_of = [out / "plots" / f"{name}_loss.png"]
        pictures_of += [out / "weights" / f"{name}_epoch_{epoch:04d}.png" for epoch in (0, 1, 2)]
        for path in pictures_of:
            with Image.open(path) as image:
                assert min(image.size) > 300
                assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["epoch_0001.pt", "epoch_0002.pt", "last.pt"]

    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/d_loss")] == [3, 4, 7, 8]
    assert board.Scalars("train/g_loss")[-1].value == pytest.approx(float(log[-1]["g_loss"]))
    assert [event.step for event in board.Images("samples/fixed_noise")] == [4, 8]


def test_a_checkpoint_is_plain_and_a_generator_is_small(trained):
    out = trained[0]
    saved = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    parts = "format kind channels classes architecture options model optimizers progress ranks log epochs"
    assert set(saved) == set(parts.split())
    assert (saved["progress"]["epoch"], saved["progress"]["step"]) == (2, 8)
    with safe_open(out / "generator.safetensors", "pt") as file:
        assert json.loads(file.metadata()["architecture"])["generator"]["image_size"] == 8
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    averaged = {name: t for name, t in saved["model"].items() if name.startswith("averages.")}
    assert averaged.keys() == {f"averages.{name}" for name in weights}
    assert all(torch.equal(averaged[f"averages.{name}"], weight) for name, weight in weights.items())


def test_the_sheet_is_what_generate_draws_from_the_same_seed(trained, tmp_path):
    out = trained[0]
    drawn = {}
    for model in (out / "generator.safetensors", out / "checkpoints" / "last.pt"):
        path = tmp_path / f"{model.stem}.png"
        assert gan.main(["generate", str(model), "--seed", "5", "--out", str(path)]) == 0
        drawn[model.suffix] = np.asarray(Image.open(path))
    assert (drawn[".safetensors"] == drawn[".pt"]).all()
    assert (drawn[".pt"] == np.asarray(Image.open(out / "samples" / "epoch_0002.png"))).all()


def test_generate_writes_arrays_and_folders(trained, tmp_path, capsys):
    out = trained[0]
    model = str(out / "generator.safetensors")
    assert gan.main(["generate", model, "--count", "130", "--seed", "2", "--out", str(tmp_path / "a.npz")]) == 0
    assert gan.main(["generate", model, "--count", "3", "--seed", "2", "--out", str(tmp_path / "deep" / "b")]) == 0
    with np.load(tmp_path / "a.npz") as archive:
        images = archive["images"]
    assert images.shape == (130, 8, 8, 3)
    files = sorted((tmp_path / "deep" / "b").iterdir())
    assert [file.name for file in files] == ["000000.png", "000001.png", "000002.png"]
    assert all((np.asarray(Image.open(file)) == image).all() for file, image in zip(files, images, strict=False))
    assert (gan.load_generator(model).generate(5, seed=2) == images[:5]).all()
    assert gan.load_images(tmp_path / "a.npz").pixels.shape == (130, 8, 8, 3)  # what it writes, it can train on
    capsys.readouterr()


def test_generate_refuses(trained, tmp_path, fails):
    out = trained[0]
    model = out / "generator.safetensors"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    (tmp_path / "junk").write_bytes(os.urandom(1000))
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    nothing = tmp_path / "x.png"
    assert "x.jpg: must end in .png or .npz" in fails("generate", model, "--out", tmp_path / "x.jpg")
    assert "full: the folder is not empty" in fails("generate", model, "--out", tmp_path / "full")
    assert "no-model: there is no such model" in fails("generate", tmp_path / "no-model", "--out", nothing)
    assert "junk: neither a .safetensors" in fails("generate", tmp_path / "junk", "--out", nothing)
    assert "other.pt: not a checkpoint" in fails("generate", tmp_path / "other.pt", "--out", nothing)
    (tmp_path / "folder.png").mkdir()
    assert "folder.png: is a folder" in fails("generate", model, "--out", tmp_path / "folder.png")
    message = fails("generate", model, "--out", tmp_path / "x.npz", "--count", 10**8, "--device", "meta")
    assert "--device meta: is none of auto, cpu" in message
    assert "--count: 0 is not" in fails("generate", model, "--count", 0, "--out", nothing)
    assert "required: --out" in fails("generate", model)
    assert not nothing.exists()
    assert (tmp_path / "full" / "mine.txt").read_text() == "kept"


# ------------------------------------------------------------------------------------------------------------ resume


def test_a_resumed_run_is_the_uninterrupted_run(trained, tmp_path, capsys):
    out, again = trained[0], tmp_path / "run"
    words = [*TOY, "--data", out.parent / "data", "--save-every", 1, "--seed", 5, "--epochs", 1, "--out", again]
    assert gan.main([*map(str, words)]) == 0
    assert gan.main(["--resume", "--out", str(again), "--epochs", "2"]) == 0  # every other option is the checkpoint's
    assert "note: --epochs 1 in the checkpoint, 2 now" in capsys.readouterr().out

    assert_same_state(out, again)
    for name in ("log.csv", "epochs.csv"):
        speeds = ("images_per_s", "seconds")
        tables = [
            [{k: v for k, v in row.items() if k not in speeds} for row in rows(run / name)] for run in (out, again)
        ]
        assert tables[0] == tables[1]
    for name in ("samples/epoch_0001.png", "samples/epoch_0002.png", "plots/generator_loss.png"):
        assert (out / name).read_bytes() == (again / name).read_bytes()
    for run in (out, again):
        assert gan.main(["--resume", str(run / "checkpoints" / "last.pt")]) == 0
        assert "nothing to do" in capsys.readouterr().out


def test_resume_refuses_other_shapes_and_takes_other_rates(trained, tmp_path, capsys):
    out = trained[0]
    last = str(out / "checkpoints" / "last.pt")
    assert gan.main(["--resume", last, "--width-g", "8"]) == 2
    assert "--width-g 8: the checkpoint" in (message := capsys.readouterr().err)
    assert "--width-g 4" in message
    save_all(np.repeat(pictures(16)[..., :1], 3, axis=3), tmp_path / "grey")
    assert gan.main(["--resume", last, "--data", str(tmp_path / "grey"), "--epochs", "3"]) == 2
    assert "its images have 3 channels, those of the data 1" in capsys.readouterr().err
    config = gan.config_from(["--resume", last, "--lr-g", "0.001", "--epochs", "3"])
    assert "note: --lr-g 0.0002 in the checkpoint, 0.001 now" in capsys.readouterr().out
    optimizers = gan.prepare(config, gan.GAN, torch.device("cpu")).gan.optimizers
    assert optimizers["generator"].param_groups[0]["lr"] == 0.001
    assert optimizers["discriminator"].param_groups[0]["lr"] == 0.0002
    assert optimizers["generator"].state_dict()["state"][0]["step"] == 8


def test_saved_options_come_back_as_they_were(tmp_path):
    lowest = "--beta1 0 --beta2 0 --ema 0 --seed 0 --class-weight 0 --flip --multitask --data a=b --image-size 8"
    for words in (lowest.split(), ["--lr-g", "1e-7", "--skip-unreadable", "--launch", "kernels", "--no-flip"]):
        config = gan.replace(gan.config_from(words), seed=0, image_size=8)  # which a run's data decides
        saved = json.loads(json.dumps(gan.to_dict(config)))
        assert gan.to_dict(gan.config_of({"options": saved}, tmp_path, gan.GAN)) == saved


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "adamw"])
def test_a_run_at_the_bounds_of_its_options_goes_on_exactly(class_folders, tmp_path, optimizer):
    lowest = "--beta1 0 --ema 0 --seed 0 --sample-every 9 --precision fp32 --optimizer".split()
    same = [*TOY, "--data", str(class_folders), *lowest, optimizer, "--save-every", "1"]
    whole = gan.train(gan.config_from([*same, "--epochs", "2", "--out", str(tmp_path / "whole")]))
    gan.train(gan.config_from([*same, "--epochs", "1", "--out", str(tmp_path / "parts")]))
    parts = gan.train(gan.config_from(["--resume", str(tmp_path / "parts"), "--epochs", "2"]))
    assert_same_state(whole, parts)
    again = gan.train(gan.config_from(["--resume", str(parts), "--epochs", "3", "--beta1", "0.5"]))
    assert checkpoint(again)["progress"]["epoch"] == 3


def test_resume_keeps_out_of_other_folders(trained, tmp_path, capsys):
    out = trained[0]
    last = out / "checkpoints" / "last.pt"
    (tmp_path / "loose.pt").write_bytes(last.read_bytes())
    (tmp_path / "other" / "checkpoints").mkdir(parents=True)
    for words, message in (
        (["--resume", tmp_path / "loose.pt"], "lies in no run's folder; name one with --out"),
        (["--resume", last, "--out", tmp_path / "other"], "already holds a run"),
        (["--resume", last, "--download", "mnist"], "--download: does not go with --resume"),
        (["--resume", last, "--dry-run"], "--dry-run: does not go with --resume"),
    ):
        assert gan.main([*map(str, words), "--epochs", "9"]) == 2
        assert message in capsys.readouterr().err
    assert list((tmp_path / "other").rglob("*.*")) == []
    words = ["--resume", tmp_path / "loose.pt", "--out", tmp_path / "branch", "--epochs", "3"]
    assert gan.main([*map(str, words)]) == 0  # a branch of the run, in a folder of its own
    assert [row["epoch"] for row in rows(tmp_path / "branch" / "epochs.csv")] == ["1", "2", "3"]
    capsys.readouterr()


def test_a_checkpoint_from_another_kind_of_device(trained, tmp_path, capsys):
    saved = checkpoint(trained[0])
    saved["ranks"][0]["random"] |= {"device": "cuda", "noise": torch.zeros(16, dtype=torch.uint8)}
    torch.save(saved, tmp_path / "gpu.pt")
    config = gan.config_from(["--resume", str(tmp_path / "gpu.pt"), "--out", str(tmp_path / "run"), "--epochs", "3"])
    assert gan.prepare(config, gan.GAN, torch.device("cpu")).step == 8
    assert "note: the checkpoint is from another kind of device" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--flip", "--precision", "bf16"], ["--optimizer", "sgd", "--loss", "bce"]])
def test_resume_is_exact_with_other_options_too(tmp_path, words):
    data = save_all(pictures(24), tmp_path / "data")
    same = [*TOY, "--data", str(data), "--seed", "1", "--sample-every", "9", *words]
    whole = gan.train(gan.config_from([*same, "--epochs", "2", "--out", str(tmp_path / "whole")]))
    gan.train(gan.config_from([*same, "--epochs", "1", "--out", str(tmp_path / "parts")]))
    assert_same_state(whole, gan.train(gan.config_from(["--resume", str(tmp_path / "parts"), "--epochs", "2"])))


def test_a_run_says_what_to_do_next_and_its_commands_work(class_folders, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs of mine" / "one"
    words = [*TOY, "--data", str(class_folders), "--multitask", "--out", str(out)]
    assert gan.main([*words, "--epochs", "1"]) == 0
    ended = capsys.readouterr().out.split("done ")[1].splitlines()
    said = {title: rest for title, _, rest in (line.partition("  ") for line in ended[1:])}
    said = {title: rest.strip() for title, rest in said.items()}
    sheet, gif = out / "samples" / "epoch_0001.png", out / "samples" / "progress.gif"
    assert said["look at"] == f"'{sheet}'; how it came: '{gif}'"
    assert sheet.exists() and gif.exists()
    assert shlex.split(said["curves"]) == ["tensorboard", "--logdir", str(out.parent)]
    for title in ("generate", "classify", "go on"):
        python, script, *words = shlex.split(said[title].replace("IMAGE", shlex.quote(str(sheet))))
        assert (python, script) == ("python", "rollnumber_04.py")
        assert gan.main(words) == 0, title
    assert (tmp_path / "samples.png").exists()
    assert rows(out / "epochs.csv")[-1]["epoch"] == "2"


def test_another_batch_size_ends_with_the_epoch_too(class_folders, tmp_path):
    """The rest of an epoch may make fewer steps of the new size than the whole of it less those that were done."""
    out = ["--out", str(tmp_path / "run")]
    assert gan.main([*TOY, "--data", str(class_folders), "--iterations", "1", *out]) == 0  # 8 of 32 images
    assert gan.main(["--resume", *out, "--epochs", "2", "--batch-size", "10"]) == 0
    assert [(row["epoch"], row["step"]) for row in rows(tmp_path / "run" / "epochs.csv")][1:] == [
        ("1", "3"),
        ("2", "6"),
    ]
    progress = checkpoint(tmp_path / "run")["progress"]
    assert (progress["epoch"], progress["seen"], progress["step"]) == (2, 0, 6)


def test_resume_says_what_is_missing(tmp_path, capsys):
    for words, message in (
        (["--resume"], "--resume: name the run's folder with --out"),
        (["--resume", "--out", str(tmp_path / "no")], "--resume: there is no checkpoint"),
        (["--resume", str(tmp_path)], "--resume: there is no checkpoint"),
    ):
        assert gan.main(words) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "half.pt").write_bytes(b"PK\3\4 half of a file")
    assert gan.main(["--resume", str(tmp_path / "half.pt")]) == 2
    assert "half.pt: not a whole checkpoint" in capsys.readouterr().err


def test_a_run_is_not_overwritten(trained, capsys, tmp_path):
    out = trained[0]
    (tmp_path / "file").write_text("mine")
    assert gan.main(["--out", str(tmp_path / "file" / "run"), "--dry-run", *TOY]) == 2
    assert "file is not a folder that can be written to" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
    before = (out / "log.csv").read_bytes()
    assert gan.main(["--out", str(out), "--epochs", "1"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (out / "log.csv").read_bytes() == before


def test_a_grey_run_end_to_end_with_sparse_sheets_and_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "KEPT", 2)
    grey = np.repeat(pictures(16)[..., :1], 3, axis=3)
    words = ["--data", str(save_all(grey, tmp_path / "data")), "--epochs", "4", "--save-every", "1"]
    words += ["--sample-every", "3", "--width-g", "1", "--width-d", "1", "--out", str(tmp_path / "run")]
    out = gan.train(gan.config_from([*TOY, *words]))
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["epoch_0003.pt", "epoch_0004.pt", "last.pt"]
    assert [p.name for p in gan.numbered_files(out / "samples", "epoch", ".png", 4)] == [
        "epoch_0003.png",
        "epoch_0004.png",
    ]
    drawn = [f"generator_epoch_{epoch:04d}.png" for epoch in (0, 1, 2, 4)]
    assert sorted(p.name for p in (out / "weights").glob("generator*")) == drawn
    assert gan.load_generator(out / "generator.safetensors").generate(3).shape == (3, 8, 8)
    with Image.open(out / "samples" / "epoch_0004.png") as sheet:
        assert sheet.mode == "L"


def test_epochs_are_ordered_by_number(tmp_path):
    for epoch in (1, 9990, 10000):
        (tmp_path / f"epoch_{epoch:04d}.pt").touch()
    (tmp_path / "epoch_best.pt").touch()
    assert [p.stem for p in gan.numbered_files(tmp_path, "epoch", ".pt", 10**6)] == [
        "epoch_0001",
        "epoch_9990",
        "epoch_10000",
    ]
    assert [p.stem for p in gan.numbered_files(tmp_path, "epoch", ".pt", 9990)] == ["epoch_0001", "epoch_9990"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    gan.write_whole(path, b"first")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gan.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        gan.write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0.0 s"), (59.97, "1 min 00 s"), (119.7, "2 min 00 s"), (3599.9, "1 h 00 min"), (7620, "2 h 07 min")],
)
def test_clock(seconds, words):
    assert gan.clock(seconds) == words


def test_the_time_that_is_left_counts_the_pictures(tmp_path, monkeypatch, capsys):
    draw_all, perf_counter, drawn = gan.draw_all, time.perf_counter, []
    monkeypatch.setattr(gan, "draw_all", lambda *given: (drawn.append(1), draw_all(*given)))
    monkeypatch.setattr(time, "perf_counter", lambda: perf_counter() + 100 * len(drawn))  # each time takes 100 s
    monkeypatch.setattr(gan, "clock", lambda seconds: f"{seconds:.1f} s")
    assert gan.main([*TOY, "--iterations", "3", "--sample-every", "1", "--out", str(tmp_path / "run")]) == 0
    left = [float(found) for found in re.findall(r"([\d.]+) s left", capsys.readouterr().out)]
    assert len(left) == 3
    assert left[0] >= 2 * 100
    assert left[1] >= 100
    assert left[2] == 0


@pytest.mark.parametrize(("epochs", "further"), [("1", 2), ("5", 5)])
def test_a_dry_run_names_epochs_that_are_not_done(tmp_path, capsys, epochs, further):
    save_all(pictures(16), tmp_path / "data")
    words = [*TOY, "--data", str(tmp_path / "data"), "--epochs", epochs, "--batch-size", "16", "--dry-run"]
    assert gan.main([*words, "--out", str(tmp_path / "run")]) == 0
    assert f"--epochs {further}\n" in capsys.readouterr().out
    assert gan.main(["--resume", "--out", str(tmp_path / "run"), "--epochs", str(further)]) == 0
    assert rows(tmp_path / "run" / "epochs.csv")[-1]["epoch"] == str(further)


# ------------------------------------------------------------------------------------------------- the command itself


def test_dry_run_on_the_built_in_data_writes_everything(tmp_path):
    done = command("--dry-run", "--out", tmp_path / "run", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("training on the built-in shapes")
    assert "G 370,624 and D 167,872 parameters" in done.stdout
    for name in (
        "options.json log.csv epochs.csv generator.safetensors samples/epoch_0001.png samples/progress.gif "
        "plots/generator_loss.png plots/discriminator_loss.png weights/generator_epoch_0001.png "
        "weights/discriminator_epoch_0001.png checkpoints/last.pt checkpoints/epoch_0001.pt"
    ).split():
        assert (tmp_path / "run" / name).stat().st_size > 100, name
    assert [row["step"] for row in rows(tmp_path / "run" / "log.csv")] == ["1"]
    assert any((tmp_path / "run" / "tensorboard").iterdir())


def read_terminal(here: int, *until: bytes) -> bytes:
    """What a terminal shows: to where it has shown all that is waited for, or to the end of the program behind it."""
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal without a program behind it ends
        while not (until and all(words in shown for words in until)) and (piece := os.read(here, 1 << 16)):
            shown += piece
    return shown


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals and signals are POSIX's")
def test_a_terminal_shows_a_bar_and_ctrl_c_says_how_to_go_on(tmp_path):
    import fcntl
    import pty
    import termios

    save_all(pictures(64), tmp_path / "data")
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))  # a bar needs a width
    line = [sys.executable, ROOT / "rollnumber_04.py", "--data", tmp_path / "data", "--out", tmp_path / "run", *TOY]
    process = subprocess.Popen([*line, "--epochs", "100000"], stdout=there, stderr=there)
    os.close(there)
    hangs = threading.Timer(PATIENCE, process.kill)
    hangs.start()
    try:
        shown = read_terminal(here, b"d_loss=", b"img/s")
        process.send_signal(signal.SIGINT)
        shown += read_terminal(here)
        process.wait(PATIENCE)
    finally:
        hangs.cancel()
        process.kill()
    text = shown.decode(errors="replace")
    assert process.returncode == 130
    assert "d_loss=" in text
    assert "Traceback" not in text
    assert f"with: python rollnumber_04.py --resume --out {tmp_path / 'run'}" in text
    assert "interrupted at step " in text
    assert checkpoint(tmp_path / "run")["progress"]["step"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--epochs", "0"], "--epochs: 0 is not a whole number from 1"),
        (["--epochs", "ten"], "--epochs: 'ten' is not a whole number"),
        (["--batch-size", "1"], "--batch-size: 1 is not a whole number from 2"),
        (["--lr-g", "0"], "--lr-g: 0.0 is not a number above 0, up to 10"),
        (["--lr-d", "nan"], "--lr-d: nan is not a number"),
        (["--beta1", "1"], "--beta1: 1.0 is not a number"),
        (["--seed", "-1"], "--seed: -1 is not a whole number"),
        (["--loss", "hope"], "--loss: 'hope' is not ls or bce"),
        (["--image-size", "33"], "--image-size 33"),
        (["--device", "abacus"], "--device abacus: is none of auto, cpu, cuda, cuda:1 … and mps"),
        (["--data", ""], "--data: is empty"),
        (["--device", "cpu:5"], "--device cpu:5: is none of auto"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
        (
            ["trian"],
            "trian: is no command; there are train, generate, interpolate, draw, evaluate, classify, export, explore",
        ),
    ],
)
def test_a_wrong_option_gets_one_sentence(fails, words, message):
    assert message in fails(*words)


def test_a_run_keeps_out_of_its_data(class_folders, monkeypatch, capsys):
    before = sorted(class_folders.rglob("*"))
    assert gan.main(["--data", str(class_folders), "--out", str(class_folders / "run"), *TOY]) == 2
    assert "lies inside the data" in capsys.readouterr().err
    monkeypatch.chdir(class_folders)
    assert gan.main(["--data", ".", *TOY]) == 2  # the default folder is runs/ in this one
    assert sorted(class_folders.rglob("*")) == before


def test_a_run_goes_on_from_another_folder(class_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(class_folders)
    assert gan.main(["--data", ".", "--out", str(tmp_path / "run"), "--epochs", "1", *TOY]) == 0
    monkeypatch.chdir(tmp_path)
    assert gan.main(["--resume", "run", "--epochs", "2"]) == 0
    assert "note: the data" not in capsys.readouterr().out


def test_two_runs_cannot_take_one_folder(tmp_path):
    def refused(is_new, message):
        with pytest.raises(gan.UserError, match=message), gan.open_run_folder(tmp_path / "run", is_new):
            raise AssertionError("it was let in")

    with gan.open_run_folder(tmp_path / "run", is_new=True):
        for is_new in (True, False):
            refused(is_new, "another run is writing to it")
    with gan.open_run_folder(tmp_path / "run", is_new=True):  # the first died before it saved anything
        (tmp_path / "run" / "checkpoints" / "last.pt").touch()
    refused(True, "another run has just taken it")
    with gan.open_run_folder(tmp_path / "run", is_new=False):
        assert (tmp_path / "run" / "samples").is_dir()


def test_too_little_memory_is_a_sentence(capsys, monkeypatch):
    def greedy(*arguments, **options):
        torch.empty(1 << 50)

    for failure in (greedy, lambda *arguments, **options: np.empty(1 << 50)):
        monkeypatch.setattr(gan, "train", failure)
        assert gan.main([]) == 2
        assert "not enough memory; lower --image-size, --batch-size" in (message := capsys.readouterr().err)
        assert message.count("\n") == 1


def test_hostile_generators(trained, tmp_path, fails):
    def wrapped(architecture):
        return json.dumps({"generator": architecture})

    out = trained[0]
    with safe_open(out / "generator.safetensors", "pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    good = json.loads(metadata["architecture"])["generator"]
    for architecture in (
        "[" * 100_000,
        "[]",
        "{}",
        '{"generator": []}',
        *(wrapped(good | change) for change in ({"width": 5}, {"image_size": 8.0}, {"image_size": 9}, {"more": 1})),
        *(wrapped(good | change) for change in ({"channels": 5}, {"latent_dim": 2**70}, {"width": 0})),
        wrapped(good | {"image_size": 1792, "width": 1024, "latent_dim": 4096}),  # a terabyte, if it were made
    ):
        path = tmp_path / "hostile.safetensors"
        save_file(weights, path, metadata | {"architecture": architecture})
        assert "hostile.safetensors: " in fails("generate", path, "--out", tmp_path / "x.png")


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("module", ["numpy", "torch.nn"])
def test_ctrl_c_while_it_starts_is_no_traceback(tmp_path, module):
    """When it begins to import a module, of which a finder is told that Python loads before it begins the script."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class CtrlC:\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, CtrlC())\n"
    )
    line = [sys.executable, ROOT / "rollnumber_04.py", "--help"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=PATIENCE, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.fixture
def unread():
    """The writing end of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.skipif(os.name != "posix", reason="shells of other systems")
@pytest.mark.parametrize(
    "ending", [">/dev/full", "", *(pytest.param(end, marks=pytest.mark.slow) for end in ("2>&-", ">&-", "| head -n 1"))]
)
def test_a_run_goes_on_when_nobody_listens(class_folders, tmp_path, unread, ending):
    if ending == ">/dev/full" and not os.path.exists("/dev/full"):
        pytest.skip("a device of Linux")
    words = [*TOY, "--data", class_folders, "--epochs", "2", "--out", tmp_path / "run"]
    line = shlex.join(map(str, [sys.executable, ROOT / "rollnumber_04.py", *words]))
    streams = dict(stdout=subprocess.DEVNULL if ending else unread, stderr=subprocess.PIPE)
    done = subprocess.run(f"{line} {ending}", shell=True, text=True, check=False, timeout=PATIENCE, **streams)
    assert done.stderr == ""
    assert checkpoint(tmp_path / "run")["progress"]["epoch"] == 2


def test_a_reader_that_goes_away_is_no_traceback(unread):
    line = [sys.executable, ROOT / "rollnumber_04.py", "--help"]
    done = subprocess.run(line, stdout=unread, stderr=subprocess.PIPE, text=True, check=False, timeout=PATIENCE)
    assert done.stderr == ""


def test_importing_prints_nothing_and_loads_nothing_heavy(tmp_path):
    code = "import sys, rollnumber_04; print(*{'matplotlib', 'torchvision', 'tensorboard'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_the_readmes_commands_are_commands(monkeypatch):
    class Parsed(Exception):
        """The command line was understood."""

    def parse(parser, words):
        super(gan.Parser, parser).parse_args(words)
        raise Parsed

    monkeypatch.setattr(gan.Parser, "parse_args", parse)
    command = re.compile(r"    (?:python|torchrun) .*?(rollnumber_04\.py|labs\.\w+)\b(.*)")
    found = [match.groups() for line in (ROOT / "Readme.txt").open(encoding="utf-8") if (match := command.match(line))]
    assert len(found) >= 20
    for program, words in found:
        with pytest.raises(Parsed):
            gan.main(shlex.split(words, comments=True), program.removesuffix(".py"))


def test_a_run_goes_on_from_python_with_its_own_options(tmp_path, class_folders, capsys):
    words = [*TOY, "--data", str(class_folders), "--multitask", "--iterations", "2", "--out", str(tmp_path / "run")]
    assert gan.main(words) == 0
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    assert gan.train(gan.Config(resume=last, iterations=4)) == tmp_path / "run"
    assert "the data is not what" not in capsys.readouterr().out
    saved = gan.load_checkpoint(last)
    assert saved["progress"]["step"] == 4
    assert saved["options"]["batch_size"] == 8
    assert saved["options"]["data"] == str(class_folders)


def test_of_two_resumes_at_once_the_second_rewinds_nothing(tmp_path, class_folders, monkeypatch, capsys):
    out = tmp_path / "run"
    assert gan.main([*TOY, "--data", str(class_folders), "--epochs", "1", "--out", str(out)]) == 0
    prepare = gan.prepare

    def slow_to_prepare(*arguments):
        run = prepare(*arguments)
        monkeypatch.setattr(gan, "prepare", prepare)
        assert gan.main(["--resume", "--out", str(out), "--epochs", "3"]) == 0  # another, meanwhile
        return run

    monkeypatch.setattr(gan, "prepare", slow_to_prepare)
    assert gan.main(["--resume", "--out", str(out), "--epochs", "2"]) == 2
    assert "last.pt: another run has just written it; resume again" in capsys.readouterr().err
    assert checkpoint(out)["progress"]["epoch"] == 3
