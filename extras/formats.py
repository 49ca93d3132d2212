"""Data that is no folder of images: .npz, MNIST's and EMNIST's IDX files, CIFAR's pickles, SVHN; and downloads.

torchvision reads CIFAR with pickle, which runs what a file says, and EMNIST, MNIST and SVHN only where its own download
has laid them out; so these readers are our own. They run nothing that a file says, and a damaged file is one sentence.
Downloads are torchvision's.
"""

import gzip
import io
import math
import os
import pickle
import re
import string
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np

import rollnumber_04 as gan
from rollnumber_04 import IMAGE_SUFFIXES, NoTestSplit, Source, UserError

SPLITS = {"train": {"train", "training"}, "test": {"test", "testing", "t10k", "val", "valid", "validation"}}
SYSTEM_NAMES = frozenset(  # that systems and programs keep for themselves, beside those with a dot or __ in front
    "@eadir @recycle @recently-snapshot @synoresource @tmp #recycle #snapshot $recycle.bin recycler lost+found "
    "~snapshot thumbs.db ehthumbs.db desktop.ini icon\r".split(" ")
) | {"system volume information", "network trash folder", "temporary items"}
EMNIST_CLASSES = {  # the characters that the labels of its sets stand for
    **dict.fromkeys(("balanced", "bymerge"), string.digits + string.ascii_uppercase + "abdefghnqrt"),
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
    "letters": string.ascii_lowercase,  # capital and small as one
    **dict.fromkeys(("digits", "mnist"), string.digits),
}


def ending(name: str | Path) -> str:
    """A file's ending, as what is left out is counted by: ".heic"."""
    return os.path.splitext(name)[1].lower() or "no ending"


def counted(kinds: Counter[str]) -> str:
    """What was left out, the most first: "20 × .heic, 1 × link to a folder"."""
    return ", ".join(f"{count:,} × {gan.printable(kind)}" for kind, count in kinds.most_common())


def is_left_alone(name: str) -> bool:
    """Whether a name is not meant for people: .git, .DS_Store, __MACOSX, Synology's @eaDir, $RECYCLE.BIN."""
    own = name.lower() in SYSTEM_NAMES or re.fullmatch(r"found\.\d{3}", name.lower())
    return gan.is_hidden(name) or bool(own)


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image (.png, .JPG, …)."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_left_alone(name)


def open_maybe_gzip(path: Path) -> io.BufferedIOBase:
    """Open a file for reading, through gzip if its first two bytes say so."""
    with open(path, "rb") as stream:
        zipped = stream.read(2) == b"\x1f\x8b"
    return gzip.open(path) if zipped else open(path, "rb")


def array_kind(path: Path) -> str | None:
    """Whether a file's first bytes are those of an npz, of bytes in IDX, of MATLAB 5, of a pickle; None for others."""
    try:
        with open_maybe_gzip(path) as stream:
            magic = stream.read(10)
    except (OSError, EOFError, zlib.error):
        return None  # a gzip that cannot be opened, a file without permission: whatever it is, not ours
    if magic[:4] == b"PK\3\4":
        return "npz"
    if magic[:3] == b"\0\0\x08" and magic[3:4] in (b"\1", b"\3", b"\4"):
        return "idx"
    if magic == b"MATLAB 5.0":
        return "mat"
    return "pickle" if magic[:1] == b"\x80" and magic[1:2] in (b"\2", b"\3", b"\4", b"\5") else None


def array_files(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder that hold arrays, by kind; a zip counts only if it calls itself .npz."""
    kinds: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if not is_left_alone(file.name) and not is_image_name(file.name) and file.is_file():
            kind = array_kind(file)
            if kind and (kind != "npz" or file.suffix.lower() == ".npz"):
                kinds.setdefault(kind, []).append(file)
    return kinds


def find_arrays(path: Path, split: str) -> Source | None:
    """The split's images of a file, or of a folder's files, in any of these formats; None if there is none of them.

    Raises UserError.
    """
    if path.is_dir():
        if arrays := array_files(path):
            kind, files = next(iter(arrays.items()))
            beside = (file for file in path.iterdir() if file.is_file() and not is_left_alone(file.name))
            if left_out := Counter(ending(file) for file in beside if file not in files):
                gan.say_once(f"note: {path}: left out {counted(left_out)}")
            return pick_arrays(*ARRAY_READERS[kind](files), split, path)
        return None
    kind, files = array_kind(path) if path.is_file() else None, [path]
    if kind == "idx" and (name := emnist_set(path)):  # all sets lie in one folder: a file stands for its own
        files = [file for file in array_files(path.parent).get("idx", []) if emnist_set(file) == name] or files
    return pick_arrays(*ARRAY_READERS[kind](files), split, path) if kind else None


def emnist_set(file: Path) -> str | None:
    """Of which EMNIST set a file is, "balanced" of emnist-balanced-train-images-idx3-ubyte.gz; None of any other file.

    Only the name can tell: the format is MNIST's to the byte, though the images are stored transposed.
    """
    found = re.match(r"emnist-([a-z]+)-", file.name)
    return found[1] if found and found[1] in EMNIST_CLASSES else None


def pick_arrays(arrays: dict[str, np.ndarray], classes: Sequence[str], split: str, where: Path) -> Source:
    """Pick the split's images and labels from named arrays, and check that they fit each other.

    Images are N×H×W, N×H×W×C or N×C×H×W, labels N or N×1. A name with a word such as "test" belongs to the test set.
    """

    def named(name: str, words: set[str]) -> bool:
        return not words.isdisjoint(re.split(r"[^a-z0-9]+", name.lower()))

    arrays = {name: array for name, array in arrays.items() if named(name, SPLITS["test"]) == (split == "test")}
    if split == "test":  # of a test set and a validation set the first
        arrays = {name: array for name, array in arrays.items() if named(name, {"test", "testing"})} or arrays
    if not arrays and split == "test":
        raise NoTestSplit("is not divided: none of its arrays is named as the test set's", where)
    images = [array for array in arrays.values() if array.ndim in (3, 4)]
    labels = [array for array in arrays.values() if array.ndim in (1, 2) and array.size == len(array)]
    if len(images) != 1 or len(labels) > 1 or len(images) + len(labels) != len(arrays):
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise UserError(f"expected {split} images N×H×W[×3] and at most labels N, found {found}", where)
    (items,) = images
    if items.ndim == 4 and items.shape[3] not in (1, 3):
        items = items.transpose(0, 2, 3, 1)
    if items.dtype != np.uint8 or not items.size or (items.ndim == 4 and items.shape[3] not in (1, 3)):
        raise UserError(f"expected uint8 images with 1 or 3 channels, found {items.dtype} {items.shape}", where)
    if items.ndim == 4 and items.shape[3] == 1:
        items = items[..., 0]
    if not labels:
        return Source(items, where=str(where))
    values = labels[0].reshape(-1)
    if len(values) != len(items):
        raise UserError(f"{len(items):,} {split} images but {len(values):,} labels", where)
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() >= (len(classes) or 10_000):
        raise UserError(f"labels must be whole numbers from 0 to {(len(classes) or 10_000) - 1}", where)
    occurring, values = np.unique(values, return_inverse=True)  # a class without images could not be drawn or told
    names = tuple(gan.class_name(classes[i]) if classes else str(i) for i in occurring.tolist())
    if len({*names}) < len(names):
        raise UserError("two of its classes have one name", where)
    return Source(items, values, names, str(where))


def read_npz(files: list[Path]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an .npz by name, and the names of the classes if it has an array of strings `classes`."""
    if len(files) > 1:
        raise UserError(f"holds {len(files)} .npz files; name one of them", files[0].parent)
    try:
        with np.load(files[0], allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # zip and array headers can be damaged in more ways than numpy lists
        raise UserError(f"not a readable .npz ({gan.complaint(error)})", files[0]) from None
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise UserError("a zip of files, not of arrays; unpack it and name the folder", files[0])
    is_named = "classes" in arrays and arrays["classes"].dtype.kind == "U" and arrays["classes"].ndim == 1
    classes = arrays.pop("classes").tolist() if is_named else []
    if len(set(classes)) < len(classes):
        raise UserError("its array `classes` names a class twice", files[0])
    return arrays, classes


def read_idx(files: list[Path]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of MNIST's files (`train-images-idx3-ubyte`, gzipped or not), whose headers give their shapes.

    Or of one of EMNIST's sets: then images upright, labels from 0, and the names of the classes.
    """
    sets = {emnist_set(path) for path in files}
    if len(sets) > 1:
        example = max(files, key=lambda path: (emnist_set(path) is not None, "train-images" in path.name))
        raise UserError(f"holds several sets; name a file of one of them, such as {example}", example.parent)
    (emnist,) = sets
    arrays = {}
    for path in files:
        try:
            with open_maybe_gzip(path) as stream:
                dimensions = stream.read(4)[3]
                shape = struct.unpack(f">{dimensions}I", stream.read(4 * dimensions))
                claimed = math.prod(shape)
                data = stream.read(claimed + 1)  # a byte more than the header claims would be a byte too many
        except (OSError, EOFError, OverflowError, MemoryError, zlib.error, struct.error) as error:
            raise UserError(f"a damaged IDX file ({gan.complaint(error)})", path) from None
        if len(data) != claimed:
            held = "more" if len(data) > claimed else f"only {len(data):,}"
            raise UserError(f"its header says {claimed:,} values, it holds {held}", path)
        array = np.frombuffer(data, np.uint8).reshape(shape)
        if emnist and dimensions > 1:
            array = array.swapaxes(1, 2)
        elif emnist == "letters":
            array = array - 1  # in this set "a" is 1
        arrays[path.name.removesuffix(".gz")] = array
    return arrays, [*EMNIST_CLASSES.get(emnist, "")]


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
            raise UserError(f"not a CIFAR batch ({gan.complaint(error)})", file) from None
    whole_set = [*(f"data_batch_{i}" for i in "12345"), "test_batch", "batches.meta"]
    missing = [name for name in whole_set if name not in {file.name for file in files}]
    if len(files) > 1 and 0 < len(missing) < len(whole_set):
        gan.say_once(f"note: {files[0].parent}: of CIFAR-10's files there is no {', '.join(missing)}")
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}, classes


def read_svhn(files: list[Path]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The images and labels of SVHN's `train_32x32.mat` …: X 32×32×3×N and y N×1, where 10 stands for the digit 0.

    The extra images are left out beside others: they are easier, and 7 times as many as the training images.
    """
    try:
        from scipy.io import loadmat  # slow to import, and needed nowhere else
    except ImportError:
        raise UserError("needs scipy (pip install scipy)", files[0]) from None
    arrays = {}
    if extra := [file.name for file in files if file.name.startswith("extra") and len(files) > 1]:
        gan.say_once(
            f"note: {files[0].parent}: left out {', '.join(extra)}, of easier images; name the file to take it"
        )
    for file in [file for file in files if file.name not in extra]:
        try:
            with open_maybe_gzip(file) as stream:
                found = loadmat(stream, variable_names=("X", "y"))
            arrays[f"{file.stem} images"] = found["X"].transpose(3, 0, 1, 2)
            arrays[f"{file.stem} labels"] = np.where(found["y"] == 10, 0, found["y"])
        except Exception as error:  # scipy names no exceptions for what can be damaged in a file
            raise UserError(f"not an SVHN file ({gan.complaint(error)})", file) from None
    return arrays, [*string.digits]


ARRAY_READERS = {"npz": read_npz, "idx": read_idx, "pickle": read_cifar, "mat": read_svhn}


def download(name: str, root: Path) -> Path:
    """Fetch a data set through torchvision into `root`; returns the path that `load_images` reads."""
    try:
        from torchvision import datasets  # slow to import, and needed nowhere else

        kinds = {
            "cifar10": (datasets.CIFAR10, "cifar-10-batches-py"),
            "cifar100": (datasets.CIFAR100, "cifar-100-python"),
            "mnist": (datasets.MNIST, "MNIST/raw"),
            "fashion-mnist": (datasets.FashionMNIST, "FashionMNIST/raw"),
            "emnist": (
                partial(datasets.EMNIST, split="balanced"),
                "EMNIST/raw/emnist-balanced-train-images-idx3-ubyte",
            ),
            "svhn": (datasets.SVHN, "SVHN"),
        }
        fetch, found = kinds[name]
        if name == "svhn":  # lays out no folder of its own, and fetches a split at a time
            for split in ("train", "test"):
                fetch(root / found, split, download=True)
        else:
            fetch(root, download=True)
    except (ImportError, OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError, zlib.error) as error:
        for folder, _, _ in os.walk(root, topdown=False):  # leave no empty folders
            with suppress(OSError):
                os.rmdir(folder)
        raise UserError(f"could not be fetched into {root} ({gan.complaint(error)})", f"--download {name}") from None
    return root / found
