"""How good a CIFAR-10 generator a machine can make in some minutes: one command that times, trains and measures.

    python -m benchmarks.biggan --data ./cifar10 --out runs/speed-run                      # nine minutes on a GPU
    python -m benchmarks.biggan --data ./cifar10 --out runs/other --width-g 192 --d-steps 2    # another recipe

Times a few steps, trains `labs.biggan --preset cifar10-best` for as many as fit into --minutes (saving and measuring
come on top), and measures FID, precision and recall of 50,000 samples against all training images. What follows the
options below goes to the lab. The result is OUT/speed-run.json: a line of the Readme's table.
"""

import argparse
import json
import shlex
import sys
import time
from typing import Any

import torch

import rollnumber_04 as gan
from extras import evaluate as evaluation
from extras import speed
from labs import biggan


def steps_per_second(words: list[str], warm_up: int, timed: int) -> float:
    """How many iterations a second the lab makes with a command line's options, once it is warm. Raises UserError."""
    options = gan.parse_options(words, biggan.RECIPE)
    device = gan.choose_device(options.device)
    torch.set_float32_matmul_precision("high")  # as training does
    images, _, _ = options.recipe.load(options)
    channels, classes = images.pixels.shape[3], images.classes
    bf16 = gan.wants_bf16(options.precision, device)
    run, images = gan.make_run(options, channels, device, bf16, classes), gan.on_device(images, device)
    run.planned = warm_up + timed
    if options.compile:
        speed.compile_networks(run)
    for steps in (warm_up, timed):
        begun = time.perf_counter()
        for _ in gan.train_leg(run, images, steps, options):  # each row of the log waits for the device
            pass
    return timed / (time.perf_counter() - begun)


def measure(options: argparse.Namespace, others: list[str]) -> dict[str, Any]:
    """Time, train, measure; the facts. Raises UserError."""
    start = time.perf_counter()
    words = ["--data", str(options.data), "--device", options.device, "--seed", str(options.seed)]
    words += ["--preset", options.preset, *others]
    rate = steps_per_second(words, options.warm_up, 2 * options.warm_up)
    every = max(1, int(rate * options.minutes * 60 / 20))
    iterations = 20 * every
    print(f"{rate:.1f} iterations a second: {iterations:,} in {options.minutes:g} minutes", flush=True)
    words += ["--iterations", str(iterations), "--sample-every", str(every), "--save-every", str(5 * every)]
    begun = time.perf_counter()
    out = gan.train(gan.parse_options([*words, "--out", str(options.out)], biggan.RECIPE))
    trained = time.perf_counter()
    parser = gan.build_parser("evaluate", "labs.biggan")
    parser.set_defaults(recipe=biggan.RECIPE)
    asked = [str(out / "generator.safetensors"), "--data", str(options.data), "--device", options.device, "--no-judge"]
    asked += ["--samples", str(options.samples)]
    asked += ["--inception-weights", str(options.inception_weights)] if options.inception_weights else []
    found = evaluation.measure_model(parser.parse_args(asked))
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
    parser.add_argument("--preset", choices=biggan.PRESETS, default="cifar10-best")
    parser.add_argument("--minutes", type=float, default=7.5, help="of training")
    parser.add_argument("--samples", type=int, default=50_000, help="that are measured")
    parser.add_argument("--warm-up", type=int, default=100, metavar="STEPS", help="before twice as many are timed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--inception-weights", type=gan.some_path)
    parser.add_argument("--device", default="cuda")
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
