"""The experiments: their commands are the script's, and what is kept of a run is what the run wrote."""

import argparse
import csv
import json
import os
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TOY, pictures, save_all
from PIL import Image

import rollnumber_04 as gan
from report import __main__ as report


def test_every_experiment_can_be_run():
    experiments = tomllib.loads(report.EXPERIMENTS.read_text(encoding="utf-8"))
    assert experiments
    for name, experiment in experiments.items():
        assert experiment["question"].endswith("?")
        for run_name in experiment["runs"]:
            _, words = report.located(name, run_name, experiments)
            options = report.parsed(words)
            assert max(experiment["sheets"]) <= (options.iterations or options.epochs)
            assert not options.iterations or all(number % options.sample_every == 0 for number in experiment["sheets"])
        if "judge" in experiment:
            other, run = experiment["judge"]["run"].split("/")
            assert "--multitask" in experiments[other]["runs"][run]


def test_an_experiment_from_nothing_to_its_facts(tmp_path, monkeypatch, capfd):
    for split, count in (("train", 24), ("test", 8)):
        for seed, name in enumerate(("cat", "dog")):
            save_all(pictures(count, seed=seed), tmp_path / "data" / split / name)
    words = shlex.join([*TOY, "--data", str(tmp_path / "data"), "--epochs", "2", "--seed", "1"])
    runs = {"without": words, "with": words + " --multitask"}
    (tmp_path / "experiments.toml").write_text(
        "[toy]\nquestion = '?'\nsheets = [1, 2]\njudge = { run = 'toy/with', samples = 200 }\n"
        "keep = ['weights/generator_epoch_0000.png']\nspectrum = 20\n[toy.runs]\n"
        + "".join(f'{name} = "{line}"\n' for name, line in runs.items())
    )
    for name in ("EXPERIMENTS", "RESULTS", "RUNS"):
        monkeypatch.setattr(report, name, tmp_path / {"EXPERIMENTS": "experiments.toml"}.get(name, name))
    monkeypatch.setattr("sys.argv", ["report", "run"])
    assert report.main() == 0
    results = tmp_path / "RESULTS" / "toy"
    kept = {"metrics.json", "samples.png", "with-confusion_matrix.csv"}
    kept |= {f"{run}{part}" for run in runs for part in (".csv", "-generator_epoch_0000.png", "-spectrum.csv")}
    assert {path.name for path in results.iterdir()} == kept
    power = np.loadtxt(results / "with-spectrum.csv", delimiter=",")
    samples = gan.load_generator(tmp_path / "RUNS/toy/with/generator.safetensors").generate(20) / 127.5 - 1
    assert power.shape == (8, 8)
    assert power.sum() == pytest.approx((samples.mean(3) ** 2).sum() / 20, rel=1e-3)  # Parseval
    assert power[4, 4] == pytest.approx((samples.mean((1, 2, 3)) ** 2).mean() * 64, rel=1e-3)
    facts = json.loads((results / "metrics.json").read_text())["runs"]
    assert facts["with"]["command"] == f"python rollnumber_04.py {runs['with']}"
    assert facts["without"]["seed"] == 1
    judged = facts["without"]["judged by toy/with"]
    assert judged["samples"] == 200
    assert sum(judged["share of each class"].values()) == pytest.approx(1)
    with open(tmp_path / "RUNS" / "toy" / "with" / "epochs.csv", newline="") as file:
        epochs = list(csv.DictReader(file))
    mean = np.mean([float(row["val_accuracy"]) for row in epochs])
    assert facts["with"]["val_accuracy, mean of the last 10 epochs"] == pytest.approx(mean)
    assert facts["with"]["val_accuracy, last epoch"] == float(epochs[-1]["val_accuracy"])
    with open(results / "with.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == [row["step"] for row in epochs]
    with Image.open(results / "samples.png") as image:
        assert image.width > 2 * Image.open(tmp_path / "RUNS/toy/with/samples/epoch_0002.png").width

    capfd.readouterr()
    assert report.main() == 0  # everything has a result
    assert capfd.readouterr().out == ""
    monkeypatch.setattr("sys.argv", ["report", "run", "nothing"])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 2
    assert "there is no experiment nothing" in capfd.readouterr().err


def test_what_a_command_measures_is_kept_in_the_runs_folder(tmp_path, monkeypatch):
    asked = []

    def fake(line, **options):
        asked.append(line[1:])
        return argparse.Namespace(returncode=3 if "bad" in line else 0, stdout=json.dumps({"fid": 7.5}))

    monkeypatch.setattr(report.subprocess, "run", fake)
    command = "evaluate {out}/generator.safetensors --samples 20"
    model = f"{os.path.relpath(tmp_path, report.ROOT)}/generator.safetensors"
    for _ in range(2):  # the second time it is read
        found = report.measured_by(command, "fid", tmp_path, Path("w.pth"))
        assert found == {"command": f"python rollnumber_04.py evaluate {model} --samples 20", "fid": 7.5}
    line = ["rollnumber_04.py", "evaluate", model, "--samples", "20", "--json", "--inception-weights", "w.pth"]
    assert asked == [line]
    report.measured_by(command.replace("20", "30"), "fid", tmp_path, None)  # another question
    report.measured_by("labs.cyclegan measure {out}/m", "pairs", tmp_path, None)
    assert [words[:3] for words in asked[1:]] == [[*line[:2], model], ["-m", "labs.cyclegan", "measure"]]
    with pytest.raises(SystemExit, match="evaluate bad ended with status 3"):
        report.measured_by("evaluate bad", "other", tmp_path, None)
    assert not (tmp_path / "other.json").exists()
    report.draw("interpolate {out}/generator.safetensors --out {picture}", tmp_path, tmp_path / "path.png")
    assert asked[-1] == ["rollnumber_04.py", "interpolate", model, "--out", str(tmp_path / "path.png")]
    with pytest.raises(SystemExit, match="interpolate bad ended with status 3"):
        report.draw("interpolate bad", tmp_path, tmp_path / "path.png")


@pytest.mark.slow
def test_an_interrupted_run_of_a_preset_goes_on(tmp_path):
    data = save_all(pictures(40)[..., 0], tmp_path / "data")
    words = f"--preset mnist-conv --data {data} --image-size 8 --iterations 3 --sample-every 1 --device cpu --seed 1"
    out = tmp_path / "run"
    report.complete(out, words.replace("--iterations 3", "--iterations 1"), np.inf)
    saved = gan.load_checkpoint(out / "checkpoints" / "last.pt")
    saved["options"]["iterations"] = 3  # as if it had been stopped
    torch.save(saved, out / "checkpoints" / "last.pt")
    report.complete(out, words, np.inf)
    assert report.read_rows(out / "epochs.csv")[-1]["step"] == 3
    report.complete(out, words, 0.0)  # nothing left to do
    assert report.measure(out, words)["d_loss, last row of 1 iterations"]


def test_long_tables_are_thinned(tmp_path):
    report.write_thinned(tmp_path / "t.csv", [{"epoch": float(i), "loss": i / 3} for i in range(1, 501)])
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 101
    assert (lines[0], lines[1], lines[-1]) == ("epoch,loss", "1,0.33333", "500,166.67")
