"""Whether the measure of quality can be trusted, and how good the saved models are by it: one command, for any GPU.

    python -m benchmarks.quality --data ./cifar10 --out quality.json                  # everything, on a GPU minutes
    python -m benchmarks.quality --data ./cifar10 --images 2000 --out quality.json    # smaller, for a CPU
    python -m benchmarks.quality --data ./cifar10 --radii --models --out quality.json    # the data's own distance alone

Measures the FID of the test images against the training images, of training images of which half are blurred, more and
more, against the test images, and of samples of each model against the training images.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

import rollnumber_04 as gan
from extras import evaluate as evaluation

ROOT = Path(__file__).resolve().parent.parent
MODELS = [ROOT / "saved_models" / f"cifar10-{name}.safetensors" for name in ("ls", "multitask")]
RADII = (0.25, 0.5, 1.0, 2.0)  # of the Gaussian blur, in pixels


def blurred(pixels: np.ndarray, radius: float) -> Iterator[np.ndarray]:
    """Images uint8 N×H×W×3, blurred, in pieces."""
    for start in range(0, len(pixels), gan.GENERATE_BATCH):
        piece = (Image.fromarray(image) for image in pixels[start : start + gan.GENERATE_BATCH])
        yield np.stack([image.filter(ImageFilter.GaussianBlur(radius)) for image in piece])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, each with its numbers of images and its seconds."""
    device = gan.choose_device(options.device)
    inception = evaluation.Inception(options.inception_weights, device)
    results: dict[str, Any] = {
        "network": f"{evaluation.NETWORK}, weights {inception.digest}, {evaluation.RESIZE}, float32",
        "device": gan.device_name(device),
        "torch": str(torch.__version__),
        "date": time.strftime("%Y-%m-%d"),
        "figures": [],
    }

    def record(what: str, features: dict[str, torch.Tensor], reference: torch.Tensor, of: str, begun: float) -> None:
        count = len(features[evaluation.FEATURES])
        found = evaluation.quality(features, reference, inception)
        facts = {"what": what, "n": count, "against": of, "n_reference": len(reference), **found}
        results["figures"].append(facts | {"seconds": round(time.perf_counter() - begun, 1)})
        print(f"{what:45} {count:7,} against {len(reference):7,} {of:15} FID {found['fid']:8.3f}", file=sys.stderr)

    begun = time.perf_counter()
    images = {split: gan.load_images(options.data, split) for split in ("train", "test")}
    chosen = {split: evaluation.real_sample(part, options.images or len(part.pixels)) for split, part in images.items()}
    real = {split: evaluation.reference_features(inception, *sample) for split, sample in chosen.items()}
    record("test images", {evaluation.FEATURES: real["test"]}, real["train"], "training images", begun)
    begun = time.perf_counter()
    some, name = evaluation.real_sample(images["train"], len(real["test"]))
    sharp = evaluation.reference_features(inception, some, name)
    record("training images", {evaluation.FEATURES: sharp}, real["test"], "test images", begun)
    for radius in options.radii:
        begun, features = time.perf_counter(), sharp.clone()
        half = some[::2].numpy()
        features[::2] = inception.features(blurred(half, radius), len(half), "blurred")[evaluation.FEATURES]
        what = f"training images, half of them blurred by {radius:g}"
        record(what, {evaluation.FEATURES: features}, real["test"], "test images", begun)
    for path in options.models:
        begun, generator = time.perf_counter(), gan.load_generator(path, device)
        count = min(options.images or options.samples, options.samples)
        features = inception.features(generator.stream(count, seed=options.seed), count, path.name)
        record(path.name, features, real["train"], "training images", begun)
    return results


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=gan.some_path, required=True, help="CIFAR-10, in any layout")
    parser.add_argument(
        "--models", type=gan.some_path, nargs="*", default=MODELS, help="generators of 32×32 colour images"
    )
    parser.add_argument("--radii", type=float, nargs="*", default=RADII, metavar="PIXELS", help="of the blurs")
    parser.add_argument("--samples", type=int, default=50_000, help="of each model")
    parser.add_argument("--images", type=int, help="at most so many of everything; biased, but sooner")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inception-weights", type=gan.some_path)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=gan.some_path, help="a .json file")
    parser.add_argument("--json", action="store_true", help="print it, too")
    options = parser.parse_args()
    try:
        if options.out:
            gan.check_writable("--out", options.out.parent)
        results = measure(options)
    except gan.UserError as error:
        print(error, file=sys.stderr)
        return error.status
    text = json.dumps(results, indent=2, ensure_ascii=False)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    if options.json:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
