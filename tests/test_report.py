"""The experiments: their commands are the script's, and what is kept of a run is what the run wrote."""

import csv
import importlib
import itertools
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
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
from extras import evaluate as evaluation
from report import GAP, figures
from report import __main__ as report


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_every_experiment_can_be_run(scale):
    experiments = report.load_experiments(scale)
    assert len(experiments["loss"]["runs"]) == 2 * len(experiments["loss"]["scale"]["seed"])
    for name, experiment in experiments.items():
        assert experiment["runs"] or experiment["measures"] or experiment.keys() & {"examples", "pictures"}
        for command in [*experiment["measures"].values(), *experiment.get("pictures", {}).values()]:
            places = {"out": report.ROOT / "x", "picture": report.ROOT / "x.png"}
            first, *words = report.typed(command, "--inception-weights w.pth", **places)
            assert not any("{" in word for word in words)
            if first == "rollnumber_04.py":
                assert gan.build_parser(words[0]).parse_args(words[1:])
            else:
                assert importlib.util.find_spec(words[0])
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
    words = shlex.join([*TOY, "--data", str(tmp_path / "data"), "--epochs", "2", "--seed"])
    runs = {"without": words + " {seed}", "with": words + " 1 --multitask"}
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { epochs = 2, seed = [1, 2] }\n"
        "[toy]\nquestion = '?'\nsheets = [1, 2]\njudge = { run = 'toy/with', samples = 200 }\n"
        "keep = ['weights/generator_epoch_0000.png']\nspectrum = 20\n[toy.runs]\n"
        + "".join(f'{name} = "{line}"\n' for name, line in runs.items())
    )
    for name in ("EXPERIMENTS", "RESULTS", "RUNS"):
        monkeypatch.setattr(report, name, tmp_path / {"EXPERIMENTS": "experiments.toml"}.get(name, name))
    monkeypatch.setattr("sys.argv", ["report", "run", "--jobs", "2"])
    assert report.main() == 0
    results = tmp_path / "RESULTS" / "toy"
    runs = {"without": words + " 1", "without-seed-2": words + " 2", "with": words + " 1 --multitask"}
    for run in runs:  # had each other beside them
        assert "6 steps" in (tmp_path / "RUNS" / "toy" / f"{run}.txt").read_text()
    kept = {"metrics.json", "samples.png", "with-confusion_matrix.csv"}
    kept |= {f"{run}.csv" for run in runs}
    parts = ("generator_epoch_0000.png", "spectrum.csv", "spectrum-of-last-weights.csv")
    kept |= {"spectrum-of-images.csv"} | {f"{run}-{part}" for run in ("without", "with") for part in parts}
    assert {path.name for path in results.iterdir()} == kept
    generator = gan.load_generator(tmp_path / "RUNS/toy/with/generator.safetensors")
    averaged = generator.generate(20)
    saved = gan.load_checkpoint(tmp_path / "RUNS/toy/with/checkpoints/last.pt")
    generator.load_state_dict(saved["networks"]["generator"])
    shown = {"with-spectrum": averaged, "with-spectrum-of-last-weights": generator.generate(20)}
    shown["spectrum-of-images"] = evaluation.real_sample(gan.load_images(tmp_path / "data"), 20)[0].numpy()
    corners = {}
    for what, images in shown.items():
        power, images = np.loadtxt(results / f"{what}.csv", delimiter=","), images / 127.5 - 1
        assert power.shape == (8, 8)
        assert power.sum() == pytest.approx((images.mean(3) ** 2).sum() / 20, rel=1e-3)  # Parseval
        assert power[4, 4] == pytest.approx((images.mean((1, 2, 3)) ** 2).mean() * 64, rel=1e-3)
        signs = np.indices((8, 8)).sum(0) % 2 * 2 - 1
        corners[what] = ((images.mean(3) * signs).sum((1, 2)) ** 2).mean() / 64
    facts = json.loads((results / "metrics.json").read_text())["runs"]
    ratios = facts["with"]["checkerboard, power over that of images"]
    assert [*ratios] == ["average", "last weights"]
    for ratio, what in zip(ratios.values(), shown, strict=False):
        assert ratio == pytest.approx(corners[what] / corners["spectrum-of-images"], rel=1e-3)
    assert facts["with"]["command"] == f"python rollnumber_04.py {runs['with']}"
    assert [facts[run]["seed"] for run in runs] == [1, 2, 1]
    assert all(facts[run]["beside others"] for run in runs)
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
    with (
        Image.open(results / "samples.png") as image,
        Image.open(tmp_path / "RUNS/toy/with/samples/epoch_0002.png") as one,
    ):
        assert image.width == 2 * one.width + GAP  # the second seed is left out

    capfd.readouterr()
    assert report.main() == 0  # everything has a result
    assert capfd.readouterr().out == ""
    monkeypatch.setattr("sys.argv", ["report", "run", "nothing"])
    assert report.main() == 2
    assert "there is no experiment nothing" in capfd.readouterr().err
    toml = tmp_path / "experiments.toml"
    toml.write_text(toml.read_text().replace("--epochs 2", "--epochs {epochs}").replace("epochs = 2", "epochs = 3"))
    experiments = report.load_experiments()
    assert not report.has_results("toy", experiments["toy"])  # those are of another scale
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(report, "is_whole", lambda *_: True)
    monkeypatch.setattr("sys.argv", ["report", "run", "toy"])
    with pytest.raises(SystemExit, match=r"was not made with the options of experiments\.toml: epochs"):
        report.main()


def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { seed = [1] }\n[toy]\nquestion = '?'\nexamples = { a = 'nowhere' }\n"
    )
    monkeypatch.setattr(report, "EXPERIMENTS", tmp_path / "experiments.toml")
    monkeypatch.setattr("sys.argv", ["report", "run"])
    assert report.main() == 2
    assert "nowhere: there is no such file or folder" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["report", "run", "--inception-weights", "nowhere.pth"])
    assert report.main() == 2
    assert "--inception-weights nowhere.pth: there is no such file" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["report", "build"])
    monkeypatch.setitem(sys.modules, "typst", None)
    assert report.main() == 2
    assert "python -m report: build: needs the typesetter Typst" in capsys.readouterr().err


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
        report.write_thinned(
            tmp_path / "toy" / f"{name}.csv",
            [
                {"step": 10 * epoch, "d_real": i + epoch, "d_fake": float("nan") if epoch == 2 else -epoch}
                for epoch in (1, 2, 3)
            ],
        )
    report.side_by_side(runs, [1, 4]).save(tmp_path / "toy" / "samples.png")
    for i, strip in enumerate(figures.strips("toy", 2, 8).values()):
        assert strip.size == (8 * 33 + 1, 2 * 33 + 1)
        pixels = np.asarray(strip)
        assert (pixels[1:33, 1:33] == 50 * i + 40).all()  # of the last epoch, the first row
        assert (pixels[34:66, 1:33] == 255).all()  # the ninth sample
    drawn = figures.of_runs("toy", figures.SCORES)
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
    assert small["a"]["runs"] == {"x": "--epochs 2 --seed 5", "y": "--epochs 3"}
    assert small["a"]["measures"] == {"fid": "evaluate {out} --samples 20 {inception}"}
    assert report.located("b", "z", small) == (report.RUNS / "a" / "x", "--epochs 2 --seed 5")
    large = report.load_experiments("gpu")
    assert large["a"]["scale"] == {"epochs": 9, "samples": 70, "seed": [5, 6]}
    assert large["a"]["sheets"] == [1, 9]
    assert large["a"]["runs"] == {"x": "--epochs 9 --seed 5", "x-seed-6": "--epochs 9 --seed 6", "y": "--epochs 3"}
    other = report.RUNS.with_name("report-gpu") / "a"  # so that a scale's runs are not taken for another's
    assert report.located("b", "z-seed-6", large) == (other / "x-seed-6", "--epochs 9 --seed 6")
    assert [*large["b"]["runs"]] == ["z", "z-seed-6", "w"]  # y has no seed to change


def test_what_a_command_measures_is_kept_in_the_runs_folder(tmp_path, monkeypatch):
    asked = []

    class Fake:
        def __init__(self, line, stdout, **others):
            asked.append(line[1:])
            stdout.write(json.dumps({"fid": 7.5, "command": "its own"}))
            self.status = 3 if "bad" in line else 0

        def wait(self, timeout=None):
            if timeout == 0:
                raise subprocess.TimeoutExpired("line", 0)
            return self.status

    monkeypatch.setattr(report.subprocess, "Popen", Fake)
    monkeypatch.setattr(report, "stop", lambda process: asked.append("told to stop"))
    command = "evaluate {out}/generator.safetensors --samples 20 {inception}"
    out = tmp_path / "a run"
    model = f"{os.path.relpath(out, report.ROOT)}/generator.safetensors"
    for _ in range(2):  # the second time it is read
        found = report.measured_by(command, "fid", out, "--inception-weights w.pth")
        line = ["rollnumber_04.py", "evaluate", model, "--samples", "20"]
        assert found == {"command": shlex.join(["python", *line]), "files": {}, "fid": 7.5}
    assert asked == [[*line, "--inception-weights", "w.pth", "--json"]]
    report.measured_by(command.replace("20", "30"), "fid", out, "")  # another question
    report.measured_by("labs.cyclegan measure m", "pairs", out, "")
    report.measured_by("benchmarks.throughput --rounds 2", "speed", tmp_path / "new", "")
    assert asked[1:] == [
        [*line[:-1], "30", "--json"],
        ["-m", "labs.cyclegan", "measure", "m", "--json"],
        ["-m", "benchmarks.throughput", "--rounds", "2", "--json"],
    ]
    with pytest.raises(SystemExit, match="evaluate bad --json ended with status 3"):
        report.measured_by("evaluate bad", "other", out, "")
    assert not (out / "other.json").exists()
    asked.clear()
    (out / "generator.safetensors").write_bytes(b"weights")
    for content in (b"weights", b"weights", b"others"):  # of a file that the command names
        (out / "generator.safetensors").write_bytes(content)
        report.measured_by(command, "fid", out, "")
    assert len(asked) == 2
    for _ in range(2):  # what the command writes is none of what it reads
        report.measured_by("labs.biggan truncation {out}/generator.safetensors --out {out}/t.png", "t", out, "")
        (out / "t.png").write_bytes(b"a picture")
    assert len(asked) == 3
    with pytest.raises(SystemExit, match="the budget is spent"):
        report.measured_by(command, "again", out, "", deadline=time.monotonic() - 1)
    assert asked[-1] == "told to stop"
    assert not report.CHILDREN


def test_an_experiment_without_runs_measures_and_draws_once(tmp_path, monkeypatch, capsys):
    data = save_all(pictures(24), tmp_path / "data" / "cat").parent
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { seed = [1] }\n[toy]\nquestion = '?'\nmeasures = { speed = 'benchmarks.throughput' }\n"
        "pictures = { path = 'interpolate MODEL --out {picture}' }\n"
        f"[toy.examples]\ncats = '{data.as_posix()}'\n"
    )
    for name in ("EXPERIMENTS", "RESULTS", "RUNS"):
        monkeypatch.setattr(report, name, tmp_path / {"EXPERIMENTS": "experiments.toml"}.get(name, name))
    asked = []
    monkeypatch.setattr(report, "printed_by", lambda line, deadline: asked.append(line) or '{"ratio": 2}')
    report.keep("toy", report.load_experiments(), np.inf)
    picture = os.path.relpath(tmp_path / "RESULTS/toy/path.png", report.ROOT)
    assert asked == [
        ["-m", "benchmarks.throughput", "--json"],
        ["rollnumber_04.py", *f"interpolate MODEL --out {picture}".split()],
    ]
    metrics = json.loads((tmp_path / "RESULTS/toy/metrics.json").read_text())
    assert metrics["speed"] == {"command": "python -m benchmarks.throughput", "files": {}, "ratio": 2}
    assert metrics["runs"] == {}
    with Image.open(tmp_path / "RESULTS/toy/cats.png") as sheet:
        first = gan.load_images(data).pixels[0].numpy().repeat(8, 0).repeat(8, 1)  # enlarged to 64 pixels
        assert (np.asarray(sheet)[2:66, 2:66] == first).all()


def test_a_run_whose_time_is_up_is_stopped_and_can_go_on(tmp_path):
    data = save_all(pictures(24), tmp_path / "data" / "cat").parent
    words = shlex.join([*TOY, "--data", str(data), "--epochs", "1000000", "--seed", "1"])
    out = tmp_path / "run"

    class AfterThreeEpochs(float):
        def __sub__(self, now):
            while not (out / "epochs.csv").exists() or (out / "epochs.csv").read_text().count("\n") < 4:
                assert time.monotonic() < now + PATIENCE
                time.sleep(0.05)
            return 0.0  # seconds left

    with pytest.raises(SystemExit, match="the budget is spent; the same command goes on with"):
        report.complete(out, words, AfterThreeEpochs())
    reached = report.read_rows(out / "epochs.csv")[-1]["step"]
    saved = gan.load_checkpoint(out / "checkpoints" / "last.pt")
    assert saved["step"] >= reached >= 9
    report.complete(out, words.replace("1000000", "2"), np.inf)  # nothing is left of that
    assert gan.load_checkpoint(out / "checkpoints" / "last.pt")["step"] == saved["step"]


def test_work_is_done_side_by_side_and_in_order():
    together = threading.Barrier(3, timeout=PATIENCE)

    def work(number):
        together.wait()  # for two others
        return -number

    assert report.each(work, [(number,) for number in range(6)], 3) == [0, -1, -2, -3, -4, -5]


@pytest.fixture
def told(monkeypatch):
    """Make an event of what the report is to print on standard error; it is set when that has been printed."""
    events = {}

    def noting(line, **where):
        print(line, **where)
        for words, event in events.items():
            if words in line:
                event.set()

    monkeypatch.setattr(report, "print", noting, raising=False)
    return lambda words: events.setdefault(words, threading.Event())


@pytest.mark.parametrize("jobs", [1, 2])
def test_after_a_failure_nothing_more_is_begun(jobs, told):
    begun, waiting = [], told("the second failed; waiting for what runs beside it")

    def work(number):
        begun.append(number)
        if number == 1:
            sys.exit("the second failed")
        if number == 0 and jobs == 2:
            assert waiting.wait(PATIENCE)
            sys.exit("the first, later")

    with pytest.raises(SystemExit, match="the second failed"):
        report.each(work, [(number,) for number in range(50)], jobs)
    assert sorted(begun) == [0, 1]
    assert waiting.is_set() == (jobs == 2)


def test_after_ctrl_c_what_was_begun_ends_and_nothing_more_is_begun(told, monkeypatch):
    begun, ended, waiting, all_given = [], [], told("waiting for the runs to save"), threading.Event()
    wait = report.wait
    monkeypatch.setattr(report, "wait", lambda *given, **how: all_given.set() or wait(*given, **how))

    def work(number):
        begun.append(number)
        assert all_given.wait(PATIENCE)
        os.kill(os.getpid(), signal.SIGINT)  # to the process: its main thread hears it
        assert waiting.wait(PATIENCE)
        ended.append(number)

    with pytest.raises(KeyboardInterrupt):
        report.each(work, [(number,) for number in range(50)], 1)
    assert begun == ended == [0]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
def test_a_signal_is_passed_on_once_to_the_runs_which_save(tmp_path, monkeypatch, capfd):
    data = save_all(pictures(24), tmp_path / "data" / "cat").parent
    words = shlex.join([*TOY, "--data", str(data), "--epochs", "1000000", "--seed"])
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { seed = [1] }\n[toy]\nquestion = '?'\nsheets = [1]\n"
        f"[toy.runs]\na = '{words} 1'\nb = '{words} 2'\nc = '{words} 3'\n"
    )
    for name in ("EXPERIMENTS", "RESULTS", "RUNS"):
        monkeypatch.setattr(report, name, tmp_path / {"EXPERIMENTS": "experiments.toml"}.get(name, name))
    monkeypatch.setattr("sys.argv", ["report", "run", "--jobs", "2", "--budget", "10"])
    outs = [tmp_path / "RUNS" / "toy" / run for run in "ab"]
    stop, stopped, ended = report.stop, [], threading.Event()
    monkeypatch.setattr(report, "stop", lambda process: stopped.append(process) or stop(process))

    def ask():
        tables = [out / "epochs.csv" for out in outs]
        while not all(table.exists() and table.read_text().count("\n") > 1 for table in tables):
            if ended.wait(0.05):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    def say(line, **where):
        print(line, **where)
        if line == "waiting for the runs to save":
            os.kill(os.getpid(), signal.SIGTERM)  # again, as `timeout` does

    monkeypatch.setattr(report, "print", say, raising=False)
    asking = threading.Thread(target=ask)
    before = signal.getsignal(signal.SIGTERM)
    asking.start()
    try:
        assert report.main() == 128 + signal.SIGTERM
    finally:
        ended.set()
        asking.join()
    assert signal.getsignal(signal.SIGTERM) == before
    said = capfd.readouterr().err
    assert "waiting for the runs to save" in said
    assert len(stopped) == len({*stopped}) == 2
    assert said.splitlines()[-1].endswith("interrupted")
    for out in outs:
        words = report.words_beside_others(out).read_text()
        step = int(re.search(r"interrupted at step ([\d,]+)", words)[1].replace(",", ""))
        assert gan.load_checkpoint(out / "checkpoints" / "last.pt")["step"] == step > 0
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
        def __sub__(self, now):
            assert comes_next() == b"begun"
            return 0.0

    with pytest.raises(SystemExit, match="the budget is spent"):
        report.printed_by(["-c", program], OnceItRuns())
    assert comes_next() == b""  # the worker's end of the pipe is closed: it has ended
    os.close(reader)


def test_runs_of_all_experiments_are_begun_together_and_each_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "experiments.toml").write_text(
        "[scales]\ncpu = { seed = [1, 2] }\ngpu = { seed = [1] }\n"
        "[a]\nquestion = '?'\n[a.runs]\nx = '--seed {seed}'\n"
        "[b]\nquestion = '?'\njudge = { run = 'c/z', samples = 2 }\n[b.runs]\ny = '@a/x'\nv = '--flip'\n"
        "[c]\nquestion = '?'\nonly = 'cpu'\n[c.runs]\nz = '--multitask'\n[d]\nquestion = '?'\nonly = 'gpu'\n"
    )
    monkeypatch.setattr(report, "EXPERIMENTS", tmp_path / "experiments.toml")
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    did, broken = [], set()

    def complete(out, words, deadline, alone):
        if out.name in broken:
            sys.exit(f"{out.name} failed")
        did.append((out.name, words, alone))

    monkeypatch.setattr(report, "complete", complete)
    monkeypatch.setattr(report, "is_whole", lambda out, words: out.name in {run for run, *_ in did})
    monkeypatch.setattr(report, "keep", lambda name, *_: did.append(name))
    x, second, v, z = ("x", "--seed 1"), ("x-seed-2", "--seed 2"), ("v", "--flip"), ("z", "--multitask")
    monkeypatch.setattr("sys.argv", ["report", "run", "--jobs", "3"])
    assert report.main() == 0
    assert sorted(did[:4]) == [(*run, False) for run in (v, x, second, z)]
    assert did[4:] == ["a", "b", "c"]  # d is for a GPU only
    did.clear()
    monkeypatch.setattr("sys.argv", ["report", "run"])
    assert report.main() == 0
    assert did == [*((*run, True) for run in (x, second)), "a", *((*run, True) for run in (v, z)), "b", "c"]
    did.clear()
    broken.add("v")
    monkeypatch.setattr("sys.argv", ["report", "run", "--jobs", "2"])
    did += [(*z, True)]  # whole from before
    with pytest.raises(SystemExit, match="v failed"):
        report.main()
    assert did[-2:] == ["a", "c"]  # all the same
    monkeypatch.setattr("sys.argv", ["report", "run", "d"])
    assert report.main() == 2
    assert "d is an experiment for --scale gpu only" in capsys.readouterr().err


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


def test_the_machine_is_named(monkeypatch):
    cores = f"{os.cpu_count()} cores"
    monkeypatch.setattr(
        report.Path, "read_text", lambda self, **_: "processor : 0\nmodel name\t: Some(R) CPU\ncache : 1"
    )
    assert report.machine().endswith(f"{cores} (Some CPU)")
    monkeypatch.setattr(report.Path, "read_text", lambda self, **_: open("/no/such/file"))
    monkeypatch.setattr(report.platform, "processor", lambda: "arm")  # as macOS has it
    assert report.machine().endswith(f"{cores} (arm)")
    monkeypatch.setattr(report.platform, "processor", lambda: "")
    assert report.machine().endswith(cores)


def test_long_tables_are_thinned(tmp_path):
    report.write_thinned(tmp_path / "t.csv", [{"epoch": float(i), "loss": i / 3} for i in range(1, 501)])
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 101
    assert (lines[0], lines[1], lines[-1]) == ("epoch,loss", "1,0.33333", "500,166.67")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[pypdf.PdfReader, Path]:
    """The report, built from the kept results, and a copy of its source with the figures drawn into `figures/`."""
    folder = tmp_path_factory.mktemp("report")
    report.build(folder / "Report.pdf")
    ignored = shutil.ignore_patterns("__pycache__", ".figures-*")
    copy = shutil.copytree(report.SOURCE.parent, folder / "source", ignore=ignored)
    (copy / "figures").mkdir()
    figures.draw_all(copy / "figures")
    return pypdf.PdfReader(folder / "Report.pdf"), copy


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
    reader, source = built
    text = plain("".join(page.extract_text() for page in reader.pages))
    numbers = numbers_in(source)
    assert len(numbers) > 150
    for number in numbers:
        assert plain(number["shown"]).removesuffix("%") in looked_up(number, source), number
        assert plain(number["shown"]) in text


def test_of_several_seeds_a_sweep_shows_the_mean_and_the_range(built, tmp_path):
    _, source = built
    source = shutil.copytree(source, tmp_path / "source")
    path = source / "results" / "recipe" / "metrics.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    facts["scale"]["seed"] = [1, 2, 3]
    for run in [*facts["runs"]]:
        for seed, change in ((2, -0.5), (3, 2)):
            facts["runs"][f"{run}-seed-{seed}"] = other = json.loads(json.dumps(facts["runs"][run]))
            other["fid"]["fid"] += change
            other["d_loss, last epoch"] *= seed
    path.write_text(json.dumps(facts), encoding="utf-8")
    sweep = [number for number in numbers_in(source) if number["experiment"] == "recipe"]
    for number in sweep:
        assert plain(number["shown"]) in looked_up(number, source)
    averaged = [number for number in sweep if number["paths"][0][2:] == ["fid", "fid"]]
    assert {len(number["paths"]) for number in averaged} == {3}  # in the text as in the table
    fids = [number for number in sweep if number["paths"][0][1:] == ["flip", "fid", "fid"]]
    flip = facts["runs"]["flip"]["fid"]["fid"]
    shown = [f"{value:.1f}" for value in (flip + 0.5, flip - 0.5, flip + 2)]
    assert [(number["shown"], len(number["paths"]), number["of"]) for number in fids] == [
        *zip(shown, (3, 3, 3), ("mean", "least", "greatest"), strict=True)
    ]


def plain(text: str) -> str:
    """Text with an ASCII minus and no spaces, of which a PDF knows little."""
    return re.sub(r"\s", "", text.replace("−", "-"))


def test_no_measured_number_is_typed_by_hand():
    source = report.SOURCE.read_text(encoding="utf-8").partition("- text\n")[2]
    prose = re.sub(r"#(n|m|shown|picture|drawn|strips|table|figure|v|text)\(.*?\)|digits: \d|width: \d+%", "", source)
    settings = {"0.2", "0.02", "0.5", "0.999"}  # of the default networks and optimizers
    assert set(re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", prose)) <= settings


def test_the_report_is_of_the_present_results(built):
    reader, _ = built
    kept = pypdf.PdfReader(report.ROOT / "Report.pdf")
    old, new = (plain("".join(page.extract_text() for page in pdf.pages)) for pdf in (kept, reader))
    assert old == new  # but for line breaks, which another version of the typesetter may set otherwise
    old, new = ([image.data for page in pdf.pages for image in page.images] for pdf in (kept, reader))
    assert old == new


def test_each_experiment_has_its_results_and_each_section_its_text(built):
    experiments = report.load_experiments()
    results = {path.name for path in report.RESULTS.iterdir()}
    assert experiments.keys() <= results <= experiments.keys() | report.load_experiments("gpu").keys()
    for name, experiment in experiments.items():
        metrics = json.loads((report.RESULTS / name / "metrics.json").read_text(encoding="utf-8"))
        assert [run for run in metrics["runs"] if "-seed-" not in run] == [*experiment["runs"]]
        assert all((report.RESULTS / name / f"{run}.csv").exists() for run in metrics["runs"])
        for measured in metrics["runs"].values() or [metrics]:
            assert experiment["measures"].keys() <= measured.keys()
    text = " ".join("".join(page.extract_text() for page in built[0].pages).split()).replace("’", "'")
    headings = re.findall(r"^(=+) (.+)$", report.SOURCE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(headings) > 12
    _, contents_end = headings[-1]
    below = text[text.index(contents_end) + len(contents_end) :]
    for (level, heading), (next_level, following) in itertools.pairwise([*headings, ("", "")]):
        _, found, below = below.partition(heading)
        assert found, heading
        end = below.index(following) if following else len(below)
        assert end > 200 or next_level > level, heading  # or it begins with a section of its own
