"""Whether the measure of quality can be trusted, and how good the saved models are by it: one command, for any GPU.

    python -m benchmarks.quality --data ./cifar10 --out quality.json                  # everything, on a GPU minutes
    python -m benchmarks.quality --data ./cifar10 --images 2000 --out quality.json    # smaller, for a CPU
    python -m benchmarks.quality --data ./cifar10 --radii --models --out quality.json    # the data's own distance alone

Measures the FID of the test images against the training images, of training images of which half are blurred, more and
more, against the test images, and of samples of each model against the training images.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

import benchmarks
import rollnumber_04 as gan
from extras import evaluate as evaluation

MODELS = [benchmarks.ROOT / "saved_models" / f"cifar10-{name}.safetensors" for name in ("ls", "multitask")]
RADII = (0.25, 0.5, 1.0, 2.0)  # of the Gaussian blur, in pixels


def blurred(pixels: np.ndarray, radius: float) -> Iterator[np.ndarray]:
    """Images uint8 N×H×W×3, blurred, in pieces."""
    for start in range(0, len(pixels), gan.GENERATE_BATCH):
        piece = (Image.fromarray(image) for image in pixels[start : start + gan.GENERATE_BATCH])
        yield np.stack([image.filter(ImageFilter.GaussianBlur(radius)) for image in piece])


def measure(options: argparse.Namespace) -> benchmarks.Facts:
    """All figures, each with its numbers of images and its seconds."""
    with gan.named("--data"):
        images = {split: gan.load_images(options.data, split) for split in ("train", "test")}
    generators = {path: gan.load_generator(path, options.device) for path in options.models}
    inception = evaluation.Inception(options.inception_weights, options.device)
    figures: list[dict[str, Any]] = []
    begun = time.perf_counter()

    def record(what: str, features: dict[str, torch.Tensor], reference: torch.Tensor, of: str) -> None:
        nonlocal begun
        count = len(features[evaluation.FEATURES])
        found = evaluation.quality(features, reference, inception)
        facts = {"what": what, "n": count, "against": of, "n_reference": len(reference), **found}
        figures.append(facts | {"seconds": round(time.perf_counter() - begun, 1)})
        print(f"{what:45} {count:7,} against {len(reference):7,} {of:15} FID {found['fid']:8.3f}", file=sys.stderr)
        begun = time.perf_counter()

    chosen = {split: evaluation.real_sample(part, options.images or len(part.pixels)) for split, part in images.items()}
    real = {split: evaluation.reference_features(inception, *sample) for split, sample in chosen.items()}
    record("test images", {evaluation.FEATURES: real["test"]}, real["train"], "training images")
    some, name = evaluation.real_sample(images["train"], len(real["test"]))
    sharp = evaluation.reference_features(inception, some, name)
    record("training images", {evaluation.FEATURES: sharp}, real["test"], "test images")
    half = some[::2].numpy()
    for radius in options.radii:
        features = sharp.clone()
        features[::2] = inception.features(blurred(half, radius), len(half), "blurred")[evaluation.FEATURES]
        what = f"training images, half of them blurred by {radius:g}"
        record(what, {evaluation.FEATURES: features}, real["test"], "test images")
    count = min(options.images or options.samples, options.samples)
    for path, generator in generators.items():
        samples = gan.stream(generator, count, seed=options.seed)
        record(path.name, inception.features(samples, count, path.name), real["train"], "training images")
    network = f"{evaluation.NETWORK}, weights {inception.digest}, {evaluation.RESIZE}, float32"
    return {"network": network, "figures": figures}


def text(facts: benchmarks.Facts) -> str:
    """Where the figures are from; each was printed when it was there."""
    return f"by {facts['network']}, on {facts['device']}"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = benchmarks.make_parser("quality", __doc__)
    add, count = parser.add_argument, gan.number_in(int, evaluation.MIN_IMAGES, 10**7)
    models = "generators of images like the data's (the saved ones of CIFAR-10)"
    add("--models", type=gan.some_path, nargs="*", default=MODELS, metavar="MODEL", help=models)
    add("--radii", type=gan.number_in(float, 0, 1000), nargs="*", default=RADII, metavar="PIXELS", help="of the blurs")
    add("--samples", type=count, default=50_000, metavar="N", help="of each model (50000)")
    add("--images", type=count, metavar="N", help="at most so many of everything; biased, but sooner")
    add("--seed", type=gan.number_in(int, 0, 2**31 - 1), default=0, help="of the samples (0)")
    add("--inception-weights", type=gan.some_path, metavar="FILE", help="torch-fidelity's; it fetches them if omitted")
    return benchmarks.call(parser, measure, text, argv)


if __name__ == "__main__":
    gan.exit_with(main)
