"""What lies between a generator's images: paths between noises and classes, and single points of them.

python rollnumber_04.py interpolate MODEL --out path.png | path.gif
python rollnumber_04.py draw MODEL --at 3:17 --to 5:2 --share 0.4 --out image.png
"""

import io
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import rollnumber_04 as gan
from extras.checks import check_file
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
    check_file("--out", out, ".png", ".gif")
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


PROBES, STEP = 8, 0.1  # noises at which directions are found, and how far each is moved


def directions(generator: gan.BaseGenerator) -> Tensor:
    """Directions of z, a row each, dim×dim, orthogonal: first the one along which images change most (squared pixels).

    They are the eigenvectors of the mean of JᵀJ, J the derivative of the image by z, by differences at PROBES noises
    (compare Ramesh et al. 2018, who take a generator's Jacobian alike). A row's largest number is positive.
    """
    z, *told = generator.inputs(0, 0, PROBES)
    moved = z[:, None] + STEP * torch.cat([torch.zeros(1, z.shape[1]), torch.eye(z.shape[1])])
    device, total = next(generator.parameters()).device, torch.zeros(z.shape[1], z.shape[1], dtype=torch.float64)
    with torch.no_grad(), gan.in_eval_mode(generator):
        for i, around in enumerate(moved):
            known = [part[i : i + 1].expand(len(around), -1) for part in told]
            pieces = zip(*(part.to(device).split(32) for part in (around, *known)), strict=True)
            images = torch.cat([generator(*piece).flatten(1).cpu().double() for piece in pieces])
            changes = images[1:] - images[0]
            total += changes @ changes.mT
    vectors = torch.linalg.eigh(total).eigenvectors.mT.flip(0)
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    return (vectors * largest.sign()).float()


@dataclass(frozen=True)
class Point:
    """An image between others: `at` image i of a seed, a `share` of the way `to` another, moved along `directions`.

    A conditional generator draws it of the class of `generate`, of the one of `labels`, or of a `mix` of two.
    """

    at: tuple[int, int] = (0, 0)
    to: tuple[int, int] | None = None
    share: float = 0.0
    spherical: bool = False
    moves: tuple[tuple[int, float], ...] = ()
    labels: tuple[str, ...] = ()
    mix: float = 0.0
    truncation: float | None = None

    def inputs(self, generator: gan.BaseGenerator, known: Tensor | None = None) -> tuple[Tensor, ...]:
        """What `forward` takes, a row each; `known` are the `directions`, if they have been found. Raises UserError."""
        if self.labels and not generator.classes:
            raise UserError("the generator draws no class of choice; labs/ has those that do", "--label")
        label = self.labels[0] if self.labels else None
        z, *told = generator.inputs(*self.at, 1, label, self.truncation)
        if self.to:  # without a label to the other's class, too
            other, *others = generator.inputs(*self.to, 1, label, self.truncation)
            z = (spherical if self.spherical else torch.lerp)(z, other, self.share)
            told = [torch.lerp(first, second, self.share) for first, second in zip(told, others, strict=True)]
        if self.moves:
            rows = directions(generator) if known is None else known
            for number, far in self.moves:
                if number > len(rows):
                    raise UserError(f"there are {len(rows)} directions", f"--move {number}:{far:g}")
                z = z + far * rows[number - 1]
        if len(self.labels) == 2:
            _, other = generator.inputs(*self.at, 1, self.labels[1])
            told = [torch.lerp(told[0], other, self.mix)]
        return z, *told

    def draw(self, generator: gan.BaseGenerator, known: Tensor | None = None) -> np.ndarray:
        """The image, uint8 H×W[×3]."""
        return gan.draw_images(generator, *self.inputs(generator, known))[0]

    def words(self) -> list[str]:
        """The options of `draw` for it."""
        found = ["--at", "{}:{}".format(*self.at)]
        if self.to:
            found += ["--to", "{}:{}".format(*self.to), "--share", f"{self.share:g}", *["--spherical"] * self.spherical]
        for number, far in self.moves:
            found += ["--move", f"{number}:{far:g}"]
        if self.labels:
            found += ["--label", ",".join(self.labels), *(["--mix", f"{self.mix:g}"] if len(self.labels) == 2 else [])]
        return found + (["--truncation", f"{self.truncation:g}"] if self.truncation is not None else [])


def image_number(text: str) -> tuple[int, int]:
    """The seed and the number of an image, as 3:17. Raises UserError."""
    found = re.fullmatch(r"(\d{1,10}):(\d{1,10})", text.strip(), re.ASCII)
    if not found or max(numbers := (int(found[1]), int(found[2]))) >= 2**31:
        raise UserError(f"{text!r} is not S:I, two numbers from 0 to 2147483647, such as 3:17")
    return numbers


def move(text: str) -> tuple[int, float]:
    """The number of a direction and how far to go along it, as 1:-2.5. Raises UserError."""
    number, _, far = text.partition(":")
    with suppress(ValueError):
        if number.isdecimal() and int(number) >= 1 and abs(float(far)) <= 1000:
            return int(number), float(far)
    raise UserError(f"{text!r} is not K:X, a direction from 1 on and how far to go, up to 1000, such as 1:-2.5")


def draw(argv: Sequence[str], program: str) -> Path:
    """The command `draw`: one image in its own size, at a point between others. Returns what it wrote."""
    parser = gan.Parser(f"{program} draw", "Draw one image: of a seed, between two, moved along directions of z.")
    gan.add_model(parser)
    add = parser.add_argument
    add("--at", type=image_number, default=(0, 0), metavar="S:I", help="image I of seed S (0:0)")
    add("--to", type=image_number, metavar="S:I", help="and another, to which it goes")
    add(
        "--share",
        type=gan.number_in(float, 0, 1),
        metavar="X",
        help="how far it goes there: 0 is --at, 1 is --to (0.5)",
    )
    add("--spherical", action="store_true", help="go along a great circle, instead of straight")
    what = "then move by X along direction K; images change most along the first. May be given for several K"
    add("--move", type=move, action="append", metavar="K:X", default=[], help=what)
    add("--label", metavar="CLASS[,CLASS]", help="the class of a conditional generator, or two")
    add(
        "--mix",
        type=gan.number_in(float, 0, 1),
        metavar="X",
        help="how much of the second class: y = (1 - X) y1 + X y2 (0.5)",
    )
    add("--truncation", type=gan.number_in(float, 0, 10, above=True), metavar="T", help="draw noise from -T … T only")
    add("--out", type=gan.some_path, required=True, metavar="PATH", help="x.png")
    options = parser.parse_args(argv)
    out = options.out
    check_file("--out", out, ".png")
    labels = tuple(name.strip() for name in options.label.split(",")) if options.label is not None else ()
    if len(labels) > 2 or "" in labels:
        raise UserError("takes one class, or two with a comma between", f"--label {options.label}")
    for name, needed, flag in (("share", options.to, "--to"), ("mix", len(labels) == 2, "two classes in --label")):
        if getattr(options, name) is not None and not needed:
            raise UserError(f"needs {flag}", f"--{name}")
    if options.spherical and not options.to:
        raise UserError("needs --to", "--spherical")
    half = {name: 0.5 if getattr(options, name) is None else getattr(options, name) for name in ("share", "mix")}
    point = Point(
        options.at, options.to, half["share"], options.spherical, tuple(options.move), labels, half["mix"],
        options.truncation,
    )  # fmt: skip
    generator = gan.load_generator(options.model, gan.choose_device(options.device))
    with gan.named("--label"):
        image = point.draw(generator)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    gan.save_output("--out", out, stream.getvalue())
    gan.say(f"an image of {options.model}, {gan.command_line(*point.words())}: {out}")
    return out
