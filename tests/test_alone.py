"""A copy of the script alone, in an empty folder, does the whole assignment; what it lacks is a sentence."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import PATIENCE, ROOT, TOY, pictures, save_all

ALL_IN_ONE = """
import json, sys
import rollnumber_04 as gan
statuses = [gan.main(words) for words in json.loads(sys.argv[1])]
print("statuses", statuses)
"""


@pytest.fixture
def alone(tmp_path):
    """Run a copy of the script in a folder that holds nothing else but a folder of images; returns what it said.

    It is called with the words of one command; `alone.in_turn` takes several, in one process, which imports torch once.
    """
    shutil.copy(ROOT / "rollnumber_04.py", tmp_path)
    for name in ("cat", "dog"):
        save_all(pictures(12), tmp_path / "data" / name)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*line):
        settings = dict(cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
        done = subprocess.run([sys.executable, *line], **settings)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def run(*words):
        return call("rollnumber_04.py", *map(str, words))

    def in_turn(commands, status=0):
        told = call("-c", ALL_IN_ONE, json.dumps([[*map(str, words)] for words in commands]))
        assert f"statuses {[status] * len(commands)}" in told
        return told

    run.folder, run.in_turn = tmp_path, in_turn
    return run


@pytest.mark.parametrize("data", [["--data", "data"], []], ids=["a folder of images", "the built-in shapes"])
def test_the_script_alone_does_the_assignment(alone, data):
    size = ["--iterations", 4, "--sample-every", 2] if not data else ["--epochs", 2]
    longer = ["--iterations", 6] if not data else ["--epochs", 3]
    commands = [
        [*TOY, *data, *size, "--multitask", "--seed", 1, "--out", "run"],
        ["--resume", "--out", "run", *longer],
        ["generate", "run/generator.safetensors", "--count", 3, "--out", "x.npz"],
        ["classify", "run/discriminator.safetensors", "data/cat/0000.png", "data/dog/0001.png"],
    ]
    told = alone(*commands[0]) + alone.in_turn(commands[1:]) if data else alone.in_turn(commands)
    assert "note: " + longer[0] in told
    assert told.count("data/cat/0000.png") == told.count("data/dog/0001.png") == 1
    run = alone.folder / "run"
    pictures_of = {kind: {path.name for path in (run / kind).glob("*")} for kind in ("plots", "samples", "weights")}
    curves = ["generator_loss", "discriminator_loss", "classifier_loss", "classifier_accuracy"]
    assert {f"{name}.png" for name in curves} == pictures_of["plots"]
    assert {path.rsplit(".")[-1] for path in pictures_of["samples"]} == {"png"}
    assert len(pictures_of["samples"]) == 3
    assert {name.split("_")[0] for name in pictures_of["weights"]} == {"generator", "discriminator"}
    assert all((run / name).exists() for name in ("log.csv", "epochs.csv", "options.json", "confusion_matrix.csv"))
    with np.load(alone.folder / "x.npz") as found:
        assert found["images"].shape == (3, 8, 8, 3)


def test_what_the_script_alone_lacks_is_a_sentence(alone):
    np.savez(alone.folder / "set.npz", images=pictures(4))
    (alone.folder / "text").mkdir()
    (alone.folder / "text" / "notes.txt").write_text("no picture")
    lacking = [["--download", "cifar10"], ["--data", "data", "--evaluate-every", "1"]]
    commands = [
        *([*TOY, *words, "--out", "run"] for words in lacking),
        ["evaluate", "model.safetensors", "--data", "data"],
        ["--data", "text", "--out", "run"],
        ["--data", "set.npz", "--out", "run"],
        ["--data", "nowhere", "--out", "run"],
    ]
    told = alone.in_turn(commands, status=2)
    assert told.count(".py: is missing, which this takes; get it from where the script comes from\n") == 3
    assert "extras/evaluate.py: is missing" in told
    assert "--data text: there is no image in this folder" in told
    assert "--data nowhere: there is no such file or folder" in told
    assert "--data set.npz: files of data sets take extras/, beside the script" in told
    assert told.count("rollnumber_04.py: ") == len(commands)
    assert not (alone.folder / "run").exists()


def test_what_the_script_alone_finds_in_folders(alone):
    for name in ("vehicles/bus", "vehicles/train", "wrapped/set/train/cat", "wrapped/set/test/cat"):
        save_all(pictures(8), alone.folder / name)
    for name in ("data/__MACOSX", "data/.thumbs", "data/cat/.thumbs"):
        save_all(pictures(3), alone.folder / name)
    (alone.folder / "data" / "cat" / "._0000.png").write_bytes(b"a Mac's, and no image")
    if os.name == "posix":
        (alone.folder / "data" / "cat" / "loop").symlink_to(alone.folder / "data")
    told = alone.in_turn([[*TOY, "--data", name, "--dry-run", "--out", name + "-run"] for name in ("vehicles", "data")])
    assert "data       vehicles: 16 colour images of 8×8 in 2 classes: bus, train" in told
    assert "data       data: 24 colour images of 8×8 in 2 classes: cat, dog" in told
    told = alone.in_turn([[*TOY, "--data", "wrapped", "--out", "run"]], status=2)
    assert "--data wrapped: name a folder that holds train/ and test/" in told


def test_a_damaged_checkpoint_of_the_script_alone(alone):
    words = [*TOY, "--data", "data", "--epochs", 2, "--save-every", 1, "--seed", 1, "--out", "run"]
    assert "note" not in alone(*words)
    last = alone.folder / "run" / "checkpoints" / "last.pt"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 1  # which only a checksum shows
    last.write_bytes(data)
    told = alone("--resume", "--out", "run", "--epochs", 3)
    assert "last.pt: not a whole checkpoint (its part " in told
    assert "trying epoch_0002.pt" in told
    assert "done " in told
