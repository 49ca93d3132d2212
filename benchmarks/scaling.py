"""How much faster a run becomes with several processes: images a second for 1, 2, … of them, and their efficiency.

    python -m benchmarks.scaling --data ./cifar10 --processes 1 2        # CPU cores
    python -m benchmarks.scaling --data ./cifar10 --processes 1 2 4 8    # GPUs, one a process

Each run is the tool's own under torchrun, of so many iterations, its images a second the median of the rows of log.csv
after the first. On a CPU each process has the same number of threads, the cores over the most processes; beside them
stands one process with all cores. Efficiency is the rate over that of one process times their number.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import rollnumber_04 as gan

ROOT = Path(__file__).resolve().parent.parent


def rate(processes: int, threads: int, options: argparse.Namespace) -> float:
    """Images a second of a run by so many processes together."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        line += ["rollnumber_04.py", "--iterations", str(options.iterations), "--sample-every", str(options.iterations)]
        line += ["--log-every", str(options.iterations // 6), "--batch-size", str(options.batch_size)]
        line += ["--no-cuda-graph"]  # which several processes cannot use: what is compared is the same loop
        line += ["--seed", "0", "--device", options.device, "--precision", options.precision, "--out", str(out)]
        line += ["--data", str(options.data.resolve())] if options.data else []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"the run by {processes} processes ended with status {done.returncode}:\n{done.stderr}")
        with open(out / "log.csv", newline="", encoding="utf-8") as file:
            rates = [float(row["images_per_s"]) for row in csv.DictReader(file)]
    return statistics.median(rates[1:])


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=gan.some_path, help="images in any layout; drawn shapes of 32×32 if left out")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--iterations", type=int, default=300, help="of each run")
    parser.add_argument("--batch-size", type=int, default=64, help="of each process")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="the runs take turns so many times")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.iterations < 12:
        parser.error("--iterations: at least 12, for the rates of six rows")
    threads = max(1, (os.cpu_count() or 1) // max(options.processes))
    rates: dict[int, list[float]] = {count: [] for count in options.processes}
    with_all_cores = []
    for _ in range(options.rounds):
        for count, found in rates.items():
            found.append(rate(count, threads, options))
        if options.device == "cpu":
            with_all_cores.append(rate(1, os.cpu_count() or 1, options))
    medians = {count: statistics.median(found) for count, found in rates.items()}
    alone = medians[min(medians)] / min(medians)
    facts = {
        "command": " ".join(["python -m benchmarks.scaling", *sys.argv[1:]]),
        "device": options.device,
        "threads_a_process": threads,
        "batch_size_a_process": options.batch_size,
        "precision": options.precision,
        "rounds": options.rounds,
        "date": time.strftime("%Y-%m-%d"),
        "images_per_s": medians,
        "from_to": {count: [min(found), max(found)] for count, found in rates.items()},
        "efficiency": {count: found / (alone * count) for count, found in medians.items()},
        "one_process_with_all_cores": statistics.median(with_all_cores) if with_all_cores else None,
    }
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    print("processes  images/s  (from … to)  efficiency")
    for count, found in medians.items():
        low, high = facts["from_to"][count]
        print(f"{count:9}{found:10,.0f}  ({low:,.0f} … {high:,.0f})  {facts['efficiency'][count]:.0%}")
    if with_all_cores:
        print(f"one process with all cores: {facts['one_process_with_all_cores']:,.0f} images/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
