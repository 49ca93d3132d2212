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
import hashlib
import json
import math
import os
import re
import shlex
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import rollnumber_04 as gan
from report import ROOT, SEED, facts
from report.programs import Task, run_all

EXPERIMENTS, RESULTS = ROOT / "report" / "experiments.toml", ROOT / "report" / "results"
RUNS, SOURCE = ROOT / "runs" / "report", ROOT / "report" / "report.typ"


def load_experiments(scale: str = "cpu") -> dict[str, Any]:
    """The experiments by name; the scale's numbers take the places of {epochs}, {samples}, {reference} in them.

    Each run is its folder and command. One whose command has a {seed} is a run for each of the scale's: "deconv",
    "deconv-seed-2" … An experiment is told which of the numbers it takes ("scale"). One only for another scale is left
    out.
    """
    experiments = tomllib.loads(EXPERIMENTS.read_text(encoding="utf-8"))
    numbers = experiments.pop("scales")[scale]
    experiments = {name: other for name, other in experiments.items() if other.get("only", scale) == scale}
    written = {(name, run): line for name, other in experiments.items() for run, line in other.get("runs", {}).items()}
    folder, first = RUNS.with_name(RUNS.name + ("" if scale == "cpu" else f"-{scale}")), numbers["seed"][0]

    def filled(text: Any, seed: int = first) -> str:
        values = numbers | {"seed": seed}
        return re.sub(r"\{(\w+)\}", lambda place: str(values.get(place[1], place[0])), str(text))

    for name, experiment in experiments.items():
        runs, lines = {}, [*experiment.get("measures", {}).values()]
        for run, line in experiment.get("runs", {}).items():
            owner, its_run = line[1:].split("/") if line.startswith("@") else (name, run)
            lines.append(line := written[owner, its_run])
            for seed in numbers["seed"] if "{seed}" in line else [first]:
                mark = "" if seed == first else f"{SEED}{seed}"
                runs[run + mark] = folder / owner / (its_run + mark), filled(line, seed)
        experiment |= dict(
            folder=folder / name, runs=runs, sheets=[int(filled(number)) for number in experiment.get("sheets", ())],
            measures={measure: filled(line) for measure, line in experiment.get("measures", {}).items()},
            scale={key: value for key, value in numbers.items() if any(f"{{{key}}}" in line for line in lines)},
        )  # fmt: skip
    return experiments


def program(command: str) -> tuple[list[str], list[str]]:
    """What an experiment's command starts, and its options: that of a lab or benchmark begins with its module."""
    words = shlex.split(command)
    if words and words[0].startswith(("labs.", "benchmarks.")):
        return ["-m", words[0]], words[1:]
    return ["rollnumber_04.py"], words


def typed(command: str, inception: str = "", **places: Path) -> list[str]:
    """The words after `python` of a command with its places filled in: {out}, {picture}, {inception}.

    The last is for the option --inception-weights, where they lie in a file.
    """
    relative = {name: shlex.quote(os.path.relpath(path, ROOT)) for name, path in places.items()}
    start, words = program(command.format(inception=inception, **relative))
    return [*start, *words]


def config_of(command: str) -> gan.Config:
    """The options of an experiment's command to train."""
    start, words = program(command)
    return gan.config_from(words, gan.load_kind(start[-1].removesuffix(".py"), command))


def is_whole(out: Path, command: str) -> bool:
    """Whether a run has come to the end that its command asks for."""
    config = config_of(command)
    rows = facts.read_rows(out / "epochs.csv") if (out / "epochs.csv").exists() else []
    return bool(rows) and rows[-1]["step" if config.iterations else "epoch"] >= (config.iterations or config.epochs)


def words_beside_others(out: Path) -> Path:
    """The file for what a run prints that has others beside it."""
    return out.parent / f"{out.name}.txt"


def training(out: Path, command: str, is_alone: bool = True) -> Task:
    """What brings a run to its end, from where it is."""
    start, given = program(command)
    is_begun = (out / "checkpoints" / "last.pt").exists()
    words = [*start, *(["--resume"] if is_begun else given), "--out", str(out)]
    return Task(words, None if is_alone else words_beside_others(out), is_log=not is_alone)


def train_all(experiments: Sequence[dict[str, Any]], jobs: int, deadline: float) -> None:
    """Bring all runs of experiments to their end, each once; raises what `run_all` raises."""
    runs = dict.fromkeys(run for experiment in experiments for run in experiment["runs"].values())
    missing = [run for run in runs if not is_whole(*run)]
    run_all([training(*run, min(jobs, len(missing)) < 2) for run in missing], jobs, deadline)


def measuring(command: str, out: Path, name: str, inception: str = "") -> Task | None:
    """What writes the facts that a command prints as JSON to `out`/`name`.json.

    None if they are there, of the same command and of the same files: finding them takes long.
    """
    words, kept, printed = typed(command, out=out), out / f"{name}.json", out / f"{name}.printed"
    read = [word for before, word in pairwise(words) if before != "--out" and (ROOT / word).is_file()]
    files = {word: hashlib.sha256((ROOT / word).read_bytes()).hexdigest()[:16] for word in read}
    key = {"command": shlex.join(["python", *words]), "files": files}
    if kept.exists() and key.items() <= json.loads(kept.read_text(encoding="utf-8")).items():
        return None

    def done() -> None:
        found = json.loads(printed.read_text(encoding="utf-8")) | key | facts.where_and_when()
        gan.write_whole(kept, json.dumps(found).encode())
        printed.unlink()

    return Task([*typed(command, inception, out=out), "--json"], printed, done=done)


def keep(name: str, experiment: dict[str, Any], jobs: int = 1, deadline: float = math.inf, inception: str = "") -> None:
    """Measure an experiment's runs, which are whole, and write its facts and pictures to results/<name>/."""
    results, outs = RESULTS / name, {run: out for run, (out, _) in experiment["runs"].items()}
    of_runs = {}
    for run, (out, command) in experiment["runs"].items():
        start, given = program(command)
        as_typed = shlex.join(["python", *start, *given])
        of_runs[run] = {"command": as_typed, **facts.of_run(out, config_of(command), given)}
        if words_beside_others(out).exists():
            of_runs[run]["beside others"] = True  # which made it slower
    if len(found := {of_run["precision"] for of_run in of_runs.values()}) > 1:
        print(f"note: the runs of {name} differ in their precision: {', '.join(sorted(found))}", file=sys.stderr)
    metrics = {"question": experiment["question"], "scale": experiment["scale"], "runs": of_runs}
    places = outs or {"": experiment["folder"]}  # of measures and pictures; one of its own, if there is no run
    asked = [(run, what, line) for run in places for what, line in experiment["measures"].items()]
    tasks = [measuring(line, places[run], what, inception) for run, what, line in asked]
    run_all([task for task in tasks if task], jobs, deadline)
    for run, what, _ in asked:
        of_runs.get(run, metrics)[what] = json.loads((places[run] / f"{what}.json").read_text(encoding="utf-8"))
    results.mkdir(parents=True, exist_ok=True)
    for run, what in ((run, what) for run in places if SEED not in run for what in experiment.get("pictures", ())):
        picture = results / (f"{run}-{what}.png" if run else f"{what}.png")
        run_all([Task(typed(experiment["pictures"][what], inception, out=places[run], picture=picture))], 1, deadline)
    facts.keep_files(outs, experiment, results)
    for what, data in experiment.get("examples", {}).items():
        facts.example_sheet(ROOT / data, rows=6).save(results / f"{what}.png", optimize=True)
    (results / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{results}: {', '.join(sorted(path.name for path in results.iterdir()))}")


def has_results(name: str, experiment: dict[str, Any]) -> bool:
    """Whether an experiment has results, and of this scale, or of a version that alone could make them."""
    path = RESULTS / name / "metrics.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"scale": None}
    return "version" in experiment or kept.get("scale", {}) == experiment["scale"]


def run_asked(options: argparse.Namespace) -> None:
    """The command `run`. Raises UserError."""
    experiments = load_experiments(options.scale)
    for name in options.names:
        if name not in experiments:
            raise gan.UserError(f"there is no such experiment for --scale {options.scale} in {EXPERIMENTS.name}", name)
        if version := experiments[name].get("version"):
            raise gan.UserError(f"takes options or defaults of version {version} alone; its results are kept", name)
    deadline = time.monotonic() + 60 * options.budget
    weights = options.inception_weights
    if weights and not weights.is_file():  # found out now, not when the runs are done
        raise gan.UserError("there is no such file", f"--inception-weights {weights}")
    inception = shlex.join(["--inception-weights", str(weights.resolve())]) if weights else ""
    names = options.names or [name for name in experiments if not has_results(name, experiments[name])]
    # One by one; several runs at a time are those of all, so that no experiment waits for another's slowest.
    for together in [names] if options.jobs > 1 else [[name] for name in names]:
        failure = None
        try:
            train_all([experiments[name] for name in together], options.jobs, deadline)
        except gan.UserError as error:  # what is whole all the same is kept
            failure = error
            together = [name for name in together if all(is_whole(*run) for run in experiments[name]["runs"].values())]
        for name in together:
            keep(name, experiments[name], options.jobs, deadline, inception)
        if failure:
            raise failure


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


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    description, *_ = __doc__.splitlines()
    with gan.told("python -m report") as status:
        parser = gan.Parser("python -m report", description)
        commands = parser.add_subparsers(dest="command", required=True)
        of_run = "Run experiments, whose data lie in ./cifar10 and ./data, and keep their facts in report/results/."
        add = commands.add_parser("run", description=of_run, help="run experiments, keep their facts").add_argument
        add("names", nargs="*", metavar="NAME", help=f"of {EXPERIMENTS.name}; those without results if omitted")
        add(
            "--budget", type=gan.number_in(float, 0, 10**6), default=10**6, metavar="MINUTES", help="stop after so long"
        )
        add("--scale", choices=("cpu", "gpu"), default="cpu", help="how long the sweeps are, and which are run (cpu)")
        add("--jobs", type=gan.number_in(int, 1, 64), default=1, metavar="N", help="runs at a time (1)")
        fetched = "torch-fidelity's Inception weights; it fetches them if omitted"
        add("--inception-weights", type=gan.some_path, metavar="FILE", help=fetched)
        of_build = "Make Report.pdf of the facts in report/results/."
        commands.add_parser("build", description=of_build, help="write Report.pdf from the facts")
        options = parser.parse_args(argv)
        run_asked(options) if options.command == "run" else build(ROOT / "Report.pdf")
    return status[0]


if __name__ == "__main__":
    gan.exit_with(main)
