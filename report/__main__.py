"""Run the experiments of experiments.toml and keep their small facts in results/.

    python -m report run                     # all that have no result yet
    python -m report run NAME… --budget 60   # these, again if need be, for at most an hour; the next call goes on
    python -m report run --inception-weights FILE    # for the FIDs among them, where there is no network

A run's folder is runs/report/<experiment>/<run>. One that was interrupted is resumed, one that is whole is only read.
Two experiments may share a run: the second says "@<experiment>/<run>" in the place of its command.
"""

import argparse
import csv
import importlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import rollnumber_04 as gan

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "report" / "experiments.toml"
RESULTS = ROOT / "report" / "results"
RUNS = ROOT / "runs" / "report"
TAIL = 10  # epochs at a run's end whose mean is its result: single epochs swing


def program(command: str) -> tuple[list[str], gan.Recipe, list[str]]:
    """What an experiment's command starts, its recipe, and its options: a lab's begins with `labs.NAME`."""
    words = shlex.split(command)
    if words and words[0].startswith("labs."):
        return ["-m", words[0]], importlib.import_module(words[0]).RECIPE, words[1:]
    return ["rollnumber_04.py"], gan.GAN, words


def parsed(command: str) -> argparse.Namespace:
    """The options of an experiment's command."""
    _, recipe, words = program(command)
    return gan.parse_options(words, recipe)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a run's table, less its column of words and columns without a value; NaN where one is missing."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    names = [name for name in (rows[0] if rows else ()) if name != "warning" and any(row[name] for row in rows)]
    return [{name: float(row[name] or "nan") for name in names} for row in rows]


def complete(out: Path, words: str, deadline: float) -> None:
    """Bring a run to its end, from where it is; raises SystemExit if it fails or the time is up."""
    if (out / "epochs.csv").exists():
        rows, options = read_rows(out / "epochs.csv"), parsed(words)
        unit, asked = ("step", options.iterations) if options.iterations else ("epoch", options.epochs)
        if rows and rows[-1][unit] >= asked:
            return
    begun = (out / "checkpoints" / "last.pt").exists()
    start, _, given = program(words)
    line = [sys.executable, *start, *(["--resume"] if begun else given), "--out", str(out)]
    process = subprocess.Popen(line, cwd=ROOT)  # where the experiments' paths begin
    try:
        status = process.wait(None if deadline == np.inf else max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        sys.exit(f"the budget is spent; the same command goes on with {out}")
    if status:
        sys.exit(f"the run in {out} ended with status {status}")


def measure(out: Path, words: str) -> dict[str, Any]:
    """A run's result: means over its last epochs, its best validation epoch, its seed, machine, versions and time."""
    options = json.loads((out / "options.json").read_text(encoding="utf-8"))
    asked = gan.plain(parsed(words))
    del asked["preset"]  # a name for defaults: the options themselves are compared
    settled = ("image_size", "precision", "batch_size")  # by the data and the machine, if not given
    asked |= {name: options[name] for name in settled if f"--{name.replace('_', '-')}" not in words}
    if changed := [name for name, value in asked.items() if options.get(name, value) != value]:
        sys.exit(
            f"{out}: was not made with the options of {EXPERIMENTS.name}: {', '.join(changed)}; remove it to run again"
        )
    epochs = read_rows(out / "epochs.csv")
    names = [name for name in epochs[0] if name not in ("epoch", "step", "images_per_s", "seconds")]
    rows = f"rows of {options['sample_every']} iterations" if options.get("iterations") else "epochs"
    result: dict[str, Any] = {f"{name}, mean of the last {TAIL} {rows}": mean(epochs[-TAIL:], name) for name in names}
    result |= {
        f"{name}, last {rows.replace('rows', 'row').replace('epochs', 'epoch')}": epochs[-1][name] for name in names
    }
    if "val_accuracy" in epochs[0]:
        for name, pick in (("val_accuracy", max), ("val_class_loss", min)):
            best = pick(epochs, key=lambda row: row[name])
            result[f"{name}, best"] = {"epoch": int(best["epoch"]), "value": best[name]}
    result["training_seconds"] = sum(row["seconds"] for row in epochs)
    result["images_per_s, median"] = float(np.median([row["images_per_s"] for row in epochs]))
    result |= {name: options[name] for name in ("seed", "data_fingerprint", "device_name", "precision", "versions")}
    result["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    result["date"] = time.strftime("%Y-%m-%d", time.gmtime((out / "epochs.csv").stat().st_mtime))
    return result


def mean(rows: list[dict[str, float]], name: str) -> float:
    """The mean of a column."""
    return float(np.nanmean([row[name] for row in rows]))


def judge(out: Path, classifier: Path, count: int) -> dict[str, Any]:
    """What a classifier says of samples of seed 0 of a run."""
    generator = gan.load_generator(out / "generator.safetensors")
    return gan.judged(gan.load_network(classifier, "discriminator"), *gan.labelled_samples(generator, count))


def measured_by(command: str, name: str, out: Path, weights: Path | None) -> dict[str, Any]:
    """What a command of measurement, `… --json`, prints of a whole run; kept in the run's folder, for it takes long."""
    kept, (start, _, words) = out / f"{name}.json", program(command.format(out=os.path.relpath(out, ROOT)))
    said = shlex.join(["python", *start, *words])
    if kept.exists() and (found := json.loads(kept.read_text(encoding="utf-8")))["command"] == said:
        return found
    line = [sys.executable, *start, *words, "--json", *(["--inception-weights", str(weights)] if weights else [])]
    process = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        sys.exit(f"{said} ended with status {process.returncode}")
    found = {"command": said, **json.loads(process.stdout)}
    gan.write_whole(kept, json.dumps(found).encode())
    return found


def draw(command: str, out: Path, picture: Path) -> None:
    """Let a command, such as `interpolate {out}/generator.safetensors --out {picture}`, draw a picture of a run."""
    start, _, words = program(command.format(out=os.path.relpath(out, ROOT), picture=picture.resolve()))
    line = [sys.executable, *start, *words]
    if status := subprocess.run(line, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
        sys.exit(f"{shlex.join(line)} ended with status {status}")


def spectrum(out: Path, count: int) -> np.ndarray:
    """The mean power of each spatial frequency in `count` grey samples of seed 0, S×S, frequency 0 in the middle."""
    samples = gan.load_generator(out / "generator.safetensors").generate(count).astype(np.float64) / 127.5 - 1
    grey = samples.mean(3) if samples.ndim == 4 else samples
    power = np.abs(np.fft.fft2(grey, norm="ortho")) ** 2
    return np.fft.fftshift(power.mean(0))


def sample_sheet(folder: Path, number: int) -> Path:
    """The sheet in a folder of samples of an epoch or, if the run counts iterations, of an iteration."""
    by_epoch = folder / f"epoch_{number:04d}.png"
    return by_epoch if by_epoch.exists() else folder / f"iteration_{number:06d}.png"


def side_by_side(folders: dict[str, Path], epochs: list[int]) -> Image.Image:
    """The runs' sheets beside each other, a row for an epoch or iteration; of all but the last the upper quarter."""
    rows = []
    for epoch in epochs:
        sheets = [Image.open(sample_sheet(folder, epoch)).convert("RGB") for folder in folders.values()]
        height = sheets[0].height if epoch == epochs[-1] else (sheets[0].height + 2) // 4
        row = Image.new("RGB", (sum(sheet.width + 12 for sheet in sheets) - 12, height + 22), "white")
        left = 0
        for name, sheet in zip(folders, sheets, strict=True):
            unit = sample_sheet(folders[name], epoch).stem.partition("_")[0]
            ImageDraw.Draw(row).text((left + 2, 5), f"{name}, {unit} {epoch}", fill="black")
            row.paste(sheet.crop((0, 0, sheet.width, height)), (left, 22))
            left += sheet.width + 12
        rows.append(row)
    whole = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def located(name: str, run_name: str, everything: dict[str, Any]) -> tuple[Path, str]:
    """The folder and the command of an experiment's run, which may be another experiment's: @NAME/RUN."""
    words = everything[name]["runs"][run_name]
    return located(*words[1:].split("/"), everything) if words.startswith("@") else (RUNS / name / run_name, words)


def run(
    name: str, experiment: dict[str, Any], everything: dict[str, Any], deadline: float, weights: Path | None = None
) -> None:
    """Complete an experiment's runs and write its facts to results/<name>/."""
    runs = {run_name: located(name, run_name, everything) for run_name in experiment["runs"]}
    outs = {run_name: out for run_name, (out, _) in runs.items()}
    for out, words in runs.values():
        complete(out, words, deadline)
    facts = {
        run_name: {"command": shlex.join(["python", *(start := program(words))[0], *start[2]]), **measure(out, words)}
        for run_name, (out, words) in runs.items()
    }
    if "judge" in experiment:
        judging_run, count = experiment["judge"]["run"], experiment["judge"]["samples"]
        classifier, words = located(*judging_run.split("/"), everything)
        complete(classifier, words, deadline)
        for run_name, out in outs.items():
            said = judge(out, classifier / "discriminator.safetensors", count)
            facts[run_name][f"judged by {judging_run}"] = said
    for measure_name, command in experiment.get("measures", {}).items():
        for run_name, out in outs.items():
            facts[run_name][measure_name] = measured_by(command, measure_name, out, weights)
    results = RESULTS / name
    results.mkdir(parents=True, exist_ok=True)
    for run_name, out in outs.items():
        write_thinned(results / f"{run_name}.csv", read_rows(out / "epochs.csv"))
        for path in (
            path for pattern in ("confusion_matrix.csv", *experiment.get("keep", ())) for path in out.glob(pattern)
        ):
            (results / f"{run_name}-{path.name}").write_bytes(path.read_bytes())
        for picture, command in experiment.get("pictures", {}).items():
            draw(command, out, results / f"{run_name}-{picture}.png")
        if "spectrum" in experiment:
            np.savetxt(results / f"{run_name}-spectrum.csv", spectrum(out, experiment["spectrum"]), "%.5g", ",")
    kinds = {path.parent.relative_to(path.parents[2]) for out in outs.values() for path in out.glob("samples/*/*.png")}
    for kind in (Path("samples"), *sorted(kinds)):  # samples/, samples/y_to_x/
        sheets = side_by_side({run_name: out / kind for run_name, out in outs.items()}, experiment["sheets"])
        sheets.save(results / f"{'-'.join(kind.parts)}.png", optimize=True)
    metrics = {"question": experiment["question"], "runs": facts}
    (results / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{results}: {', '.join(sorted(path.name for path in results.iterdir()))}")


def write_thinned(path: Path, rows: list[dict[str, float]], most: int = 100) -> None:
    """Write a csv of at most `most` evenly spaced rows, five digits each, the last row among them."""
    picked = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(rows[0])
        table.writerows(
            ["" if np.isnan(value) else f"{value:.5g}" if value % 1 else int(value) for value in rows[i].values()]
            for i in picked
        )


def main() -> int:
    """The command line; returns the exit status."""
    experiments = tomllib.loads(EXPERIMENTS.read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(prog="python -m report", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="run the experiments and keep their facts")
    command.add_argument("names", nargs="*", metavar="NAME", help=", ".join(experiments))
    command.add_argument("--budget", type=float, default=np.inf, metavar="MINUTES", help="stop after so long")
    command.add_argument("--inception-weights", type=Path, metavar="FILE", help="fetched by torch-fidelity if left out")
    options = parser.parse_args()
    if unknown := set(options.names) - set(experiments):
        parser.error(f"there is no experiment {min(unknown)} in {EXPERIMENTS.name}")
    missing = [name for name in experiments if not (RESULTS / name / "metrics.json").exists()]
    deadline = time.monotonic() + options.budget * 60
    for name in options.names or missing:
        weights = options.inception_weights and options.inception_weights.resolve()
        run(name, experiments[name], experiments, deadline, weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
