"""A copy of the script alone, in an empty folder, does the whole assignment; what it lacks is a sentence."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import PATIENCE, ROOT, TOY, pictures, save_all


@pytest.fixture
def alone(tmp_path):
    """Run a copy of the script in a folder that holds nothing else but a folder of images; returns what it said."""
    shutil.copy(ROOT / "rollnumber_04.py", tmp_path)
    for name in ("cat", "dog"):
        save_all(pictures(12), tmp_path / "data" / name)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words, status=0):
        line = [sys.executable, "rollnumber_04.py", *map(str, words)]
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    run.folder = tmp_path
    return run


@pytest.mark.parametrize("data", [["--data", "data"], []], ids=["a folder of images", "the built-in shapes"])
def test_the_script_alone_does_the_assignment(alone, data):
    size = ["--iterations", 4, "--sample-every", 2] if not data else ["--epochs", 2]
    alone(*TOY, *data, *size, "--multitask", "--seed", 1, "--out", "run")
    longer = ["--iterations", 6] if not data else ["--epochs", 3]
    assert "note: " + longer[0] in alone("--resume", "--out", "run", *longer)
    run = alone.folder / "run"
    pictures_of = {kind: {path.name for path in (run / kind).glob("*")} for kind in ("plots", "samples", "weights")}
    curves = ["generator_loss", "discriminator_loss", "classifier_loss", "classifier_accuracy"]
    assert {f"{name}.png" for name in curves} == pictures_of["plots"]
    assert {path.rsplit(".")[-1] for path in pictures_of["samples"]} == {"png"}
    assert len(pictures_of["samples"]) == 3
    assert {name.split("_")[0] for name in pictures_of["weights"]} == {"generator", "discriminator"}
    assert all((run / name).exists() for name in ("log.csv", "epochs.csv", "options.json", "confusion_matrix.csv"))
    alone("generate", "run/generator.safetensors", "--count", 3, "--out", "x.npz")
    with np.load(alone.folder / "x.npz") as found:
        assert found["images"].shape == (3, 8, 8, 3)
    told = alone("classify", "run/discriminator.safetensors", "data/cat/0000.png", "data/dog/0001.png")
    assert told.count(".png") == 2


def test_what_the_script_alone_lacks_is_a_sentence(alone):
    np.savez(alone.folder / "set.npz", images=pictures(4))
    for words in (["--data", "set.npz"], ["--download", "cifar10"], ["--data", "data", "--evaluate-every", "1"]):
        told = alone(*TOY, *words, "--out", "run", status=2)
        assert told.count("\n") <= 2
        assert ".py: is missing; it lies beside the script where that comes from\n" in told
        assert not (alone.folder / "run").exists()
    assert "extras/evaluate.py: is missing" in alone("evaluate", "model.safetensors", "--data", "data", status=2)
    (alone.folder / "text").mkdir()
    (alone.folder / "text" / "notes.txt").write_text("no picture")
    assert "nothing in it is an image that is known here: 1 × .txt" in alone("--data", "text", "--out", "r", status=2)
