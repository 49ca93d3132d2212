"""How much faster a run becomes with several processes: images a second for 1, 2, … of them, and their efficiency.

    python -m benchmarks.scaling --data ./cifar10 --processes 1 2                      # CPU cores
    python -m benchmarks.scaling --data ./cifar10 --processes 1 2 4 8 --device cuda    # GPUs, one a process

Each run is the tool's own under torchrun, of so many iterations, its images a second the median of the rows of log.csv
after the first. On a CPU each process has the same number of threads, the cores over the most processes; beside them
stands one process with all cores. Efficiency is the rate over that of one process times their number.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import benchmarks
import rollnumber_04 as gan


def rate(processes: int, threads: int, options: argparse.Namespace) -> float:
    """Images a second of a run by so many processes together. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        line += ["rollnumber_04.py", "--iterations", str(options.iterations), "--sample-every", str(options.iterations)]
        line += ["--launch", "kernels"]  # several processes cannot use graphs: what is compared is the same loop
        line += ["--seed", "0", "--batch-size", str(options.batch_size), "--device", options.device.type]
        line += ["--precision", options.precision, "--out", str(out)]
        line += ["--data", str(options.data.resolve())] if options.data else []
        settings = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(line, cwd=benchmarks.ROOT, env=settings, capture_output=True, text=True, check=False)
        if done.returncode:
            what = f"the run by {processes} processes ended with status {done.returncode}: {done.stderr[-2000:]}"
            raise gan.UserError(what, status=1)
        with open(out / "log.csv", newline="", encoding="utf-8") as file:
            rates = [float(row["images_per_s"]) for row in csv.DictReader(file)]
    return statistics.median(rates[1:])


def measure(options: argparse.Namespace) -> benchmarks.Facts:
    """The rates of so many processes, which take turns, and their efficiency."""
    cores, on_cpu = os.cpu_count() or 1, options.device.type == "cpu"
    threads = max(1, cores // max(options.processes))
    rates: dict[int, list[float]] = {count: [] for count in options.processes}
    with_all_cores = []
    for _ in range(options.rounds):
        for count, found in rates.items():
            found.append(rate(count, threads, options))
        if on_cpu:
            with_all_cores.append(rate(1, cores, options))
    middles = {count: benchmarks.middle(found) for count, found in rates.items()}
    alone = middles[min(middles)][0] / min(middles)
    return {
        "threads_a_process": threads,
        "batch_size_a_process": options.batch_size,
        "precision": options.precision,
        "rounds": options.rounds,
        "images_per_s": {count: median for count, (median, _) in middles.items()},
        "from_to": {count: spread for count, (_, spread) in middles.items()},
        "efficiency": {count: median / (alone * count) for count, (median, _) in middles.items()},
        "one_process_with_all_cores": statistics.median(with_all_cores) if on_cpu else None,
    }


def text(facts: benchmarks.Facts) -> str:
    """What was found, as a table."""
    lines = ["processes  images/s  (from … to)  efficiency"]
    for count, found in facts["images_per_s"].items():
        low, high = facts["from_to"][count]
        lines += [f"{count:9}{found:10,.0f}  ({low:,.0f} … {high:,.0f})  {facts['efficiency'][count]:.0%}"]
    if facts["one_process_with_all_cores"]:
        lines += [f"one process with all cores: {facts['one_process_with_all_cores']:,.0f} images/s"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = benchmarks.make_parser("scaling", __doc__, device="cpu")
    add, least = parser.add_argument, 3 * gan.LOG_EVERY  # rows of log.csv
    add("--processes", type=gan.number_in(int, 1, 1024), nargs="+", default=[1, 2], metavar="N")
    add("--iterations", type=gan.number_in(int, least, 10**6), default=300, metavar="N", help="of each run (300)")
    add("--batch-size", type=gan.number_in(int, 2, 2**16), default=64, metavar="N", help="of each process (64)")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="(fp32)")
    add("--rounds", type=gan.number_in(int, 1, 1000), default=3, metavar="N", help="the runs take turns so often (3)")
    return benchmarks.call(parser, measure, text, argv)


if __name__ == "__main__":
    gan.exit_with(main)
