"""To explore what a generator has learnt: paths between noises and classes.

python rollnumber_04.py interpolate MODEL --out path.png | path.gif
"""

import argparse
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import rollnumber_04 as gan
from rollnumber_04 import BaseGenerator, UserError


def add_arguments(add: Callable[..., Any]) -> None:
    """The arguments of `interpolate` besides the model."""
    add("--rows", type=gan.whole(1, 100), default=8, help="paths, one below the other")
    add("--steps", type=gan.whole(2, 1000), default=10, help="images on a path, both ends among them")
    add("--spherical", action="store_true", help="along a great circle, instead of straight")
    add("--labels", metavar="A,B", help="between two classes of a conditional generator, at fixed z")
    add("--out", type=gan.some_path, required=True, metavar="PATH", help="x.png (a sheet) or x.gif")


def interpolate(options: argparse.Namespace, generator: BaseGenerator | None = None) -> Path:
    """The command `interpolate`: a sheet with a path a row, or a GIF that goes there and back. Returns what it wrote.

    Row i goes from noise 2i of the seed to noise 2i + 1, at class i modulo their number if G is conditional; with two
    `labels` it stays at noise i and goes from one class to the other, y = (1 - α) y1 + α y2.
    """
    out, kind, rows = options.out, options.out.suffix.lower(), options.rows
    if kind not in (".png", ".gif"):
        raise UserError("must end in .png or .gif", f"--out {out}")
    if out.is_dir():
        raise UserError("is a folder", f"--out {out}")
    gan.check_writable("--out", out.parent)
    if rows * options.steps > 10_000:
        raise UserError(f"{rows} rows of them are more than 10,000 images", f"--steps {options.steps}")
    names = [name.strip() for name in options.labels.split(",")] if options.labels is not None else []
    if options.labels is not None and len(names) != 2:
        raise UserError("takes two classes with a comma between them", f"--labels {options.labels}")
    if names and options.spherical:
        raise UserError("is a path of z, not of classes", "--spherical")
    device = gan.choose_device(options.device)
    generator = generator or gan.load_network(options.model, "generator", device, options.recipe)
    classes, noise = generator.architecture["classes"], partial(generator.noise, truncation=options.truncation)
    if names and not classes:
        raise UserError("the generator is not conditional; train one with --conditional", f"--labels {options.labels}")
    shares = torch.linspace(0, 1, options.steps).tolist()
    if names:
        zs = [noise(options.seed, 0, rows)] * options.steps
        with gan.named("--labels"):
            ends = [gan.class_number(name, classes) for name in names]
        if ends[0] == ends[1]:
            raise UserError("is one class; there is nothing between", f"--labels {options.labels}")
        first, second = (gan.one_hot(torch.full((rows,), end), len(classes)) for end in ends)
        ys = [torch.lerp(first, second, share) for share in shares]
    else:
        first, second = noise(options.seed, 0, 2 * rows).unflatten(0, (rows, 2)).unbind(1)
        zs = [(spherical if options.spherical else torch.lerp)(first, second, share) for share in shares]
        ys = [gan.one_hot(torch.arange(rows) % len(classes), len(classes)) if classes else None] * options.steps
    columns = [generator.draw(z, y) for z, y in zip(zs, ys, strict=True)]
    stream = io.BytesIO()
    if kind == ".png":
        gan.sheet(np.stack(columns, 1).reshape(-1, *columns[0].shape[1:]), options.steps).save(stream, "PNG")
    else:
        frames = [gan.sheet(column).quantize(128) for column in (*columns, *columns[-2:0:-1])]
        frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)
    gan.save_output("--out", out, stream.getvalue())
    between = f" from class {classes[ends[0]]} to {classes[ends[1]]}" if names else ""
    gan.say(f"{rows} paths{between} of {options.steps} images of {options.model}, seed {options.seed}: {out}")
    return out


def spherical(first: Tensor, second: Tensor, share: float) -> Tensor:
    """A point on the great circle from each row of `first` to that of `second`, B×dim (Shoemake 1985; White 2016)."""
    angle = F.cosine_similarity(first, second, dim=1).clamp(-1, 1).acos()[:, None]
    arc = (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)
    return torch.where((torch.sin(angle) > 1e-3) & (0 < share < 1), arc, torch.lerp(first, second, share))
