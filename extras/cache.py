"""What takes long to compute and can be computed again, kept in the user's cache folder for the next time."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import rollnumber_04 as gan

VERSION = 3  # of what decoding gives
MOST_BYTES = 4 << 30  # that the cache folder may hold


def folder() -> Path:
    """Where everything here is kept."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rollnumber_04")
    except RuntimeError:  # a user without a home, as in a container
        return Path(tempfile.gettempdir(), "rollnumber_04")


def load(name: str) -> dict[str, Tensor] | None:
    """What `save` kept under a name; None if there is nothing, or nothing whole."""
    path = folder() / f"{name}.safetensors"
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError):
        return None
    with suppress(OSError):  # of a folder that can be read only
        os.utime(path)  # used just now
    return tensors


def save(name: str, tensors: dict[str, Tensor]) -> None:
    """Keep tensors for the next time; what was used longest ago makes room. Says so where nothing can be written."""
    if gan.rank():  # rank 0 does so
        return
    into, files = folder(), []
    try:
        into.mkdir(parents=True, exist_ok=True)
        # Two runs that begin together must not write to one file.
        gan.write_whole(into / f"{name}.safetensors", safetensors.torch.save(tensors), f".{os.getpid()}.tmp")
        for path in into.glob("*.safetensors*"):
            with suppress(FileNotFoundError):  # another run has just removed it
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        room = MOST_BYTES
        for _, size, path in sorted(files, reverse=True):
            room -= size
            if room < 0:
                path.unlink(missing_ok=True)
    except OSError as error:
        path = error.filename or into
        print(f"note: {path} could not be written ({error.strerror}); the next time computes it again", file=sys.stderr)


def load_pixels(items: Sequence[str | Path] | np.ndarray, size: int) -> np.ndarray | None:
    """The decoded pixels uint8 N×size×size×C of image files, if they have been kept."""
    kept = load(name) if (name := pixels_name(items, size)) else None
    return kept["pixels"].numpy() if kept and len(kept.get("pixels", ())) == len(items) else None


def save_pixels(items: Sequence[str | Path] | np.ndarray, size: int, pixels: np.ndarray) -> None:
    """Keep the decoded pixels of image files; a grey set's as one channel."""
    if name := pixels_name(items, size):
        grey = (pixels[..., :1] == pixels).all()
        save(name, {"pixels": torch.from_numpy(np.ascontiguousarray(pixels[..., :1] if grey else pixels))})


def pixels_name(items: Sequence[str | Path] | np.ndarray, size: int) -> str:
    """A name for the pixels of image files, from their paths, sizes and times; "" where they are not kept."""
    if isinstance(items, np.ndarray) or len(items) > MOST_BYTES / 2 / (3 * size**2):
        return ""
    lines = [f"{VERSION} {size} {'' if os.path.isabs(items[0]) else os.getcwd()}"]
    try:
        facts = [(item, os.stat(item)) for item in items]
    except OSError:  # a link that leads nowhere, which decoding will complain of
        return ""
    lines += [f"{item} {fact.st_size} {fact.st_mtime_ns} {fact.st_ctime_ns}" for item, fact in facts]
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogatepass"))
    return f"pixels-{digest.hexdigest()[:32]}"
