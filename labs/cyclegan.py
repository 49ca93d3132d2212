"""CycleGAN: translates images of one kind into another, learnt from two sets without pairs (Zhu et al. 2017).

    python -m labs.cyclegan --x data/emojis/Apple --y data/emojis/Windows --iterations 5000
    python -m labs.cyclegan --x horse2zebra/trainA --y horse2zebra/trainB --preset photo --image-size 256
    python -m labs.cyclegan --resume --out runs/NAME
    python -m labs.cyclegan translate MODEL --direction xy IMAGE… | FOLDER --out translated/
    python -m labs.cyclegan measure MODEL --x apple --y fluent     # pairs, matched by name: how near are translations?

A generator turns images x into the other kind, y, another turns y into x. Each has a discriminator that compares its
images with real ones, and what goes there and back again must be what it was. Run folder, checkpoints, resume and
interruptions are those of rollnumber_04.py, whose parts these are.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in the seconds of imports ends it without a traceback

import argparse
import hashlib
import io
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

import rollnumber_04 as gan
from extras import evaluate as evaluation
from rollnumber_04 import UserError, say

########################################################################################################################
#                                                      Networks                                                        #
########################################################################################################################

NETWORKS = ("xy", "yx", "x", "y")  # G from x to y, G from y to x, D of x, D of y
STYLES = ("emoji", "photo")


class Translator(nn.Module):
    """Images B×channels×H×W of one kind to images of another, of the same size, both in (-1, 1).

    Encoder, residual blocks, decoder, without a linear layer, so that H and W may be any multiples of 4. "emoji" is the
    emoji lab's: 5×5 convolutions, batch norm, nearest upsampling (144,448 parameters with width 32 and one block);
    "photo" that of Zhu et al. (c7s1-64, d128, d256, R256 …, u128, u64, c7s1-3; Johnson et al. 2016): instance norm,
    reflected borders.
    """

    def __init__(self, style: str = "emoji", channels: int = 3, width: int = 32, blocks: int = 1):
        super().__init__()
        self.architecture = dict(style=style, channels=channels, width=width, blocks=blocks)
        if style == "emoji":
            self.layers = nn.Sequential(
                *gan.conv(channels, width, 5, 2), *gan.finish("batch", width, 0.0),  # 32×16×16
                *gan.conv(width, 2 * width, 5, 2), *gan.finish("batch", 2 * width, 0.0),  # 64×8×8
                *(Residual(2 * width, style) for _ in range(blocks)),
                *gan.upconv(2 * width, width, 5, "nearest"), *gan.finish("batch", width, 0.0),  # 32×16×16
                *gan.upconv(width, channels, 5, "nearest"), nn.Tanh(),  # 3×32×32
            )  # fmt: skip
        else:
            self.layers = nn.Sequential(
                nn.ReflectionPad2d(3), nn.Conv2d(channels, width, 7), *instance(width),  # 64×256×256
                nn.Conv2d(width, 2 * width, 3, 2, 1), *instance(2 * width),  # 128×128×128
                nn.Conv2d(2 * width, 4 * width, 3, 2, 1), *instance(4 * width),  # 256×64×64
                *(Residual(4 * width, style) for _ in range(blocks)),
                nn.ConvTranspose2d(4 * width, 2 * width, 3, 2, 1, 1), *instance(2 * width),  # 128×128×128
                nn.ConvTranspose2d(2 * width, width, 3, 2, 1, 1), *instance(width),  # 64×256×256
                nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7), nn.Tanh(),  # 3×256×256
            )  # fmt: skip
        gan.initialise(self, "normal" if style == "emoji" else "dcgan")

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)

    @torch.no_grad()
    def translate(self, pixels: np.ndarray | Tensor) -> np.ndarray:
        """Uint8 images n×H×W×3 to as many of the other kind; sides that are no multiples of 4 are continued."""
        device = next(self.parameters()).device
        images = gan.to_range(torch.as_tensor(pixels).to(device))
        height, width = images.shape[2:]
        more = [
            max(8, side + -side % 4) - side for side in (width, height)
        ]  # 8: the blocks' maps reflect their borders
        # Reflection takes less than the image has; a border of a narrower one is repeated instead.
        how = "reflect" if more[0] < width and more[1] < height else "replicate"
        padded = F.pad(images, (0, more[0], 0, more[1]), how)
        return gan.to_uint8(self(padded)[..., :height, :width]).permute(0, 2, 3, 1).cpu().numpy()


def instance(features: int) -> list[nn.Module]:
    """Instance norm without weights (Ulyanov et al. 2016) and a ReLU."""
    return [nn.InstanceNorm2d(features), nn.ReLU()]


class Residual(nn.Module):
    """B×features×H×W to the same: the images and what convolutions of 3×3 add to them (He et al. 2016).

    One convolution and its norm in the emoji lab's; in Zhu et al.'s two, with a ReLU between.
    """

    def __init__(self, features: int, style: str):
        super().__init__()
        if style == "emoji":
            self.layers = nn.Sequential(*gan.conv(features, features, 3), nn.BatchNorm2d(features))
        else:
            self.layers = nn.Sequential(
                nn.ReflectionPad2d(1), nn.Conv2d(features, features, 3), *instance(features),
                nn.ReflectionPad2d(1), nn.Conv2d(features, features, 3), nn.InstanceNorm2d(features),
            )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return images + self.layers(images)


class PatchDiscriminator(nn.Module):
    """Images B×channels×H×W to scores B×h×w, each of a patch that it sees; high for real.

    "emoji" is the emoji lab's: 5×5 convolutions of stride 2 with batch norm and ReLU, one score for 32×32. "photo" is
    the PatchGAN of Isola et al. 2017, whose scores see 70×70 pixels each.
    """

    def __init__(self, style: str = "emoji", channels: int = 3, width: int = 32):
        super().__init__()
        self.architecture = dict(style=style, channels=channels, width=width)
        if style == "emoji":
            self.layers = nn.Sequential(
                *gan.conv(channels, width, 5, 2), *gan.finish("batch", width, 0.0),  # 32×16×16
                *gan.conv(width, 2 * width, 5, 2), *gan.finish("batch", 2 * width, 0.0),  # 64×8×8
                *gan.conv(2 * width, 4 * width, 5, 2), *gan.finish("batch", 4 * width, 0.0),  # 128×4×4
                nn.Conv2d(4 * width, 1, 5, 2, 1, bias=False),  # 1×1×1
            )  # fmt: skip
        else:
            layers, inputs = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)], width  # 64×128×128
            for outputs, stride in ((2 * width, 2), (4 * width, 2), (8 * width, 1)):  # 128×64×64, 256×32×32, 512×31×31
                norm = nn.InstanceNorm2d(outputs)
                layers += [nn.Conv2d(inputs, outputs, 4, stride, 1), norm, nn.LeakyReLU(0.2)]
                inputs = outputs
            self.layers = nn.Sequential(*layers, nn.Conv2d(inputs, 1, 4, 1, 1))  # 1×30×30
        gan.initialise(self, "normal" if style == "emoji" else "dcgan")

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)[:, 0]


def make_networks(options: argparse.Namespace, channels: int, classes: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Both translators and both discriminators."""
    translator = dict(style=options.style, channels=channels, width=options.width_g, blocks=options.blocks)
    discriminator = dict(style=options.style, channels=channels, width=options.width_d)
    return {
        **{name: Translator(**translator) for name in ("xy", "yx")},
        **{name: PatchDiscriminator(**discriminator) for name in ("x", "y")},
    }


LIMITS = {  # of what a file may say of a network
    "style": lambda x: x in STYLES,
    "channels": gan.LIMITS["channels"],
    "width": gan.LIMITS["width"],
    "blocks": lambda x: type(x) is int and 0 <= x <= 100,
}


########################################################################################################################
#                                                      Training                                                        #
########################################################################################################################

MEASURES = ("d_loss", "g_loss", "cycle_loss", "identity_loss", "g_xy", "g_yx", "d_x", "d_y")


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


def step(run: gan.Run, images: gan.Images, index: Tensor, options: argparse.Namespace) -> Tensor:
    """One update of both translators, then one of both discriminators; returns MEASURES.

    J(G) = mean((D_y(G(x)) - 1)²) and the same for F, from y to x, plus λ·(mean|F(G(x)) - x| + mean|G(F(y)) - y|),
    plus λ·λ_identity·(mean|G(y) - y| + mean|F(x) - x|) (Zhu et al. 2017, sections 3 and 5.2). Images x are those of
    `index`, 1×B; as many y are drawn at random, so that there are no pairs.
    """
    size, rng = options.image_size, run.rng
    other = torch.randint(len(images.other.pixels), index[0].shape, generator=rng, device=rng.device)
    other = other.to(images.other.pixels.device)
    x = crops(gan.real_batch(images.pixels, index[0], options.flip, rng), size, rng)
    y = crops(gan.real_batch(images.other.pixels, other, options.flip, rng), size, rng)
    g_measures, fakes = translators_step(run, x, y, options)
    d_measures = discriminators_step(run, {"x": x, "y": y}, fakes)
    g_loss, cycle, identity, g_xy, g_yx = g_measures
    d_x, d_y = d_measures
    return torch.stack([d_x + d_y, g_loss, cycle, identity, g_xy, g_yx, d_x, d_y])


def translators_step(
    run: gan.Run, x: Tensor, y: Tensor, options: argparse.Namespace
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """One update of both translators on images B×C×H×W; returns its measures, and the translations as {"x", "y"}."""
    xy, yx, of_x, of_y = (run.networks[name] for name in NETWORKS)
    for discriminator in (of_x, of_y):
        discriminator.requires_grad_(False)  # the gradient passes through them; their own is not wanted
    with run.autocast():
        fake_y, fake_x = xy(x), yx(y)
        score_y, score_x = of_y(fake_y), of_x(fake_x)
        back_x, back_y = yx(fake_y), xy(fake_x)
        same_x, same_y = (yx(x), xy(y)) if options.lambda_identity else (x, y)
    g_xy, g_yx = (gan.ls_generator_loss(score.float()) for score in (score_y, score_x))
    cycle = distance(back_x, x) + distance(back_y, y)
    identity = distance(same_x, x) + distance(same_y, y)
    total = g_xy + g_yx + options.lambda_cycle * (cycle + options.lambda_identity * identity)
    gan.update(run, "translators", total)
    for discriminator in (of_x, of_y):
        discriminator.requires_grad_(True)
    measures = tuple(value.detach() for value in (g_xy + g_yx, cycle, identity, g_xy, g_yx))
    return measures, {"x": fake_x.detach(), "y": fake_y.detach()}


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """The mean absolute difference of all numbers, in units of the range (-1, 1)."""
    return (found.float() - wanted.float()).abs().mean()


def discriminators_step(run: gan.Run, real: dict[str, Tensor], fakes: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One update of both discriminators, real and translated images apart; returns the losses of D_x and D_y."""
    losses = []
    for name in ("x", "y"):
        network, fake = run.networks[name], fakes[name]
        shown, _ = run.pools[name].swap(fake, None, run.rng) if run.pools else (fake, None)
        with run.autocast():
            scores = network(real[name]), network(shown)
        losses.append(gan.ls_discriminator_loss(*(score.float() for score in scores)))
    gan.update(run, "discriminators", losses[0] + losses[1])
    return losses[0].detach(), losses[1].detach()


########################################################################################################################
#                                                  Data and pictures                                                   #
########################################################################################################################

OWN, OTHERS = "own counterpart", "another's"  # columns of `measure`
LEAST = 24  # pixels a side that both styles' discriminators can score
SHOWN = 24  # test images of each kind in a sheet


def load(options: argparse.Namespace) -> tuple[gan.Images, gan.Images | None, str]:
    """(training images x with `other` y, test images likewise if there are any, a fingerprint). Raises UserError."""
    size, train, test, found = options.load_size or options.image_size, [], [], False
    for flag in ("x", "y"):
        path = getattr(options, flag)
        train.append(read(flag, path, "train", size, options))
        its_test = getattr(options, f"{flag}_test") or (None if options.held_out else test_folder(path))
        try:
            source = (f"{flag}-test", its_test, "train") if its_test else (flag, path, "test")
            test.append(read(*source, options.image_size, options))
            found = True
        except gan.NoTestSplit:
            test.append(train[-1])
            say(f"note: --{flag} {path} has no test images; the sheets show training images")
    digest = hashlib.sha256("".join(map(gan.fingerprint, train)).encode()).hexdigest()[:16]
    if len(train[0].pixels) < gan.process_count():
        raise UserError("has fewer images than there are processes", f"--x {options.x}")
    gan.lower_batch(options, len(train[0].pixels))
    return replace(train[0], other=train[1]), replace(test[0], other=test[1]) if found else None, digest


def read(flag: str, path: Path, split: str, size: int, options: argparse.Namespace) -> gan.Images:
    """The images of a flag, in colour, without labels; with `held_out` divided by name. Complaints name the flag."""
    with gan.named(f"--{flag}"):
        if options.held_out:
            source = replace(gan.find_source(path, "train"), labels=None)
            source = replace(source, items=held_out_files(path, options.held_out)[split == "test"])
        else:
            source = gan.find_source(path, split)
        images = gan.decode_source(source, size, options.skip_unreadable, options.cache)
    return gan.Images(gan.with_channels(images, 3).pixels.contiguous(), None, ())


def held_out_files(path: Path, share: float) -> tuple[list[Path], list[Path]]:
    """A set's files less about a share of them, and that share: by their names alone, so that pairs stay together."""
    parts: tuple[list[Path], list[Path]] = ([], [])
    source = gan.find_source(path, "train")
    if isinstance(source.items, np.ndarray):
        raise UserError("holds arrays, whose images have no names by which --held-out could choose", path)
    for file in source.items:
        parts[zlib.crc32(file.stem.encode(errors="surrogateescape")) < share * 2**32].append(file)
    if not all(parts):
        counts = f"{len(parts[0])} of its images for training and {len(parts[1])} for tests"
        raise UserError(f"--held-out {share} leaves {counts}", path)
    return parts


def test_folder(path: Path) -> Path | None:
    """The folder of test images beside one of training images: Test_Apple beside Apple, testA beside trainA."""
    path = path.resolve()
    for name in (f"Test_{path.name}", re.sub("^train", "test", path.name)):
        if path.name and name != path.name and (path.parent / name).is_dir():
            return path.parent / name
    return None


def look(
    run: gan.Run, images: gan.Images, validation: gan.Images | None, fid: None, options: argparse.Namespace
) -> gan.Look:
    """Both directions' test images, translated and back again, and how far from where they came from they end.

    Without test images those of the middle of training's squares.
    """
    shown, distances = {}, []
    count = SHOWN if options.image_size <= 128 else SHOWN // 4
    pair = validation or images
    for name, there, back, part in (("x_to_y", "xy", "yx", pair), ("y_to_x", "yx", "xy", pair.other)):
        edge = (part.pixels.shape[1] - options.image_size) // 2
        pixels = part.pixels[:count, edge:, edge:][:, : options.image_size, : options.image_size]
        pieces = pixels.split(max(1, gan.GENERATE_BATCH * 32**2 // options.image_size**2))
        translated = np.concatenate([run.averages[there].translate(piece) for piece in pieces])
        returned = np.concatenate(
            [run.averages[back].translate(piece) for piece in torch.from_numpy(translated).split(len(pieces[0]))]
        )
        shown[name] = np.stack([pixels.cpu().numpy(), translated, returned], 1)
        distances.append(np.abs(returned.astype(np.float32) - shown[name][:, 0]).mean() / 127.5)
    return gan.Look({"test_cycle": float(np.sum(distances))}, shown)


def draw(run: gan.Run, seen: gan.Look, options: argparse.Namespace, log: gan.RunLog, last: bool) -> None:
    """The curves, and a sheet for each direction: test images, translations and reconstructions side by side."""
    formulas = {
        "g_xy": "mean((D(G(x)) − 1)²)",
        "g_yx": "mean((D(F(y)) − 1)²)",
        "d_x": "J(D) of x",
        "d_y": "J(D) of y",
        "cycle_loss": "mean L1, both cycles",
        "identity_loss": "mean L1, both",
    }
    for column, formula in formulas.items():
        if column != "identity_loss" or options.lambda_identity:
            path = options.out / "plots" / f"{column}.png"
            gan.plot_curve(run, path, column, column.replace("_", " "), formula)
    sheets = {name: triples_sheet(images) for name, images in seen.samples.items()}
    gan.save_sheets(run, sheets, options, log, last)


def triples_sheet(triples: np.ndarray, in_a_row: int = 3) -> Image.Image:
    """Uint8 n×3×H×W×3 as rows of (image, translation, reconstruction), with white between one three and the next."""
    gap = np.full_like(triples[:, :1], 255)
    rows = np.concatenate([triples, gap], 1)
    short = -len(rows) % in_a_row
    rows = np.concatenate([rows, np.full_like(rows[:short], 255)]) if short else rows
    flat = rows.reshape(-1, *triples.shape[2:])
    return gan.sheet(flat, 4 * in_a_row)


########################################################################################################################
#                                                      Commands                                                        #
########################################################################################################################

PRESETS: dict[str, dict[str, Any]] = {
    "emoji": dict(image_size=32, batch_size=32, iterations=5000, sample_every=200, lr_g=3e-4, lr_d=3e-4, beta1=0.3),
    "photo": dict(
        style="photo", image_size=256, crop=True, flip=True, batch_size=1, epochs=200, width_g=64, width_d=64,
        blocks=9, lambda_cycle=10.0, lambda_identity=0.5, pool=50, lr_decay=True, ema=0,
    ),
}  # fmt: skip
FIXED = dict.fromkeys(("style", "width_g", "width_d", "blocks"), "has networks made with") | {
    "held_out": gan.TRAINED_WITH
}
HELD_OUT = dict(
    type=gan.real(0, 0.9),
    default=0.0,
    metavar="SHARE",
    help="of both sets' files, chosen by name so that pairs stay together, are test images",
)


def build_parser() -> argparse.ArgumentParser:
    """The command line of training."""
    description = "Train a CycleGAN on two sets of images. Other commands, each with its --help: translate, measure."
    parser = gan.Parser("labs.cyclegan", description)
    gan.add_main(parser, PRESETS, least_batch=1)
    add = parser.add_argument_group("data").add_argument
    for flag, other in (("x", "y"), ("y", "x")):
        add(f"--{flag}", type=gan.some_path, metavar="PATH", help=f"images of one kind, to be turned into {other}")
        add(f"--{flag}-test", type=gan.some_path, metavar="PATH", help="its test images; found beside it if left out")
    add("--held-out", **HELD_OUT)
    add(
        "--image-size",
        type=gan.whole(LEAST, 1024),
        default=32,
        help="pixels a side in training, a multiple of 4 from 24 on",
    )
    add("--load-size", type=gan.whole(LEAST, 2048), help="scale the images to this first, and crop at random")
    add("--crop", **gan.SWITCH, help="the same, with 286/256 of --image-size")
    add("--flip", **gan.SWITCH, help="mirror half of the images")
    add("--skip-unreadable", **gan.SWITCH, help="leave damaged images out instead of stopping")
    add("--cache", **gan.CACHE)
    add = parser.add_argument_group("networks").add_argument
    add("--style", choices=STYLES, default="emoji", help="the emoji lab's networks, or Zhu et al.'s")
    add("--width-g", type=gan.whole(1, 1024), default=32, help="channels of the translators' first stage")
    add("--width-d", type=gan.whole(1, 1024), default=32, help="channels of the discriminators' first stage")
    add("--blocks", type=gan.whole(0, 100), default=1, help="residual blocks of a translator")
    add = parser.add_argument_group("objective").add_argument
    add(
        "--lambda-cycle",
        type=gan.real(0, 10**6),
        default=10.0,
        metavar="W",
        help="of the cycles' mean L1; the emoji handout's 0.015 is on the L1 summed over 3×32×32 numbers: 46 here",
    )
    add(
        "--lambda-identity",
        type=gan.real(0, 10**6),
        default=0.0,
        metavar="W",
        help="of mean|G(y) - y|, times the other",
    )
    add(
        "--pool", type=gan.whole(0, 2**16), default=0, metavar="N", help="D sees earlier translations, from a pool of N"
    )
    add = gan.add_optimizers(parser)
    add("--ema", type=gan.real(0, 10**9), default=10_000, help="half-life of the averages, in images")
    gan.add_performance(parser)
    gan.add_output(parser)
    return parser


def check(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raise UserError for options that do not go together."""
    for flag in ("x", "y"):
        if getattr(options, flag) is None:
            raise UserError("is missing; name a folder of images", f"--{flag}")
    if options.held_out and (options.x_test or options.y_test):
        raise UserError("not with --x-test or --y-test, which are test images, too", "--held-out")
    if options.image_size % 4:
        raise UserError("must be a multiple of 4", f"--image-size {options.image_size}")
    if options.x.resolve() == options.y.resolve():
        raise UserError("is the folder of --x; there is nothing to translate into", f"--y {options.y}")
    if options.crop and not options.load_size:
        options.load_size = options.image_size * 286 // 256
    if options.load_size and options.load_size < options.image_size:
        raise UserError(f"is less than --image-size {options.image_size}", f"--load-size {options.load_size}")
    if options.pool and options.pool < options.batch_size:
        raise UserError(f"must hold at least a batch, --batch-size {options.batch_size}", f"--pool {options.pool}")
    if options.deterministic and options.style == "photo" and options.device != "cpu" and torch.cuda.is_available():
        raise UserError("on a GPU torch cannot, for the reflected borders of --style photo", "--deterministic")
    if options.lambda_identity and not options.lambda_cycle:
        raise UserError("needs --lambda-cycle, by which it is multiplied", "--lambda-identity")


def describe(run: gan.Run, options: argparse.Namespace) -> tuple[str, str, list[str]]:
    """Networks and objective in words."""
    counts = [gan.count_parameters(run.networks[name]) for name in ("xy", "x")]
    networks = "two translators of {:,} and two discriminators of {:,} parameters".format(*counts)
    objective = f"least squares with {options.lambda_cycle:g} · cycle"
    if options.lambda_identity:
        objective += f" and {options.lambda_cycle * options.lambda_identity:g} · identity"
    return networks, objective, []


RECIPE = gan.Recipe(
    program="-m labs.cyclegan",
    least_batch=1,
    presets=PRESETS,
    parser=build_parser,
    constants=dict(
        data=None, d_steps=1, download=None, split="train", multitask=False, conditional=False, penalty="none",
        evaluate_every=0, evaluate_samples=0, inception_weights=None, validation_split=None,
    ),
    check=check,
    fixed=FIXED,
    folders=lambda o: [o.x, o.y, o.x_test, o.y_test],
    load=load,
    kinds=dict.fromkeys(("xy", "yx"), Translator) | dict.fromkeys(("x", "y"), PatchDiscriminator),
    limits=LIMITS,
    networks=make_networks,
    trained=lambda o: {"translators": (("xy", "yx"), o.lr_g), "discriminators": (("x", "y"), o.lr_d)},
    models=lambda o: {"translators": ("xy", "yx")},
    pools=lambda o: dict.fromkeys(("x", "y"), o.pool) if o.pool else {},
    measures=lambda o: MEASURES,
    step=step,
    measured=lambda o: ("test_cycle",),
    look=look,
    draw=draw,
    troubles=lambda epochs, o: [],
    describe=describe,
)  # fmt: skip


def load_translator(path: str | Path, direction: str = "xy", device: str | torch.device = "cpu") -> Translator:
    """The averaged translator "xy" or "yx" of a `.safetensors` model or a checkpoint. Raises UserError."""
    return gan.load_network(path, direction, device, RECIPE)


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
    add = parser.add_argument
    add("model", type=gan.some_path, metavar="MODEL", help="a .safetensors model or a .pt checkpoint")
    add("images", type=gan.some_path, nargs="+", metavar="IMAGE|FOLDER")
    add("--direction", choices=("xy", "yx"), default="xy", help="from the kind of --x to that of --y, or back")
    add(
        "--image-size", type=gan.whole(4, 4096), metavar="N", help="scale the shorter side to N first; none if left out"
    )
    add("--out", type=gan.some_path, required=True, metavar="FOLDER", help="a new folder")
    add("--device", **gan.DEVICE)
    options = parser.parse_args(argv)
    device = gan.choose_device(options.device)
    translator = load_translator(options.model, options.direction, device)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError("is there already; name a new folder", f"--out {options.out}")
    gan.check_writable("--out", options.out)
    files = []
    for path in options.images:
        left_out: Counter[str] = Counter()
        try:
            found = gan.image_files(path, left_out) if path.is_dir() else [path]
            if path.is_dir() and (links := [folder for folder in gan.subfolders(path) if folder.is_symlink()]):
                left_out[gan.LINK] += len(links)
        except OSError as error:
            raise UserError(f"{error.strerror}", path) from None
        others = f": {gan.counted(left_out)}" if left_out else ""
        if not found:
            raise UserError(f"no image is in this folder (those in folders within are not looked for){others}", path)
        if left_out:
            say(f"note: {path}: left out{others[1:]}")
        files += found
    name, times = Counter(file.stem for file in files).most_common(1)[0]
    if times > 1:
        first, second = [file for file in files if file.stem == name][:2]
        raise UserError(f"would be written over {first}, both as {name}.png; give each a folder of its own", second)
    for file in files:  # all of them, before any is written
        opened(file, options.image_size)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{error.strerror}", f"--out {options.out}") from None
    size, larger = training_of(options.model).get("image_size"), 0
    for file in files:
        image = opened(file, options.image_size)
        larger += bool(size and not options.image_size and min(image.size) > 1.5 * size)
        try:
            (translated,) = translator.translate(np.asarray(image)[None].copy())
        except (MemoryError, RuntimeError) as error:
            if not gan.is_out_of_memory(error):
                raise
            said = f"not enough memory for its {image.width}×{image.height}; give a lower --image-size"
            raise UserError(f"{said}", file) from None
        stream = io.BytesIO()
        Image.fromarray(translated).save(stream, "PNG")
        gan.write_whole(options.out / f"{file.stem}.png", stream.getvalue())
    if larger:
        say(f"note: the model has learnt at {size} pixels; --image-size {size} shows it what it knows")
    say(f"{len(files):,} images translated into {options.out}")
    return options.out


def opened(file: Path, image_size: int | None) -> Image.Image:
    """An image file, its shorter side scaled to `image_size` if that is given. Raises UserError."""
    try:
        image = gan.as_rgb(gan.open_image(file))
    except Exception as error:  # a decoder may fail in any way on a damaged file
        raise UserError(f"{gan.complaint(error)}", file) from None
    if not image_size:
        return image
    share = image_size / min(image.size)
    return image.resize([max(1, round(side * share)) for side in image.size], Image.Resampling.LANCZOS)


def measure(argv: Sequence[str]) -> dict[str, Any]:
    """The command `measure`: prints, and returns, how near translations come to their true counterparts.

    By mean L1 of the pixels in (-1, 1) and by the Euclidean distance of Inception's features; beside it the images as
    they were, and both with the counterparts of all others: a translation is worth something if it is nearer to its own
    than the image was, and than to another's. Raises UserError.
    """
    described = "Measure how near translations come to their true counterparts, images of the same name."
    parser = gan.Parser("labs.cyclegan measure", described)
    add = parser.add_argument
    add("model", type=gan.some_path, metavar="MODEL", help="a .safetensors model or a .pt checkpoint")
    for flag in ("x", "y"):
        add(f"--{flag}", type=gan.some_path, required=True, metavar="FOLDER", help="pairs have the same name in both")
    add("--held-out", **HELD_OUT)
    add("--direction", choices=("xy", "yx"), default="xy", help="of the translations, from --x to --y or back")
    add("--image-size", type=gan.whole(4, 1024), metavar="N", help="that of the model's training if left out")
    add("--inception-weights", **gan.WEIGHTS)
    add("--device", **gan.DEVICE)
    add("--json", action="store_true", help="print one JSON object and nothing else")
    options = parser.parse_args(argv)
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        result = measure_pairs(options)
    print(json.dumps(result, ensure_ascii=False) if options.json else measured_text(result))
    return result


def measure_pairs(options: argparse.Namespace) -> dict[str, Any]:
    """What `measure` finds. Raises UserError."""
    device = gan.choose_device(options.device)
    translator = load_translator(options.model, options.direction, device)
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
        raise UserError(
            f"{len(names)} of its files have a name that one of --x has, too; name pairs", f"--y {options.y}"
        )
    given, true = (
        gan.decode_source(gan.Source([part[name] for name in names], where=str(getattr(options, flag))), size)
        for flag, part in zip(options.direction, sources, strict=True)
    )
    given, true = (gan.with_channels(part, 3).pixels for part in (given, true))
    inception = evaluation.Inception(options.inception_weights, device)
    pieces = given.split(max(1, gan.GENERATE_BATCH * 32**2 // size**2))
    translated = torch.from_numpy(np.concatenate([translator.translate(piece) for piece in pieces]))
    of_true = seen_by(inception, true, "counterparts")
    result: dict[str, Any] = dict(
        model=str(options.model), direction=options.direction, pairs=len(names), held_out=options.held_out, size=size
    )
    for name, images in (("untranslated", given), ("translated", translated)):
        for kind, matrix in (
            ("l1", torch.cdist(*(part.flatten(1).float() for part in (images, true)), p=1) / true[0].numel() / 127.5),
            ("features", torch.cdist(seen_by(inception, images, name), of_true)),
        ):
            own, count = matrix.diagonal(), len(names)
            others = (matrix.sum() - own.sum()) / (count * count - count)
            result[f"{name}, {kind}"] = {OWN: float(own.mean()), OTHERS: float(others)}
    return result | {"network": evaluation.NETWORK, "weights": inception.digest, "device": gan.device_name(device)}


def paired_files(flag: str, path: Path, held_out: float) -> dict[str, Path]:
    """The files of a folder, of those held out if that is not 0, by their names without suffix. Raises UserError."""
    with gan.named(f"--{flag}"):
        items = held_out_files(path, held_out)[1] if held_out else gan.find_source(path, "train").items
    if isinstance(items, np.ndarray):
        raise UserError("holds arrays; pairs are files of the same name", f"--{flag} {path}")
    (name, times), *_ = Counter(file.stem for file in items).most_common(1)
    if times > 1:
        raise UserError(
            f"{times} of its files are called {name}; which is whose pair cannot be told", f"--{flag} {path}"
        )
    return {file.stem: file for file in items}


def seen_by(inception: evaluation.Inception, pixels: Tensor, what: str) -> Tensor:
    """Inception's features, float32 n×2048, of uint8 images n×H×W×3."""
    pieces = (piece.numpy() for piece in pixels.split(gan.GENERATE_BATCH))
    return inception.features(pieces, len(pixels), what)[evaluation.FEATURES]


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    return gan.main(argv, RECIPE, {"translate": translate, "measure": measure})


if __name__ == "__main__":
    gan.exit_with(main)
