"""To explore what a generator has learnt: paths between noises and classes.

python rollnumber_04.py interpolate MODEL --out path.png | path.gif
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import rollnumber_04 as gan
from rollnumber_04 import UserError


def interpolate(argv: Sequence[str], program: str) -> Path:
    """The command `interpolate`: a sheet with a path a row, or a GIF that goes there and back. Returns what it wrote.

    Row i goes from noise 2i of the seed to noise 2i + 1, at class i modulo their number if G is conditional; with two
    `labels` it stays at noise i and goes from one class to the other, y = (1 - α) y1 + α y2.
    """
    parser = gan.Parser(
        f"{program} interpolate", "Draw the images on a path between two noise vectors, or two classes."
    )
    gan.add_drawing(parser)
    add = parser.add_argument
    add("--rows", type=gan.number_in(int, 1, 100), default=8, help="paths, one below the other (8)")
    add("--steps", type=gan.number_in(int, 2, 1000), default=10, help="images on a path, both ends among them (10)")
    add("--spherical", action="store_true", help="go along a great circle, instead of straight")
    add("--labels", metavar="A,B", help="go from one class of a conditional generator to another, at fixed z")
    add("--out", type=gan.some_path, required=True, metavar="PATH", help="x.png (a sheet) or x.gif")
    options = parser.parse_args(argv)
    out, kind, rows, seed = options.out, options.out.suffix.lower(), options.rows, options.seed
    if kind not in (".png", ".gif"):
        raise UserError("must end in .png or .gif", f"--out {out}")
    if out.is_dir():
        raise UserError("is a folder", f"--out {out}")
    gan.check_writable("--out", out.parent)
    if rows * options.steps > 10_000:
        raise UserError(f"{rows} rows of them are more than 10,000 images", f"--steps {options.steps}")
    ends = [name.strip() for name in options.labels.split(",")] if options.labels is not None else []
    if options.labels is not None and len(ends) != 2:
        raise UserError("takes two classes with a comma between them", f"--labels {options.labels}")
    if ends and options.spherical:
        raise UserError("is a path of z, not of classes", "--spherical")
    generator = gan.load_generator(options.model, gan.choose_device(options.device))
    if ends and not generator.classes:
        raise UserError("the generator draws no class of choice; labs/ has those that do", f"--labels {options.labels}")
    truncated, between = {"truncation": options.truncation}, ""
    if ends:
        with gan.named("--labels"):
            numbers = [int(generator.labels(name, 0, 1)[0]) for name in ends]
        if numbers[0] == numbers[1]:
            raise UserError("is one class; there is nothing between", f"--labels {options.labels}")
        between = " from class {} to {}".format(*(generator.classes[number] for number in numbers))
        first, second = (generator.inputs(seed, 0, rows, f"number={number}", **truncated) for number in numbers)
    else:
        z, *_ = generator.inputs(seed, 0, 2 * rows, **truncated)
        _, *told = generator.inputs(seed, 0, rows, **truncated)
        first, second = ((part, *told) for part in z.unflatten(0, (rows, 2)).unbind(1))
    blend = spherical if options.spherical else torch.lerp
    columns = []
    for share in torch.linspace(0, 1, options.steps).tolist():
        z, *told = (step(a, b, share) for step, a, b in zip((blend, torch.lerp), first, second, strict=False))
        columns.append(gan.draw_images(generator, z, *told))
    stream = io.BytesIO()
    if kind == ".png":
        gan.sheet(np.stack(columns, 1).reshape(-1, *columns[0].shape[1:]), options.steps).save(stream, "PNG")
    else:
        frames = [gan.sheet(column).quantize(128) for column in (*columns, *columns[-2:0:-1])]
        frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)
    gan.save_output("--out", out, stream.getvalue())
    gan.say(f"{rows} paths{between} of {options.steps} images of {options.model}, seed {seed}: {out}")
    return out


def spherical(first: Tensor, second: Tensor, share: float) -> Tensor:
    """A point on the great circle from each row of `first` to that of `second`, B×dim (Shoemake 1985; White 2016)."""
    angle = F.cosine_similarity(first, second, dim=1).clamp(-1, 1).acos()[:, None]
    arc = (torch.sin((1 - share) * angle) * first + torch.sin(share * angle) * second) / torch.sin(angle)
    return torch.where((torch.sin(angle) > 1e-3) & (0 < share < 1), arc, torch.lerp(first, second, share))
