"""What the tests share: the script as a module and as a command, and small data sets in the layouts that users have."""

import gzip
import os
import pickle
import signal
import struct
import subprocess
import sys
import types
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test process a core, instead of two threads that wait for each other
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job; these tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

import matplotlib.font_manager  # noqa: F401  # its list of fonts is made once, not in a test of what is printed
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for `pytest` as well as `python -m pytest`
PATIENCE = 600  # seconds that no process of a test takes on the slowest machine: what takes longer hangs
# Runs as small as a test's: 8×8 images, a few channels, four steps an epoch. They have a seed, for a test whose
# run is another each time fails now and then.
TOY = "--image-size 8 --width-g 4 --width-d 4 --latent-dim 8 --batch-size 8 --seed 3 --precision fp32 --device cpu"
TOY = TOY.split()


def command(*words: object, settings: dict[str, str] | None = None, **options) -> subprocess.CompletedProcess:
    """Run the script as a user does; the environment says that there is no display, and what the `settings` say."""
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")} | (settings or {})
    line = [sys.executable, str(ROOT / "rollnumber_04.py"), *map(str, words)]
    return subprocess.run(
        line, capture_output=True, text=True, timeout=PATIENCE, env=environment, check=False, **options
    )


@pytest.fixture
def fails(capsys, tmp_path):
    """Call main with a command line that must fail; returns its one sentence after checking that it is one."""
    import rollnumber_04 as gan

    def call(*words: object, writes_nothing_to: Path | None = None) -> str:
        out = writes_nothing_to or tmp_path / "out-that-must-not-appear"
        words = [*map(str, words)]
        is_other = words[0] in gan.commands_of(gan.GAN)
        assert gan.main(words if is_other else [*words, "--out", str(out)]) == 2
        assert not out.exists()
        message = capsys.readouterr().err
        assert message.startswith("rollnumber_04.py: ")
        assert message.count("\n") == 1
        assert "Traceback" not in message
        return message

    return call


def pictures(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    """Random uint8 colour images, count×size×size×3."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)


def save_all(images: np.ndarray, folder: Path, suffix: str = ".png") -> Path:
    """Write images as 0000.png, 0001.png … into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:04d}{suffix}")
    return folder


@pytest.fixture
def class_folders(tmp_path) -> Path:
    """Two classes of 16 colour images of 8×8 each, as plain class folders."""
    images = pictures(32)
    save_all(images[:16], tmp_path / "data" / "cat")
    save_all(images[16:], tmp_path / "data" / "dog")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A file of random weights in torch-fidelity's layout, and one with other numbers and no logits."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as library

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *args, **kwargs: {})
        patch.setattr(library.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        state = library.FeatureExtractorInceptionV3("random", ["2048"]).state_dict()
    folder = tmp_path_factory.mktemp("weights")
    torch.save(state, folder / "random.pth")
    torch.save({k: t * 0 if k.startswith("fc") else t for k, t in state.items()}, folder / "no-logits.pth")
    return folder


@pytest.fixture
def early(monkeypatch, tmp_path):
    """Inception's first layers in the place of its last: as fast as a test; a cache of the test's own."""
    from extras import evaluate as evaluation

    monkeypatch.setattr(evaluation, "FEATURES", "64")
    monkeypatch.setattr(evaluation, "LOGITS", "192")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rollnumber_04"


class Trap:
    """Whose unpickling makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def assert_same(found, expected, where="") -> None:
    """Nested dictionaries and lists hold the same, tensors bit for bit."""
    import torch

    if isinstance(expected, list):
        found, expected = (dict(enumerate(part)) for part in (found, expected))
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def whole_and_resumed(kind: str, words: list, folder: Path, crash_at: int) -> list[dict]:
    """The last checkpoints of a run of a kind (a key of gan.KINDS) and of one that crashed in a step and resumed."""
    import rollnumber_04 as gan

    assert gan.main([*words, "--out", str(folder / "whole")], kind) == 0

    class Crash(Exception):
        """Stands for one."""

    model = gan.load_kind(kind, kind)
    step = model.step

    def crashing(self, *batch):
        if int(self.steps) == crash_at:
            raise Crash
        return step(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "step", crashing)
        with pytest.raises(Crash):
            gan.main([*words, "--out", str(folder / "parts")], kind)
    assert gan.main(["--resume", "--out", str(folder / "parts")], kind) == 0
    return [gan.load_checkpoint(folder / name / "checkpoints" / "last.pt") for name in ("whole", "parts")]


def save_networks(path: Path, kind: str = "rollnumber_04", **networks) -> Path:
    """Write networks of a kind (a key of gan.KINDS) as a saved model, as a run would that has not begun."""
    import rollnumber_04 as gan

    run = types.SimpleNamespace(gan=gan.load_kind(kind, path), epoch=0, step=0, facts={})
    gan.save_model(path, networks, run)
    return path


def write_idx(path: Path, array: np.ndarray, zipped: bool = False) -> None:
    """A uint8 array as one of MNIST's files."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(header + array.tobytes()) if zipped else header + array.tobytes())


def write_cifar(folder: Path, images: np.ndarray, labels, python2: bool = True, changes: dict | None = None) -> None:
    """CIFAR's own layout; with python2 the pickles name numpy's functions as the original files do."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    half = len(images) // 2
    for name, part in (("data_batch_1", slice(0, half)), ("data_batch_2", slice(half, None)), ("test_batch", slice(4))):
        batch = {"batch_label": name, "labels": [int(i) for i in labels[part]], "data": rows[part]} | (changes or {})
        data = pickle.dumps(batch, protocol=2)
        (folder / name).write_bytes(data.replace(b"numpy._core.", b"numpy.core.") if python2 else data)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["cat", "dog"], "num_vis": 3072}, protocol=2))
    (folder / "readme.html").write_text("<html>")


LABS = [  # and options by which their steps have all that a script's step has not
    ("labs.mnist", ""),
    ("labs.fashion", "--n-critic 2"),
    ("labs.blocks", ""),
    ("labs.conv", "--r1 1 --replay 16 --instance-noise 0.2 --label-smoothing 0.1"),
    ("labs.emoji", "--gradient-penalty --d-train-iters 2"),
    ("labs.emoji", "--spectral-norm"),
]


def toy_lab(name: str, words: str, device):
    """A lab's GAN with narrow networks, untrained, and 60 images of noise for it."""
    from dataclasses import replace

    import torch

    import rollnumber_04 as gan

    kind = gan.load_kind(name, name)
    options = f"--width-g 4 --width-d 4 --latent-dim 8 --batch-size 8 --precision fp32 --seed 3 --device {device}"
    config = gan.config_from([*options.split(), *words.split()], kind)
    config = replace(config, image_size=config.image_size or 28)
    images = gan.Images(torch.from_numpy(pictures(60, config.image_size)), torch.arange(60) % 2, ("cat", "dog"))
    images = gan.on_device(images, device)
    model = kind(config, 3, images.classes if kind.uses_classes(config) else ()).on(device)
    model.planned = 12  # steps
    return model, images
