"""Run the experiments of experiments.toml, keep their small facts in results/, and make Report.pdf of these.

    python -m report run                     # all that have no result yet
    python -m report run NAME… --budget 60   # these, again if need be, for at most an hour; the next call goes on
    python -m report run --scale gpu --jobs 6    # longer sweeps, three seeds, more samples, six runs at a time; and
                                             # the experiments that two CPU cores are not asked for
    python -m report run --inception-weights FILE    # for the FIDs among them, where there is no network
    python -m report build                   # Report.pdf, from results/ alone

A run's folder is runs/report/<experiment>/<run>. One that was interrupted is resumed, one that is whole is only read.
Two experiments may share a run: the second says "@<experiment>/<run>" in the place of its command. An experiment
without runs has commands that measure or draw something else, once. What runs print that have others beside them is
in runs/report/<experiment>/<run>.txt.
"""

import argparse
import contextlib
import csv
import hashlib
import importlib
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

import rollnumber_04 as gan
from extras import evaluate as evaluation
from report import GAP, SEED, SPECTRA

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS = ROOT / "report" / "experiments.toml"
RESULTS = ROOT / "report" / "results"
RUNS = ROOT / "runs" / "report"
SOURCE = ROOT / "report" / "report.typ"
TAIL = 10  # epochs at a run's end whose mean is its result: single epochs swing
CHILDREN: set[subprocess.Popen] = set()  # the programs that this one has started and that still run
STOPPING = threading.Event()  # a signal has asked this program to end


def load_scales() -> list[str]:
    """The names of the scales, "cpu" first."""
    return [*tomllib.loads(EXPERIMENTS.read_text(encoding="utf-8"))["scales"]]


def load_experiments(scale: str = "cpu") -> dict[str, Any]:
    """The experiments by name; the scale's numbers take the places of {epochs}, {samples}, {reference} in them.

    A run whose command has a {seed} is a run for each of the scale's: "deconv", "deconv-seed-2" … An experiment is told
    the numbers that it takes ("scale") and where its runs are ("folder"). One only for another scale is left out.
    """
    experiments = tomllib.loads(EXPERIMENTS.read_text(encoding="utf-8"))
    numbers = experiments.pop("scales")[scale]
    experiments = {name: other for name, other in experiments.items() if other.get("only", scale) == scale}
    written = {(name, run): line for name, other in experiments.items() for run, line in other.get("runs", {}).items()}

    def resolved(command: str) -> str:
        while command.startswith("@"):
            command = written[tuple(command[1:].split("/"))]
        return command

    def filled(command: str, seed: int) -> str:
        for name, value in (numbers | {"seed": seed}).items():
            command = command.replace(f"{{{name}}}", str(value))
        return command

    for name, experiment in experiments.items():
        runs, measures = experiment.get("runs", {}), experiment.get("measures", {})
        commands = [*map(resolved, runs.values()), *measures.values()]
        experiment |= {
            "folder": RUNS.with_name(RUNS.name + ("" if scale == "cpu" else f"-{scale}")) / name,
            "scale": {key: value for key, value in numbers.items() if any(f"{{{key}}}" in line for line in commands)},
            "measures": {measure: filled(line, numbers["seed"][0]) for measure, line in measures.items()},
            "sheets": [int(filled(str(number), numbers["seed"][0])) for number in experiment.get("sheets", ())],
            "runs": {},
        }
        for run, command in runs.items():
            for seed in numbers["seed"] if "{seed}" in resolved(command) else numbers["seed"][:1]:
                mark = "" if seed == numbers["seed"][0] else f"{SEED}{seed}"
                experiment["runs"][run + mark] = command + mark if command.startswith("@") else filled(command, seed)
    return experiments


def program(command: str) -> tuple[list[str], list[str]]:
    """What an experiment's command starts, and its options: that of a lab or benchmark begins with its module."""
    words = shlex.split(command)
    if words and words[0].startswith(("labs.", "benchmarks.")):
        return ["-m", words[0]], words[1:]
    return ["rollnumber_04.py"], words


def recipe_of(command: str) -> gan.Recipe:
    """The script's recipe, or that of the lab which a command to train begins with."""
    start, _ = program(command)
    return importlib.import_module(start[1]).RECIPE if start[0] == "-m" else gan.GAN


def parsed(command: str) -> argparse.Namespace:
    """The options of an experiment's command to train."""
    return gan.parse_options(program(command)[1], recipe_of(command))


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a run's table, less its column of words and columns without a value; NaN where one is missing."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    names = [name for name in (rows[0] if rows else ()) if name != "warning" and any(row[name] for row in rows)]
    return [{name: float(row[name] or "nan") for name in names} for row in rows]


def each(work: Callable, items: Iterable[tuple], jobs: int) -> list:
    """What work(*item) gives for each item, `jobs` at a time; after a failure or Ctrl-C none of the others is begun.

    Raises the interruption or the first failure, once what was begun beside it has come to its end.
    """
    failed: list[BaseException] = []

    def unless_failed(*item: Any) -> Any:
        try:
            return None if failed or STOPPING.is_set() else work(*item)
        except BaseException as error:
            failed.append(error)
            if jobs > 1:
                print(f"{error}; waiting for what runs beside it", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(unless_failed, *item) for item in items]
            while wait(futures, timeout=1).not_done:  # a Ctrl-C just before a wait without end would not be heard
                pass
        except KeyboardInterrupt as error:
            failed.insert(0, error)  # before what the runs that were told to stop say of it
            print("waiting for the runs to save", file=sys.stderr, flush=True)
    if failed:
        raise failed[0]
    return [future.result() for future in futures]


def status_of(line: list[str], deadline: float, **streams: Any) -> int | None:
    """The exit status of `python` with these words, or None if it was told to stop at the deadline."""
    own_group = {"process_group": 0} if os.name == "posix" else {}  # `stop` is to reach its workers, too
    line = [sys.executable, *line]
    process = subprocess.Popen(line, cwd=ROOT, **own_group, **streams)  # where the experiments' paths begin
    CHILDREN.add(process)
    if STOPPING.is_set():  # since it was decided to start this
        stop(process)
    try:
        return process.wait(None if deadline == np.inf else max(0, deadline - time.monotonic()))
    except BaseException as reason:
        stop(process)
        process.wait()
        if isinstance(reason, subprocess.TimeoutExpired):
            return None
        raise
    finally:
        CHILDREN.discard(process)


def stop(process: subprocess.Popen) -> None:
    """Tell a program to end, and its own workers: by SIGTERM, at which a run saves. Windows ends it at once."""
    if os.name != "posix":
        process.terminate()
        return
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(process.pid, signal.SIGTERM)  # not SIGINT, to which background jobs of a shell are deaf


@contextlib.contextmanager
def signals_passed_on() -> Iterator[None]:
    """Tell what runs to stop at Ctrl-C, SIGTERM or a terminal's end, which would go on without this program.

    Raises Stopped, at the first signal; `timeout` sends two, and a run's second is to stop it unsaved.
    """

    def pass_on(number: int, frame: Any) -> None:
        if STOPPING.is_set():
            return
        STOPPING.set()
        for process in CHILDREN.copy():
            stop(process)
        raise gan.Stopped(number)

    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ignored = (signal.SIG_IGN, None)  # nohup stays nohup
    before = {number: old for number in wanted if (old := signal.getsignal(number)) not in ignored}
    for number in before:
        signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        STOPPING.clear()


def is_whole(out: Path, words: str) -> bool:
    """Whether a run has come to the end that its command asks for."""
    if not (out / "epochs.csv").exists():
        return False
    rows, options = read_rows(out / "epochs.csv"), parsed(words)
    unit, asked = ("step", options.iterations) if options.iterations else ("epoch", options.epochs)
    return bool(rows) and rows[-1][unit] >= asked


def complete(out: Path, words: str, deadline: float, alone: bool = True) -> None:
    """Bring a run to its end, from where it is; raises SystemExit if it fails or the time is up.

    If it is not alone, what it prints goes into a file beside its folder.
    """
    if is_whole(out, words):
        return
    begun = (out / "checkpoints" / "last.pt").exists()
    start, given = program(words)
    line = [*start, *(["--resume"] if begun else given), "--out", str(out)]
    out.parent.mkdir(parents=True, exist_ok=True)
    log = words_beside_others(out)
    with contextlib.nullcontext() if alone else open(log, "a", encoding="utf-8") as said:
        status = status_of(line, deadline, stdout=said, stderr=said)
    if status is None:
        sys.exit(f"the budget is spent; the same command goes on with {out}")
    if status:
        sys.exit(f"the run in {out} ended with status {status}" + ("" if alone else f" (see {log})"))


def words_beside_others(out: Path) -> Path:
    """The file for what a run prints that has others beside it."""
    return out.parent / f"{out.name}.txt"


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
    if words_beside_others(out).exists():
        result["beside others"] = True  # which made it slower
    result["machine"] = machine()
    result["date"] = time.strftime("%Y-%m-%d", time.gmtime((out / "epochs.csv").stat().st_mtime))
    return result


def machine() -> str:
    """System, kind and number of this machine's cores: "Linux x86_64, 2 cores (AMD EPYC Processor)"."""
    cores = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    try:  # where Linux has the name that platform.processor() does not know there
        said = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        said = ""
    named = re.search(r"^model name\s*:\s*(.+)$", said, re.MULTILINE)
    name = re.sub(r"\((R|TM)\)", "", named[1] if named else platform.processor())
    return f"{cores} ({name})" if name else cores


def mean(rows: list[dict[str, float]], name: str) -> float:
    """The mean of a column."""
    return float(np.nanmean([row[name] for row in rows]))


def judge(out: Path, recipe: gan.Recipe, classifier: Path, count: int) -> dict[str, Any]:
    """What a classifier says of samples of seed 0 of a run."""
    generator = gan.load_network(out / "generator.safetensors", "generator", recipe=recipe)
    samples = evaluation.labelled_samples(generator, count)
    return evaluation.judged(gan.load_network(classifier, "discriminator"), *samples)


def typed(command: str, inception: str = "", **places: Path) -> list[str]:
    """The words after `python` of a command with its places filled in: {out}, {picture}, {inception}.

    The last is for the option --inception-weights, where they lie in a file.
    """
    relative = {name: shlex.quote(os.path.relpath(path, ROOT)) for name, path in places.items()}
    start, words = program(command.format(inception=inception, **relative))
    return [*start, *words]


def printed_by(line: list[str], deadline: float = np.inf) -> str:
    """What such a command prints; raises SystemExit if it fails or the time is up."""
    said = shlex.join(["python", *line])
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:
        status = status_of(line, deadline, stdout=printed)
        if status is None:
            sys.exit(f"the budget is spent; the same command begins again with {said}")
        if status:
            sys.exit(f"{said} ended with status {status}")
        printed.seek(0)
        return printed.read()


def measured_by(command: str, name: str, out: Path, inception: str, deadline: float = np.inf) -> dict[str, Any]:
    """The facts that a command prints as JSON.

    They are kept in the folder `out`, for finding them takes long, as long as the command and the files that it reads
    stay the same.
    """
    kept, words = out / f"{name}.json", typed(command, out=out)
    read = [word for before, word in pairwise(words) if before != "--out" and (ROOT / word).is_file()]
    files = {word: hashlib.sha256((ROOT / word).read_bytes()).hexdigest()[:16] for word in read}
    key = {"command": shlex.join(["python", *words]), "files": files}
    if kept.exists() and key.items() <= (found := json.loads(kept.read_text(encoding="utf-8"))).items():
        return found
    found = json.loads(printed_by([*typed(command, inception, out=out), "--json"], deadline)) | key
    out.mkdir(parents=True, exist_ok=True)
    gan.write_whole(kept, json.dumps(found).encode())
    return found


def spectrum(images: np.ndarray) -> np.ndarray:
    """The mean power of each spatial frequency in grey uint8 images N×S×S[×C], S×S, frequency 0 in the middle."""
    scaled = images.reshape(*images.shape[:3], -1) / 127.5 - 1
    power = np.abs(np.fft.fft2(scaled.mean(3), norm="ortho")) ** 2
    return np.fft.fftshift(power.mean(0))


def keep_spectra(outs: dict[str, Path], data: Path, count: int, results: Path) -> dict[str, dict[str, float]]:
    """Write the `spectrum` of training images, and of samples of seed 0 by each G's average and by its last weights.

    Returns, for each run and both of its weights, the samples' power over the images' at half a cycle a pixel in both
    directions, which is that of a checkerboard of single pixels.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for run_name, out in outs.items():
        generator = gan.load_generator(out / "generator.safetensors")
        averaged = spectrum(generator.generate(count))
        generator.load_state_dict(gan.load_checkpoint(out / "checkpoints" / "last.pt")["networks"]["generator"])
        found[run_name] = {"average": averaged, "last weights": spectrum(generator.generate(count))}
    images = gan.load_images(data, image_size=generator.architecture["image_size"])
    of_images = spectrum(evaluation.real_sample(images, count)[0].numpy())
    np.savetxt(results / "spectrum-of-images.csv", of_images, "%.5g", ",")
    for run_name, spectra in found.items():
        for weights, power in spectra.items():
            np.savetxt(results / f"{run_name}-{SPECTRA[weights]}.csv", power, "%.5g", ",")
    corner = (0, 0)  # frequencies of -½ and -½
    return {
        run_name: {weights: float(power[corner] / of_images[corner]) for weights, power in spectra.items()}
        for run_name, spectra in found.items()
    }


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
        row = Image.new("RGB", (sum(sheet.width + GAP for sheet in sheets) - GAP, height + 22), "white")
        left = 0
        for name, sheet in zip(folders, sheets, strict=True):
            unit = sample_sheet(folders[name], epoch).stem.partition("_")[0]
            ImageDraw.Draw(row).text((left + 2, 5), f"{name}, {unit} {epoch}", fill="black")
            row.paste(sheet.crop((0, 0, sheet.width, height)), (left, 22))
            left += sheet.width + GAP
        rows.append(row)
    whole = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), "white")
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


def without_seeds(outs: dict[str, Path]) -> dict[str, Path]:
    """The folders of runs, of those that differ in the seed alone the first's."""
    return {run_name: out for run_name, out in outs.items() if SEED not in run_name}


def located(name: str, run_name: str, everything: dict[str, Any]) -> tuple[Path, str]:
    """The folder and the command of an experiment's run, which may be another experiment's: @NAME/RUN."""
    words = everything[name]["runs"][run_name]
    if words.startswith("@"):
        return located(*words[1:].split("/"), everything)
    return everything[name]["folder"] / run_name, words


def example_sheet(data: str, rows: int) -> Image.Image:
    """Training images of a set, a column for each class, or ten columns without classes."""
    images = gan.load_images(ROOT / data)
    columns = len(images.classes) or 10
    if images.classes:
        of_class = [(images.labels == label).nonzero().flatten()[:rows] for label in range(columns)]
        index = torch.stack(of_class, 1).flatten()
    else:
        index = torch.linspace(0, len(images.pixels) - 1, rows * columns).long()
    pixels = images.pixels[index].numpy()
    return gan.sheet(pixels[..., 0] if pixels.shape[3] == 1 else pixels, columns)


def runs_of(name: str, everything: dict[str, Any]) -> list[tuple[Path, str]]:
    """The folders and commands of an experiment's runs, and of the one whose classifier judges them."""
    runs = [(name, run_name) for run_name in everything[name]["runs"]]
    if "judge" in everything[name]:
        runs.append(everything[name]["judge"]["run"].split("/"))
    return [located(*run, everything) for run in runs]


def complete_all(names: list[str], everything: dict[str, Any], deadline: float, jobs: int) -> None:
    """Bring all that experiments need to its end, `jobs` runs at a time; raises SystemExit if one fails."""
    needed = dict.fromkeys(place for name in names for place in runs_of(name, everything))  # experiments share some
    missing = [place for place in needed if not is_whole(*place)]
    each(complete, [(*place, deadline, min(jobs, len(missing)) < 2) for place in missing], jobs)


def keep(name: str, everything: dict[str, Any], deadline: float, inception: str = "", jobs: int = 1) -> None:
    """Measure an experiment's runs, which are complete, `jobs` at a time, and write its facts to results/<name>/."""
    experiment, results = everything[name], RESULTS / name
    facts: dict[str, dict[str, Any]] = {}
    places = {run_name: located(name, run_name, everything) for run_name in experiment["runs"]}
    for run_name, (out, words) in places.items():
        start, given = program(words)
        facts[run_name] = {"command": shlex.join(["python", *start, *given]), **measure(out, words)}
    if len(found := {measured["precision"] for measured in facts.values()}) > 1:
        print(f"note: the runs of {name} differ in their precision: {', '.join(sorted(found))}", file=sys.stderr)
    outs = {run_name: out for run_name, (out, _) in places.items()}
    if "judge" in experiment:
        judging_run, count = experiment["judge"]["run"], experiment["judge"]["samples"]
        classifier, _ = located(*judging_run.split("/"), everything)
        for run_name, (out, words) in places.items():
            said = judge(out, recipe_of(words), classifier / "discriminator.safetensors", count)
            facts[run_name][f"judged by {judging_run}"] = said
    metrics: dict[str, Any] = {"question": experiment["question"], "scale": experiment["scale"], "runs": facts}
    targets = outs or {"": experiment["folder"]}
    for measure_name, command in experiment["measures"].items():
        asked = [(command, measure_name, out, inception, deadline) for out in targets.values()]
        for run_name, found in zip(targets, each(measured_by, asked, jobs), strict=True):
            facts.get(run_name, metrics)[measure_name] = found
    results.mkdir(parents=True, exist_ok=True)
    for run_name, out in without_seeds(targets).items():
        stem = f"{run_name}-" if run_name else ""
        for picture, command in experiment.get("pictures", {}).items():
            printed_by(typed(command, inception, out=out, picture=results / f"{stem}{picture}.png"), deadline)
        for pattern in ("confusion_matrix.csv", *experiment.get("keep", ())):
            for path in out.glob(pattern):
                (results / f"{stem}{path.name}").write_bytes(path.read_bytes())
    if "spectrum" in experiment:
        _, words = next(iter(places.values()))
        checkerboards = keep_spectra(without_seeds(outs), ROOT / parsed(words).data, experiment["spectrum"], results)
        for run_name, ratios in checkerboards.items():
            facts[run_name]["checkerboard, power over that of images"] = ratios
    for set_name, data in experiment.get("examples", {}).items():
        example_sheet(data, rows=6).save(results / f"{set_name}.png", optimize=True)
    if outs:
        keep_course(outs, experiment["sheets"], results)
    (results / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{results}: {', '.join(sorted(path.name for path in results.iterdir()))}")


def keep_course(outs: dict[str, Path], epochs: list[int], results: Path) -> None:
    """Write the course of runs: their tables, thinned, and the samples of the first of their seeds, side by side."""
    for run_name, out in outs.items():
        write_thinned(results / f"{run_name}.csv", read_rows(out / "epochs.csv"))
    outs = without_seeds(outs)
    kinds = {path.parent.relative_to(path.parents[2]) for out in outs.values() for path in out.glob("samples/*/*.png")}
    for kind in (Path("samples"), *sorted(kinds)):  # samples/, samples/y_to_x/
        sheets = side_by_side({run_name: out / kind for run_name, out in outs.items()}, epochs)
        sheets.save(results / f"{'-'.join(kind.parts)}.png", optimize=True)


def build(target: Path) -> None:
    """Typeset report.typ, with the figures drawn from results/, as a PDF. Raises UserError."""
    try:
        import typst
    except ImportError:
        raise gan.UserError("build: needs the typesetter Typst (pip install -r report/requirements.txt)") from None
    # The figures' folder lies under the typesetter's root.
    with gan.own_style(), tempfile.TemporaryDirectory(prefix=".figures-", dir=SOURCE.parent) as folder:
        from report import figures

        figures.draw_all(Path(folder))
        pdf = typst.compile(str(SOURCE), root=str(SOURCE.parent), sys_inputs={"figures": Path(folder).name})
    gan.write_whole(target, pdf)
    print(f"{target}: {len(pdf) / 1e6:.1f} MB")


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
    parser = argparse.ArgumentParser(prog="python -m report", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="run the experiments and keep their facts")
    scales = load_scales()
    names = dict.fromkeys(name for scale in scales for name in load_experiments(scale))
    command.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    command.add_argument("--budget", type=float, default=np.inf, metavar="MINUTES", help="stop after so long")
    command.add_argument(
        "--scale", choices=scales, default=scales[0], help=f"how long the sweeps are, and which are run ({scales[0]})"
    )
    command.add_argument("--jobs", type=gan.whole(1, 64), default=1, metavar="N", help="runs at a time (1)")
    command.add_argument(
        "--inception-weights", type=gan.some_path, metavar="FILE", help="fetched by torch-fidelity if left out"
    )
    commands.add_parser("build", help="write Report.pdf from the facts")
    options = parser.parse_args()
    work = partial(build, ROOT / "Report.pdf") if options.command == "build" else partial(run_asked, options)
    return gan.call_command(work, parser.prog)


def run_asked(options: argparse.Namespace) -> None:
    """The command `run`. Raises UserError."""
    experiments = load_experiments(options.scale)
    for name in options.names:
        if name not in experiments:
            others = [scale for scale in load_scales() if name in load_experiments(scale)]
            only = f"{name} is an experiment for --scale {' or '.join(others)} only"
            raise gan.UserError(only if others else f"there is no experiment {name} in {EXPERIMENTS.name}")
    deadline = time.monotonic() + options.budget * 60
    weights = options.inception_weights
    if weights and not weights.is_file():  # found out now, not when the runs are done
        raise gan.UserError("there is no such file", f"--inception-weights {weights}")
    inception = shlex.join(["--inception-weights", str(weights.resolve())]) if weights else ""
    names = options.names or [name for name in experiments if not has_results(name, experiments[name])]
    with signals_passed_on():
        # One by one; several runs at a time are those of all, so that no experiment waits for another's slowest.
        for together in [names] if options.jobs > 1 else [[name] for name in names]:
            failure = None
            try:
                complete_all(together, experiments, deadline, options.jobs)
            except SystemExit as error:  # what is whole all the same is kept
                failure = error
                together = [name for name in together if all(is_whole(*run) for run in runs_of(name, experiments))]
            for name in together:
                keep(name, experiments, deadline, inception, options.jobs)
            if failure:
                raise failure


def has_results(name: str, experiment: dict[str, Any]) -> bool:
    """Whether an experiment has results, and of this scale."""
    path = RESULTS / name / "metrics.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8")).get("scale", {}) == experiment["scale"]


if __name__ == "__main__":
    gan.exit_with(main)
