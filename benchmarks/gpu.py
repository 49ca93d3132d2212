"""All that this project says of an NVIDIA GPU, checked and measured by one command in under ten minutes.

    python -m benchmarks.gpu --data ./cifar10 --out gpu.json

In this order, each written to --out as soon as it is there: the tests marked `gpu` (captured steps train as plain
ones do); images a second against the textbook loop (plain, captured, captured and compiled; batch 64, 128
and 512); 50 epochs from start to exit; with several GPUs their efficiency. What fails is said and the rest goes on; the
exit status then is 1.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import rollnumber_04 as gan

ROOT = Path(__file__).resolve().parent.parent
HOW = {"plain": ["--no-cuda-graph"], "captured": [], "captured and compiled": ["--compile"]}


def call(words: list[str], seconds: float) -> tuple[int, str, str]:
    """Run a Python module or script of this project; returns its status and what it printed."""
    try:
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return 124, "", f"took more than {seconds:.0f} s"
    return done.returncode, done.stdout, done.stderr


def parsed(out: str, err: str) -> dict[str, Any]:
    """The JSON object that a command has printed after whatever notes; what it said, if it has printed none."""
    try:
        return json.loads(out[out.index("{") :])
    except ValueError:
        return {"said": (out + err)[-3000:]}


def tests(options: argparse.Namespace) -> dict[str, Any]:
    """The tests that need a GPU."""
    status, out, err = call(["-m", "pytest", "-q", "-m", "gpu", "--numprocesses", "0"], 120)
    return {"status": status, "said": (out + err)[-3000:]}


def throughput(how: str, options: argparse.Namespace) -> dict[str, Any]:
    """The loop's images a second, one way."""
    words = ["-m", "benchmarks.throughput", "--device", options.device, "--rounds", str(options.rounds), "--json"]
    words += ["--images", str(options.images), "--batch-sizes", *map(str, options.batch_sizes), *HOW[how]]
    words += ["--data", str(options.data.resolve())] if options.data else []
    status, out, err = call(words, 300)  # to compile for three sizes takes minutes
    return {"status": status, **parsed(out, err)}


def whole_run(options: argparse.Namespace) -> dict[str, Any]:
    """A run of 50 epochs as a user types it: seconds from start to exit, and of the loop alone.

    The images have been decoded before, so that they come from the cache, as in a user's second run.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        words = ["rollnumber_04.py", "--epochs", str(options.epochs), "--seed", "1", "--out", str(out)]
        words += ["--device", options.device, *(["--data", str(options.data.resolve())] if options.data else [])]
        begun = time.perf_counter()
        status, said, err = call(words, 200)
        result = {"status": status, "seconds": time.perf_counter() - begun, "said": (said[-1500:] + err[-1500:])}
        if not status:
            with open(out / "epochs.csv", newline="", encoding="utf-8") as file:
                rows = [*csv.DictReader(file)]
            result["seconds_of_the_loop"] = sum(float(row["seconds"]) for row in rows)
            result["last_row"] = rows[-1]
    return result


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Several GPUs together; this alone may go past the ten minutes."""
    counts = [count for count in (1, 2, 4, 8) if count <= torch.cuda.device_count()]
    words = [
        "-m",
        "benchmarks.scaling",
        "--device",
        "cuda",
        "--precision",
        "bf16",
        "--iterations",
        "600",
        "--rounds",
        "1",
        "--json",
    ]
    words += ["--processes", *map(str, counts), *(["--data", str(options.data.resolve())] if options.data else [])]
    status, out, err = call(words, 300)
    return {"status": status, **parsed(out, err)}


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=gan.some_path, help="images in any layout; drawn shapes of 32×32 if left out")
    parser.add_argument("--out", type=gan.some_path, required=True, help="the JSON file with all that was found")
    parser.add_argument("--device", default="cuda", help="cpu tries this program itself, without what needs a GPU")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=19_200, help="that each loop sees in a round")
    parser.add_argument("--epochs", type=int, default=50, help="of the whole run")
    options = parser.parse_args()
    on_gpu = options.device != "cpu"
    if on_gpu and not torch.cuda.is_available():
        print("--device cuda: there is no NVIDIA GPU here; --device cpu tries the rest", file=sys.stderr)
        return 2
    facts: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": str(torch.__version__),
        "date": time.strftime("%Y-%m-%d"),
    }
    parts = {"tests": tests} if on_gpu else {}
    parts |= {f"throughput, {how}": lambda o, how=how: throughput(how, o) for how in HOW}
    parts |= {"whole run": whole_run}
    parts |= {"scaling": scaling} if on_gpu and torch.cuda.device_count() > 1 else {}
    for name, part in parts.items():
        begun = time.perf_counter()
        facts[name] = part(options)
        took = time.perf_counter() - begun
        print(f"{name}: {'done' if not facts[name]['status'] else 'FAILED'} in {took:.0f} s", flush=True)
        options.out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return int(any(facts[name]["status"] for name in parts))


if __name__ == "__main__":
    sys.exit(main())
