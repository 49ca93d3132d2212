"""The labs of the other handouts, each through its command line: runs, resuming, mistakes, and what models draw."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    LABS,
    PATIENCE,
    ROOT,
    TOY,
    assert_same,
    command,
    pictures,
    save_all,
    save_networks,
    whole_and_resumed,
    write_idx,
)
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rollnumber_04 as gan
from extras import records
from labs import blocks, conv, emoji, fashion, mnist

NAMES = ("ant", "bee", "cat")
TOY_LAB = TOY[2:]  # most labs' images are of 28×28
DATA = {"labs.emoji": "emoji", "labs.fashion": "FashionMNIST"}  # of others MNIST


@pytest.fixture
def no_plots(monkeypatch):
    """See `skip_plots`."""
    skip_plots(monkeypatch)


def skip_plots(monkeypatch):
    """Let curves, pictures of weights and TensorBoard's, which take longer than a small run, not be drawn."""
    for module, name in ((gan, "plot_curve"), (gan, "plot_weights")):
        monkeypatch.setattr(module, name, lambda *arguments: None)
    monkeypatch.setattr(records, "pictures", lambda *arguments: [])


@pytest.fixture
def refused(capsys, tmp_path):
    """Call a lab with a command line that must fail; returns its one sentence after checking that it is one."""

    def call(kind, *words):
        out = tmp_path / "out-that-must-not-appear"
        assert gan.main([*map(str, words), "--out", str(out)], kind) == 2, words
        assert not out.exists()
        message = capsys.readouterr().err
        assert message.startswith(f"{kind}: ")
        assert message.count("\n") == 1
        return message

    return call


def train(kind, *words):
    """Train through a command line; returns the run's folder, which it names last."""
    words = [*map(str, words)]
    assert gan.main(words, kind) == 0
    return Path(words[words.index("--out") + 1])


def last(out):
    return gan.load_checkpoint(out / "checkpoints" / "last.pt")


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------- through the command line


@pytest.fixture(scope="module")
def real_formats(tmp_path_factory):
    """A few dozen images in the formats of the labs' data: MNIST's files, and palette images on transparency."""
    root, rng = tmp_path_factory.mktemp("labs"), np.random.default_rng(0)
    for name in ("MNIST", "FashionMNIST"):
        for split, count in (("train", 340), ("t10k", 20)):
            folder = root / name / "raw"
            write_idx(folder / f"{split}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), np.uint8))
            write_idx(folder / f"{split}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    (root / "emoji").mkdir()
    for i in range(40):
        image = Image.fromarray(rng.integers(0, 256, (72, 72, 4), np.uint8), "RGBA").quantize(32)
        image.save(root / "emoji" / f"{i:04d}.png")
    return root


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """78 images of three classes."""
    images = pictures(78, 28)
    for i, name in enumerate(NAMES):
        save_all(images[26 * i : 26 * i + 26], tmp_path_factory.getbasetemp() / "few" / name)
    return tmp_path_factory.getbasetemp() / "few"


@pytest.mark.parametrize("name", ["labs.mnist", "labs.fashion", "labs.blocks", "labs.conv", "labs.emoji"])
def test_each_lab_dry_runs_with_its_defaults(real_formats, tmp_path, name, capsys):
    data = real_formats / DATA.get(name, "MNIST")
    fewer = ["--batch-size", 16] if name == "labs.blocks" else []  # which are the largest networks
    out = train(name, "--data", data, "--dry-run", *fewer, "--out", tmp_path / "r")
    count = {"labs.conv": 340 + 20, "labs.emoji": 40}.get(name, 340)  # conv's are the training and the test images
    assert f"/{data.name}: {count} " in capsys.readouterr().out
    kind, options = gan.load_kind(name, name), json.loads((out / "options.json").read_text())
    for field in gan.fields(kind.Config):
        given = ("data", "image_size", "seed", "precision", *(("batch_size",) if fewer else ()))
        if field.name in kind.Config.without or not field.metadata["saved"]:
            assert field.name not in options
        elif field.name not in given:
            assert options[field.name] == field.default, field.name
    (row,) = rows(out / "log.csv")
    assert tuple(row) == ("step", "epoch", *kind.columns(kind.Config()), "images_per_s")
    assert ("d_accuracy_real" in row) == (name != "labs.fashion")  # whose scores have no middle
    assert all(math.isfinite(float(value)) for value in row.values())
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert board.Tags()["images"] == ["samples/fixed_noise"]
    generator = gan.load_generator(out / "generator.safetensors")
    assert type(generator).__module__ == name
    assert generator.generate(3).shape == ((3, 32, 32, 3) if name == "labs.emoji" else (3, 28, 28))
    counted = kind.Config().iterations
    assert (out / "samples" / ("iteration_000001.png" if counted else "epoch_0001.png")).exists()
    stem = "iteration_000001" if counted else "epoch_0001"
    assert {path.name for path in (out / "weights").iterdir()} >= {f"{n}_{stem}.png" for n in kind.networks}
    assert sorted(path.stem for path in (out / "plots").iterdir()) == ["discriminator_loss", "generator_loss"]


@pytest.mark.parametrize(("name", "words"), LABS)
def test_a_resumed_run_is_the_uninterrupted_run(name, words, few, tmp_path, no_plots, monkeypatch):
    monkeypatch.setattr(gan, "LOG_EVERY", 4)
    same = [*TOY_LAB, "--data", str(few), "--seed", "1", "--iterations", "10", "--sample-every", "3", *words.split()]
    whole, resumed = whole_and_resumed(name, same, tmp_path, crash_at=7)
    assert whole["progress"]["step"] == resumed["progress"]["step"] == 10
    assert_same_run(whole, resumed)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("labs.fashion", "--n-critic 3"),
        ("labs.conv", "--r1 1 --replay 12 --instance-noise 0.3 --label-smoothing 0.1 --translation"),
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="Windows sends itself no signals")
def test_resume_is_exact_within_an_epoch(name, words, few, tmp_path, no_plots, monkeypatch, capsys):
    """A run that Ctrl-C stops after step 7, within an epoch and between two rows of each table, and one whole."""
    monkeypatch.setattr(gan, "LOG_EVERY", 4)
    same = [*TOY_LAB, "--data", few, "--seed", 1, "--sample-every", 6, "--iterations", 10, *words.split(), "--out"]
    whole = last(train(name, *same, tmp_path / "whole"))
    model = gan.load_kind(name, name)
    step = model.step

    def interrupted(self, *batch):
        if int(self.steps) == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(model, "step", interrupted)
        assert gan.main([*map(str, same), str(tmp_path / "parts")], name) == 130
    assert "interrupted at step 7" in capsys.readouterr().err
    saved = last(tmp_path / "parts")["progress"]
    assert (saved["step"], saved["waiting"]) == (7, 1)
    assert 0 < saved["seen"] < 72
    assert_same_run(whole, last(train(name, "--resume", "--out", tmp_path / "parts")))


def assert_same_run(whole, resumed):
    """Two checkpoints hold the same networks, averages, optimizers, random numbers, pools and rows."""
    for part in ("model", "optimizers", "ranks"):
        assert_same(resumed[part], whole[part], part)
    for table in ("log", "epochs"):
        for first, second in zip(whole[table], resumed[table], strict=True):
            times = dict.fromkeys(("images_per_s", "seconds"))
            assert first | times == second | times


def test_the_handouts_settings():
    """What the handouts fix, beside the networks, under their names for it."""
    config = emoji.Config()
    assert (config.lr, config.beta1, config.beta2, config.d_train_iters) == (3e-4, 0.5, 0.999, 1)
    assert (config.batch_size, config.iterations, config.intervals[0], config.image_size) == (32, 10_000, 200, 32)
    assert emoji.PENALTY_WEIGHT == 10
    config = fashion.Config()
    assert (config.lambda_gp, config.n_critic, config.d_steps, config.image_size) == (10, 5, 5, 28)
    config = conv.Config()
    assert (config.epochs, config.beta1, config.loss, config.image_size) == (None, 0.5, "bce", 28)
    assert (config.r1, config.label_smoothing, config.replay, config.instance_noise) == (0, 0, 0, 0)
    for lab in (mnist, blocks):
        assert (lab.Config().loss, lab.Config().iterations) == ("bce", None)


def test_a_flag_that_is_given_wins_over_the_labs_default():
    config = gan.config_from("--epochs 3 --lr 1e-3 --d-train-iters 2".split(), emoji.EmojiGAN)
    assert (config.iterations, config.epochs, config.intervals) == (None, 3, (1, 10))
    assert (config.lr, config.d_steps) == (1e-3, 2)
    config = gan.config_from("--iterations 500 --sample-every 50".split(), emoji.EmojiGAN)
    assert (config.iterations, config.intervals) == (500, (50, 500))
    config = gan.config_from(["--iterations", "700"], mnist.MnistGAN)
    assert (config.iterations, config.intervals) == (700, (200, 2000))
    config = gan.config_from("--n-critic 1 --lambda-gp 0 --epochs 3".split(), fashion.FashionGAN)
    assert (config.d_steps, config.lambda_gp, config.epochs) == (1, 0, 3)


@pytest.mark.parametrize("name", ["labs.mnist", "labs.fashion", "labs.blocks", "labs.conv", "labs.emoji"])
def test_help_lists_the_options_that_the_lab_has(name, capsys):
    with pytest.raises(SystemExit) as stop:
        gan.main(["--help"], name)
    assert not stop.value.code
    said, kind = capsys.readouterr().out, gan.load_kind(name, name)
    listed = {word.rstrip(",") for word in said.split() if word.startswith("--")}
    for field in gan.fields(kind.Config):
        assert (gan.flag_of(field.name) in listed) == (field.name not in kind.Config.without), field.name
    assert said.startswith(f"usage: {name}")


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("labs.mnist", "--loss ls", "unrecognized arguments: --loss ls"),
        ("labs.mnist", "--multitask", "unrecognized arguments: --multitask"),
        ("labs.mnist", "--image-size 32", "unrecognized arguments: --image-size 32"),
        ("labs.fashion", "--translation", "unrecognized arguments: --translation"),
        ("labs.fashion", "--n-critic 0", "--n-critic: 0 is not a whole number from 1 to 100"),
        ("labs.fashion", "--lambda-gp -1", "--lambda-gp: -1.0 is not a number from 0 to 1000000"),
        ("labs.fashion", "--launch compiled", "--launch compiled: torch.compile does not take the gradient"),
        ("labs.blocks", "--image-size 64", "--image-size 64: the networks are for images of 28 or 32"),
        ("labs.blocks", "--optimizer sgd", "unrecognized arguments: --optimizer sgd"),
        ("labs.conv", "--label-smoothing 0.6", "--label-smoothing: 0.6 is not a number from 0 to 0.5"),
        ("labs.conv", "--replay 10", "--replay 10: must hold at least a batch, --batch-size 32"),
        ("labs.conv", "--instance-noise 11", "--instance-noise: 11.0 is not a number from 0 to 10"),
        ("labs.conv", "--r1 1 --launch compiled", "--launch compiled: not with --r1: torch.compile does not"),
        ("labs.conv", "--iterations 10 --epochs 3", "--iterations: does not go with --epochs"),
        ("labs.conv", "--sample-every 4 --save-every 6", "--save-every 6: must be a multiple of --sample-every 4"),
        ("labs.emoji", "--gradient-penalty --launch compiled", "compiled: not with --gradient-penalty: torch.compile"),
        ("labs.emoji", "--lr 0", "--lr: 0.0 is not a number above 0, up to 5"),
        ("labs.emoji", "--lr-d 1e-3", "unrecognized arguments: --lr-d 1e-3"),
        ("labs.emoji", "--d-train-iters 1.5", "--d-train-iters: '1.5' is not a whole number from 1 to 100"),
        ("labs.emoji", "--penalty r1", "unrecognized arguments: --penalty r1"),
    ],
)
def test_what_does_not_go_together_is_refused(refused, name, words, message):
    assert message in refused(name, *words.split())


def test_data_that_a_lab_cannot_use_is_refused(refused, tmp_path):
    data = save_all(pictures(16), tmp_path / "data")
    assert f"--data {data}: the data has no labels; it takes 2 to" in refused("labs.fashion", "--data", data)
    data = save_all(pictures(6), tmp_path / "few" / "a").parent
    save_all(pictures(2), data / "b")
    assert f"--data {data}: training needs at least 10 images, found 8" in refused("labs.fashion", "--data", data)
    data = save_all(pictures(4, 64), tmp_path / "large")
    assert "--image-size 64: the networks are for images of 28 or 32" in refused("labs.blocks", "--data", data)


def test_fewer_images_than_the_updates_of_d_take(tmp_path, capsys, no_plots):
    words = [*TOY_LAB, "--data", save_all(pictures(20), tmp_path / "data"), "--d-train-iters", 5, "--iterations", 3]
    out = train("labs.emoji", *words, "--seed", 1, "--out", tmp_path / "run")
    assert "note: --batch-size 8 times 5 steps of D is more than the 20 images; using 4" in capsys.readouterr().out
    saved = last(out)
    assert (saved["progress"]["step"], saved["options"]["batch_size"]) == (3, 4)


def test_what_a_resume_may_change(few, tmp_path, capsys, no_plots):
    words = [*TOY_LAB, "--data", few, "--iterations", 4, "--sample-every", 2, "--replay", 8]
    out = train("labs.conv", *words, "--out", tmp_path / "run")
    capsys.readouterr()
    for change in ("--r1 1.0", "--replay 16", "--width-g 5", "--width-d 5", "--latent-dim 9"):
        assert gan.main(["--resume", "--out", str(out), "--iterations", "6", *change.split()], "labs.conv") == 2, change
        message = capsys.readouterr().err
        assert message.startswith(f"labs.conv: {change}: the checkpoint ")
        assert message.count("\n") == 1
    assert gan.main(["--resume", "--out", str(out)], "labs.mnist") == 2  # another lab's
    assert "is of labs.conv; labs.mnist cannot go on with it" in capsys.readouterr().err
    words = ["--resume", "--out", str(out), "--iterations", "9", "--sample-every", "3", "--label-smoothing", "0.1"]
    config = gan.config_from(words, conv.ConvGAN)
    assert config.intervals == (3, 30)
    assert "note: --label-smoothing 0.0 in the checkpoint, 0.1 now" in capsys.readouterr().out
    saved = last(train("labs.conv", *words))
    assert saved["progress"]["step"] == 9
    assert saved["ranks"][0]["pools"]["replay"]["_extra_state"] == 8


def test_asked_for_a_class_the_generator_draws_it(tmp_path, no_plots):
    """Dark and bright images, a class each: after a short run the asked class decides how bright a sample is."""
    rng = np.random.default_rng(0)
    for name, level in (("bright", 210), ("dark", 40)):
        noisy = np.clip(rng.normal(level, 12, (128, 28, 28)), 0, 255).astype(np.uint8)
        save_all(noisy, tmp_path / "data" / name)
    words = f"--data {tmp_path / 'data'} --out {tmp_path / 'run'} --iterations 80 --seed 0 --ema 500 --n-critic 2"
    words += " --lr-g 0.002 --lr-d 0.002 --width-g 8 --width-d 8 --batch-size 16 --sample-every 80"
    out = train("labs.fashion", *TOY_LAB, *words.split())
    generator = gan.load_generator(out / "generator.safetensors")
    bright, dark = (generator.generate(64, name, seed=1).mean() for name in ("bright", "dark"))
    assert bright - dark > 80
    with Image.open(out / "samples" / "iteration_000080.png") as sheet:
        pixels = np.asarray(sheet, float)  # a column per class
    assert sheet.size == (2 * 58 + 2, 8 * 58 + 2)
    assert pixels[2:-2, 2:56].mean() - pixels[2:-2, 62:-4].mean() > 60


# ------------------------------------------------------------------------------------- runs counted in iterations


def test_a_run_counted_in_iterations(tmp_path, monkeypatch):
    monkeypatch.setattr(gan, "LOG_EVERY", 3)
    data = save_all(pictures(20), tmp_path / "data")  # two batches of 8 an epoch
    words = [*TOY_LAB, "--data", data, "--seed", 1, "--iterations", 11, "--sample-every", 4, "--save-every", 8]
    out = train("labs.conv", *words, "--out", tmp_path / "run")
    stems = ["iteration_000004", "iteration_000008", "iteration_000011"]
    assert sorted(path.stem for path in (out / "samples").glob("*.png")) == stems
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [
        "iteration_000008.pt", "iteration_000011.pt", "last.pt",
    ]  # fmt: skip
    assert [int(row["step"]) for row in rows(out / "log.csv")] == [3, 4, 7, 8, 11]
    assert [(int(r["epoch"]), int(r["step"])) for r in rows(out / "epochs.csv")] == [(2, 4), (4, 8), (6, 11)]
    drawn = sorted(path.stem for path in (out / "weights").glob("generator*"))
    assert drawn == ["generator_iteration_000000", "generator_iteration_000011"]

    skip_plots(monkeypatch)  # from iterations to epochs, and back
    train("labs.conv", "--resume", "--out", out, "--epochs", 8)
    assert [path.name for path in gan.numbered_files(out / "samples", "epoch", ".png", 99)] == [
        "epoch_0006.png", "epoch_0007.png", "epoch_0008.png",
    ]  # fmt: skip
    step = last(out)["progress"]["step"]
    words = ["--resume", "--out", str(out), "--iterations", str(step + 2)]
    assert gan.config_from(words, conv.ConvGAN).intervals == (200, 2000)
    assert last(train("labs.conv", *words))["progress"]["step"] == step + 2


def test_iterations_that_used_up_an_epoch_go_on_in_epochs(tmp_path, no_plots):
    data = save_all(pictures(20), tmp_path / "data")  # two batches of 8 an epoch
    out = train("labs.conv", *TOY_LAB, "--data", data, "--seed", 1, "--iterations", 4, "--out", tmp_path / "run")
    train("labs.conv", "--resume", "--out", out, "--epochs", 3)
    assert [(int(r["epoch"]), int(r["step"])) for r in rows(out / "epochs.csv")] == [(2, 4), (3, 6)]


def test_a_damaged_checkpoint_of_a_run_in_iterations(tmp_path, capsys, no_plots):
    data = save_all(pictures(20), tmp_path / "data")
    words = [*TOY_LAB, "--data", data, "--iterations", 4, "--sample-every", 2, "--save-every", 2]
    out = train("labs.conv", *words, "--out", tmp_path / "run")
    (out / "checkpoints" / "last.pt").write_bytes(b"PK\3\4")
    (out / "checkpoints" / "iteration_000004.pt").unlink()
    config = gan.config_from(["--resume", "--out", str(out)], conv.ConvGAN)
    assert config.resume.name == "iteration_000002.pt"
    assert "trying iteration_000002.pt" in capsys.readouterr().out


# --------------------------------------------------------------------------------------- what saved models draw


@pytest.mark.parametrize(
    "name", ["mnist-bce", "mnist-blocks", "mnist-conv", "fashion-cwgan-gp", "emoji-ls", "emoji-ls-gp"]
)
def test_a_labs_saved_model_draws_the_pictures_beside_it(name):
    path = ROOT / "saved_models" / f"{name}.safetensors"
    generator = gan.load_generator(path)
    count = gan.sheet_count(generator)
    drawn = gan.sheet(generator.generate(count, seed=1), gan.sheet_columns(generator, count))
    with Image.open(path.with_suffix(".png")) as beside:
        differences = abs(np.asarray(drawn, dtype=int) - np.asarray(beside.convert(drawn.mode), dtype=int))
    assert differences.max() <= 1  # another machine may round otherwise
    assert (differences > 0).mean() < 0.01


def test_a_conditional_generator_draws_what_it_is_asked():
    torch.manual_seed(0)
    generator = fashion.Generator(8, 1, 4, 2, classes=NAMES)
    with torch.no_grad():
        generator.project.weight.mul_(50)
    in_turn = generator.generate(7, seed=5)
    assert in_turn.shape == (7, 8, 8)
    for i in range(7):
        for label in (NAMES[i % 3], i % 3, str(i % 3)):
            assert (generator.generate(7, label, seed=5)[i] == in_turn[i]).all()
    assert (generator.generate(7, "bee", seed=5)[0] != in_turn[0]).any()
    for label in ("dog", 3, -1, "1.0", ""):
        with pytest.raises(gan.UserError, match="is not among the classes ant, bee, cat"):
            generator.generate(1, label)
    with pytest.raises(gan.UserError, match="draws no class of choice"):
        mnist.Generator(8, 1, 4, 2).generate(1, 0)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A conditional model whose images say what went in, and two without classes, with normal and uniform noise."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, generator in (
        ("fashion", fashion.Generator(8, 3, 4, 2, NAMES)),
        ("blocks", blocks.Generator(8, 3, 4, 2)),
        ("emoji", emoji.Generator(8, 3, 4, 2)),
    ):
        with torch.no_grad():
            generator.project.weight.mul_(50)
        save_networks(folder / f"{name}.safetensors", f"labs.{name}", generator=generator)
    return folder


def tiles(path, columns):
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return np.stack([
        np.stack([pixels[2 + 66 * r : 66 + 66 * r : 8, 2 + 66 * c : 66 + 66 * c : 8] for c in range(columns)])
        for r in range(pixels.shape[0] // 66)
    ])  # fmt: skip


@pytest.mark.parametrize("program", ["rollnumber_04", "labs.fashion"])
def test_generate_with_labels(models, tmp_path, fails, program):
    model = models / "fashion.safetensors"
    words = ["generate", str(model), "--seed", "4", "--count"]
    assert gan.main([*words, "9", "--out", str(tmp_path / "all.npz")], program) == 0
    with np.load(tmp_path / "all.npz") as archive:
        assert archive["labels"].tolist() == [0, 1, 2] * 3
        assert archive["classes"].tolist() == [*NAMES]
        images = archive["images"]
    assert (images == gan.load_generator(model).generate(9, seed=4)).all()
    loaded = gan.load_images(tmp_path / "all.npz")  # as a labelled set it can be classified, or trained on
    assert loaded.classes == NAMES
    assert gan.main([*words, "5", "--label", "bee", "--out", str(tmp_path / "bees.npz")], program) == 0
    with np.load(tmp_path / "bees.npz") as archive:
        assert archive["labels"].tolist() == [1] * 5
        assert (archive["images"][1] == images[1]).all()
    assert gan.main([*words, "9", "--out", str(tmp_path / "all.png")], program) == 0
    assert (tiles(tmp_path / "all.png", 3).reshape(9, 8, 8, 3) == images).all()  # a column per class
    out = tmp_path / "no.png"
    for path, label in ((model, "dog"), (model, "3"), (models / "blocks.safetensors", "cat")):
        assert f"--label {label}: " in fails("generate", path, "--label", label, "--out", out, writes_nothing_to=out)


@pytest.mark.parametrize("name", ["blocks", "emoji", "fashion"])
@pytest.mark.parametrize("spherical", [False, True])
def test_a_path_between_noises(models, tmp_path, name, spherical):
    model = models / f"{name}.safetensors"
    words = ["--rows", "4", "--steps", "5", "--seed", "9", *(["--spherical"] if spherical else []), "--out"]
    assert gan.main(["interpolate", str(model), *words, str(tmp_path / "path.png")], f"labs.{name}") == 0
    sheet, generator = tiles(tmp_path / "path.png", 5), gan.load_generator(model)
    assert sheet.shape == (4, 5, 8, 8, 3)
    z = gan.latents(9, 0, 8, 4, "uniform" if name == "emoji" else "normal")
    y = (torch.eye(3)[torch.tensor([0, 1, 2, 0])],) if name == "fashion" else ()
    assert (sheet[:, 0] == gan.draw_images(generator, z[::2], *y)).all()
    assert (sheet[:, -1] == gan.draw_images(generator, z[1::2], *y)).all()
    middle = (z[::2] + z[1::2]) / 2
    if spherical:  # the middle of the arc has the direction of the sum of the unit vectors, near enough for these
        angle = torch.arccos(torch.cosine_similarity(z[::2], z[1::2]))[:, None]
        middle = (z[::2] + z[1::2]) / (2 * torch.cos(angle / 2))
    assert abs(sheet[:, 2].astype(int) - gan.draw_images(generator, middle, *y).astype(int)).max() <= 1


def test_a_path_between_classes(models, tmp_path):
    model = models / "fashion.safetensors"
    words = ["--rows", "3", "--steps", "5", "--labels", "cat,0", "--out"]
    assert gan.main(["interpolate", str(model), *words, str(tmp_path / "path.png")]) == 0
    sheet, generator = tiles(tmp_path / "path.png", 5), gan.load_generator(model)
    for column, label in ((0, "cat"), (4, "ant")):
        assert (sheet[:, column] == generator.generate(3, label, seed=0)).all()
    half = torch.tensor([[0.5, 0, 0.5]] * 3)
    assert (sheet[:, 2] == gan.draw_images(generator, gan.latents(0, 0, 3, 4), half)).all()
    assert gan.main(["interpolate", str(model), *words, str(tmp_path / "path.gif")]) == 0
    with Image.open(tmp_path / "path.gif") as gif:
        assert gif.n_frames == 8  # there and back, the ends once
        assert gif.size == (2 * 66 + 2, 2 * 66 + 2)


def test_interpolate_refuses(models, tmp_path, fails):
    out = tmp_path / "no.png"
    for words, message in (
        (["--labels", "cat"], "--labels cat: takes two classes"),
        (["--labels", "cat,2"], "--labels cat,2: is one class"),
        (["--labels", "cat,dog"], "--labels dog: is not among the classes ant, bee, cat"),
        (["--labels", "cat,ant", "--spherical"], "--spherical: is a path of z, not of classes"),
        (["--steps", "1"], "--steps: 1 is not a whole number from 2"),
        (["--steps", "1000", "--rows", "11"], "--steps 1000: 11 rows of them are more than 10,000 images"),
    ):
        model = models / "fashion.safetensors"
        assert message in fails("interpolate", model, *words, "--out", out, writes_nothing_to=out)
    plain = models / "blocks.safetensors"
    said = fails("interpolate", plain, "--labels", "a,b", "--out", out, writes_nothing_to=out)
    assert "--labels a,b: the generator draws no class of choice" in said
    wrong = tmp_path / "no.txt"
    assert "must end in .png or .gif" in fails("interpolate", plain, "--out", wrong, writes_nothing_to=wrong)


def test_a_lab_as_a_user_types_it(models, tmp_path):
    model = models / "fashion.safetensors"
    words = ["generate", model, "--label", "bee", "--count", 4, "--seed", 2, "--device", "cpu", "--out", "bees.npz"]
    line = [sys.executable, "-m", "labs.fashion", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"4 images of class bee of {model}, seed 2: bees.npz\n"
    with np.load(tmp_path / "bees.npz") as archive:
        assert (archive["images"] == gan.load_generator(model).generate(4, "bee", seed=2)).all()


def test_interpolate_as_a_user_types_it(models, tmp_path):
    done = command(
        "interpolate", models / "blocks.safetensors", "--rows", 2, "--steps", 3, "--out", tmp_path / "a" / "p.png"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("2 paths of 3 images of ")


def test_the_shares_of_the_classes(tmp_path, capsys):
    """How often each digit is drawn, as a discriminator that knows them counts them."""
    torch.manual_seed(0)
    discriminator = gan.Discriminator(8, 3, 4, classes=NAMES)
    with torch.no_grad():  # every image is a bee
        discriminator.head[-1].bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
    save_networks(tmp_path / "d.safetensors", discriminator=discriminator)
    data = save_all(pictures(20), tmp_path / "data")
    assert gan.main(["classify", str(tmp_path / "d.safetensors"), str(data), "--shares"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"20 images of {data}: mean probability 1.0000"
    expected = [["ant", "0.00%"], ["bee", "100.00%"], ["cat", "0.00%"]]
    assert [line.split() for line in said[1:]] == expected
    np.savez(tmp_path / "labelled.npz", images=pictures(20), labels=np.arange(20) % 3, classes=np.array(NAMES))
    assert gan.main(["classify", str(tmp_path / "d.safetensors"), str(tmp_path / "labelled.npz"), "--shares"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == expected
