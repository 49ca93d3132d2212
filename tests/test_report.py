"""The experiments: their commands are the script's, and what is kept of a run is what the run wrote."""

import argparse
import csv
import importlib
import itertools
import json
import math
import os
import re
import select
import shlex
import shutil
import signal
import sys
import threading
import time
from functools import reduce
from pathlib import Path

import numpy as np
import pypdf
import pytest
import torch
import typst
from conftest import PATIENCE, TOY, pictures, save_all
from PIL import Image

import rollnumber_04 as gan
from report import GAP, facts, figures, programs
from report import __main__ as report

THERE_AND_THEN = {"machine": "a machine", "date": "2026-01-31"}


class Parsed(Exception):
    """Stands for what a command does when it has understood its options."""


def parsed(parser, argv):
    """Its options, and then `Parsed`."""
    argparse.ArgumentParser.parse_args(parser, argv)
    raise Parsed


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_experiment_can_be_run(scale, monkeypatch):
    experiments = report.load_experiments(scale)
    assert len(experiments["loss"]["runs"]) == 2 * len(experiments["loss"]["scale"]["seed"])
    live = {name: experiment for name, experiment in experiments.items() if "version" not in experiment}
    for experiment in live.values():
        assert experiment["runs"] or experiment["measures"] or experiment.keys() & {"examples", "pictures"}
        assert experiment["question"].endswith("?")
        for _, command in experiment["runs"].values():
            config = report.config_of(command)
            assert max(experiment["sheets"]) <= (config.iterations or config.epochs)
            assert not config.iterations or all(sheet % config.intervals[0] == 0 for sheet in experiment["sheets"])
    monkeypatch.setattr(gan.Parser, "parse_args", parsed)
    for experiment in live.values():
        for command in [*experiment["measures"].values(), *experiment.get("pictures", {}).values()]:
            places = {"out": report.ROOT / "x", "picture": report.ROOT / "x.png"}
            words = report.typed(command, "--inception-weights w.pth", **places)
            assert not any("{" in word for word in words)
            program = importlib.import_module(words[1] if words[0] == "-m" else "rollnumber_04")
            with pytest.raises(Parsed):
                program.main(words[2 if words[0] == "-m" else 1 :])


def test_an_experiment_from_nothing_to_its_facts(tmp_path, monkeypatch, capfd):
    for split, count in (("train", 24), ("test", 8)):
        for seed, name in enumerate(("cat", "dog")):
            save_all(pictures(count, seed=seed), tmp_path / "data" / split / name)
    words = shlex.join([*TOY, "--data", str(tmp_path / "data"), "--epochs", "2", "--seed"])
    runs = {"without": words + " {seed}", "with": words + " 1 --multitask"}
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { epochs = 2, seed = [1, 2] }\n"
        "[toy]\nquestion = '?'\nsheets = [1, 2]\n"
        "keep = ['weights/generator_epoch_0000.png']\n[toy.runs]\n"
        + "".join(f'{name} = "{line}"\n' for name, line in runs.items())
    )
    for name in ("EXPERIMENTS", "RESULTS", "RUNS"):
        monkeypatch.setattr(report, name, tmp_path / {"EXPERIMENTS": "experiments.toml"}.get(name, name))
    assert report.main(["run", "--jobs", "2"]) == 0
    results = tmp_path / "RESULTS" / "toy"
    runs = {"without": words + " 1", "without-seed-2": words + " 2", "with": words + " 1 --multitask"}
    for run in runs:  # had each other beside them
        assert "6 steps" in (tmp_path / "RUNS" / "toy" / f"{run}.txt").read_text()
    kept = {"metrics.json", "samples.png", "with-confusion_matrix.csv"}
    kept |= {f"{run}.csv" for run in runs}
    kept |= {f"{run}-generator_epoch_0000.png" for run in ("without", "with")}
    assert {path.name for path in results.iterdir()} == kept
    found = json.loads((results / "metrics.json").read_text())["runs"]
    assert found["with"]["command"] == f"python rollnumber_04.py {runs['with']}"
    assert [found[run]["seed"] for run in runs] == [1, 2, 1]
    assert all(found[run]["beside others"] for run in runs)
    with open(tmp_path / "RUNS" / "toy" / "with" / "epochs.csv", newline="") as file:
        epochs = list(csv.DictReader(file))
    mean = np.mean([float(row["val_accuracy"]) for row in epochs])
    assert found["with"]["val_accuracy, mean of the last 10 epochs"] == pytest.approx(mean)
    assert found["with"]["val_accuracy, last epoch"] == float(epochs[-1]["val_accuracy"])
    with open(results / "with.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == [row["step"] for row in epochs]
    with (
        Image.open(results / "samples.png") as image,
        Image.open(tmp_path / "RUNS/toy/with/samples/epoch_0002.png") as one,
    ):
        assert image.width == 2 * one.width + GAP  # the second seed is left out

    capfd.readouterr()
    assert report.main(["run", "--jobs", "2"]) == 0  # everything has a result
    assert capfd.readouterr().out == ""
    toml = tmp_path / "experiments.toml"
    toml.write_text(toml.read_text().replace("--epochs 2", "--epochs {epochs}").replace("epochs = 2", "epochs = 3"))
    experiments = report.load_experiments()
    assert not report.has_results("toy", experiments["toy"])  # those are of another scale
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(report, "is_whole", lambda *_: True)
    assert report.main(["run", "toy"]) == 2
    assert "was not made with the options of experiments.toml: epochs" in capfd.readouterr().err


def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { seed = [1] }\n[toy]\nquestion = '?'\nexamples = { a = 'nowhere' }\n"
        "[old]\nquestion = '?'\nversion = '0.1.0'\n[old.runs]\na = '--gone'\n"
    )
    monkeypatch.setattr(report, "EXPERIMENTS", tmp_path / "experiments.toml")
    for words, said in (
        ("run", "nowhere: there is no such file or folder"),  # the other experiment is not tried
        ("run other", "other: there is no such experiment for --scale cpu in experiments.toml"),
        ("run old", "old: takes options or defaults of version 0.1.0 alone; its results are kept"),
        ("run --inception-weights nowhere.pth", "--inception-weights nowhere.pth: there is no such file"),
        ("run --jobs 0", "--jobs: 0 is not a whole number from 1 to 64"),
        ("make", "invalid choice: 'make'"),
        ("build", "build: needs the typesetter Typst"),
    ):
        monkeypatch.setitem(sys.modules, "typst", None)
        assert report.main(words.split()) == 2
        complaint = capsys.readouterr().err
        assert complaint.startswith("python -m report: ")
        assert said in complaint


def test_figures_show_what_the_results_say(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    (tmp_path / "toy").mkdir()
    runs = {name: tmp_path / name for name in ("red", "blue")}
    (tmp_path / "toy" / "metrics.json").write_text(json.dumps({"runs": dict.fromkeys(runs)}))
    for i, (name, folder) in enumerate(runs.items()):
        folder.mkdir()
        for epoch in (1, 4):
            tiles = np.full((64, 32, 32, 3), 50 * i + 10 * epoch, np.uint8)
            tiles[8] = 255
            gan.sheet(tiles, 8).save(folder / f"epoch_{epoch:04d}.png")
        facts.write_thinned(
            tmp_path / "toy" / f"{name}.csv",
            [
                {"step": 10 * epoch, "d_real": i + epoch, "d_fake": float("nan") if epoch == 2 else -epoch}
                for epoch in (1, 2, 3)
            ],
        )
    facts.side_by_side(runs, [1, 4]).save(tmp_path / "toy" / "samples.png")
    for i, strip in enumerate(figures.strips("toy", 2, 8).values()):
        assert strip.size == (8 * 33 + 1, 2 * 33 + 1)
        pixels = np.asarray(strip)
        assert (pixels[1:33, 1:33] == 50 * i + 40).all()  # of the last epoch, the first row
        assert (pixels[34:66, 1:33] == 255).all()  # the ninth sample
    drawn = figures.of_runs("toy", columns=figures.SCORES)
    real, fake = drawn.axes
    assert real.get_title() == "D's mean score on real images"
    assert [line.get_label() for line in real.lines] == ["red", "blue"]
    assert [line.get_ydata().tolist() for line in real.lines] == [[1, 2, 3], [2, 3, 4]]
    assert [line.get_xydata().tolist() for line in fake.lines] == [[[10, -1], [30, -3]]] * 2

    names = ["spectrum-of-images", *(f"{run}-spectrum{of}" for run in runs for of in ("", "-of-last-weights"))]
    for name, height in zip(names, (0, 1, 2, 1, 2), strict=True):
        np.savetxt(tmp_path / "toy" / f"{name}.csv", np.full((8, 8), 10.0**height), delimiter=",")
    maps = figures.spectra("toy").axes[:4]
    titles = [f"{run},\n{weights}" for run in runs for weights in ("average", "last weights")]
    assert [axes.get_title() for axes in maps] == titles
    assert [np.unique(axes.images[0].get_array()).tolist() for axes in maps] == [[1], [2]] * 2
    left, right, *_ = maps[0].images[0].get_extent()
    assert (left + 0.5 / 8, right - 0.5 / 8) == pytest.approx((-0.5, 0.375))  # the first and the last frequency


def test_the_drawn_slopes_are_those_of_the_losses():
    losses, slopes = figures.saturation().axes
    for loss, slope in zip(losses.lines, slopes.lines, strict=True):
        assert loss.get_label() == slope.get_label()
        logit, value = loss.get_xydata().T
        inner = slice(1, -1)  # where differences are taken from both sides
        assert np.gradient(value, logit)[inner] == pytest.approx(slope.get_ydata()[inner], abs=1e-3)


def test_bars_are_the_shares_of_each_class(tmp_path, monkeypatch):
    shares = {"a": {"0": 0.2, "1": 0.8}, "b": {"0": 0.5, "1": 0.5}}
    metrics = {"runs": {}} | {name: {"classes": {"share of each class": found}} for name, found in shares.items()}
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    axes, *_ = figures.shares("saved", ["a", "b"]).axes
    drawn = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert drawn == [[0.2, 0.8], [0.5, 0.5]]
    assert [bars.get_label() for bars in axes.containers] == ["a", "b"]
    assert axes.lines[0].get_ydata() == [0.5, 0.5]  # an even share


def test_a_legend_is_common_to_panels_of_the_same_lines():
    x = np.arange(3)
    first, second = {"real": (x, x), "generated": (x, -x)}, {"training": (x, x), "test": (x, -x)}
    same = figures.curves([("a", first), ("b", first)], "epoch")
    assert [text.get_text() for text in same.legends[0].get_texts()] == ["real", "generated"]
    assert not any(axes.get_legend() for axes in same.axes)
    differing = figures.curves([("a", first), ("b", second), ("c", {"FID": (x, x)})], "epoch")
    assert not differing.legends
    found = [
        axes.get_legend() and [text.get_text() for text in axes.get_legend().get_texts()] for axes in differing.axes
    ]
    assert found == [["real", "generated"], ["training", "test"], None]


def test_a_scale_fills_the_places_of_its_numbers(tmp_path, monkeypatch):
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { epochs = 2, samples = 20, seed = [5] }\n"
        "gpu = { epochs = 9, samples = 70, seed = [5, 6] }\n"
        "[a]\nsheets = [1, '{epochs}']\nmeasures = { fid = 'evaluate {out} --samples {samples} {inception}' }\n"
        "[a.runs]\nx = '--epochs {epochs} --seed {seed}'\ny = '--epochs 3'\n[b.runs]\nz = '@a/x'\nw = '@a/y'\n"
    )
    monkeypatch.setattr(report, "EXPERIMENTS", tmp_path / "experiments.toml")
    small = report.load_experiments()
    assert small["a"]["scale"] == {"epochs": 2, "samples": 20, "seed": [5]}
    assert small["a"]["sheets"] == [1, 2]
    assert small["b"]["scale"] == {"epochs": 2, "seed": [5]}
    folder = report.RUNS / "a"
    assert small["a"]["runs"] == {"x": (folder / "x", "--epochs 2 --seed 5"), "y": (folder / "y", "--epochs 3")}
    assert small["a"]["measures"] == {"fid": "evaluate {out} --samples 20 {inception}"}
    assert small["b"]["runs"] == {"z": small["a"]["runs"]["x"], "w": small["a"]["runs"]["y"]}
    large = report.load_experiments("gpu")
    assert large["a"]["scale"] == {"epochs": 9, "samples": 70, "seed": [5, 6]}
    assert large["a"]["sheets"] == [1, 9]
    folder = report.RUNS.with_name("report-gpu") / "a"  # so that a scale's runs are not taken for another's
    assert large["a"]["runs"] == {
        "x": (folder / "x", "--epochs 9 --seed 5"),
        "x-seed-6": (folder / "x-seed-6", "--epochs 9 --seed 6"),
        "y": (folder / "y", "--epochs 3"),  # which has no seed to change
    }
    assert large["b"]["runs"] == {
        "z": large["a"]["runs"]["x"],
        "z-seed-6": large["a"]["runs"]["x-seed-6"],
        "w": large["a"]["runs"]["y"],
    }


def test_what_a_command_measures_is_kept_in_the_runs_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(facts, "where_and_when", lambda: THERE_AND_THEN)  # no midnight in between
    asked = []

    class Fake:
        def __init__(self, line, stdout, **others):
            asked.append(line[1:])
            stdout.write(json.dumps({"fid": 7.5, "command": "its own"}).encode())
            self.returncode = 3 if "bad" in line else 0

        def poll(self):
            return self.returncode

    monkeypatch.setattr(programs.subprocess, "Popen", Fake)

    def measured(command, name, out, inception=""):
        task = report.measuring(command, out, name, inception)
        programs.run_all([task] if task else [], 1, math.inf)
        assert not [*out.glob("*.printed")]
        return json.loads((out / f"{name}.json").read_text())

    command = "evaluate {out}/generator.safetensors --samples 20 {inception}"
    out = tmp_path / "a run"
    model = f"{os.path.relpath(out, report.ROOT)}/generator.safetensors"
    for _ in range(2):  # the second time it is read
        found = measured(command, "fid", out, "--inception-weights w.pth")
        line = ["rollnumber_04.py", "evaluate", model, "--samples", "20"]
        assert found == {"command": shlex.join(["python", *line]), "files": {}, "fid": 7.5} | THERE_AND_THEN
    assert asked == [[*line, "--inception-weights", "w.pth", "--json"]]
    measured(command.replace("20", "30"), "fid", out)  # another question
    measured("labs.cyclegan measure m", "pairs", out)
    measured("benchmarks.throughput --rounds 2", "speed", tmp_path / "new")
    assert asked[1:] == [
        [*line[:-1], "30", "--json"],
        ["-m", "labs.cyclegan", "measure", "m", "--json"],
        ["-m", "benchmarks.throughput", "--rounds", "2", "--json"],
    ]
    with pytest.raises(gan.UserError, match="evaluate bad --json ended with status 3"):
        measured("evaluate bad", "other", out)
    assert not (out / "other.json").exists()
    asked.clear()
    (out / "other.printed").unlink()
    for content in (b"weights", b"weights", b"others"):  # of a file that the command names
        (out / "generator.safetensors").write_bytes(content)
        measured(command, "fid", out)
    assert len(asked) == 2
    for _ in range(2):  # what the command writes is none of what it reads
        measured("labs.biggan truncation {out}/generator.safetensors --out {out}/t.png", "t", out)
        (out / "t.png").write_bytes(b"a picture")
    assert len(asked) == 3
    with pytest.raises(gan.UserError, match="the budget is spent"):
        programs.run_all([report.measuring(command, out, "again")], 1, time.monotonic() - 1)
    assert len(asked) == 3


def test_an_experiment_without_runs_measures_and_draws_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(facts, "where_and_when", lambda: THERE_AND_THEN)
    data = save_all(pictures(24), tmp_path / "data" / "cat").parent
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { seed = [1] }\n[toy]\nquestion = '?'\nmeasures = { speed = 'benchmarks.throughput' }\n"
        "pictures = { path = 'interpolate MODEL --out {picture}' }\n"
        f"[toy.examples]\ncats = '{data.as_posix()}'\n"
    )
    for name in ("EXPERIMENTS", "RESULTS", "RUNS"):
        monkeypatch.setattr(report, name, tmp_path / {"EXPERIMENTS": "experiments.toml"}.get(name, name))
    asked = []

    def run_all(tasks, *_):
        for task in tasks:
            asked.append(task.words)
            if task.output:
                task.output.parent.mkdir(parents=True)
                task.output.write_text('{"ratio": 2}')
            task.done()

    monkeypatch.setattr(report, "run_all", run_all)
    report.keep("toy", report.load_experiments()["toy"])
    picture = os.path.relpath(tmp_path / "RESULTS/toy/path.png", report.ROOT)
    assert asked == [
        ["-m", "benchmarks.throughput", "--json"],
        ["rollnumber_04.py", *f"interpolate MODEL --out {picture}".split()],
    ]
    metrics = json.loads((tmp_path / "RESULTS/toy/metrics.json").read_text())
    of_speed = {"command": "python -m benchmarks.throughput", "files": {}, "ratio": 2}
    assert metrics["speed"] == of_speed | THERE_AND_THEN
    assert metrics["runs"] == {}
    with Image.open(tmp_path / "RESULTS/toy/cats.png") as sheet:
        first = gan.load_images(data).pixels[0].numpy().repeat(8, 0).repeat(8, 1)  # enlarged to 64 pixels
        assert (np.asarray(sheet)[2:66, 2:66] == first).all()


def test_an_interrupted_run_of_a_lab_goes_on(tmp_path):
    data = save_all(pictures(40, 28)[..., 0], tmp_path / "data")
    small = "--width-g 4 --width-d 4 --batch-size 8 --precision fp32 --device cpu --sample-every 1 --seed 1"
    words, out = f"labs.conv --data {shlex.quote(str(data))} {small} --iterations ", tmp_path / "run"
    assert gan.main([*shlex.split(words)[1:], "1", "--out", str(out)], "labs.conv") == 0
    saved = gan.load_checkpoint(out / "checkpoints" / "last.pt")
    saved["options"]["iterations"] = 3  # as if it had been stopped
    torch.save(saved, out / "checkpoints" / "last.pt")
    assert report.is_whole(out, words + "1")
    assert not report.is_whole(out, words + "3")
    task = report.training(out, words + "3")
    assert task.words == ["-m", "labs.conv", "--resume", "--out", str(out)]
    programs.run_all([task], 1, math.inf)
    assert report.is_whole(out, words + "3")
    found = facts.of_run(out, report.config_of(words + "3"), words.split())
    assert found["d_loss, last row of 1 iterations"] == facts.read_rows(out / "epochs.csv")[-1]["d_loss"]


def script(code: str, *words: object, **more) -> programs.Task:
    """A program of a line or two; `say`, `wait_for` write and await the files of its `words`."""
    shared = (
        "import sys, os, time, signal, pathlib\n"
        "def say(path): pathlib.Path(path).write_text('')\n"
        "def wait_for(path):\n"
        f"    end = time.monotonic() + {PATIENCE}\n"
        "    while not os.path.exists(path): assert time.monotonic() < end; time.sleep(0.02)\n"
    )
    return programs.Task(["-c", shared + code, *map(str, words)], **more)


def test_programs_run_side_by_side(tmp_path):
    done = []
    files = [tmp_path / name for name in "abc"]
    code = "say(sys.argv[1]); [wait_for(path) for path in sys.argv[2:]]"  # each begins before another ends
    tasks = [script(code, mine, *files, done=lambda mine=mine: done.append(mine.name)) for mine in files]
    programs.run_all([*tasks, script("print('d')", output=tmp_path / "new" / "d")], 3, math.inf)
    assert sorted(done) == [*"abc"]
    assert (tmp_path / "new" / "d").read_text() == "d\n"


@pytest.mark.parametrize("jobs", [1, 2])
def test_after_a_failure_nothing_more_is_begun(tmp_path, jobs, capsys, monkeypatch):
    def noticed(*words, **more):  # what runs beside it may end now
        print(*words, **more)
        (tmp_path / "go").touch()

    monkeypatch.setattr(programs, "print", noticed, raising=False)
    done = []
    beside = script("wait_for(sys.argv[1])" if jobs == 2 else "", tmp_path / "go", done=lambda: done.append("beside"))
    fails = script("print('why', file=sys.stderr); sys.exit(7)", output=tmp_path / "log", is_log=True)
    more = [script("say(sys.argv[1])", tmp_path / "more") for _ in range(5)]
    with pytest.raises(gan.UserError, match=rf"ended with status 7 \(see {tmp_path / 'log'}\)") as caught:
        programs.run_all([beside, fails, *more], jobs, math.inf)
    assert caught.value.status == 1
    assert done == ["beside"]  # which was begun
    assert not (tmp_path / "more").exists()
    assert (tmp_path / "log").read_text() == "why\n"
    assert ("waiting for what runs beside it" in capsys.readouterr().err) == (jobs == 2)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_passed_on_once_and_nothing_more_is_begun(tmp_path, number, capsys):
    counting = (
        "count = []\nsignal.signal(signal.SIGTERM, lambda *_: count.append(1))\nsay(sys.argv[1])\n"
        f"end = time.monotonic() + {PATIENCE}\n"
        "while not count: assert time.monotonic() < end; time.sleep(0.02)\n"
        "time.sleep(0.3); pathlib.Path(sys.argv[2]).write_text(str(len(count)))\n"
    )
    tasks = [script(counting, tmp_path / f"begun-{i}", tmp_path / f"told-{i}") for i in range(5)]

    def press():
        while not all((tmp_path / f"begun-{i}").exists() for i in range(2)):
            if ended.wait(0.02):
                return
        for _ in range(3):  # `timeout` sends two
            os.kill(os.getpid(), number)
            time.sleep(0.1)

    def mine(*_):  # nohup, under which these tests may run, would have SIGHUP ignored
        pass

    before, ended, pressing = signal.signal(number, mine), threading.Event(), threading.Thread(target=press)
    pressing.start()
    try:
        with pytest.raises(gan.Stopped) as caught:
            programs.run_all(tasks, 2, math.inf)
        assert signal.getsignal(number) == mine
    finally:
        ended.set()
        pressing.join()
        signal.signal(number, before)
    assert caught.value.args == (number,)
    assert "waiting for the runs to save" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["begun-0", "begun-1", "told-0", "told-1"]
    assert [(tmp_path / f"told-{i}").read_text() for i in range(2)] == ["1", "1"]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
@pytest.mark.parametrize("noted_signals", [gan.noted_signals, programs.noted_signals])
def test_nohup_stays_nohup(noted_signals, capfd):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with noted_signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signals == [signal.SIGTERM]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
def test_runs_save_when_the_report_is_told_to_stop(tmp_path, monkeypatch, capfd):
    data = save_all(pictures(24), tmp_path / "data" / "cat").parent
    words = shlex.join([*TOY, "--data", str(data), "--epochs", "1000000", "--seed"])
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { seed = [1] }\n[toy]\nquestion = '?'\nsheets = [1]\n"
        f"[toy.runs]\na = '{words} 1'\nb = '{words} 2'\nc = '{words} 3'\n"
    )
    for name in ("EXPERIMENTS", "RESULTS", "RUNS"):
        monkeypatch.setattr(report, name, tmp_path / {"EXPERIMENTS": "experiments.toml"}.get(name, name))
    outs, ended = [tmp_path / "RUNS" / "toy" / run for run in "ab"], threading.Event()

    def ask():
        tables = [out / "epochs.csv" for out in outs]
        while not all(table.exists() and table.read_text().count("\n") > 1 for table in tables):
            if ended.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert report.main(["run", "--jobs", "2", "--budget", "10"]) == 128 + signal.SIGTERM
    finally:
        ended.set()
        asking.join()
    said = capfd.readouterr().err
    assert "waiting for the runs to save" in said
    assert said.splitlines()[-1].endswith("interrupted")
    for out in outs:
        words = report.words_beside_others(out).read_text()
        step = int(re.search(r"interrupted at step ([\d,]+)", words)[1].replace(",", ""))
        assert gan.load_checkpoint(out / "checkpoints" / "last.pt")["progress"]["step"] == step > 0
        assert report.training(out, words).words == ["rollnumber_04.py", "--resume", "--out", str(out)]
    assert not (tmp_path / "RUNS" / "toy" / "c").exists()
    assert not (tmp_path / "RESULTS").exists()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
def test_what_a_command_has_started_is_told_to_stop_with_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    worker = (
        "import os, time\n"  # keeps our stdout open
        f"writer = os.open({str(tmp_path / 'pipe')!r}, os.O_WRONLY)\n"
        f"os.write(writer, b'begun')\ntime.sleep({2 * PATIENCE})\nos.write(writer, b'it was not stopped')\n"
    )
    program = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {worker!r}])\n"

    def comes_next():
        assert select.select([reader], [], [], PATIENCE)[0]
        return os.read(reader, 99)

    class OnceItRuns(float):
        asked = 0

        def __le__(self, now):
            self.asked += 1  # the first time nothing is begun yet
            return self.asked > 1 and comes_next() == b"begun"

    with pytest.raises(gan.UserError, match="the budget is spent"):
        programs.run_all([programs.Task(["-c", program])], 1, OnceItRuns())
    assert comes_next() == b""  # the worker's end of the pipe is closed: it has ended
    os.close(reader)


def test_runs_of_all_experiments_are_begun_together_and_each_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { seed = [1, 2] }\ngpu = { seed = [1] }\n"
        "[a]\nquestion = '?'\n[a.runs]\nx = '--seed {seed}'\n"
        "[b]\nquestion = '?'\n[b.runs]\ny = '@a/x'\nv = '--flip'\n"
        "[c]\nquestion = '?'\nonly = 'cpu'\n[c.runs]\nz = '--multitask'\n[d]\nquestion = '?'\nonly = 'gpu'\n"
    )
    monkeypatch.setattr(report, "EXPERIMENTS", tmp_path / "experiments.toml")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    did, broken = [], set()

    def run_all(tasks, jobs, deadline):
        did.extend(task for task in tasks if task[0] not in broken)
        if failed := [name for name, *_ in tasks if name in broken]:
            raise gan.UserError(f"{failed[0]} failed", status=1)

    monkeypatch.setattr(report, "training", lambda out, command, is_alone: (out.name, command, is_alone))
    monkeypatch.setattr(report, "run_all", run_all)
    monkeypatch.setattr(report, "is_whole", lambda out, words: out.name in {run for run, *_ in did})
    monkeypatch.setattr(report, "keep", lambda name, *_: did.append(name))
    x, second, v, z = ("x", "--seed 1"), ("x-seed-2", "--seed 2"), ("v", "--flip"), ("z", "--multitask")
    assert report.main(["run", "--jobs", "3"]) == 0
    assert sorted(did[:4]) == [(*run, False) for run in (v, x, second, z)]
    assert did[4:] == ["a", "b", "c"]  # d is for a GPU only
    did.clear()
    assert report.main(["run"]) == 0
    assert did == [(*x, True), (*second, True), "a", (*v, True), "b", (*z, True), "c"]
    did.clear()
    broken.add("v")
    did += [(*z, True)]  # whole from before
    assert report.main(["run", "--jobs", "2"]) == 1
    assert did[-2:] == ["a", "c"]  # all the same
    assert (*z, False) not in did  # not again
    assert "v failed" in capsys.readouterr().err
    assert report.main(["run", "d"]) == 2
    assert "d: there is no such experiment for --scale cpu" in capsys.readouterr().err


def test_long_tables_are_thinned(tmp_path):
    facts.write_thinned(tmp_path / "t.csv", [{"epoch": float(i), "loss": i / 3} for i in range(1, 501)])
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 101
    assert (lines[0], lines[1], lines[-1]) == ("epoch,loss", "1,0.33333", "500,166.67")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[str, Path]:
    """The text of each page of the report, built from the kept results, and its PDF.

    Beside that a copy of its source, with the figures drawn into `figures/`.
    """
    folder = tmp_path_factory.mktemp("report")
    report.build(folder / "Report.pdf")
    ignored = shutil.ignore_patterns("__pycache__", ".figures-*")
    copy = shutil.copytree(report.SOURCE.parent, folder / "source", ignore=ignored)
    (copy / "figures").mkdir()
    figures.draw_all(copy / "figures")
    return pages_of(folder / "Report.pdf"), folder / "Report.pdf", copy


def pages_of(pdf: Path) -> list[str]:
    """The text of each page."""
    return [page.extract_text() for page in pypdf.PdfReader(pdf).pages]


def images_in(pdf: Path) -> list[bytes]:
    """The images, as they are packed."""
    reader = pypdf.PdfReader(pdf)
    objects = (reader.get_object(number) for number in range(1, reader.trailer["/Size"]))
    return [part._data for part in objects if isinstance(part, dict) and part.get("/Subtype") == "/Image"]


def numbers_in(source: Path) -> list[dict]:
    """The measured numbers in the report that such a copy makes."""
    places = {"root": str(source), "sys_inputs": {"figures": "figures"}}
    return json.loads(typst.query(str(source / "report.typ"), "<number>", field="value", **places))


def looked_up(number: dict, source: Path) -> list[str]:
    """A number as the results have it; a half may be rounded either way."""
    facts = json.loads((source / "results" / number["experiment"] / "metrics.json").read_text(encoding="utf-8"))
    values = [reduce(lambda found, key: found[key], path, facts) for path in number["paths"]]
    of = {None: np.mean, "mean": np.mean, "least": np.min, "greatest": np.max}[number["of"]]
    value = of(values) * (100 if number["percent"] else 1)
    return [f"{shifted:,.{number['digits']}f}" for shifted in (value - 1e-9, value + 1e-9)]


def test_each_number_in_the_report_is_that_of_the_results(built):
    pages, _, source = built
    text = plain("".join(pages))
    numbers = numbers_in(source)
    assert len(numbers) > 150
    for number in numbers:
        assert plain(number["shown"]).removesuffix("%") in looked_up(number, source), number
        assert plain(number["shown"]) in text


def test_of_several_seeds_a_sweep_shows_the_mean_and_the_range(built):
    *_, source = built
    runs = json.loads((source / "results" / "recipe" / "metrics.json").read_text(encoding="utf-8"))["runs"]
    sweep = [number for number in numbers_in(source) if number["experiment"] == "recipe"]
    averaged = [number for number in sweep if number["paths"][0][2:] == ["fid", "fid"]]
    assert {len(number["paths"]) for number in averaged} == {2}  # in the text as in the table
    found = [number for number in sweep if number["paths"][0][1:] == ["no-flip", "fid", "fid"]]
    fids = [runs[run]["fid"]["fid"] for run in ("no-flip", "no-flip-seed-2")]
    assert [(number["of"], number["shown"]) for number in found] == [
        ("mean", f"{sum(fids) / 2:.1f}"), ("least", f"{min(fids):.1f}"), ("greatest", f"{max(fids):.1f}"),
    ]  # fmt: skip


def plain(text: str) -> str:
    """Text with an ASCII minus and no spaces, of which a PDF knows little."""
    return re.sub(r"\s", "", text.replace("−", "-"))


def test_no_measured_number_is_typed_by_hand():
    source = report.SOURCE.read_text(encoding="utf-8").partition("- text\n")[2]
    prose = re.sub(r"#(n|m|shown|picture|drawn|strips|table|figure|v|text)\(.*?\)|digits: \d|width: \d+%", "", source)
    settings = {"0.2", "0.02", "0.5", "0.999"}  # of the default networks and optimizers
    assert set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", prose)) <= settings


def test_the_report_is_of_the_present_results(built):
    pages, pdf, _ = built
    kept = report.ROOT / "Report.pdf"
    # The same but for line breaks, which another version of the typesetter may set otherwise.
    assert plain("".join(pages_of(kept))) == plain("".join(pages))
    assert sorted(images_in(kept)) == sorted(images_in(pdf))
    assert len(images_in(pdf)) > 30


def test_each_experiment_has_its_results_and_each_section_its_text(built):
    experiments = report.load_experiments()
    results = {path.name for path in report.RESULTS.iterdir() if path.is_dir()}
    assert experiments.keys() <= results <= experiments.keys() | report.load_experiments("gpu").keys()
    for name, experiment in experiments.items():
        metrics = json.loads((report.RESULTS / name / "metrics.json").read_text(encoding="utf-8"))
        assert [*metrics["runs"]] == [*experiment["runs"]]
        assert all((report.RESULTS / name / f"{run}.csv").exists() for run in metrics["runs"])
        for measured in metrics["runs"].values() or [metrics]:
            assert experiment["measures"].keys() <= measured.keys()
            if "version" in experiment:
                assert measured["versions"]["tool"] == experiment["version"]
    text = " ".join("".join(built[0]).split()).replace("’", "'")
    headings = re.findall(r"^(=+) (.+)$", report.SOURCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) > 12
    _, contents_end = headings[-1]
    below = text[text.index(contents_end) + len(contents_end) :]
    for (level, heading), (next_level, following) in itertools.pairwise([*headings, ("", "")]):
        _, found, below = below.partition(heading)
        assert found, heading
        end = below.index(following) if following else len(below)
        assert end > 200 or next_level > level, heading  # or it begins with a section of its own
