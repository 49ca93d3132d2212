"""Whatever is typed and whatever lies in the data: a result, or one sentence and status 2; no traceback and no hang."""

import contextlib
import gzip
import io
import os
import pickle
import random
import shlex
import shutil
import signal
import struct
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from conftest import PATIENCE, pictures, save_all
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import rollnumber_04 as gan

QUICK, SLOW = 60, 700  # cases of each property; four of them
SETTINGS = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "GIF": ".gif", "WEBP": ".webp", "TIFF": ".tif", "TGA": ".tga"}


class Hang(BaseException):
    """Not an Exception, so that no reader takes it for damage in its file."""


@contextlib.contextmanager
def no_hang(seconds=PATIENCE):
    """Raise where the test stands if it takes longer; on Windows, not."""

    def ring(number, frame):
        raise Hang

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_sentence(words: list[str]) -> int:
    """Run the command in this process; checks that its status is 0, or 2 with one line on standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_hang():
        try:
            status = gan.main(words)
        except SystemExit as stop:  # --help
            status = stop.code
    said = err.getvalue()
    assert status in (0, 2), (words, said)
    if status == 2:
        assert said.startswith("rollnumber_04.py: "), words
        assert said.count("\n") == 1, words
    return status


# ------------------------------------------------------------------------------------------------------- command lines

odd = st.sampled_from(
    ["", "0", "-1", "1e400", "nan", "inf", "-inf", "0x10", "1_000", "٣", "9" * 400, " ", "--", "\0", "é"]
)
numbers = st.one_of(st.integers(-5, 10**12).map(str), st.floats(allow_nan=True).map(str), odd)
texts = st.one_of(st.text(max_size=20), odd)


def values(part, kind):
    """What may be typed after an option's flag: what it takes, and what it does not."""
    if kind is bool:
        return st.just([])
    good = st.sampled_from(sorted(part.metadata["choices"])) if part.metadata["choices"] else numbers
    return st.one_of(good, good, texts).map(lambda value: [value])


FLAGS = [
    (flag, values(part, kind))
    for part, kind in zip(fields(gan.Config), gan.kinds_of(gan.Config).values(), strict=True)
    for flag in [gan.flag_of(part.name), *([gan.flag_of(part.name, False)] if kind is bool else [])]
]
flags = st.sampled_from(FLAGS).flatmap(lambda pair: pair[1].map(lambda typed: [pair[0], *typed]))
command_lines = st.lists(st.one_of(flags, flags, flags, texts.map(lambda word: [word])), max_size=6).map(
    lambda parts: [word for part in parts for word in part]
)


@pytest.mark.parametrize("cases", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_any_command_line(tmp_path, monkeypatch, cases):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gan, "train", lambda config, kind: None)  # only what is typed is at stake
    seen = []

    @settings(max_examples=cases, **SETTINGS)
    @given(command_lines)
    def check(words):
        seen.append(one_sentence(words))
        assert not os.listdir(tmp_path)

    check()
    assert {0, 2} <= set(seen)


@pytest.mark.parametrize("cases", [6, pytest.param(150, marks=pytest.mark.slow)])
def test_any_combination_of_options_trains_or_says_why_not(tmp_path, cases):
    data = tmp_path / "data"
    for seed, name in enumerate(("cat", "dog")):
        save_all(pictures(6, seed=seed), data / name)
    choice = st.sampled_from
    combinations = st.fixed_dictionaries(
        {"--image-size": choice([8, 10, 12, 14, 28, 9, 4])},
        optional={
            "--loss": choice([*gan.LOSSES]),
            "--iterations": choice([1, 3]),
            "--optimizer": choice(["adam", "adamw", "rmsprop", "sgd"]),
            "--batch-size": choice([2, 3, 12, 13, 1000]),
            "--multitask": choice([""]),
            "--flip": choice([""]),
            "--translation": choice([""]),
            "--class-weight": choice([0, 0.5, 1]),
            "--validation-split": choice([0.01, 0.1, 0.5, 0.9]),
            "--ema": choice([0, 1, 10**9]),
            "--beta1": choice([0, 0.9]),
            "--width-g": choice([1, 3]),
            "--width-d": choice([1, 3]),
            "--latent-dim": choice([1, 5]),
            "--precision": choice(["fp32", "bf16"]),
            "--launch": choice(["graph", "kernels"]),
            "--deterministic": choice([""]),
        },
    )
    seen = []

    def as_words(options):
        pairs = ([flag, str(value)] if value != "" else [flag] for flag, value in options.items())
        return [word for pair in pairs for word in pair]

    @settings(max_examples=cases, **SETTINGS)
    @given(combinations, combinations)
    def check(options, others):
        out = tmp_path / "run"
        shutil.rmtree(out, ignore_errors=True)
        words = ["--data", str(data), "--out", str(out), "--dry-run", "--device", "cpu", "--latent-dim", "4"]
        words += as_words(options)
        seen.append(one_sentence(words))
        assert (out / "generator.safetensors").exists() == (seen[-1] == 0), shlex.join(words)
        if seen[-1] == 2:
            assert not out.exists(), shlex.join(words)
            return
        change = dict(random.Random(len(others)).sample(sorted(others.items()), 1))  # goes on, or says why not
        resumed = ["--resume", "--out", str(out), *as_words(change)]
        seen.append(one_sentence([*resumed, *([] if "--iterations" in {*options, *change} else ["--epochs", "2"])]))

    check()
    assert 0 in seen


# ---------------------------------------------------------------------------------------------------------------- data


def damage(data: bytes, draw: random.Random) -> bytes:
    """Bytes cut, flipped, overwritten, doubled or with another number in them."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 5))):
        if not data:
            break
        place = draw.randrange(len(data)) if draw.random() < 0.4 else draw.randrange(min(64, len(data)))
        kind = draw.choice(("cut", "flip", "fill", "double", "number"))
        if kind == "cut":
            del data[place:]
        elif kind == "flip":
            data[place] ^= 1 << draw.randrange(8)
        elif kind == "fill":
            data[place : place + 16] = draw.randbytes(16)
        elif kind == "double":
            data[place:place] = data[place : place + 200]
        else:
            data[place : place + 4] = struct.pack(">I", draw.choice((0, 1, 255, 2**16, 2**31 - 1, 2**32 - 1)))
    return bytes(data)


def loads_or_says(path: Path) -> bool:
    """Whether a set loads; if not, UserError says why in words."""
    with no_hang():
        try:
            images = gan.load_images(path)
        except gan.UserError as error:
            assert str(error)
            assert error.status == 2
            return False
    assert images.pixels.ndim == 4
    assert images.pixels.shape[3] in (1, 3)
    assert images.labels is None or len(images.labels) == len(images.pixels)
    return True


def property_of_files(make, cases: int) -> None:
    """Damage what `make` writes, for many seeds; some must load and some must be refused."""
    seen = []

    @settings(max_examples=cases, **SETTINGS)
    @given(st.integers(0, 2**32))
    def check(seed):
        seen.append(loads_or_says(make(random.Random(seed))))

    check()
    assert {True, False} == set(seen)


@pytest.mark.parametrize("cases", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_any_image_file(tmp_path, cases):
    modes = ("RGB", "L", "P", "RGBA", "1", "I;16", "CMYK")
    good = []
    for name, suffix in FORMATS.items():
        for mode in modes:
            stream = io.BytesIO()
            image = Image.fromarray(pictures(1, 12)[0])
            image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
            with contextlib.suppress(OSError, ValueError):  # not every format takes every mode
                image.save(stream, name)
                good.append((suffix, stream.getvalue()))
    folder = tmp_path / "data"
    folder.mkdir()

    def make(draw):
        for old in folder.iterdir():
            old.unlink()
        suffix, data = draw.choice(good)
        (folder / f"0{suffix}").write_bytes(damage(data, draw))
        return folder

    property_of_files(make, cases)


@pytest.mark.parametrize("cases", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_any_file_of_arrays(tmp_path, cases):
    from scipy.io import savemat

    images, labels = pictures(6, 32), np.arange(6) % 2
    streams = [io.BytesIO() for _ in range(3)]
    np.savez(streams[0], images=images, labels=labels)
    np.savez_compressed(streams[1], x=images[..., 0], y=labels, classes=np.array(["a", "b"]))
    savemat(streams[2], {"X": images.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)})
    idx = bytes([0, 0, 8, 3]) + struct.pack(">3I", *images.shape[:3]) + images[..., 0].tobytes()
    rows = images.transpose(0, 3, 1, 2).reshape(6, -1)
    batch = {"data": rows, "labels": labels.tolist(), "batch_label": "x"}
    cifar = [pickle.dumps(batch, protocol).replace(b"numpy._core.", b"numpy.core.") for protocol in (2, 4)]
    good = [
        ("set.npz", streams[0].getvalue()),
        ("set.npz", streams[1].getvalue()),
        ("train_32x32.mat", streams[2].getvalue()),
        ("train-images-idx3-ubyte", idx),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx)),
        *(("data_batch_1", data) for data in cifar),
    ]

    def make(draw):
        folder = tmp_path / "data"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        name, data = draw.choice(good)
        (folder / name).write_bytes(damage(data, draw))
        return draw.choice((folder, folder / name))

    property_of_files(make, cases)
