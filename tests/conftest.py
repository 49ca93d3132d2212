"""What the tests share: the script as a module and as a command, and small data sets in the layouts that users have."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from extras import evaluate as evaluation

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test process a core, instead of two threads that wait for each other
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background job; these tests press Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
PATIENCE = 600  # seconds that no process of a test takes on the slowest machine: what takes longer hangs
# Runs as small as a test's: 8×8 images, a few channels, four steps an epoch.
TOY = "--image-size 8 --width-g 4 --width-d 4 --latent-dim 8 --batch-size 8 --precision fp32 --device cpu".split()


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
        assert gan.main(words if words[0] in gan.COMMANDS else [*words, "--out", str(out)]) == 2
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

    monkeypatch.setattr(evaluation, "FEATURES", "64")
    monkeypatch.setattr(evaluation, "LOGITS", "192")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rollnumber_04"


def noise_images(count: int, options):
    """Images of noise and labels 0, and the index of an iteration's batches of them."""
    import torch

    import rollnumber_04 as gan

    images = gan.Images(
        torch.from_numpy(pictures(count, options.image_size)), torch.zeros(count, dtype=torch.int64), ()
    )
    return images, torch.arange(count).expand(options.d_steps, count)


def graph_if_asked(run, images, options) -> str:
    """In the place of `why_no_graph`: steps are captured wherever a GPU would do so."""
    return "" if options.cuda_graph and run.is_capturable else "it is turned off"


class Trap:
    """Whose unpickling makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def assert_same(found, expected, where="") -> None:
    """Nested dictionaries hold the same, tensors bit for bit."""
    import torch

    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_same(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    else:
        assert found == expected, where


def whole_and_resumed(recipe, words: list, folder: Path, crash_at: int) -> list[dict]:
    """The last checkpoints of a lab's run and of the same run that crashed before a step and was resumed."""
    import rollnumber_04 as gan

    assert gan.main([*words, "--out", str(folder / "whole")], recipe) == 0

    class Crash(Exception):
        """Stands for one."""

    def step(run, *arguments):
        if run.step == crash_at:
            raise Crash
        return recipe.step(run, *arguments)

    options = gan.parse_options([*words, "--out", str(folder / "parts")], recipe)
    options.recipe = replace(recipe, step=step)
    with pytest.raises(Crash):
        gan.train(options)
    assert gan.main(["--resume", "--out", str(folder / "parts")], recipe) == 0
    return [gan.load_checkpoint(folder / name / "checkpoints" / "last.pt") for name in ("whole", "parts")]
