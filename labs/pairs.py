"""The two sets of images that a CycleGAN learns from, and its commands `translate` and `measure`."""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from PIL import Image
from torch import Tensor, nn

import rollnumber_04 as gan
from extras import folders, formats
from rollnumber_04 import UserError, say

LEAST = 24  # pixels a side that the discriminators of both styles can score
LONGEST = 16_384  # pixels a side of an image that is scaled: a line of 20,000×1 would become 640,000×32


@dataclass(frozen=True)
class Pairs(gan.Images):
    """Two decoded sets: images x, the `pixels`, and images y, `other_pixels` uint8 M×H×W×3. Nothing is labelled."""

    other_pixels: Tensor = field(kw_only=True)


def load_sets(config: gan.Config) -> tuple[Pairs, Pairs | None]:
    """The training images that a CycleGAN's options name, and test images if there are any. Raises UserError."""
    train, test, has_test = [], [], False
    for flag in ("x", "y"):
        path, of_test = getattr(config, flag), getattr(config, f"{flag}_test")
        train.append(read(flag, path, "train", config.loaded_size, config))
        of_test = of_test or (None if config.held_out else test_folder(path))
        try:
            source = (f"{flag}-test", of_test, "train") if of_test else (flag, path, "test")
            test.append(read(*source, config.image_size, config))
            has_test = True
        except gan.NoTestSplit:
            test.append(train[-1])
            say(f"note: --{flag} {path} has no test images; the sheets show training images")
    if len(train[0].pixels) < gan.process_count():
        raise UserError("has fewer images than there are processes", f"--x {config.x}")
    pairs = [Pairs(x.pixels, None, (), x.found, other_pixels=y.pixels) for x, y in (train, test)]
    return pairs[0], pairs[1] if has_test else None


def read(flag: str, path: Path, split: str, size: int, config: gan.Config) -> gan.Images:
    """The images of a flag, in colour, without labels; with `held_out` divided by name. Complaints name the flag."""
    with gan.named(f"--{flag}"):
        if config.held_out:
            source = replace(gan.find_source(path, "train"), labels=None)
            source = replace(source, items=held_out_files(path, config.held_out)[split == "test"])
        else:
            source = gan.find_source(path, split)
        images = gan.with_channels(gan.decode_source(source, size, config.skip_unreadable), 3)
    return replace(images, pixels=images.pixels.contiguous(), labels=None, classes=())


def held_out_files(path: Path, share: float) -> tuple[list[Path], list[Path]]:
    """A set's files less about a share of them, and that share: by their names alone, so that pairs stay together."""
    divided: tuple[list[Path], list[Path]] = ([], [])
    source = gan.find_source(path, "train")
    if isinstance(source.items, np.ndarray):
        raise UserError("holds arrays, whose images have no names by which --held-out could choose", path)
    for file in map(Path, source.items):
        divided[zlib.crc32(file.stem.encode(errors="surrogateescape")) < share * 2**32].append(file)
    if not all(divided):
        counts = f"{len(divided[0])} of its images for training and {len(divided[1])} for tests"
        raise UserError(f"--held-out {share} leaves {counts}", path)
    return divided


def test_folder(path: Path) -> Path | None:
    """The folder of test images beside one of training images: Test_Apple beside Apple, testA beside trainA."""
    path = path.resolve()
    for name in (f"Test_{path.name}", re.sub("^train", "test", path.name)):
        if path.name and name != path.name and (path.parent / name).is_dir():
            return path.parent / name
    return None


def crops(images: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """A random square of each image B×C×H×W, B×C×size×size."""
    if images.shape[2:] == (size, size):
        return images
    top, left = (
        torch.randint(side - size + 1, (len(images), 1), generator=rng, device=rng.device) for side in images.shape[2:]
    )
    span = torch.arange(size, device=images.device)
    rows, columns = (top + span)[:, None, :, None], (left + span)[:, None, None, :]
    each, channel = (torch.arange(n, device=images.device) for n in images.shape[:2])
    return images[each[:, None, None, None], channel[:, None, None], rows, columns]


def sheet_of(triples: np.ndarray, in_a_row: int = 3) -> Image.Image:
    """Uint8 n×3×H×W×3 as rows of (image, translation, reconstruction), with white between one three and the next."""
    short = -len(triples) % in_a_row
    rows = np.pad(triples, ((0, short), (0, 1), (0, 0), (0, 0), (0, 0)), constant_values=255)
    return gan.sheet(rows.reshape(-1, *triples.shape[2:]), 4 * in_a_row)


# The commands.


def add_direction(parser: gan.Parser) -> None:
    """The arguments of both commands: the model, and which of its two translators."""
    gan.add_model(parser)
    what = "translate from the kind of --x to that of --y, or back (xy)"
    parser.add_argument("--direction", choices=("xy", "yx"), default="xy", help=what)


def training_of(path: Path) -> dict[str, Any]:
    """The options that a `.safetensors` model says it was trained with; {} if it says nothing."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            training = json.loads((file.metadata() or {}).get("training", "{}"))
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError):
        return {}
    return training if isinstance(training, dict) and type(training.get("image_size")) is int else {}


def translate(argv: Sequence[str]) -> Path:
    """The command `translate`: writes a PNG for each image; returns their folder. Raises UserError."""
    parser = gan.Parser("labs.cyclegan translate", "Translate images.")
    add_direction(parser)
    parser.add_argument("images", type=gan.some_path, nargs="+", metavar="IMAGE|FOLDER")
    what = "scale the shorter side to N first; their own size if omitted"
    parser.add_argument("--image-size", type=gan.number_in(int, 4, 4096), metavar="N", help=what)
    parser.add_argument("--out", type=gan.some_path, required=True, metavar="FOLDER", help="for the translations")
    options = parser.parse_args(argv)
    out, size = options.out, options.image_size
    translator = gan.load_network(options.model, options.direction, gan.choose_device(options.device))
    if formats.is_image_name(out.name) and not out.is_dir():
        raise UserError("must name a folder, for the translation of each image", f"--out {out}")
    if out.exists() and not out.is_dir():
        raise UserError("is no folder", f"--out {out}")
    gan.check_writable("--out", out)
    files = [file for path in options.images for file in files_in(path)]
    name, times = Counter(file.stem for file in files).most_common(1)[0]
    if times > 1:
        first, second = [file for file in files if file.stem == name][:2]
        raise UserError(f"would be written over {first}, both as {name}.png; give each a folder of its own", second)
    for file in files:  # all of them, before any is written
        if (taken := out / f"{file.stem}.png").exists():
            raise UserError(f"is there already, in the place of the translation of {file}; give another --out", taken)
        opened(file, size)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.strerror}", f"--out {out}") from None
    of_training, larger = training_of(options.model).get("image_size"), False
    for file in files:
        image = opened(file, size)
        larger |= bool(of_training and not size and min(image.size) > 1.5 * of_training)
        try:
            (translated,) = translator.translate(np.asarray(image)[None].copy())
        except (MemoryError, RuntimeError) as error:
            if not gan.is_out_of_memory(error):
                raise
            said = f"not enough memory for its {image.width}×{image.height}; give a lower --image-size"
            raise UserError(said, file) from None
        gan.save_picture(Image.fromarray(translated).save, out / f"{file.stem}.png")
    if larger:
        say(f"note: the model has learnt at {of_training} pixels; --image-size {of_training} shows it what it knows")
    say(f"{gan.plural(len(files), 'image')} translated into {out}")
    return out


def files_in(path: Path) -> list[Path]:
    """The image files of a folder, not of folders within, or the one file that a path is. Raises UserError."""
    if not path.is_dir():
        return [path]
    left_out: Counter[str] = Counter()
    try:
        files = [*map(Path, folders.image_files(path, left_out))]
        left_out[folders.LINK] += sum(folder.is_symlink() for folder in folders.subfolders(path))
    except OSError as error:
        raise UserError(f"{error.strerror}", path) from None
    others = formats.counted(+left_out)
    if not files:
        what = "no image is in this folder (those in folders within are not looked for)"
        raise UserError(f"{what}: {others}" if others else what, path)
    if others:
        say(f"note: {path}: left out {others}")
    return files


def opened(file: Path, image_size: int | None) -> Image.Image:
    """An image file, its shorter side scaled to `image_size` if that is given. Raises UserError."""
    try:
        image = folders.as_rgb(folders.open_image(file))
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise UserError(f"{gan.complaint(error)}", file) from None
    if not image_size:
        return image
    share = image_size / min(image.size)
    width, height = (max(1, round(side * share)) for side in image.size)
    if max(width, height) > LONGEST:
        was = f"{image.width}×{image.height}"
        raise UserError(f"its {was} would be scaled to {width}×{height}, over {LONGEST:,} a side; crop it first", file)
    return image.resize((width, height), Image.Resampling.LANCZOS)


OWN, OTHERS = "own counterpart", "another's"  # columns of `measure`


def measure(argv: Sequence[str]) -> dict[str, Any]:
    """The command `measure`: prints, and returns, how near translations come to their true counterparts.

    By mean L1 of the pixels in (-1, 1) and by the Euclidean distance of Inception's features; beside it the images as
    they were, and both with the counterparts of all others: a translation is worth something if it is nearer to its own
    than the image was, and than to another's. Raises UserError.
    """
    described = "Measure how near translations come to their true counterparts, images of the same name."
    parser = gan.Parser("labs.cyclegan measure", described)
    add_direction(parser)
    add = parser.add_argument
    for flag in ("x", "y"):
        add(f"--{flag}", type=gan.some_path, required=True, metavar="FOLDER", help="pairs have the same name in both")
    held_out = "measure the images alone that training with this share held out"
    add("--held-out", type=gan.number_in(float, 0, 0.9), default=0.0, metavar="SHARE", help=held_out)
    add("--image-size", type=gan.number_in(int, 4, 1024), metavar="N", help="that of the model's training if omitted")
    weights = "torch-fidelity's Inception weights; it fetches them if omitted"
    add("--inception-weights", type=gan.some_path, metavar="FILE", help=weights)
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args(argv)
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        result = measure_pairs(options)
    print(json.dumps(result, ensure_ascii=False) if options.json else measured_text(result))
    return result


def measure_pairs(options: argparse.Namespace) -> dict[str, Any]:
    """What `measure` finds. Raises UserError."""
    evaluation, device = gan.extra("evaluate"), gan.choose_device(options.device)
    translator = gan.load_network(options.model, options.direction, device)
    if options.x.resolve() == options.y.resolve():
        raise UserError("is the folder of --x; its images are not each other's counterparts", f"--y {options.y}")
    training = training_of(options.model)
    if training.get("held_out", options.held_out) != options.held_out:
        share = training["held_out"]
        say(f"note: the model was trained with --held-out {share}: it may have seen some of these images")
    size = options.image_size or training.get("image_size")
    if not size:
        raise UserError("is missing; the model does not say what it was trained at", "--image-size")
    sources = [paired_files(flag, getattr(options, flag), options.held_out) for flag in options.direction]
    names = sorted(sources[0].keys() & sources[1].keys())
    if len(names) < 2:
        what = f"{len(names)} of its files have a name that one of --x has, too; name pairs"
        raise UserError(what, f"--y {options.y}")
    given, true = (
        gan.with_channels(
            gan.decode_source(
                gan.Source([files[name] for name in names], where=str(getattr(options, flag))), size
            ), 3,
        ).pixels
        for flag, files in zip(options.direction, sources, strict=True)
    )  # fmt: skip
    translated = translate_all(translator, given)
    inception = evaluation.Inception(options.inception_weights, device)

    def seen(pixels: Tensor, what: str) -> Tensor:
        """Inception's features, float32 n×2048, of uint8 images n×H×W×3."""
        pieces = (piece.numpy() for piece in pixels.split(gan.GENERATE_BATCH))
        return inception.features(pieces, len(pixels), what)[evaluation.FEATURES]

    seen_true = seen(true, "counterparts")
    count, in_range = len(names), true[0].numel() * 127.5
    result: dict[str, Any] = dict(
        model=str(options.model), direction=options.direction, pairs=count, held_out=options.held_out, size=size
    )
    for name, images in (("untranslated", given), ("translated", translated)):
        of_pixels = torch.cdist(*(part.flatten(1).float() for part in (images, true)), p=1) / in_range
        for kind, matrix in (("l1", of_pixels), ("features", torch.cdist(seen(images, name), seen_true))):
            own = matrix.diagonal()
            others = (matrix.sum() - own.sum()) / (count * count - count)
            result[f"{name}, {kind}"] = {OWN: float(own.mean()), OTHERS: float(others)}
    return result | {"network": evaluation.NETWORK, "weights": inception.digest, "device": gan.device_name(device)}


def translate_all(translator: nn.Module, pixels: Tensor) -> Tensor:
    """The translations of uint8 images n×H×W×3, a batch that fits into memory at a time, on the host."""
    pieces = pixels.split(max(1, gan.GENERATE_BATCH * 32**2 // pixels.shape[1] ** 2))
    return torch.from_numpy(np.concatenate([translator.translate(piece) for piece in pieces]))


def paired_files(flag: str, path: Path, held_out: float) -> dict[str, Path]:
    """The files of a folder, of those held out if that is not 0, by their names without suffix. Raises UserError."""
    with gan.named(f"--{flag}"):
        files = held_out_files(path, held_out)[1] if held_out else gan.find_source(path, "train").items
        if isinstance(files, np.ndarray):
            raise UserError("holds arrays; pairs are files of the same name", path)
        files = [*map(Path, files)]
        (name, times), *_ = Counter(file.stem for file in files).most_common(1)
        if times > 1:
            raise UserError(f"{times} of its files are called {name}; which is whose pair cannot be told", path)
    return {file.stem: file for file in files}


def measured_text(result: dict[str, Any]) -> str:
    """What `measure` has found, for people."""
    rows = [f"{'distance to':24} own counterpart   another's"]
    rows += [
        f"{name:24} {values[OWN]:15.4f}   {values[OTHERS]:9.4f}"
        for name, values in result.items()
        if isinstance(values, dict)
    ]
    which = f"{result['pairs']:,} pairs" + (f" ({result['held_out']:g} of the files)" if result["held_out"] else "")
    facts = f"{which} at {result['size']}×{result['size']}, {result['direction']}"
    return "\n".join([*rows, f"{facts}; L1 of pixels in (-1, 1); {result['network']}, weights {result['weights']}"])
