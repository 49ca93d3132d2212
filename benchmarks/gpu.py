"""All that this project says of an NVIDIA GPU, checked and measured by one command in under ten minutes.

    python -m benchmarks.gpu --data ./cifar10 --out gpu.json

In this order, each written to --out as soon as it is there: the tests marked `gpu` (captured steps train as plain ones
do); images a second against the textbook loop (plain, captured, captured and compiled; batch 64, 128 and 512); 50
epochs from start to exit; with several GPUs their efficiency, which may take longer. What fails is said and the rest
goes on; the exit status then is 1.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import benchmarks
import rollnumber_04 as gan

HOW = {"plain": "kernels", "captured": "graph", "captured and compiled": "compiled"}  # and its --launch


def run(words: list[str], seconds: float) -> benchmarks.Facts:
    """What a module or the script prints as JSON after whatever notes, else what it says; with its status."""
    line = [sys.executable, *words]
    try:
        done = subprocess.run(line, cwd=benchmarks.ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"status": 124, "said": f"took more than {seconds:.0f} s"}
    try:
        return {"status": done.returncode, **json.loads(done.stdout[done.stdout.index("{") :])}
    except ValueError:
        return {"status": done.returncode, "said": (done.stdout + done.stderr)[-3000:]}


def whole_run(options: argparse.Namespace, common: list[str]) -> benchmarks.Facts:
    """A run as a user types it: seconds from start to exit, and of the loop alone.

    The images have been decoded before, so that they come from the cache, as in a user's second run.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, begun = Path(folder, "run"), time.perf_counter()
        words = ["rollnumber_04.py", "--epochs", str(options.epochs), "--seed", "1", "--out", str(out)]
        result = run([*words, *common], 200) | {"seconds": time.perf_counter() - begun}
        if not result["status"]:
            with open(out / "epochs.csv", newline="", encoding="utf-8") as file:
                rows = [*csv.DictReader(file)]
            result["seconds_of_the_loop"] = sum(float(row["seconds"]) for row in rows)
            result["last_row"] = rows[-1]
    return result


def parts_of(options: argparse.Namespace) -> dict[str, Callable[[], benchmarks.Facts]]:
    """What is done, in its order."""
    common = ["--device", options.device.type]
    common += ["--data", str(options.data.resolve())] if options.data else []
    gpus = torch.cuda.device_count() if options.device.type == "cuda" else 0
    words = ["-m", "benchmarks.throughput", "--json", "--rounds", str(options.rounds), "--images", str(options.images)]
    words += ["--batch-sizes", *map(str, options.batch_sizes), *common]
    parts: dict[str, Callable[[], benchmarks.Facts]] = {}
    if gpus:
        parts["tests"] = partial(run, ["-m", "pytest", "-q", "-m", "gpu", "--numprocesses", "0"], 120)
    for how, launch in HOW.items():  # to compile for three sizes takes minutes
        parts[f"throughput, {how}"] = partial(run, [*words, "--launch", launch], 300)
    parts["whole run"] = partial(whole_run, options, common)
    if gpus > 1:
        counts = [str(count) for count in (1, 2, 4, 8) if count <= gpus]
        words = ["-m", "benchmarks.scaling", "--json", "--processes", *counts, "--rounds", "1", *common]
        parts["scaling"] = partial(run, [*words, "--iterations", "600", "--precision", "bf16"], 300)
    return parts


def measure(options: argparse.Namespace) -> benchmarks.Facts:
    """All parts, and which of them have failed."""
    facts: benchmarks.Facts = {"failed": []}
    for name, part in parts_of(options).items():
        begun = time.perf_counter()
        facts[name] = part()
        facts["failed"] += [name] if facts[name]["status"] else []
        word = "FAILED" if facts[name]["status"] else "done"
        print(f"{name}: {word} in {time.perf_counter() - begun:.0f} s", file=sys.stderr, flush=True)
        if options.out:
            gan.save_output("--out", options.out, json.dumps(facts, indent=2).encode())
    return facts


def text(facts: benchmarks.Facts) -> str:
    """What has failed; the parts are said as they come."""
    return f"failed: {', '.join(facts['failed'])}" if facts["failed"] else "nothing has failed"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = benchmarks.make_parser("gpu", __doc__, device="cuda")  # cpu tries this program itself
    add, count = parser.add_argument, gan.number_in(int, 1, 10**7)
    add("--batch-sizes", type=count, nargs="+", default=[64, 128, 512], metavar="N")
    add("--rounds", type=count, default=5, metavar="N", help="of the loops (5)")
    add("--images", type=count, default=19_200, metavar="N", help="that each loop sees in a round (19200)")
    add("--epochs", type=count, default=50, metavar="N", help="of the whole run (50)")
    return benchmarks.call(parser, measure, text, argv)


if __name__ == "__main__":
    gan.exit_with(main)
