"""How good a generator is: FID, KID, precision and recall against real images, by torch-fidelity.

    python rollnumber_04.py evaluate MODEL --data ./cifar10 [--samples 50000] [--reference N] [--json]

All are computed in features of the Inception network of 2015 that the literature uses for FID.
"""

import argparse
import hashlib
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import rollnumber_04 as gan
from extras import cache, checks
from extras.judge import judge_of, judged, labelled_samples
from rollnumber_04 import BaseGenerator, Config, Images, UserError

FEATURES, LOGITS = "2048", "logits_unbiased"  # torch-fidelity's names of Inception's layers
NETWORK = "inception-v3-compat of torch-fidelity"
RESIZE = "bilinear as in TensorFlow 1.x, to 299×299"
GRID_IMAGES = 5000  # in which a grid is looked for, at the most
MIN_IMAGES = 16  # of which anything is measured
BIASED = 10_000  # fewer samples than this make an FID that says little next to one of 50,000


class Inception:
    """Features of images, by torch-fidelity's Inception v3.

    `precision` "bf16" takes half the time on a CPU made for it, and moved an FID by up to 0.3. `name` says how it
    computes, `digest` is that of its weights, `has_logits` says whether they can give an inception score. Raises
    UserError if the library is missing, or its weights cannot be read or fetched.
    """

    def __init__(self, weights: Path | None, device: torch.device, precision: str = "fp32"):
        try:  # slow to import, and needed nowhere else; all that will be needed hours later
            from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc, utils  # noqa: F401
            from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d
        except (ImportError, RuntimeError) as error:
            raise UserError(f"FID needs torch-fidelity 0.4 (pip install torch-fidelity): {error}"[:300]) from None
        self.device = device if device.type == "cuda" else torch.device("cpu")  # all that torch-fidelity knows
        self.is_bf16 = self.device.type == "cpu" and precision == "bf16"
        self.name = NETWORK + " in bfloat16" * self.is_bf16
        self.batch = 32 if self.device.type == "cpu" else gan.GENERATE_BATCH  # 0.2 GB of maps, and a bar that moves
        try:
            if weights and not os.path.isfile(weights):
                raise ValueError("there is no such file")
            if weights:  # of any origin; the library itself would run what a pickle says
                state = torch.load(weights, map_location="cpu", weights_only=True)
                if wrong := checks.mismatch(state, state, "weights"):
                    raise ValueError(wrong)
            self.network = utils.create_feature_extractor(
                "inception-v3-compat",
                [FEATURES, LOGITS],
                cuda=False,
                feature_extractor_weights_path=weights and str(weights),
                verbose=False,
            )
        except Exception as error:  # whatever else a file is, it is not those weights
            said = " ".join(gan.complaint(error).split())[:200]
            if weights:
                raise UserError(f"not torch-fidelity's ({said})", f"--inception-weights {weights}") from None
            raise UserError(
                f"they could not be fetched ({said}); give a file that has them", "--inception-weights"
            ) from None
        digest = hashlib.sha256()
        for tensor in self.network.state_dict().values():
            digest.update(tensor.cpu().numpy())
        self.digest = digest.hexdigest()[:16]
        self.has_logits = bool(self.network.fc.weight.any())
        for layer in self.network.modules():  # batch norm as a part of the convolutions is 1.15 times as fast on a CPU
            if isinstance(layer, BasicConv2d):
                layer.conv, layer.bn = fuse_conv_bn_eval(layer.conv, layer.bn), nn.Identity()
        # Channels last are 1.5 times as fast there. Both leave features equal to 1e-5.
        self.network.to(self.device, memory_format=torch.channels_last)

    @torch.no_grad()
    def features(self, pieces: Iterator[np.ndarray], count: int, what: str) -> dict[str, Tensor]:
        """{layer: float32 count×width} of uint8 images in pieces n×H×W[×3]; grey is repeated as colour."""
        # One tensor made beforehand: small results kept between the large ones of each batch would hold the heap open.
        found: dict[str, Tensor] = {}
        done, exact = 0, torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # TF32 would be another network
        with exact, gan.progress_bar(total=count, desc=what, unit="img", leave=False) as bar:
            for piece in pieces:
                for images in torch.from_numpy(np.ascontiguousarray(piece)).split(self.batch):
                    images = images.to(self.device).reshape(*images.shape[:3], -1).permute(0, 3, 1, 2)
                    with torch.autocast("cpu", torch.bfloat16, enabled=self.is_bf16):
                        results = self.network(images.expand(-1, 3, -1, -1))
                    for layer, values in zip((FEATURES, LOGITS), results, strict=True):
                        if layer not in found:
                            found[layer] = torch.empty(count, *values.shape[1:])
                        found[layer][done : done + len(values)] = values
                    done += len(images)
                    bar.update(len(images))
        return found


def reference_features(inception: Inception, pixels: Tensor, name: str) -> Tensor:
    """Features of real images uint8 N×H×W×C, float32 N×2048: from the cache, or computed and put there.

    `name` tells data, split, size and number; the weights' digest is added.
    """
    name = f"{name}-{FEATURES}-{inception.digest}{'-bfloat16' * inception.is_bf16}"
    if (found := cache.load(name)) and "features" in found:
        return found["features"]
    pieces = (piece.numpy() for piece in pixels.cpu().split(gan.GENERATE_BATCH))
    features = inception.features(pieces, len(pixels), "real images")[FEATURES]
    cache.save(name, {"features": features})
    return features


def real_sample(images: Images, count: int) -> tuple[Tensor, str]:
    """`count` of a set's images, always the same, and a name for just these, for the cache of their features."""
    whole, size = len(images.pixels), images.pixels.shape[1]
    picked = images.pixels if count >= whole else images.pixels[gan.epoch_order(whole, 0, 0)[:count]]
    return picked, f"{gan.fingerprint(images)}-{size}-{len(picked)}"


def quality(fake: dict[str, Tensor], real: Tensor, inception: Inception, seed: int = 0) -> dict[str, float]:
    """What torch-fidelity finds in the features (and logits) of at least MIN_IMAGES samples and as many real images.

    FID (Heusel et al. 2017); KID over subsets of 1,000, or half of the images (Bińkowski et al. 2018); precision and
    recall of the 3rd neighbour (Kynkäänniemi et al. 2019, who take VGG's features); with logits the inception score
    (Salimans et al. 2016).
    """
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    features = fake[FEATURES]
    statistics = [metric_fid.fid_features_to_statistics(part) for part in (features, real)]
    found = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    size = min(1000, len(features) // 2, len(real) // 2)
    found |= metric_kid.kid_features_to_metric(features, real, kid_subset_size=size, rng_seed=seed, verbose=False)
    found |= metric_prc.prc_features_to_metric(features, real, save_cpu_ram=True, prc_batch_size=2000, verbose=False)
    if inception.has_logits and LOGITS in fake:
        found |= metric_isc.isc_features_to_metric(fake[LOGITS], rng_seed=seed)
    names = dict(
        fid="frechet_inception_distance",
        kid="kernel_inception_distance_mean",
        kid_std="kernel_inception_distance_std",
        precision="precision",
        recall="recall",
        inception_score="inception_score_mean",
        inception_score_std="inception_score_std",
    )
    return {short: found[name] for short, name in names.items() if name in found} | {"kid_subset_size": size}


def grid(samples: np.ndarray, images: np.ndarray) -> float:
    """How much of a grid samples have, in terms of what images have, both uint8 n×S×S[×3].

    It is the largest ratio of their mean power at periods of 2 and 4 pixels, along rows, columns or both: those of the
    chequerboards that transposed convolutions draw (Odena et al. 2016).
    """
    size = samples.shape[1]
    at = [0, size // 2, *([size // 4, -size // 4] if size % 4 == 0 else [])]

    def power(of: np.ndarray) -> np.ndarray:
        total = np.full((size, size), len(of) * size**2 / 12)  # of rounding to whole numbers: a flat image has no less
        for piece in np.array_split(of, math.ceil(len(of) / 256)):  # of large images all at once are gigabytes
            total += (abs(np.fft.fft2(piece.reshape(*piece.shape[:3], -1).mean(3))) ** 2).sum(0)
        return total / len(of)

    ratio = power(samples) / power(images)
    return float(max(ratio[i, j] for i in at for j in at if i or j))


def nearest(samples: Tensor, images: Tensor, count: int) -> Tensor:
    """The indices, n×count, of the rows of `images` (N×…) that are nearest to each of `samples` (n×…), Euclidean."""
    distances = [torch.cdist(samples.flatten(1).float(), part.flatten(1).float()) for part in images.split(4096)]
    return torch.cat(distances, 1).topk(count, largest=False).indices


def neighbours_sheet(samples: np.ndarray, *neighbours: np.ndarray) -> Image.Image:
    """A row for each sample n×H×W[×3]: itself, then of each kind of neighbours n×k×H×W[×3] its k, with gaps between."""
    gap = np.full_like(samples[:, None], 255)
    parts = [samples[:, None], *(part for images in neighbours for part in (gap, images))]
    rows = np.concatenate(parts, 1)
    return gan.sheet(rows.reshape(-1, *samples.shape[1:]), rows.shape[1])


def check_enough(images: Images, flag: str) -> None:
    """Raise UserError if there are too few real images for an FID that says anything."""
    if len(images.pixels) < MIN_IMAGES:
        what = f"the data has {len(images.pixels)} images; FID needs {MIN_IMAGES}, and says little of few"
        raise UserError(what, flag)


def as_drawn(images: Images, channels: int, flag: str) -> tuple[Images, dict[str, str]]:
    """Real images with the channels of a model's, enough for an FID; and what they are and were. Raises UserError."""
    check_enough(images, flag)
    side = images.pixels.shape[1]
    drawn = gan.describe_images(channels, f"{side}×{side}")
    found = images.found or drawn
    if found != drawn:
        gan.say(f"note: the data has {found}; it is measured as the model draws, {drawn}")
    return gan.with_channels(images, channels), {"images": drawn, "data_images": found}


def fid_during(
    config: Config, images: Images, device: torch.device
) -> tuple[Callable[[BaseGenerator], float], dict[str, Any]]:
    """What `evaluate_every` calls: the FID of `evaluate_samples` samples against at most as many training images.

    And all that it depends on, for options.json.
    """
    inception = Inception(config.inception_weights, device, config.precision)
    from torch_fidelity import metric_fid  # which there is, then

    real = reference_features(inception, *real_sample(images, config.evaluate_samples))
    of_real, count = metric_fid.fid_features_to_statistics(real), config.evaluate_samples

    def fid(generator: BaseGenerator) -> float:
        fake = inception.features(gan.stream(generator, count, seed=config.seed), count, "FID")[FEATURES]
        both = (metric_fid.fid_features_to_statistics(fake), of_real)
        return metric_fid.fid_statistics_to_metric(*both, verbose=False)["frechet_inception_distance"]

    facts = {
        "n_fake": count,
        "n_real": len(real),
        "network": inception.name,
        "weights": inception.digest,
        "resize": RESIZE,
    }
    return fid, facts | {"seed": config.seed, "data_images": images.found}


def evaluate(argv: Sequence[str], program: str) -> dict[str, Any]:
    """The command `evaluate`: prints, and returns, what a generator's samples are worth and how it was measured."""
    description = "Measure a generator against real images: FID, KID, precision and recall, by torch-fidelity."
    parser = gan.Parser(f"{program} evaluate", description)
    gan.add_drawing(parser)
    add = parser.add_argument
    add("--data", type=gan.some_path, metavar="PATH", help="real images; drawn shapes if omitted")
    add("--split", choices=("train", "test", "all"), default="train", help="part of the real images (train)")
    add(
        "--samples",
        type=gan.number_in(int, MIN_IMAGES, 10**7),
        default=50_000,
        metavar="N",
        help="generated images (50000)",
    )
    add("--reference", type=gan.number_in(int, MIN_IMAGES, 10**7), metavar="N", help="real images; all if omitted")
    weights = "torch-fidelity's Inception weights; it fetches them if omitted"
    add("--inception-weights", type=gan.some_path, metavar="FILE", help=weights)
    quick = "bf16 takes half the time on a CPU made for it and moves an FID by up to 0.3 (fp32)"
    add("--precision", choices=("fp32", "bf16"), default="fp32", help=quick)
    add("--neighbours", type=gan.some_path, metavar="PNG", help="draw 16 samples, each with its 5 nearest real images")
    judge = "train a classifier on the real images and let it name the samples' classes; done for a conditional model"
    add("--judge", action=argparse.BooleanOptionalAction, help=judge)
    add("--skip-unreadable", action="store_true", help="leave damaged images out instead of stopping")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args(argv)
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        result = measure_model(options)
    print(json.dumps(result) if options.json else evaluation_text(result))
    return result


def measure_model(options: argparse.Namespace) -> dict[str, Any]:
    """All that `evaluate` finds. What can be refused is refused before the hours that Inception may take."""
    begun, device, picture = time.perf_counter(), gan.choose_device(options.device), options.neighbours
    if picture:
        checks.check_file("--neighbours", picture, ".png")
    generator = gan.load_generator(options.model, device)
    size, channels = (generator.architecture[key] for key in ("image_size", "channels"))
    asked = [*generator.classes]
    with gan.named("--data"):
        images = gan.load_images(options.data, options.split, size, options.skip_unreadable)
    images, of_images = as_drawn(images, channels, f"--data {options.data}")
    judge = bool(asked) if options.judge is None else options.judge
    if judge and (len(images.classes) < 2 or (asked and [*images.classes] != asked)):
        what = "has no classes to learn" if len(images.classes) < 2 else f"has other classes than {options.model}"
        raise UserError(f"the data {what}; --no-judge leaves them out", "--judge")
    inception = Inception(options.inception_weights, device, options.precision)
    classes = judge_samples(generator, images, device, options) if judge else None
    pixels, name = real_sample(images, options.reference or len(images.pixels))
    real = reference_features(inception, pixels, name)
    samples = gan.stream(generator, options.samples, seed=options.seed, truncation=options.truncation)
    fake = inception.features(samples, options.samples, "samples")
    result = {
        "model": str(options.model),
        "data": str(options.data or "shapes"),
        "split": options.split,
        "n_real": len(real),
        "n_fake": options.samples,
        **of_images,
        "skip_unreadable": options.skip_unreadable,
        **quality(fake, real, inception, options.seed),
        "grid": grid(
            generator.generate(min(options.samples, GRID_IMAGES), seed=options.seed, truncation=options.truncation),
            pixels[:GRID_IMAGES].numpy(),
        ),
        "network": inception.name,
        "weights": inception.digest,
        "resize": RESIZE,
        "seed": options.seed,
        "truncation": options.truncation,
        "biased": min(options.samples, len(real)) < BIASED,
        "device": gan.device_name(device),
        "torch": str(torch.__version__),
        "tool": gan.__version__,
    }
    if classes:
        result["classes"] = classes
    if picture:
        draw_neighbours(
            generator.generate(16, seed=options.seed, truncation=options.truncation),
            fake[FEATURES][:16],
            images.pixels,
            pixels,
            real,
            picture,
        )
    return result | {"seconds": round(time.perf_counter() - begun, 1)}


def draw_neighbours(
    samples: np.ndarray, features: Tensor, images: Tensor, reference: Tensor, real: Tensor, out: Path
) -> None:
    """Write the sheet of samples, their nearest `images` by pixels, and of the `reference` by its features `real`."""
    shape = (len(samples), 5, *samples.shape[1:])
    by_pixels = nearest(torch.from_numpy(samples), images, 5)
    by_features = nearest(features, real, 5)
    near = (
        part[index.flatten()].numpy().reshape(shape) for part, index in ((images, by_pixels), (reference, by_features))
    )
    stream = io.BytesIO()
    neighbours_sheet(samples, *near).save(stream, "PNG")
    gan.save_output("--neighbours", out, stream.getvalue())


def judge_samples(
    generator: BaseGenerator, images: Images, device: torch.device, options: argparse.Namespace
) -> dict[str, Any]:
    """What a classifier, trained on the real images, says of the classes of `samples`, 10,000 at most."""
    share = None if options.split == "train" else 0.1
    config = Config(
        data=options.data, skip_unreadable=options.skip_unreadable, image_size=images.pixels.shape[1], multitask=True,
        validation_split=share,
    )  # fmt: skip
    try:
        _, images, held = gan.load_validation(config, images)
    except UserError as error:
        why = f"no classifier can be trained on the data ({error})"
        raise UserError(f"{why}; --no-judge leaves it out", "--judge") from None
    judge = judge_of(images, device)
    _, accuracy, _ = gan.validate(judge, held)
    samples = labelled_samples(generator, min(options.samples, 10_000), options.seed, options.truncation)
    said = judged(judge, *samples)
    return {"classifier_accuracy": accuracy, "classifier_validated_on": len(held.labels), **said}


def evaluation_text(result: dict[str, Any]) -> str:
    """What `evaluate` has found, for people."""
    lines = [f"FID               {result['fid']:.4f}"]
    lines += [f"KID               {result['kid']:.6f} ± {result['kid_std']:.6f}"]
    if "inception_score" in result:
        lines += [f"Inception score   {result['inception_score']:.3f} ± {result['inception_score_std']:.3f}"]
    lines += [f"precision         {result['precision']:.4f}", f"recall            {result['recall']:.4f}"]
    lines += [f"grid              {result['grid']:.2f} of 1, the images' power at periods of 2 and 4 pixels"]
    if classes := result.get("classes"):
        if "share in the asked class" in classes:
            lines += [f"in asked class    {classes['share in the asked class']:.2%} of {classes['samples']:,}"]
        lines += [f"even classes      chi² {classes['chi2']:.1f}, {len(classes['share of each class']) - 1} d. f."]
        lines += [f"  {name:15} {share:.2%}" for name, share in classes["share of each class"].items()]
        accuracy, held = classes["classifier_accuracy"], classes["classifier_validated_on"]
        lines += [f"classifier        {accuracy:.2%} right on {held:,} images that it was not trained on"]
    truncated = f", truncation {result['truncation']:g}" if result["truncation"] is not None else ""
    lines += [f"of                {result['n_fake']:,} samples, seed {result['seed']}{truncated}, of {result['model']}"]
    lines += [f"against           {result['n_real']:,} images of {result['data']}, split {result['split']}"]
    turned = f", from {result['data_images']}" if result["data_images"] != result["images"] else ""
    lines += [f"images            {result['images']}{turned}"]
    lines += [f"KID's subsets     {result['kid_subset_size']:,} images each"]
    lines += [f"network           {result['network']}, weights {result['weights']}, {result['resize']}"]
    lines += [f"time              {gan.clock(result['seconds'])} on {result['device']}, torch {result['torch']}"]
    if result["biased"]:
        lines += ["note: FID, precision and recall of so few images are biased: compare with the same numbers only"]
    return "\n".join(lines)


def print_shares(
    classes: Sequence[str], probabilities: Tensor, numbers: Tensor, paths: Sequence[Path], width: int
) -> None:
    """`classify --shares`: what share of the images is of each class, by the class and its probability of each, N."""
    shares = torch.bincount(numbers.cpu(), minlength=len(classes)) / len(numbers)
    these = paths[0] if len(paths) == 1 else f"{paths[0]} …"
    print(f"{len(numbers):,} images of {these}: mean probability {probabilities.mean():.4f}")
    for name, share in zip(classes, shares.tolist(), strict=True):
        print(f"{name:{width}}  {share:7.2%}")


def print_confusion(confusion: np.ndarray, classes: Sequence[str]) -> None:
    """`classify` of a labelled set: how many images of each class are right, and what the others are taken for."""
    width = max(map(len, [*classes, "class"]))
    print(f"{'class':{width}}   images    right   most often taken for")
    for i, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        if count := row.sum():
            right, row[i] = row[i] / count, 0
            taken = f"{classes[row.argmax()]} {row.max() / count:.1%}" if row.any() else ""
            print(f"{name:{width}}  {count:7,}  {right:6.1%}   {taken}".rstrip())
