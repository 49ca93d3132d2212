"""What people keep images in: further layouts of folders, other kinds of pixels, and a word about what is left out.

The script alone reads a folder with train/ and test/, one of class folders, and a flat one. Here it also reads what is
wrapped in another folder or calls its parts differently, and files of data sets (by formats.py); it leaves systems' own
files alone, chooses a size by all images, scales pixels of 16 bits, and keeps what it has decoded (by cache.py).
"""

from __future__ import annotations

import io
import math
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

import rollnumber_04 as gan
from extras import cache, formats
from rollnumber_04 import IMAGE_FORMATS, SIZES, Images, NoTestSplit, Source, UserError, class_name, say

SIZES_LOOKED_AT = 1000  # files, to find a set's own size
FEW_VALUES = 32  # of 256: images that use fewer were probably stored in another range
LINK = "link to a folder"  # which is not followed
CACHED_FROM = 5_000  # files that take a second to decode


def load_all(path: str | Path | None, image_size: int | None, skip_unreadable: bool) -> Images:
    """Training and test images together, where a set is divided. Raises UserError."""
    train = gan.load_images(path, "train", image_size, skip_unreadable)
    try:
        return merge(train, gan.load_images(path, "test", train.pixels.shape[1], skip_unreadable))
    except NoTestSplit:
        return train


def merge(train: Images, test: Images) -> Images:
    """Training and test images of one size as one set: in colour if either is, labelled if both are."""
    channels = max(train.pixels.shape[3], test.pixels.shape[3])
    pixels = torch.cat([gan.with_channels(images, channels).pixels for images in (train, test)])
    if train.labels is None or test.labels is None:
        return Images(pixels, None, (), train.found)
    classes = tuple(dict.fromkeys((*train.classes, *test.classes)))
    return Images(pixels, torch.cat([train.labels, gan.renumbered(test, classes).labels]), classes, train.found)


def find_source(path: Path, split: str) -> Source:
    """The split's images of whatever layout `path` has, not decoded yet. Raises UserError."""
    try:
        return find_images(path, split)
    except FileNotFoundError:
        raise UserError("there is no such file or folder", path) from None
    except OSError as error:
        raise UserError(error.strerror or str(error), error.filename or path) from None


def decode_source(source: Source, size: int | None = None, skip_unreadable: bool | None = None) -> Images:
    """Decode a set at a size, or at the images' own; one channel if all are grey. Raises UserError.

    Says what was left out, and what of the images is not as one expects. `skip_unreadable` is None where a command has
    no such option.
    """
    if source.left_out:
        say(f"note: {source.where}: left out {formats.counted(source.left_out)}")
    labels, classes = source.labels, tuple(map(class_name, source.classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, of tags that are damaged where the pixels are not
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # a picture that unpacks to gigabytes is damage
        sizes = own_sizes(source)
        size = size or natural_size(sizes)
        is_kept = len(source.items) >= CACHED_FROM
        pixels, unreadable = cache.load_pixels(source.items, size) if is_kept else None, {}
        if pixels is None:
            pixels, unreadable = decode(source.items, size)
            if is_kept and not unreadable:
                cache.save_pixels(source.items, size, pixels)
    if unreadable:
        if not skip_unreadable:
            first, what = next(iter(unreadable.items()))
            others = f" (and {len(unreadable) - 1:,} more)" if len(unreadable) > 1 else ""
            advice = "; --skip-unreadable leaves such images out" if skip_unreadable is False else ""
            raise UserError(f"{what}{others}{advice}", source.items[first])
        lines = (gan.printable(f"{source.items[i]}: {what}") for i, what in unreadable.items())
        say("\n  ".join([f"skipped {gan.plural(len(unreadable), 'unreadable image')}:", *lines]))
        keep = np.setdiff1d(np.arange(len(pixels)), list(unreadable))
        if not len(keep):
            raise UserError("none of its images can be read", source.where)
        pixels = pixels[keep]
        if labels is not None:  # a class may have lost all its images
            occurring, labels = np.unique(np.array(labels)[keep], return_inverse=True)
            classes = tuple(classes[i] for i in occurring)
    images = gan.as_images(pixels, labels, classes)
    return replace(images, found=gan.describe_images(images.pixels.shape[3], noted_span(images, sizes, source.where)))


def decode(items: Sequence[str | Path] | np.ndarray, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode everything to uint8 N×size×size×C; also returns {index: what is wrong} of the unreadable."""
    if isinstance(items, np.ndarray) and items.shape[1:3] == (size, size):
        return items if items.ndim == 4 else items[..., None], {}
    try:
        return gan.decode(items, size, read_item)
    except MemoryError:
        raise UserError(f"{len(items):,} images of {size}×{size} do not fit into memory") from None


def noted_span(images: Images, sizes: Counter[tuple[int, int]], where: str) -> str:
    """The sizes that a set's images had, "20×30 … 64×64"; says if they differ, or if they use few of the values."""
    least, most = (choose(sizes, key=lambda size: (math.prod(size), size)) for choose in (min, max))
    span, side = "{}×{}".format(*least), images.pixels.shape[1]
    if len(sizes) > 1:
        span += " … {}×{}".format(*most)
        say(f"note: {where}: the images' sizes differ, {span}; each is scaled and cropped to {side}×{side}")
    used = int(images.pixels.max()) - int(images.pixels.min()) + 1
    if used < FEW_VALUES:
        what = "all pixels have one value" if used == 1 else f"all pixels lie within {used} of the 256 values"
        say(f"note: {where}: {what}; scale images of another range to 0 … 255 first")
    return span


def find_images(path: Path, split: str) -> Source:
    """Tell by its content which layout `path` has, and list the split's images and labels without decoding them.

    Raises UserError, and OSError for a path that is not there or must not be read.
    """
    if not path.is_dir():
        path.stat()  # raises if there is nothing
        if source := formats.find_arrays(path, split):
            return source
        raise UserError("neither a folder nor a file of images that is known here", path)
    folders = subfolders(path)
    if splits := split_folders(folders):
        if "train" not in splits:
            raise UserError("has no train/ beside its test/", path)
        if split not in splits:
            raise NoTestSplit("has no test/ beside its train/", path)
        beside = Counter(formats.ending(file) for file in image_files(path))
        others = (folder for folder in folders if folder not in splits.values())
        beside += Counter(f"folder {gan.printable(folder.name)}/" for folder in others)
        if beside:
            gan.say_once(f"note: {path}: left out {formats.counted(beside)}")
        return find_split(splits["train"], splits[split])
    if divided := [folder for folder in folders if split_folders(subfolders(folder))]:
        return only(divided if len(folders) == 1 else folders, path, split)

    left_out: Counter[str] = Counter()
    images = image_files(path, left_out)
    members = {folder: image_files(folder, left_out, below=True) for folder in folders}
    if not images and not any(members.values()):
        if source := formats.find_arrays(path, split):
            return source
        if containers := [folder for folder in folders if formats.array_files(folder)]:
            return only(containers, path, split)
        if left_out:
            raise UserError(f"nothing in it is an image that is known here: {formats.counted(left_out)}", path)
        what = "there is no image in this folder" if os.listdir(path) else "this folder is empty"
        raise UserError(what, path)
    if split == "test":
        raise NoTestSplit("is not divided into train/ and test/", path)
    if not any(members.values()):
        return Source(images, where=str(path), left_out=left_out)
    if images:
        raise UserError(f"images such as {os.path.basename(images[0])} lie beside its class folders", path)
    if empty := [folder for folder, files in members.items() if not files]:
        inside: Counter[str] = Counter()
        image_files(empty[0], inside, below=True)
        what = f"holds no image that is known here: {formats.counted(inside)}" if inside else "has no image"
        raise UserError(f"this class folder {what}", empty[0])
    names = {folder: class_name(folder.name) for folder in members}
    classes = sorted({*names.values()})
    items = [file for files in members.values() for file in files]
    labels = [classes.index(names[folder]) for folder, files in members.items() for _ in files]
    return Source(items, labels, tuple(classes), str(path), left_out)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are meant for people, in order. Raises OSError."""
    return sorted(
        Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not formats.is_left_alone(entry.name)
    )


def split_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """{"train": folder, "test": folder} of a divided set, {} of any other: a class may be called "train", too."""
    found = {
        split: next((f for f in folders if f.name.lower() in names), None) for split, names in formats.SPLITS.items()
    }
    splits = {split: folder for split, folder in found.items() if folder}
    whole = len(splits) == 2 or all(
        folder.name.lower() in formats.SPLITS["train"] | formats.SPLITS["test"] for folder in folders
    )
    return splits if whole else {}


def only(folders: Sequence[Path], parent: Path, split: str) -> Source:
    """The images of the only data set in a folder."""
    if len(folders) > 1:
        raise UserError(f"holds several data sets; name one of them, such as {folders[0]}", parent)
    return find_images(folders[0], split)


def find_split(train: Path, folder: Path) -> Source:
    """The images of a split's own folder, their labels numbered as in the training folder."""
    train, folder = within_split(train), within_split(folder)
    source = find_images(folder, "train")
    if folder == train or source.labels is None:
        return source
    known = tuple(map(class_name, find_images(train, "train").classes))
    try:
        return renumbered_source(source, known)
    except KeyError as stray:
        raise UserError(f"class {stray.args[0]} is not in {train}", folder) from None


def within_split(folder: Path) -> Path:
    """The folder itself, or the only one in it if that has a name of the same split: train/train, test/test."""
    (words,) = (words for words in formats.SPLITS.values() if folder.name.lower() in words)
    inner = subfolders(folder)
    is_same = len(inner) == 1 and inner[0].name.lower() in words and not image_files(folder)
    return within_split(inner[0]) if is_same else folder


def renumbered_source(source: Source, known: Sequence[str]) -> Source:
    """A labelled set with the labels of its classes' names among the `known` ones. KeyError: the name that is not."""
    number = {name: label for label, name in enumerate(known)}
    of_label = [number[class_name(name)] for name in source.classes]
    return replace(source, labels=[of_label[label] for label in source.labels], classes=tuple(known))


def image_files(folder: str | Path, left_out: Counter[str] | None = None, below: bool = False) -> list[str]:
    """The image files of a folder, and of the folders `below` it, in a fixed order. Raises OSError.

    They are texts, for 60,000 Paths take a second to make. Links to files are followed, one that leads nowhere is a
    damaged image; links to folders are not, for they may loop. What is meant for people and not taken is counted in
    `left_out`, by its ending.
    """
    found, others = [], Counter() if left_out is None else left_out
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        is_link, is_folder = entry.is_symlink(), False
        with suppress(OSError):  # a link that leads to itself, or where one may not look
            is_folder = entry.is_dir()
        if formats.is_image_name(entry.name) and (entry.is_file() or is_link) and not is_folder:
            found.append(entry.path)
        elif formats.is_left_alone(entry.name) or (is_folder and not below):
            continue
        elif not is_folder:
            others[formats.ending(entry.name)] += 1
        elif is_link:
            others[LINK] += 1
        else:
            found += image_files(entry.path, others, below)
    return found


def open_image(item: str | Path | np.ndarray) -> Image.Image:
    """An image file or a uint8 array H×W[×3] as Pillow's image, not decoded yet. Raises what Pillow raises."""
    if isinstance(item, np.ndarray):
        return Image.fromarray(item)
    with open(item, "rb") as file:  # for 60,000 small files a pathlib.Path of each takes its time
        return Image.open(io.BytesIO(file.read()), formats=IMAGE_FORMATS)


def own_sizes(source: Source) -> Counter[tuple[int, int]]:
    """How often each size, width and height as stored, occurs among up to SIZES_LOOKED_AT images, evenly over the set.

    Only headers are read. If none of them can be, decoding will say so.
    """
    if isinstance(source.items, np.ndarray):
        return Counter({source.items.shape[2:0:-1]: len(source.items)})
    sizes: Counter[tuple[int, int]] = Counter()
    for i in np.unique(np.linspace(0, len(source.items) - 1, min(len(source.items), SIZES_LOOKED_AT)).astype(int)):
        # A decoder may fail in any way on a damaged file; decoding will complain of it.
        with suppress(Exception), Image.open(source.items[i], formats=IMAGE_FORMATS) as image:
            sizes[image.size] += 1
    return sizes or Counter({(SIZES[0], SIZES[0]): 1})


def natural_size(sizes: Counter[tuple[int, int]]) -> int:
    """The size to train at when none is asked for.

    That is the size of more than half of the images, if there is one and the networks can make it (to 128); else the
    next lower one, up to 64, than its shorter side or than the median of all shorter sides.
    """
    (width, height), count = sizes.most_common(1)[0]
    if 2 * count > sizes.total():
        if width == height <= 128 and width in SIZES:
            return width
        shorter = min(width, height)
    else:
        shorter = int(np.median([min(size) for size in sizes.elements()]))
    return max((size for size in SIZES if size <= min(shorter, 64)), default=SIZES[0])


def read_item(item: str | Path | np.ndarray, size: int) -> Image.Image:
    """An image file or an array as 8-bit RGB of size×size. Raises what Pillow raises."""
    image = open_image(item)
    image.draft(None, (2 * size, 2 * size))  # of a large JPEG fewer pixels are decoded
    return to_rgb(image, size)


def to_rgb(image: Image.Image, size: int) -> Image.Image:
    """An image of any mode as 8-bit RGB, size×size, antialiased, centre-cropped."""
    return gan.fitted(as_rgb(image), size)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB: upright, transparency on white. The image given may change.

    Raises what Pillow raises.
    """
    # Of whole numbers only those of 16 bits have a range: "I" may hold 32, unless the format knows no more than 16.
    of_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    stored = str(image.tile[0][3]) if image.format == "PNG" and getattr(image, "tile", None) else ""
    ImageOps.exif_transpose(image, in_place=True)
    if (clear := image.info.get("transparency")) is not None:  # Pillow scales the pixels to 8 bits, and not this
        if stored in ("L;2", "L;4"):
            image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}[stored]
        elif stored == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.mode == "F" or (image.mode.startswith("I") and not of_16_bits):
        kind = "floating-point" if image.mode == "F" else "whole"
        raise ValueError(f"its pixels are {kind} numbers of no known range")
    if of_16_bits:  # Pillow's own conversion clips at 255 instead of scaling
        values, clear = np.asarray(image, np.int64), image.info.get("transparency")
        grey = np.round(np.clip(values, 0, 65535) / 257).astype(np.uint8)
        image = Image.fromarray(np.where(values == clear, np.uint8(255), grey))  # the transparent grey is white
    return gan.on_white(image)
