"""Train a small GAN on images: a least-squares DCGAN, from a folder of pictures to a generator that draws new ones.

    python rollnumber_04.py                                    # ten classes of drawn shapes, nothing to fetch
    python rollnumber_04.py --data ./cifar10 --epochs 50       # a folder of images, an .npz, MNIST's or CIFAR's files
    python rollnumber_04.py --download cifar10 --epochs 50     # let torchvision fetch the data first
    python rollnumber_04.py --resume --out runs/NAME           # go on where the last checkpoint stopped
    python rollnumber_04.py generate MODEL --count 64 --seed 0 --out samples.png | samples.npz | folder/

From Python: `load_generator("generator.safetensors").generate(64, seed=0)` is an array of 64 uint8 images.

A data item flows down this file once: path -> uint8 tensor on the device -> networks -> objectives -> one training step
-> epoch loop -> pictures, log, checkpoint -> a saved generator -> `generate`.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import math
import multiprocessing
import os
import pickle
import platform
import re
import secrets
import signal
import struct
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake that the user can mend: `main` prints it as one sentence and exits with `status`."""

    def __init__(self, message: str, status: int = 2):
        super().__init__(message)
        self.status = status


########################################################################################################################
#                                                        Data                                                          #
########################################################################################################################

IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .jfif .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .tga".split())
IMAGE_FORMATS = "PNG JPEG BMP GIF WEBP TIFF PPM TGA".split()  # Pillow knows more, some of which call other programs
SPLITS = {"train": {"train", "training"}, "test": {"test", "testing", "t10k", "val", "valid", "validation"}}
DECODE_CHUNK = 256  # images of up to 32×32 that a worker decodes before it reports
SIZES = [base << halvings for halvings in range(1, 9) for base in (4, 5, 6, 7)]  # that the networks make: 8, 10 … 1792


@dataclass(frozen=True)
class Images:
    """A decoded set: `pixels` uint8 N×H×W×C (C is 1 or 3), `labels` int64 N or None, `classes` the labels' names."""

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A set found but not decoded yet: image files or a uint8 array N×H×W[×3], labels N or None, the labels' names."""

    items: Sequence[Path] | np.ndarray
    labels: Sequence[int] | np.ndarray | None = None
    classes: tuple[str, ...] = ()


def load_images(
    path: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    skip_unreadable: bool = False,
) -> Images:
    """Load a whole data set as one uint8 tensor.

    `path` may be a folder with `train/` and `test/`, a folder of class folders, a flat folder of images, the CIFAR
    pickles, MNIST's IDX files (gzipped or not), an `.npz`, or None for the built-in shapes. `split` is "train" or
    "test"; a set that comes undivided is all "train". Images of another size are resized (antialiased) so that the
    shorter side fits, and cropped to the centre. `image_size` None keeps the images' own size where the networks can
    make it. A set whose images are all grey has one channel. Raises UserError that names what is wrong.
    """
    if path is None:
        count, seed = (10_000, 0) if split == "train" else (2_000, 1)
        return draw_shapes(count, checked_size(image_size or 32), seed)
    path = Path(path)
    try:
        source = find_images(path, split)
    except FileNotFoundError:
        raise UserError(f"--data {path}: there is no such file or folder") from None
    except OSError as error:
        raise UserError(f"--data {error.filename or path}: {error.strerror}") from None
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # a picture that unpacks to gigabytes is damage
        size = checked_size(image_size or natural_size(source, skip_unreadable))
        pixels, unreadable = decode(source.items, size)
    labels = None if source.labels is None else np.array(source.labels, np.int64)
    if unreadable:
        if not skip_unreadable:
            others = f" (and {len(unreadable) - 1:,} more)" if len(unreadable) > 1 else ""
            raise UserError(f"{next(iter(unreadable.values()))}{others}; --skip-unreadable leaves such images out")
        print(f"skipped {len(unreadable):,} unreadable images:", *unreadable.values(), sep="\n  ")
        keep = np.setdiff1d(np.arange(len(pixels)), list(unreadable))
        pixels, labels = pixels[keep], None if labels is None else labels[keep]
    if (pixels[..., :1] == pixels).all():  # grey in every pixel, however it was stored
        pixels = pixels[..., :1]
    pixels = torch.from_numpy(np.require(pixels, requirements=("C", "W")))
    return Images(pixels, None if labels is None else torch.from_numpy(labels), source.classes)


def checked_size(size: int) -> int:
    """The size itself, or a UserError that names the nearest sizes that the networks can make."""
    if size not in SIZES:
        near = " and ".join(map(str, sorted(sorted(SIZES, key=lambda other: abs(other - size))[:2])))
        raise UserError(f"--image-size {size}: must be 4, 5, 6 or 7 times 2, 4, 8, 16 …; {near} are near")
    return size


def find_images(path: Path, split: str) -> Source:
    """Tell by its content which layout `path` has, and list the split's images and labels without decoding them.

    Raises UserError, and OSError for a path that is not there or must not be read.
    """
    if not path.is_dir():
        path.stat()  # raises if there is nothing
        if kind := array_kind(path) if path.is_file() else None:
            return pick_arrays(*ARRAY_READERS[kind]([path]), split, path)
        raise UserError(f"--data {path}: neither a folder nor a file of images that is known here")
    folders = subfolders(path)
    if splits := split_folders(folders):
        if missing := {"train", split} - splits.keys():
            raise UserError(f"--data {path}: has no {missing.pop()}/ beside its {next(iter(splits))}/")
        return find_split(splits["train"], splits[split])
    if divided := [folder for folder in folders if split_folders(subfolders(folder))]:
        return only(divided if len(folders) == 1 else folders, path, split)

    images = image_files(path)
    members = {folder: image_files(folder, below=True) for folder in folders}
    if not images and not any(members.values()):
        if arrays := array_files(path):
            kind, files = next(iter(arrays.items()))
            return pick_arrays(*ARRAY_READERS[kind](files), split, path)
        if containers := [folder for folder in folders if array_files(folder)]:
            return only(containers, path, split)
        what = "there is no image in this folder" if os.listdir(path) else "this folder is empty"
        raise UserError(f"--data {path}: {what}")
    if split == "test":
        raise UserError(f"--data {path}: is not divided into train/ and test/")
    if not any(members.values()):
        return Source(images)
    if images:
        raise UserError(f"--data {path}: images such as {images[0].name} lie beside its class folders")
    if empty := [folder for folder, files in members.items() if not files]:
        raise UserError(f"--data {empty[0]}: this class folder has no image")
    items = [file for files in members.values() for file in files]
    labels = [label for label, files in enumerate(members.values()) for _ in files]
    return Source(items, labels, tuple(folder.name for folder in folders))


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are meant for people, in order. Raises OSError."""
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))


def split_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """{"train": folder, "test": folder} of a divided set, {} of any other: a class may be called "train", too."""
    found = {split: next((f for f in folders if f.name.lower() in names), None) for split, names in SPLITS.items()}
    splits = {split: folder for split, folder in found.items() if folder}
    whole = len(splits) == 2 or all(folder.name.lower() in SPLITS["train"] | SPLITS["test"] for folder in folders)
    return splits if whole else {}


def only(folders: Sequence[Path], parent: Path, split: str) -> Source:
    """The images of the only data set in a folder."""
    if len(folders) > 1:
        raise UserError(f"--data {parent}: holds several data sets; name one of them, such as {folders[0]}")
    return find_images(folders[0], split)


def find_split(train: Path, folder: Path) -> Source:
    """The images of a split's own folder, their labels numbered as in the training folder."""
    source = find_images(folder, "train")
    if folder == train or source.labels is None:
        return source
    known = find_images(train, "train").classes
    if stray := set(source.classes) - set(known):
        raise UserError(f"--data {folder}: class {min(stray)} is not in {train}")
    number = [known.index(name) for name in source.classes]
    return Source(source.items, [number[label] for label in source.labels], known)


def is_hidden(name: str) -> bool:
    """Whether a name is not meant for people: .git, .DS_Store, __MACOSX."""
    return name.startswith((".", "__"))


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image (.png, .JPG, …)."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_hidden(name)


def image_files(folder: Path, below: bool = False) -> list[Path]:
    """The image files of a folder, and of the folders `below` it, in a fixed order. Raises OSError.

    Links to files are followed, one that leads nowhere is a damaged image; links to folders are not, for they may loop.
    """
    found = []
    for entry in os.scandir(folder):
        if is_image_name(entry.name) and (entry.is_file() or entry.is_symlink()):
            found.append(Path(entry.path))
        elif below and entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
            found += image_files(Path(entry.path), below)
    return sorted(found)


def open_maybe_gzip(path: Path) -> io.BufferedIOBase:
    """Open a file for reading, through gzip if its first two bytes say so."""
    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")


def array_kind(path: Path) -> str | None:
    """Whether a file's first bytes are those of an npz, of bytes in IDX or of a pickle; None for any other file."""
    try:
        with open_maybe_gzip(path) as stream:
            magic = stream.read(4)
    except (OSError, EOFError, zlib.error):
        return None  # a gzip that cannot be opened, a file without permission: whatever it is, not ours
    if magic == b"PK\3\4":
        return "npz"
    if magic[:3] == b"\0\0\x08" and magic[3:] in (b"\1", b"\3", b"\4"):
        return "idx"
    return "pickle" if magic[:1] == b"\x80" and magic[1:2] in (b"\2", b"\3", b"\4", b"\5") else None


def array_files(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder that hold arrays, by kind; a zip counts only if it calls itself .npz."""
    kinds: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if not is_hidden(file.name) and not is_image_name(file.name) and file.is_file():
            kind = array_kind(file)
            if kind and (kind != "npz" or file.suffix.lower() == ".npz"):
                kinds.setdefault(kind, []).append(file)
    return kinds


def pick_arrays(arrays: dict[str, np.ndarray], classes: Sequence[str], split: str, where: Path) -> Source:
    """Pick the split's images and labels from named arrays, and check that they fit each other.

    Images are N×H×W, N×H×W×C or N×C×H×W, labels N or N×1. A name with a word such as "test" belongs to the test set.
    """

    def is_test(name: str) -> bool:
        return not SPLITS["test"].isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))

    arrays = {name: array for name, array in arrays.items() if is_test(name) == (split == "test")}
    images = [array for array in arrays.values() if array.ndim in (3, 4)]
    labels = [array for array in arrays.values() if array.ndim in (1, 2) and array.size == len(array)]
    if len(images) != 1 or len(labels) > 1 or len(images) + len(labels) != len(arrays):
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise UserError(f"--data {where}: expected {split} images N×H×W[×3] and at most labels N, found {found}")
    (items,) = images
    if items.ndim == 4 and items.shape[3] not in (1, 3):
        items = items.transpose(0, 2, 3, 1)
    if items.dtype != np.uint8 or not items.size or (items.ndim == 4 and items.shape[3] not in (1, 3)):
        raise UserError(
            f"--data {where}: expected uint8 images with 1 or 3 channels, found {items.dtype} {items.shape}"
        )
    if items.ndim == 4 and items.shape[3] == 1:
        items = items[..., 0]
    if not labels:
        return Source(items)
    values = labels[0].reshape(-1)
    if len(values) != len(items):
        raise UserError(f"--data {where}: {len(items):,} {split} images but {len(values):,} labels")
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= (len(classes) or 10_000):
        raise UserError(f"--data {where}: labels must be whole numbers from 0 to {(len(classes) or 10_000) - 1}")
    return Source(items, values, tuple(classes) or tuple(str(i) for i in range(int(values.max()) + 1)))


def read_npz(files: list[Path]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an .npz by name, and the names of the classes if it has an array of strings `classes`."""
    if len(files) > 1:
        raise UserError(f"--data {files[0].parent}: holds {len(files)} .npz files; name one of them")
    try:
        with np.load(files[0], allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zip and array headers can be damaged in more ways than numpy lists
        raise UserError(f"--data {files[0]}: not a readable .npz ({complaint(error)})") from None
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise UserError(f"--data {files[0]}: a zip of files, not of arrays; unpack it and name the folder")
    is_named = "classes" in arrays and arrays["classes"].dtype.kind == "U"
    return arrays, arrays.pop("classes").tolist() if is_named else []


def read_idx(files: list[Path]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of MNIST's files (`train-images-idx3-ubyte`, gzipped or not), whose headers give their shapes."""
    arrays = {}
    for path in files:
        try:
            with open_maybe_gzip(path) as stream:
                dimensions = stream.read(4)[3]
                shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
                claimed = math.prod(shape)
                data = stream.read(claimed + 1)  # a byte more than the header claims would be a byte too many
        except (OSError, EOFError, OverflowError, MemoryError, zlib.error, struct.error) as error:
            raise UserError(f"--data {path}: a damaged IDX file ({complaint(error)})") from None
        if len(data) != claimed:
            held = "more" if len(data) > claimed else f"only {len(data):,}"
            raise UserError(f"--data {path}: its header says {claimed:,} values, it holds {held}")
        arrays[path.name.removesuffix(".gz")] = np.frombuffer(data, np.uint8).reshape(shape)
    return arrays, []


# A pickle names the functions that rebuild its objects. These four are all that numpy's arrays and Python 2's strings
# need. The array starts empty and takes its shape together with its data, so a false shape cannot make it allocate.
PICKLE_NAMES: dict[tuple[str, str], Any] = {
    ("multiarray", "_reconstruct"): lambda kind, shape, typecode: np.ndarray(0, np.uint8),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding="latin1": text.encode("latin1"),
}


class CifarUnpickler(pickle.Unpickler):
    """An unpickler that builds what a CIFAR batch holds, plain containers and arrays, and can call nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return PICKLE_NAMES[module.rpartition(".")[2], name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs") from None


def read_cifar(files: list[Path]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The images and labels of the "python version" of CIFAR-10 or CIFAR-100: pickled batches of rows of 3072 bytes."""
    parts: dict[str, list[np.ndarray]] = {}
    classes: list[str] = []
    for file in files:
        split = "test" if "test" in file.name else "train"
        try:
            with open(file, "rb") as stream:
                batch = CifarUnpickler(stream, encoding="latin1").load()
            batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
            if "data" in batch:
                labels = np.array(batch["fine_labels"] if "fine_labels" in batch else batch["labels"])
                if len(labels) != len(batch["data"]):
                    raise ValueError(f"{len(batch['data']):,} images but {len(labels):,} labels")
                parts.setdefault(f"{split} images", []).append(batch["data"].reshape(-1, 3, 32, 32))
                parts.setdefault(f"{split} labels", []).append(labels)
            elif names := batch.get("fine_label_names") or batch.get("label_names"):
                classes = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
        except Exception as error:  # a damaged pickle may fail in any of its instructions, with any exception
            raise UserError(f"--data {file}: not a CIFAR batch ({complaint(error)})") from None
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}, classes


ARRAY_READERS = {"npz": read_npz, "idx": read_idx, "pickle": read_cifar}


def open_image(item: Path | np.ndarray) -> Image.Image:
    """An image file or a uint8 array H×W[×3] as Pillow's image, not decoded yet. Raises what Pillow raises."""
    if isinstance(item, np.ndarray):
        return Image.fromarray(item)
    return Image.open(io.BytesIO(item.read_bytes()), formats=IMAGE_FORMATS)


def complaint(error: Exception) -> str:
    """What a reader's exception says, in a few words; some libraries' own words only repeat the file's name."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, KeyError):
        return f"there is no {error} in it"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def natural_size(source: Source, skip_unreadable: bool) -> int:
    """The size to train at when none is asked for: the first image's own if it can be made (to 128), else ≤ 64."""
    for item in source.items:
        try:
            width, height = open_image(item).size
        except Exception as error:  # a decoder may fail in any way on a damaged file
            if skip_unreadable:
                continue
            raise UserError(f"{item}: {complaint(error)}; --skip-unreadable leaves such images out") from None
        if width == height <= 128 and width in SIZES:
            return width
        return max((size for size in SIZES if size <= min(width, height, 64)), default=SIZES[0])
    raise UserError("--data: none of its images can be read")


def decode(items: Sequence[Path] | np.ndarray, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode everything to uint8 N×size×size×C, on all cores; also returns {index: what is wrong} of the unreadable.

    A 32×32 PNG takes 0.08 ms, nearly all of it inside Python's lock: on two threads it takes 0.16. Forked workers have
    locks of their own and start at once. Where fork is not safe (macOS, Windows) threads decode larger files.
    """
    if isinstance(items, np.ndarray) and items.shape[1:3] == (size, size):
        return items if items.ndim == 4 else items[..., None], {}
    try:
        pixels = np.zeros((len(items), size, size, 3), np.uint8)
    except MemoryError:
        raise UserError(f"--data: {len(items):,} images of {size}×{size} do not fit into memory") from None
    unreadable = {}
    step = max(1, min(DECODE_CHUNK, DECODE_CHUNK * 1024 // size**2))
    chunks = [items[i : i + step] for i in range(0, len(items), step)]
    workers = min(len(chunks), os.cpu_count() or 1)
    if sys.platform == "linux":
        # Ctrl-C reaches the whole process group; a worker that died of it could leave the pool waiting for ever.
        ignore = (signal.SIGINT, signal.SIG_IGN)
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), signal.signal, ignore)
    else:
        large = isinstance(items[0], np.ndarray) or items[0].stat().st_size > 1 << 14
        pool = ThreadPoolExecutor(workers if large else 1)
    with pool, tqdm(total=len(items), desc="decoding", unit="img", disable=None, leave=False) as bar:
        for chunk, (decoded, failed) in enumerate(pool.map(partial(decode_chunk, size=size), chunks)):
            start = chunk * step
            pixels[start : start + len(decoded)] = decoded
            unreadable |= {start + i: message for i, message in failed.items()}
            bar.update(len(decoded))
    return pixels, unreadable


def decode_chunk(items: Sequence[Path] | np.ndarray, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode some images: uint8 n×size×size×3, and {position: what is wrong} of those that cannot be read."""
    pixels, failed = np.zeros((len(items), size, size, 3), np.uint8), {}
    for i, item in enumerate(items):
        try:
            pixels[i] = to_rgb(open_image(item), size)
        except Exception as error:  # a decoder may fail in any way on a damaged file; the caller names them all
            failed[i] = f"{item}: {complaint(error)}"
    return pixels, failed


def to_rgb(image: Image.Image, size: int) -> Image.Image:
    """An image of any mode as 8-bit RGB, size×size: upright, transparency on white, antialiased, centre-cropped."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of no known range")
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow's own conversion clips at 255 instead of scaling
        image = Image.fromarray(np.round(np.clip(np.asarray(image, np.int64), 0, 65535) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


# Each shape is the set where f(x, y) < 0, in units of its radius; f is near enough to a distance to antialias with.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "bar": lambda x, y: np.maximum(abs(x) - 0.25, abs(y) - 0.95),
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.9, 0.75 - np.hypot(x - 0.5, y)),
    "cross": lambda x, y: np.maximum(np.minimum(abs(x), abs(y)) - 0.28, np.maximum(abs(x), abs(y)) - 0.9),
    "dots": lambda x, y: np.hypot(abs(x) - 0.5, y) - 0.38,
    "half": lambda x, y: np.maximum(np.hypot(x, y + 0.35) - 0.9, -y - 0.35),
    "hourglass": lambda x, y: np.maximum(abs(x) - abs(y), abs(y) - 0.85),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.68) - 0.22,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.75,
    "triangle": lambda x, y: np.maximum(abs(x) * 0.866 + y * 0.5, -y) - 0.5,
}


def draw_shapes(count: int, size: int, seed: int) -> Images:
    """The built-in data: `count` size×size images of ten bright shapes at random places, sizes, angles and colours."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(SHAPES)
    pixels = np.empty((count, size, size, 3), np.uint8)
    axis = (np.arange(size) + 0.5) / size * 2 - 1  # pixel centres in -1 .. 1
    for label, shape in enumerate(SHAPES.values()):
        mine = np.flatnonzero(labels == label)
        column = partial(rng.uniform, size=(len(mine), 1, 1))
        radius, angle = column(0.45, 0.8), column(-0.35, 0.35)
        x, y = axis[None, None, :] - column(-0.2, 0.2), axis[None, :, None] - column(-0.2, 0.2)
        u, v = (x * np.cos(angle) + y * np.sin(angle)) / radius, (y * np.cos(angle) - x * np.sin(angle)) / radius
        cover = np.clip(0.5 - shape(u, v) * radius * size / 2, 0, 1)[..., None]
        # Light on dark: on grounds of both kinds G stayed grey for 1,560 steps (seed 1).
        ink, paper = rng.uniform(100, 255, (len(mine), 1, 1, 3)), rng.uniform(0, 40, (len(mine), 1, 1, 3))
        pixels[mine] = np.round(cover * ink + (1 - cover) * paper)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), tuple(SHAPES))


def download(name: str, root: Path) -> Path:
    """Fetch a data set through torchvision into `root`; returns the folder that `load_images` reads."""
    try:
        from torchvision import datasets  # slow to import, and needed nowhere else

        fetch, folder = {
            "cifar10": (datasets.CIFAR10, "cifar-10-batches-py"),
            "cifar100": (datasets.CIFAR100, "cifar-100-python"),
            "mnist": (datasets.MNIST, "MNIST/raw"),
            "fashion-mnist": (datasets.FashionMNIST, "FashionMNIST/raw"),
        }[name]
        fetch(root, download=True)
    except (ImportError, OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zlib.error) as error:
        raise UserError(f"--download {name}: could not be fetched into {root} ({complaint(error)})") from None
    return root / folder


def fingerprint(images: Images) -> str:
    """A short name for the decoded pixels and labels, to tell whether two runs saw the same data."""
    digest = hashlib.sha256(str(tuple(images.pixels.shape)).encode())
    for tensor in (images.pixels, images.labels):
        if tensor is not None:
            digest.update(np.ascontiguousarray(tensor.numpy()))
    return digest.hexdigest()[:16]


def on_device(pixels: Tensor, device: torch.device) -> Tensor:
    """The set on the training device; one of over half a GPU's free memory stays on the host."""
    if device.type == "cuda" and pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        print(f"the data set ({pixels.nbytes / 2**30:.1f} GiB) stays in host memory; batches are copied to the GPU")
        return pixels
    return pixels.to(device)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the images, int64 N: a permutation drawn from (seed, epoch) alone."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))


def real_batch(pixels: Tensor, index: Tensor, flip: bool, rng: torch.Generator) -> Tensor:
    """Gather uint8 N×H×W×C as float32 B×C×H×W in (-1, 1) on rng's device; each is mirrored with chance ½ if `flip`."""
    batch = pixels[index]
    if batch.device != rng.device:
        batch = batch.pin_memory().to(rng.device, non_blocking=True)  # only pinned memory is copied in the background
    batch = batch.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)  # a channels-last view: no pixel moves
    if flip:
        mirrored = torch.rand(len(index), 1, 1, 1, generator=rng, device=rng.device) < 0.5
        batch = torch.where(mirrored, batch.flip(3), batch)
    return batch


########################################################################################################################
#                                                      Networks                                                        #
########################################################################################################################

GENERATE_BATCH = 128  # always this many at a time, so that an image does not depend on how many are asked for


def stages(image_size: int) -> int:
    """How often an image is halved until 4..7 pixels are left on a side: 3 for 32, 2 for 28. Raises UserError."""
    return (checked_size(image_size) // 4).bit_length() - 1


def initialise(module: nn.Module) -> None:
    """Draw convolution and linear weights from N(0, 0.02²) (Radford et al. 2016, section 3)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)


class Generator(nn.Module):
    """Noise z (B×latent_dim) to images (B×channels×S×S) in (-1, 1).

    A linear layer makes a 4..7-pixel map, each stage doubles its size and halves its channels (Radford et al. 2016).
    The defaults are the assignment's network for CIFAR-10: 370,624 parameters.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, latent_dim: int = 100, width: int = 32):
        super().__init__()
        self.architecture = dict(image_size=image_size, channels=channels, latent_dim=latent_dim, width=width)
        halvings = stages(image_size)
        self.base = image_size >> halvings
        features = width << (halvings - 1)
        self.project = nn.Linear(latent_dim, features * self.base**2, bias=False)  # B×100 -> B×2048
        layers = [nn.Unflatten(1, (features, self.base, self.base)), nn.BatchNorm2d(features), nn.ReLU()]  # 128×4×4
        for _ in range(halvings - 1):  # 64×8×8, 32×16×16
            layers += [nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1, bias=False)]
            features //= 2
            layers += [nn.BatchNorm2d(features), nn.ReLU()]
        layers += [nn.ConvTranspose2d(features, channels, 4, stride=2, padding=1, bias=False), nn.Tanh()]  # 3×32×32
        self.layers = nn.Sequential(*layers)
        self.apply(initialise)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.project(z))

    def generate(self, n: int, seed: int = 0) -> np.ndarray:
        """Draw n ≥ 1 images: uint8 n×H×W (grey) or n×H×W×3 (colour). Image i of a seed does not depend on n."""
        return np.concatenate([*self.stream(n, seed)])

    @torch.no_grad()
    def stream(self, n: int, seed: int = 0) -> Iterator[np.ndarray]:
        """`generate` in pieces of up to GENERATE_BATCH images, for more than fit into memory."""
        training, device = self.training, self.project.weight.device
        self.eval()  # batch norm must use its running averages: an image must not depend on its neighbours
        try:
            for start in range(0, n, GENERATE_BATCH):
                z = latents(seed, start, GENERATE_BATCH, self.architecture["latent_dim"])
                images = to_uint8(self(z.to(device)))[: n - start]
                yield (images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)).cpu().numpy()
        finally:
            self.train(training)


class Discriminator(nn.Module):
    """Images (B×channels×S×S) to scores (B), high for real; no sigmoid.

    Each stage halves the size and doubles the channels; the last convolution sees the whole 4..7-pixel map.
    The defaults are the assignment's network for CIFAR-10: 167,872 parameters.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, width: int = 32, negative_slope: float = 0.2):
        super().__init__()
        self.architecture = dict(image_size=image_size, channels=channels, width=width, negative_slope=negative_slope)
        halvings = stages(image_size)
        layers, features = [], channels
        for stage in range(halvings):  # 32×16×16, 64×8×8, 128×4×4
            layers += [nn.Conv2d(features, width << stage, 4, stride=2, padding=1, bias=False)]
            features = width << stage
            layers += [nn.BatchNorm2d(features), nn.LeakyReLU(negative_slope)]
        self.features = nn.Sequential(*layers)
        self.score = nn.Conv2d(features, 1, image_size >> halvings, bias=False)  # 1×1×1
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(self.features(images)).flatten()


def to_uint8(images: Tensor) -> Tensor:
    """(-1, 1) to 0..255 by the fixed map, never stretched to the batch's own minimum and maximum."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def latents(seed: int, start: int, count: int, dim: int) -> Tensor:
    """Noise for images start .. start+count-1 of a seed, float32 count×dim; each image has a stream of its own."""
    streams = (np.random.default_rng((seed, i)) for i in range(start, start + count))
    return torch.from_numpy(np.stack([stream.standard_normal(dim, np.float32) for stream in streams]))


def count_parameters(network: nn.Module) -> int:
    """How many numbers the optimizer may change."""
    return sum(parameter.numel() for parameter in network.parameters())


########################################################################################################################
#                                                     Objectives                                                       #
########################################################################################################################


def ls_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """J(D) = 1/2m Σ (D(x) - 1)² + 1/2m Σ D(G(z))², from scores B (the assignment; Mao et al. 2017)."""
    return 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()


def ls_generator_loss(fake: Tensor) -> Tensor:
    """J(G) = 1/m Σ (D(G(z)) - 1)², from scores B (the assignment; without the factor 1/2 of Mao et al. 2017)."""
    return (fake - 1).square().mean()


def bce_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """J(D) = -1/2m Σ ln σ(D(x)) - 1/2m Σ ln(1 - σ(D(G(z)))), from logits B (Goodfellow et al. 2014)."""
    real_loss = F.binary_cross_entropy_with_logits(real, torch.ones_like(real))
    return 0.5 * real_loss + 0.5 * F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def bce_generator_loss(fake: Tensor) -> Tensor:
    """J(G) = -1/m Σ ln σ(D(G(z))), the non-saturating form, from logits B (Goodfellow et al. 2014, section 3)."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


LOSSES = {
    "ls": (ls_discriminator_loss, ls_generator_loss),
    "bce": (bce_discriminator_loss, bce_generator_loss),
}
LOSS_NAMES = {"ls": "least squares", "bce": "binary cross-entropy"}


########################################################################################################################
#                                                      Training                                                        #
########################################################################################################################

EMA_RAMP = 0.05  # while few images have been seen, the half-life is this share of them (Karras et al. 2022, EDM)
MEASURES = ("d_loss", "g_loss", "d_real", "d_fake")
LOG_COLUMNS = ("step", "epoch", *MEASURES, "images_per_s")
EPOCH_COLUMNS = ("epoch", "step", *MEASURES, "diversity", "images_per_s", "seconds")

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p, lr, o: torch.optim.Adam(p, lr, betas=(o.beta1, o.beta2), fused=True),
    "adamw": lambda p, lr, o: torch.optim.AdamW(p, lr, betas=(o.beta1, o.beta2), fused=True),
    "rmsprop": lambda p, lr, o: torch.optim.RMSprop(p, lr),
    "sgd": lambda p, lr, o: torch.optim.SGD(p, lr, momentum=o.beta1, fused=True),
}


@dataclass
class Run:
    """The state that a run carries, and all that a checkpoint holds."""

    generator: Generator
    discriminator: Discriminator
    average: Generator  # the generator whose weights are a moving average; the one that draws
    optimizer_g: torch.optim.Optimizer
    optimizer_d: torch.optim.Optimizer
    rng: torch.Generator  # noise and flips, on the device
    bf16: bool
    epoch: int = 0  # whole epochs done
    step: int = 0
    log: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)

    def noise(self, count: int) -> Tensor:
        """Fresh z, count×latent_dim."""
        dim = self.generator.architecture["latent_dim"]
        return torch.randn(count, dim, generator=self.rng, device=self.rng.device)

    def autocast(self) -> torch.autocast:
        """Convolutions in bfloat16 where that is faster; weights, losses and optimizers stay float32."""
        return torch.autocast(self.rng.device.type, torch.bfloat16, enabled=self.bf16)


def make_run(options: argparse.Namespace, channels: int, device: torch.device, bf16: bool) -> Run:
    """Build networks, average and optimizers; the same seed gives the same weights on every device."""
    torch.manual_seed(options.seed)
    size, latent_dim = options.image_size, options.latent_dim
    generator = Generator(size, channels, latent_dim, options.width_g)
    discriminator = Discriminator(size, channels, options.width_d, options.negative_slope)
    for network in (generator, discriminator):
        network.to(device, memory_format=torch.channels_last)  # the layout that bf16 kernels and tensor cores want
    return Run(
        generator,
        discriminator,
        average=deepcopy(generator).requires_grad_(False).eval(),
        optimizer_g=OPTIMIZERS[options.optimizer](generator.parameters(), options.lr_g, options),
        optimizer_d=OPTIMIZERS[options.optimizer](discriminator.parameters(), options.lr_d, options),
        rng=torch.Generator(device).manual_seed(options.seed + 1),  # not the stream that the weights were drawn from
        bf16=bf16,
    )


def discriminator_step(run: Run, real: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
    """One update of D on real images B×C×H×W and as many fakes; returns its loss and mean scores, on the device."""
    with run.autocast():
        with torch.no_grad():  # D's step does not reach into G
            fake = run.generator(run.noise(len(real)))
        # Apart, so that batch norm never mixes the statistics of real and fake images.
        real_score, fake_score = run.discriminator(real).float(), run.discriminator(fake).float()
    value = loss(real_score, fake_score)
    run.optimizer_d.zero_grad()
    value.backward()
    run.optimizer_d.step()
    return value.detach(), real_score.detach().mean(), fake_score.detach().mean()


def generator_step(run: Run, count: int, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """One update of G on `count` fresh noise vectors; returns its loss, on the device."""
    run.discriminator.requires_grad_(False)  # the gradient passes through D; D's own is not wanted
    with run.autocast():
        fake_score = run.discriminator(run.generator(run.noise(count))).float()
    value = loss(fake_score)
    run.optimizer_g.zero_grad()
    value.backward()
    run.optimizer_g.step()
    run.discriminator.requires_grad_(True)
    return value.detach()


def ema_decay(step: int, batch_size: int, half_life: float) -> float:
    """The average's decay per step, such that what it holds halves every `half_life` images; 0 keeps no past."""
    images = min(half_life, EMA_RAMP * step * batch_size)
    return 0.5 ** (batch_size / images) if images > 0 else 0.0


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average <- decay · average + (1 - decay) · network, for weights and batch-norm statistics."""
    averaged, current = (
        [t for t in [*n.parameters(), *n.buffers()] if t.is_floating_point()] for n in (average, network)
    )
    get_ema_multi_avg_fn(decay)(averaged, current, None)


def train_step(run: Run, real: Tensor, options: argparse.Namespace) -> Tensor:
    """D's step, G's step, the average; returns the MEASURES as a tensor on the device: nothing is read back here."""
    discriminator_loss, generator_loss = LOSSES[options.loss]
    d_loss, d_real, d_fake = discriminator_step(run, real, discriminator_loss)
    g_loss = generator_step(run, len(real), generator_loss)
    run.step += 1
    update_average(run.average, run.generator, ema_decay(run.step, len(real), options.ema))
    return torch.stack([d_loss, g_loss, d_real, d_fake])


def choose_device(name: str) -> torch.device:
    """The asked device, or for "auto" a CUDA GPU, Apple's GPU or the CPU, whichever comes first. Raises UserError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        try:
            return torch.zeros(1, device=name).device
        except (RuntimeError, AssertionError):
            pass  # said below
    raise UserError(f"--device {name}: not available on this machine")


def bf16_pays(options: argparse.Namespace, channels: int, device: torch.device) -> bool:
    """Whether bfloat16 is faster: known of NVIDIA's GPUs, found out on a CPU by timing a small step both ways."""
    if device.type != "cpu":
        return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    size = options.image_size
    images = torch.randn(max(2, min(64, 2**16 // size**2)), size, size, channels).permute(0, 3, 1, 2)
    runs = {bf16: make_run(options, channels, device, bf16) for bf16 in (True, False)}
    seconds = {True: [], False: []}
    for _ in range(8):
        for bf16, run in runs.items():
            start = time.perf_counter()
            train_step(run, images, options)
            seconds[bf16].append(time.perf_counter() - start)
    return min(seconds[True]) < min(seconds[False])  # the minimum: whatever else the machine does only ever adds


def train_epoch(run: Run, pixels: Tensor, steps: int, options: argparse.Namespace) -> Iterator[dict[str, float]]:
    """One pass over the data in batches; yields a row of LOG_COLUMNS, means over up to `log_every` steps, as it goes.

    The measures add up on the device, which is waited for only where a row is made. Raises UserError (status 1) at a
    row with a number that is not finite.
    """
    order = epoch_order(len(pixels), options.seed, run.epoch + 1).to(pixels.device)
    totals, waiting, began = torch.zeros(len(MEASURES), device=run.rng.device), 0, time.perf_counter()
    for i in range(steps):
        index = order[i * options.batch_size : (i + 1) * options.batch_size]
        totals += train_step(run, real_batch(pixels, index, options.flip, run.rng), options)
        waiting += 1
        if waiting == options.log_every or i + 1 == steps:
            means = (totals / waiting).tolist()  # the wait
            seconds = time.perf_counter() - began
            row = {"step": run.step, "epoch": run.epoch + 1, **dict(zip(MEASURES, means, strict=True))}
            for name in MEASURES:
                if not math.isfinite(row[name]):
                    advice = "begin again, or --resume, with lower --lr-g and --lr-d or with --precision fp32"
                    raise UserError(f"{name} is {row[name]} at step {run.step}, epoch {run.epoch + 1}; {advice}", 1)
            yield row | {"images_per_s": waiting * options.batch_size / seconds}
            totals.zero_()
            waiting, began = 0, time.perf_counter()
    run.epoch += 1


########################################################################################################################
#                                                  Pictures and log                                                    #
########################################################################################################################

SHEET = 64  # samples drawn from the fixed noise each epoch, 8×8
BLUE = "#2f6fb0"


class RunLog:
    """`log.csv`, `epochs.csv` and TensorBoard; the run keeps each row too, so that checkpoints carry the history."""

    def __init__(self, out: Path, run: Run):
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.run = run
        self.files = [open(out / name, "w", newline="", encoding="utf-8") for name in ("log.csv", "epochs.csv")]
        self.log, self.epochs = (
            csv.DictWriter(file, columns)
            for file, columns in zip(self.files, (LOG_COLUMNS, EPOCH_COLUMNS), strict=True)
        )
        for table, rows in ((self.log, run.log), (self.epochs, run.epochs)):  # a resumed run drops what it will redo
            table.writeheader()
            table.writerows(rows)
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=run.step + 1)

    def add(self, row: dict[str, float]) -> None:
        """Log the means of one logging interval."""
        self.run.log.append(row)
        self.log.writerow(row)
        self.files[0].flush()
        for column in (*MEASURES, "images_per_s"):
            self.board.add_scalar(f"train/{column}", row[column], row["step"])

    def add_epoch(self, row: dict[str, float]) -> None:
        """Log an epoch's means."""
        self.run.epochs.append(row)
        self.epochs.writerow(row)
        self.files[1].flush()
        self.board.add_scalar("samples/diversity", row["diversity"], row["step"])

    def close(self) -> None:
        """Close the files; what was logged is already in them."""
        for file in self.files:
            file.close()
        self.board.close()


def pixel_spread(pixels: np.ndarray | Tensor) -> float:
    """How much uint8 images N×H×W[×C] differ: each pixel's standard deviation over the images, averaged over pixels."""
    return float(np.asarray(pixels, dtype=np.float32).std(0).mean())


def epoch_row(run: Run, diversity: float, images: int, seconds: float) -> dict[str, float]:
    """A row of EPOCH_COLUMNS for the epoch just done: the means over its steps, and what is given."""
    rows = [row for row in run.log if row["epoch"] == run.epoch]
    before = run.epochs[-1]["step"] if run.epochs else 0
    steps = np.diff([before, *(row["step"] for row in rows)])  # that each row is the mean of
    means = {name: float(np.average([row[name] for row in rows], weights=steps)) for name in MEASURES}
    known = {"epoch": run.epoch, "step": run.step, **means, "diversity": diversity}
    return known | {"images_per_s": images / seconds, "seconds": seconds}


def grid(images: np.ndarray, columns: int, gap: int, fill: float) -> np.ndarray:
    """Lay out n×H×W[×3] in rows of `columns` on a canvas of `fill`, `gap` pixels apart."""
    height, width = images.shape[1] + gap, images.shape[2] + gap
    rows = math.ceil(len(images) / columns)
    canvas = np.full((rows * height + gap, columns * width + gap, *images.shape[3:]), fill, images.dtype)
    for i, image in enumerate(images):
        top, left = gap + i // columns * height, gap + i % columns * width
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def sheet(images: np.ndarray) -> Image.Image:
    """A square of uint8 images n×H×W[×3] on white; images under 64 pixels are enlarged by a whole number."""
    scale = max(1, 64 // images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    return Image.fromarray(grid(images, columns=math.ceil(math.sqrt(len(images))), gap=2, fill=255))


def by_epoch(folder: Path, suffix: str) -> list[Path]:
    """The files epoch_N.suffix of a folder in the order of N, which may have grown out of its four digits."""
    return sorted(folder.glob(f"epoch_*{suffix}"), key=lambda path: int(path.stem.removeprefix("epoch_")))


def save_gif(out: Path, most: int = 100) -> None:
    """`samples/progress.gif`: the sheets of all epochs in order, evenly thinned to at most `most` frames."""
    paths = by_epoch(out / "samples", ".png")
    paths = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int))]
    first, *others = [Image.open(path).convert("RGB").quantize(128) for path in paths]
    milliseconds = [150] * len(others) + [2000]
    path = out / "samples" / "progress.gif"
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0)


def draw_epoch(run: Run, out: Path, samples: np.ndarray, options: argparse.Namespace, board: Any, last: bool) -> None:
    """The loss curves, a sheet of samples every `sample_every` epochs, the weights at 1, 2, 5, 10, 20 … and last."""
    plot_losses(run, out, LOSS_NAMES[options.loss])
    if last or run.epoch % options.sample_every == 0:
        picture = sheet(samples if options.image_size <= 256 else samples[:16])
        picture.save(out / "samples" / f"epoch_{run.epoch:04d}.png")
        board.add_image("samples/fixed_noise", np.atleast_3d(np.asarray(picture)), run.step, dataformats="HWC")
    if last or f"{run.epoch}".rstrip("0") in ("1", "2", "5"):
        plot_weights(run, out)


def plot_losses(run: Run, out: Path, loss_name: str) -> None:
    """`plots/generator_loss.png` and `discriminator_loss.png`: loss over iterations, as logged and smoothed."""
    from matplotlib.figure import Figure  # the object interface draws without a display

    steps = np.array([row["step"] for row in run.log])
    window = max(1, len(steps) // 40)
    for network, column, formula in (("generator", "g_loss", "J(G)"), ("discriminator", "d_loss", "J(D)")):
        values = np.array([row[column] for row in run.log])
        ones = np.ones(window)
        smooth = np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
        figure = Figure(figsize=(8, 4.5), dpi=120)
        axes = figure.subplots(gridspec_kw=dict(left=0.09, right=0.98, bottom=0.12, top=0.92))
        label = "mean of each logging interval"
        if window == 1:
            axes.plot(steps, values, color=BLUE, linewidth=1.2, marker=".", label=label)
        else:
            axes.plot(steps, values, color=BLUE, alpha=0.35, linewidth=0.8, label=label)
            axes.plot(steps, smooth, color=BLUE, linewidth=1.8, label=f"smoothed over {window} intervals")
        axes.legend(frameon=False)
        axes.set(title=f"{network.capitalize()} loss ({loss_name})", xlabel="iteration", ylabel=formula)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(out / "plots" / f"{network}_loss.png")


def draw_layer(axes: Any, weight: Tensor, at_pixels: bool) -> str:
    """Draw a weight, filters × channels × h × w `at_pixels`, else outputs × inputs × h × w; returns what is shown."""
    outputs, inputs, height, width = weight.shape
    limit = float(weight.abs().max()) or 1.0
    if at_pixels:
        filters = weight[:96].permute(0, 2, 3, 1) / (2 * limit) + 0.5
        axes.imshow(grid(filters.squeeze(-1).numpy(), columns=16, gap=1, fill=1.0), cmap="gray", vmin=0, vmax=1)
        return f"{outputs} filters {inputs}×{height}×{width} as images (grey 0, black −{limit:.2g}, white +{limit:.2g})"
    shown = (weight[:8, :48] if outputs > 1 else weight[:, :192]).flatten(0, 1)
    columns = min(inputs, 48 if outputs > 1 else 24)
    axes.imshow(grid(shown.numpy(), columns, gap=1, fill=math.nan), cmap="RdBu_r", vmin=-limit, vmax=limit)
    kind = f"{inputs} → {outputs}, {height}×{width}: {len(shown):,} of {outputs * inputs:,} kernels"
    return kind + ", a row per output" * (outputs > 1) + f" (blue −{limit:.2g}, red +{limit:.2g})"


def plot_weights(run: Run, out: Path) -> None:
    """`weights/<network>_epoch_N.png`: the layer at the pixels as filters, the others as kernels, a histogram each."""
    from matplotlib.figure import Figure

    for title, network in (("generator", run.generator), ("discriminator", run.discriminator)):
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
        at_pixels = layers[-1 if network is run.generator else 0]
        inch = 1 / (2.3 * len(layers))  # of the figure's height; fixed margins, for a layout engine would draw it twice
        figure = Figure(figsize=(12, 1 / inch), dpi=80)
        figure.suptitle(f"Weights of the {title} after epoch {run.epoch} (iteration {run.step:,})")
        margins = dict(left=0.01, right=0.98, bottom=0.5 * inch, top=1 - 0.75 * inch, hspace=0.7, wspace=0.15)
        rows = figure.subplots(len(layers), 2, width_ratios=(3, 1), squeeze=False, gridspec_kw=margins)
        for (picture, histogram), layer in zip(rows, layers, strict=True):
            weight = layer.weight.detach().float().cpu()
            histogram.hist(weight.numpy().ravel(), bins=80, color=BLUE, histtype="stepfilled")
            histogram.set(title=f"standard deviation {weight.std():.3g}", xlabel="weight", ylabel="count")
            histogram.spines[["top", "right"]].set_visible(False)
            histogram.locator_params(nbins=5)
            if isinstance(layer, nn.ConvTranspose2d) and layer is not at_pixels:
                weight = weight.transpose(0, 1)  # torch keeps it as inputs × outputs, which is filters × channels
            elif isinstance(layer, nn.Linear):  # each number of z adds a base×base map to each output channel
                weight = weight.unflatten(0, (-1, network.base, network.base)).permute(0, 3, 1, 2)
            picture.set_title(f"{type(layer).__name__} {draw_layer(picture, weight, layer is at_pixels)}", loc="left")
            picture.set_axis_off()
            picture.set_anchor("NW")
        figure.savefig(out / "weights" / f"{title}_epoch_{run.epoch:04d}.png")


########################################################################################################################
#                                          Checkpoints and saved generators                                            #
########################################################################################################################

CHECKPOINT_FORMAT, GENERATOR_FORMAT = "rollnumber_04 checkpoint 1", "rollnumber_04 generator 1"
SHAPE_OPTIONS = ("image_size", "latent_dim", "width_g", "width_d")


def refuse_folder(out: Path, data: Path | None) -> None:
    """Raise UserError if `out` cannot be a new run's folder: not empty, not a folder, not writable, among the data."""
    if os.path.isdir(out) and os.listdir(out):
        raise UserError(f"--out {out}: already holds a run or other files; name a new folder, or --resume to go on")
    above = next(path for path in (out, *out.parents) if os.path.exists(path))
    if not os.path.isdir(above) or not os.access(above, os.W_OK):
        raise UserError(f"--out {out}: {above} is not a folder that can be written to")
    if data and os.path.isdir(data) and out.resolve().is_relative_to(data.resolve()):
        raise UserError(f"--out {out}: lies inside the data, {data}, whose images it would join; name another folder")


def open_run_folder(out: Path, is_new: bool) -> Path:
    """Make the run's folder and its parts; of two runs that ask for the same new one at once, the second is refused."""
    try:
        (out / "checkpoints").mkdir(parents=True, exist_ok=not is_new)
        for part in ("samples", "plots", "weights", "tensorboard"):
            (out / part).mkdir(exist_ok=True)
    except FileExistsError:
        raise UserError(f"--out {out}: another run has just taken it; name another folder") from None
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror}") from None
    return out


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves either the old one or the new one: beside it, to the disk, then renamed."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(beside, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself reaches the disk with the folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_run(run: Run, out: Path, facts: dict[str, Any], numbered: bool) -> None:
    """Write `checkpoints/last.pt`, if `numbered` also `epoch_NNNN.pt` (the newest `keep` stay), and the generator."""
    checkpoint = {
        "format": CHECKPOINT_FORMAT,
        "options": facts,
        "architecture": {"generator": run.generator.architecture, "discriminator": run.discriminator.architecture},
        "epoch": run.epoch,
        "step": run.step,
        "networks": {"generator": run.generator.state_dict(), "discriminator": run.discriminator.state_dict()},
        "optimizers": {"generator": run.optimizer_g.state_dict(), "discriminator": run.optimizer_d.state_dict()},
        "average": run.average.state_dict(),
        "rng": {"device": run.rng.device.type, "state": run.rng.get_state()},
        "history": {"log": run.log, "epochs": run.epochs},
    }
    stream = io.BytesIO()
    torch.save(checkpoint, stream)
    write_whole(out / "checkpoints" / "last.pt", stream.getvalue())
    if numbered:
        write_whole(out / "checkpoints" / f"epoch_{run.epoch:04d}.pt", stream.getvalue())
        for old in by_epoch(out / "checkpoints", ".pt")[: -facts["keep"]]:
            old.unlink()
    passed_on = ("loss", "seed", "batch_size", "data_fingerprint", "versions")
    metadata = {
        "format": GENERATOR_FORMAT,
        "architecture": json.dumps(run.generator.architecture),
        "training": json.dumps({"epoch": run.epoch, "step": run.step} | {name: facts[name] for name in passed_on}),
    }
    weights = {name: tensor.contiguous() for name, tensor in run.average.state_dict().items()}
    write_whole(out / "generator.safetensors", safetensors.torch.save(weights, metadata))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, plain containers and tensors only: the file can run no code. Raises UserError."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such checkpoint") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        raise UserError(f"{path}: not a whole checkpoint of this program") from None
    if not isinstance(saved, dict) or saved.get("format") != CHECKPOINT_FORMAT:
        raise UserError(f"{path}: not a checkpoint of this program")
    return saved


def restore(run: Run, saved: dict[str, Any], options: argparse.Namespace) -> None:
    """Put a checkpoint's state into a new run; learning rates and the like come from the options, not from the file."""
    for name, network in (("generator", run.generator), ("discriminator", run.discriminator)):
        state = saved["networks"][name]
        for key, tensor in network.state_dict().items():
            if key not in state or state[key].shape != tensor.shape:
                raise UserError(f"{options.resume}: its {name}'s {key} has not the shape that options and data ask for")
        network.load_state_dict(state)
    run.average.load_state_dict(saved["average"])
    if saved["options"]["optimizer"] == options.optimizer:
        for name, optimizer in (("generator", run.optimizer_g), ("discriminator", run.optimizer_d)):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": saved["optimizers"][name]["state"], "param_groups": groups})
    run.epoch, run.step = saved["epoch"], saved["step"]
    if saved["rng"]["device"] == run.rng.device.type:
        run.rng.set_state(saved["rng"]["state"])
    else:
        run.rng.manual_seed(options.seed + 1 + run.step)
        print(f"note: the checkpoint is from a {saved['rng']['device']} device; the noise goes on from another state")
    run.log, run.epochs = saved["history"]["log"], saved["history"]["epochs"]


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> Generator:
    """The averaged generator of a `.safetensors` file or a `.pt` checkpoint, ready to `generate`. Raises UserError."""
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no such model")
    if zipfile.is_zipfile(path):
        saved = load_checkpoint(Path(path))
        architecture, weights = saved["architecture"]["generator"], saved["average"]
    else:
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != GENERATOR_FORMAT:
                    raise UserError(f"{path}: not a generator of this program")
                architecture = json.loads(metadata["architecture"])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, ValueError, KeyError, RecursionError, safetensors.SafetensorError):
            raise UserError(f"{path}: neither a .safetensors generator nor a checkpoint, or damaged") from None
    limits = {"image_size": SIZES, "channels": (1, 3), "latent_dim": range(1, 4097), "width": range(1, 1025)}
    if not isinstance(architecture, dict) or architecture.keys() != limits.keys():
        raise UserError(f"{path}: does not say what network its weights are of")
    if not all(type(value) is int and value in limits[name] for name, value in architecture.items()):
        raise UserError(f"{path}: its network is not one that is made here: {architecture}")
    with torch.device("meta"):  # shapes without memory, so that a false header allocates nothing
        expected = {name: tensor.shape for name, tensor in Generator(**architecture).state_dict().items()}
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        raise UserError(f"{path}: its weights do not fit the network that it describes")
    generator = Generator(**architecture)
    generator.load_state_dict(weights)
    return generator.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()


########################################################################################################################
#                                                      Commands                                                        #
########################################################################################################################

# A preset is a named set of defaults; a flag that is given wins. `cifar10-ls` is the assignment: every default below.
PRESETS: dict[str, dict[str, Any]] = {"cifar10-ls": {}}
COMMANDS = ("train", "generate")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that shows each default there is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one sentence."""

    def error(self, message: str):
        raise UserError(message.removeprefix("argument "))


def number(kind: type, low: float, high: float, open_low: bool = False) -> Callable[[str], Any]:
    """An argparse type: an int or float from `low` (itself excluded if `open_low`) to `high`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value <= high if open_low else low <= value <= high):
            what = "a whole number" if kind is int else "a number"
            span = f"above {low}, up to {high}" if open_low else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {span}")
        return value

    return parse


def some_path(text: str) -> Path:
    """An argparse type: a path, but not the empty one of a shell's unset variable, which Path takes for this folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return Path(text)


def build_parser(command: str = "train") -> argparse.ArgumentParser:
    """The command line of one command; `train` is the one that needs no name."""
    prog = "rollnumber_04.py" if command == "train" else f"rollnumber_04.py {command}"
    layout = partial(Help, max_help_position=34, width=120)
    description = {
        "train": f"Train a GAN on small images. Other commands, each with its --help: {', '.join(COMMANDS[1:])}.",
        "generate": "Draw images with a trained generator. Image i of a seed is the same however many are drawn.",
    }[command]
    parser = Parser(prog=prog, description=description, formatter_class=layout, allow_abbrev=False)
    whole, real = partial(number, int), partial(number, float)
    device = dict(default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 … or mps")

    if command == "generate":
        parser.add_argument(
            "model", type=some_path, metavar="MODEL", help="a .safetensors generator or a .pt checkpoint"
        )
        parser.add_argument("--count", type=whole(1, 10**8), default=64, help="how many images")
        parser.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, help="image i of a seed is always the same")
        parser.add_argument(
            "--out", type=some_path, required=True, metavar="PATH", help="x.png (a sheet), x.npz or a new folder"
        )
        parser.add_argument("--device", **device)
        return parser

    group = parser.add_argument_group("main")
    group.add_argument("--preset", choices=PRESETS, default="cifar10-ls", help="a named set of defaults")
    group.add_argument("--epochs", type=whole(1, 10**6), default=50, help="passes over the data")
    group.add_argument("--batch-size", type=whole(2, 2**16), default=64, help="images a step")
    group.add_argument("--seed", type=whole(0, 2**31 - 1), help="of everything random; drawn and printed if left out")
    group.add_argument(
        "--resume", nargs="?", type=some_path, const=True, metavar="PATH", help="go on from PATH or --out's last.pt"
    )
    group.add_argument("--dry-run", action="store_true", help="one real step, every file written")

    group = parser.add_argument_group("data")
    group.add_argument("--data", type=some_path, metavar="PATH", help="images; drawn shapes if left out")
    names = ("cifar10", "cifar100", "mnist", "fashion-mnist")
    group.add_argument("--download", choices=names, help="fetch it into --data (or ./data) first, by torchvision")
    group.add_argument("--image-size", type=whole(1, 1024), help="pixels a side; the images' own if left out")
    group.add_argument("--flip", action=argparse.BooleanOptionalAction, default=False, help="mirror half of the images")
    group.add_argument("--skip-unreadable", action="store_true", help="leave damaged images out instead of stopping")

    group = parser.add_argument_group("networks")
    group.add_argument("--width-g", type=whole(1, 1024), default=32, help="channels of G's last hidden stage")
    group.add_argument("--width-d", type=whole(1, 1024), default=32, help="channels of D's first stage")
    group.add_argument("--latent-dim", type=whole(1, 4096), default=100, help="numbers in the noise z")
    group.add_argument("--negative-slope", type=real(0, 1), default=0.2, help="of D's leaky ReLU; 0 is a ReLU")

    group = parser.add_argument_group("objective")
    group.add_argument("--loss", choices=LOSSES, default="ls", help="least squares, or binary cross-entropy on logits")

    group = parser.add_argument_group("optimizers")
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="one for G and one for D")
    group.add_argument("--lr-g", type=real(0, 10, True), default=2e-4, help="learning rate of G")
    group.add_argument("--lr-d", type=real(0, 10, True), default=2e-4, help="learning rate of D")
    group.add_argument("--beta1", type=real(0, 0.9999), default=0.5, help="Adam's first decay; sgd's momentum")
    group.add_argument("--beta2", type=real(0, 0.999999), default=0.999, help="Adam's second decay")

    group = parser.add_argument_group("stabilisers")
    group.add_argument("--ema", type=real(0, 10**9), default=50_000, help="half-life of G's average, in images")

    group = parser.add_argument_group("performance")
    group.add_argument("--device", **device)
    group.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="auto: bf16 where faster")

    group = parser.add_argument_group("output")
    group.add_argument("--out", type=some_path, metavar="DIR", help="runs/<preset>-<date>-<time> if left out")
    group.add_argument("--log-every", type=whole(1, 10**6), default=50, help="steps that a row of log.csv averages")
    group.add_argument("--sample-every", type=whole(1, 10**6), default=1, help="epochs between sheets of samples")
    group.add_argument("--save-every", type=whole(1, 10**6), default=10, help="epochs between numbered checkpoints")
    group.add_argument("--keep", type=whole(1, 10**6), default=5, help="numbered checkpoints that stay")
    return parser


def parse_options(argv: Sequence[str] = ()) -> argparse.Namespace:
    """The options of a training run from its command line: flags, over a checkpoint's or a preset's, over the defaults.

    Raises UserError. `train(parse_options(["--data", "cifar10"]))` is the way to train from Python.
    """
    parser = build_parser()
    given = parser.parse_args(argv)
    defaults = PRESETS[given.preset]
    if given.resume is not None:
        for flag in ("dry_run", "download"):
            if getattr(given, flag):
                raise UserError(f"--{flag.replace('_', '-')}: does not go with --resume")
        path = find_checkpoint(given)
        saved = load_checkpoint(path)["options"]
        defaults = {name: value for name, value in saved.items() if name in given}
    parser.set_defaults(**defaults)
    options = parser.parse_args(argv)
    if given.resume is None:
        options.out = options.out or Path("runs", time.strftime(f"{options.preset}-%Y%m%d-%H%M%S"))
    else:
        options.resume = path
        if options.out is None and path.parent.name != "checkpoints":
            raise UserError(f"--resume {path}: lies in no run's folder; name one with --out")
        options.out = options.out or path.parent.parent
        for name, new in plain(options).items():
            flag, old = "--" + name.replace("_", "-"), defaults.get(name, new)
            if new != old and name in SHAPE_OPTIONS:
                raise UserError(f"{flag} {new}: the checkpoint {path} has networks made with {flag} {old}")
            if new != old:
                print(f"note: {flag} {old} in the checkpoint, {new} now")
    if options.seed is None:
        options.seed = secrets.randbelow(2**31)
    return options


def find_checkpoint(options: argparse.Namespace) -> Path:
    """The checkpoint that `--resume [PATH]` means: PATH, or last.pt in the run folder that PATH or --out names."""
    if options.resume is True and options.out is None:
        raise UserError("--resume: name the run's folder with --out, or give a checkpoint's path")
    path = options.out if options.resume is True else options.resume
    path = path / "checkpoints" / "last.pt" if os.path.isdir(path) else path
    if not os.path.isfile(path):  # unlike Path's, these take names of any length
        raise UserError(f"--resume: there is no checkpoint {path}")
    return path


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """The options that describe a run, as plain values: what is written to options.json and into checkpoints."""
    here_only = ("resume", "dry_run", "out", "download")
    items = {name: value for name, value in vars(options).items() if name not in here_only}
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in items.items()}


def train(options: argparse.Namespace) -> Path:
    """Train as `options` (from `parse_options`) say; returns the run's folder. Bad input: UserError."""
    start = time.perf_counter()
    if options.data is None and not options.download:
        print("training on the built-in shapes, drawn on the fly; --data FOLDER trains on your own images", flush=True)
    device = choose_device(options.device)
    saved = load_checkpoint(options.resume) if options.resume else None
    if saved and saved["epoch"] >= options.epochs:
        print(
            f"nothing to do: {options.resume} has done its {saved['epoch']} epochs; a larger --epochs goes on from it"
        )
        return options.out
    is_new = not saved or options.resume.parent.parent.resolve() != options.out.resolve()
    if is_new:
        refuse_folder(options.out, options.data)
    if options.download:
        options.data = download(options.download, options.data or Path("data"))
    images = load_images(options.data, "train", options.image_size, options.skip_unreadable)
    count, options.image_size, _, channels = images.pixels.shape
    if count < 2:
        raise UserError(f"--data {options.data}: training needs at least 2 images, found {count}")
    if options.batch_size > count:
        print(f"note: --batch-size {options.batch_size} is more than the {count} images; using {count}")
        options.batch_size = count
    torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it
    if options.precision == "auto":
        options.precision = "bf16" if bf16_pays(options, channels, device) else "fp32"
    run = make_run(options, channels, device, bf16=options.precision == "bf16")
    if saved:
        restore(run, saved, options)
    steps = 1 if options.dry_run else count // options.batch_size
    last = run.epoch + 1 if options.dry_run else options.epochs
    facts = plain(options) | {
        "data_fingerprint": fingerprint(images),
        "device_name": device_name(device),
        "versions": {"tool": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
    }
    if saved and saved["options"]["data_fingerprint"] != facts["data_fingerprint"]:
        print("note: the data is not what the checkpoint was trained on")
    announce(run, images, facts, f"{last} epochs of {steps:,} steps", options.out)

    out = open_run_folder(options.out, is_new)
    write_whole(out / "options.json", json.dumps(facts, indent=2).encode())
    spread = pixel_spread(images.pixels[epoch_order(count, 0, 0)[:2000]])
    pixels = on_device(images.pixels, device)
    first_step, seconds = run.step, np.zeros(3)
    per_epoch = steps * options.batch_size  # images
    total = run.step * options.batch_size + (last - run.epoch) * per_epoch
    try:
        with (
            closing(RunLog(out, run)) as log,
            tqdm(initial=run.step * options.batch_size, total=total, unit="img", disable=None) as bar,
        ):
            if not run.epoch:
                plot_weights(run, out)
            while run.epoch < last:
                times = [time.perf_counter()]
                bar.set_description(f"epoch {run.epoch + 1}/{last}")
                for row in train_epoch(run, pixels, steps, options):
                    bar.set_postfix(d_loss=f"{row['d_loss']:.3f}", g_loss=f"{row['g_loss']:.3f}", refresh=False)
                    bar.update(row["step"] * options.batch_size - bar.n)
                    log.add(row)
                times.append(time.perf_counter())
                samples = run.average.generate(SHEET, options.seed)
                log.add_epoch(epoch_row(run, pixel_spread(samples) / max(spread, 1e-6), per_epoch, times[1] - times[0]))
                draw_epoch(run, out, samples, options, log.board, last=run.epoch == last)
                times.append(time.perf_counter())
                save_run(run, out, facts, numbered=run.epoch % options.save_every == 0 or run.epoch == last)
                times.append(time.perf_counter())
                seconds += np.diff(times)
                tqdm.write(epoch_line(run.epochs[-1], last, (last - run.epoch) * (times[-1] - times[0])))
    except KeyboardInterrupt:
        if not (out / "checkpoints" / "last.pt").exists():
            raise UserError("interrupted before the first epoch was saved", status=130) from None
        rerun = f"python rollnumber_04.py --resume --out {out}"
        raise UserError(f"interrupted; go on from the last whole epoch with: {rerun}", status=130) from None
    save_gif(out)
    parts = ", ".join(f"{part} {clock(s)}" for part, s in zip(("training", "pictures", "saving"), seconds, strict=True))
    speed = (run.step - first_step) * options.batch_size / seconds[0]
    print(f"done       {run.step - first_step:,} steps in {clock(time.perf_counter() - start)}: {parts}")
    print(f"           {speed:,.0f} images/s while training; peak memory {peak_memory(device)}")
    print(f"generator  {out / 'generator.safetensors'}")
    return out


def announce(run: Run, images: Images, facts: dict[str, Any], length: str, out: Path) -> None:
    """A run's first lines: device, precision, data, networks, what is trained and how long, seed, output folder."""
    count, height, width, channels = images.pixels.shape
    colours, classes = "grey" if channels == 1 else "colour", len(images.classes)
    kind = f"{colours} images of {height}×{width}" + (f" in {classes} classes" if classes else ", no labels")
    print(f"device     {facts['device_name']}, {facts['precision']}, torch {facts['versions']['torch']}")
    print(f"data       {facts['data'] or 'shapes'}: {count:,} {kind}")
    print(f"networks   G {count_parameters(run.generator):,} and D {count_parameters(run.discriminator):,} parameters")
    print(f"training   {LOSS_NAMES[facts['loss']]}, batch {facts['batch_size']}, {length}")
    print(f"seed       {facts['seed']}")
    print(f"output     {out}", flush=True)


def epoch_line(row: dict[str, float], last: int, seconds_left: float) -> str:
    """An epoch in a line."""
    losses = f"d_loss {row['d_loss']:.3f}  g_loss {row['g_loss']:.3f}"
    return f"epoch {row['epoch']}/{last}  {losses}  {row['images_per_s']:,.0f} images/s  {clock(seconds_left)} left"


def generate(options: argparse.Namespace) -> Path:
    """The command `generate`: a sheet, an .npz with the array `images`, or a folder of PNGs. Returns what it wrote."""
    out, kind = options.out, options.out.suffix.lower()
    if kind not in ("", ".png", ".npz"):
        raise UserError(f"--out {out}: must end in .png or .npz, or name a folder without a dot")
    if kind == ".png" and options.count > 10_000:
        raise UserError(f"--count {options.count}: a sheet holds 10,000; --out x.npz or a folder takes more")
    generator = load_generator(options.model, choose_device(options.device))
    try:
        if kind and out.is_dir():
            raise UserError(f"--out {out}: is a folder")
        if not kind and out.is_dir() and any(out.iterdir()):
            raise UserError(f"--out {out}: the folder is not empty")
        shape = generator.generate(1, options.seed).shape[1:]
        images = np.empty((options.count if kind else 0, *shape), np.uint8)
        (out.parent if kind else out).mkdir(parents=True, exist_ok=True)
        with tqdm(total=options.count, unit="img", disable=None, leave=False) as bar:
            for k, piece in enumerate(generator.stream(options.count, options.seed)):
                start = k * GENERATE_BATCH
                if kind:
                    images[start : start + len(piece)] = piece
                else:
                    for i, image in enumerate(piece, start):
                        Image.fromarray(image).save(out / f"{i:06d}.png")
                bar.update(len(piece))
        if kind:
            stream = io.BytesIO()
            sheet(images).save(stream, "PNG") if kind == ".png" else np.savez_compressed(stream, images=images)
            write_whole(out, stream.getvalue())
    except MemoryError:
        raise UserError(f"--count {options.count}: do not fit into memory; --out folder/ takes any number") from None
    except OSError as error:
        raise UserError(f"--out {out}: {error.strerror or error}") from None
    print(f"{options.count:,} images of {options.model}, seed {options.seed}: {out}")
    return out


def device_name(device: torch.device) -> str:
    """A device for people to read: the GPU's model, or the CPU's threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def peak_memory(device: torch.device) -> str:
    """The most memory the process has held, and the most on the GPU."""
    parts = []
    if device.type == "cuda":
        parts.append(f"{torch.cuda.max_memory_reserved(device) / 2**30:.2f} GiB on the GPU")
    if os.name == "posix":
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        parts.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB on the host")
    return ", ".join(parts) or "not measured on this system"


def clock(seconds: float) -> str:
    """12.3 s, 4 min 05 s or 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def complain(sentence: str, status: int) -> int:
    """Say what is wrong in one line, whatever the names in it hold; returns the exit status."""
    print("rollnumber_04.py:", " ".join(sentence.split()), file=sys.stderr)
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status: 0, 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console whose code page has no × must not end a run
    command = argv.pop(0) if argv and argv[0] in COMMANDS else "train"
    try:
        if command == "train":
            train(parse_options(argv))
        else:
            generate(build_parser(command).parse_args(argv))
    except UserError as error:
        return complain(str(error), error.status)
    except KeyboardInterrupt:
        return complain("interrupted", 130)
    except BrokenPipeError:  # what reads the output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that has become read-only
        return complain(f"{error.filename or 'a file'}: {error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        return complain(f"not enough memory; lower --image-size, --batch-size or --width-* ({error})"[:300], 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
