"""How good a CIFAR-10 generator a machine can make in some minutes: one command that times, trains and measures.

    python -m benchmarks.biggan --data ./cifar10 --out runs/speed-run                      # nine minutes on a GPU
    python -m benchmarks.biggan --data ./cifar10 --out runs/other --width-g 192 --d-steps 2    # another recipe

Times a few steps, trains the wide BigGAN for as many as fit into --minutes (saving and measuring come on top), and
measures FID, precision and recall of 50,000 samples against all training images. What follows the options below goes
to the lab, over what is in WIDE. The result is OUT/speed-run.json: a line of the Readme's table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import sys
import time
from typing import Any

import rollnumber_04 as gan
from labs.biggan import BigGAN

WIDE = "--width-g 256 --width-d 256 --batch-size 64 --lr-d 2e-4 --d-steps 4 --ema 400000".split()
WIDE += ["--augment", "colour,translation,cutout"]


def steps_per_second(config: gan.Config, warm_up: int, timed: int) -> float:
    """How many steps a second a run makes, once it is warm; nothing of it is written. Raises UserError."""
    run = gan.prepare(config, BigGAN, gan.choose_device(config.device))
    step = gan.launcher(run.gan)
    for steps in (warm_up, timed):
        begun = time.perf_counter()
        for index in itertools.islice(gan.batches(run), steps):
            step(run.images, index)
            run.count_step()
        run.gan.sums.tolist()  # waits for the device
    return timed / (time.perf_counter() - begun)


def measure(options: argparse.Namespace, others: list[str]) -> dict[str, Any]:
    """Time, train, measure; the facts. Raises UserError."""
    start = time.perf_counter()
    words = ["--data", str(options.data), "--device", options.device, "--seed", str(options.seed), *WIDE, *others]
    planned = ["--iterations", str(10**6), "--out", str(options.out)]  # until it is known how many there will be
    rate = steps_per_second(gan.config_from([*words, *planned], BigGAN), options.warm_up, 2 * options.warm_up)
    every = max(1, int(rate * options.minutes * 60 / 20))
    iterations = 20 * every
    print(f"{rate:.1f} iterations a second: {iterations:,} in {options.minutes:g} minutes", flush=True)
    words += ["--iterations", str(iterations), "--sample-every", str(every), "--save-every", str(5 * every)]
    begun = time.perf_counter()
    out = gan.train(gan.config_from([*words, "--out", str(options.out)], BigGAN), BigGAN)
    trained = time.perf_counter()
    asked = [str(out / "generator.safetensors"), "--data", str(options.data), "--device", options.device, "--no-judge"]
    asked += ["--samples", str(options.samples)]
    asked += ["--inception-weights", str(options.inception_weights)] if options.inception_weights else []
    found = gan.extra("evaluate").evaluate(asked, "labs.biggan")
    return {
        "command": shlex.join(["python", "-m", "labs.biggan", *words]),
        "iterations": iterations,
        "seconds_training": round(trained - begun, 1),
        "seconds_in_all": round(time.perf_counter() - start, 1),
        "date": time.strftime("%Y-%m-%d"),
        **found,
    }


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.biggan", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--data", type=gan.some_path, required=True, help="labelled images, in any layout")
    parser.add_argument("--out", type=gan.some_path, required=True, help="the run's folder")
    parser.add_argument("--minutes", type=float, default=7.5, help="time to train (7.5)")
    parser.add_argument("--samples", type=int, default=50_000, help="samples to measure (50000)")
    parser.add_argument(
        "--warm-up", type=int, default=100, metavar="STEPS", help="steps before twice as many are timed"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the run (1)")
    parser.add_argument("--inception-weights", type=gan.some_path, help="torch-fidelity's; it fetches them if omitted")
    parser.add_argument("--device", default="cuda", help="auto, cpu, cuda, cuda:1 … or mps (cuda)")
    options, others = parser.parse_known_args()
    try:
        facts = measure(options, others)
    except gan.UserError as error:
        print(error, file=sys.stderr)
        return error.status
    text = json.dumps(facts, indent=2, ensure_ascii=False)
    (options.out / "speed-run.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
