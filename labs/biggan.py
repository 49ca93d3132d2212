"""BigGAN: images of a class, and of what lies between two classes (Brock et al. 2019).

    python -m labs.biggan --data ./cifar10                             # a narrow one, which a CPU can train
    python -m labs.biggan --data ./cifar10 --preset cifar10-best       # for a GPU
    python -m labs.biggan --resume --out runs/NAME
    python -m labs.biggan generate MODEL --label cat --out cats.png    # and evaluate, as of rollnumber_04.py
    python -m labs.biggan interpolate MODEL --classes cat,dog --alphas 8 --out path.png
    python -m labs.biggan embeddings MODEL --out tsne.png              # which classes are near each other
    python -m labs.biggan paths MODEL --out paths/                     # how smooth the ways between them are
    python -m labs.biggan truncation MODEL --data ./cifar10 --out truncation.png
    python -m labs.biggan interpolate --pretrained biggan-deep-256 --classes "golden retriever,tabby" --out path.png

A residual generator, to each of whose blocks a part of z and the embedding of the class are told, and a residual
discriminator that compares what it sees with an embedding of the class. Training, with all its options, run folder,
checkpoints and resume, is that of rollnumber_04.py.
"""

import signal
import sys

if __name__ == "__main__":
    sys.modules.setdefault("labs.biggan", sys.modules[__name__])  # what labs/between.py imports: this, no second copy
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in the seconds of imports ends it without a traceback

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rollnumber_04 as gan
from rollnumber_04 import UserError

########################################################################################################################
#                                                      Networks                                                        #
########################################################################################################################


def widths(image_size: int, width: int) -> list[int]:
    """The channels of a generator's maps, from the first to the full size, where they are `width`.

    Up to 32 pixels the same for all (Miyato et al. 2018), above that twice as many at half the size, up to 16 times.
    """
    doublings = gan.halvings(image_size, 4)
    return [width * (1 if doublings <= 3 else min(16, 2 ** (doublings - stage))) for stage in range(doublings + 1)]


class ConditionalNorm(nn.Module):
    """Batch norm of B×features×H×W whose scale and shift a condition, B×dim, decides (de Vries et al. 2017)."""

    def __init__(self, features: int, dim: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(features, affine=False)
        self.scale = nn.Linear(dim, features, bias=False)
        self.shift = nn.Linear(dim, features, bias=False)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        scale, shift = (part(condition)[:, :, None, None] for part in (self.scale, self.shift))
        return self.norm(maps) * (1 + scale) + shift


class UpBlock(nn.Module):
    """B×inputs×S×S and a condition to B×outputs×2S×2S: what two convolutions of 3×3 add to the enlarged maps."""

    def __init__(self, inputs: int, outputs: int, dim: int):
        super().__init__()
        self.norms = nn.ModuleList([ConditionalNorm(inputs, dim), ConditionalNorm(outputs, dim)])
        self.convs = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        added = F.interpolate(F.relu(self.norms[0](maps, condition)), scale_factor=2)
        added = F.relu(self.norms[1](self.convs[0](added), condition))
        # A convolution of 1×1 before enlarging is the same as after it, at a quarter of the work.
        return F.interpolate(self.skip(maps), scale_factor=2) + self.convs[1](added)


class DownBlock(nn.Module):
    """B×inputs×S×S to B×outputs×S×S, or to half the size if it is to `halve`: what two convolutions of 3×3 add."""

    def __init__(self, inputs: int, outputs: int, halve: bool, first: bool = False):
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        self.skip = nn.Conv2d(inputs, outputs, 1) if halve or inputs != outputs else nn.Identity()
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()
        self.first = first  # it sees pixels, which a ReLU would cut

    def forward(self, maps: Tensor) -> Tensor:
        added = self.convs[0](maps if self.first else F.relu(maps))
        added = self.pool(self.convs[1](F.relu(added)))
        return added + self.skip(self.pool(maps))  # the same as pooling after a convolution of 1×1, with less work


class Generator(gan.BaseGenerator):
    """Noise z (B×latent_dim) and classes y (B×classes, one-hot or a mixture) to images B×channels×S×S in (-1, 1).

    z is divided among the first layer and the blocks, so that it tells coarse and fine; y becomes the embedding r,
    which all blocks share, and a mixture of classes the same mixture of their embeddings: α·r1 + (1 - α)·r2.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        latent_dim: int = 128,
        width: int = 64,
        embedding: int = 128,
        latent: str = "normal",
        spectral_norm: bool = False,
        init: str = "orthogonal",
        classes: Sequence[str] = (),
    ):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        features = widths(image_size, width)
        blocks = len(features) - 1
        if latent_dim <= blocks:
            raise UserError(
                f"the first layer and {blocks} blocks take {blocks + 1} or more", f"--latent-dim {latent_dim}"
            )
        self.base = image_size >> blocks
        chunk = latent_dim // (blocks + 1)
        self.chunks = [latent_dim - blocks * chunk, *[chunk] * blocks]
        self.embed = nn.Linear(len(classes), embedding, bias=False) if classes else None  # B×10 -> B×128
        told = chunk + (embedding if classes else 0)
        self.project = nn.Linear(self.chunks[0], features[0] * self.base**2)  # B×32 -> B×1024
        self.blocks = nn.ModuleList([UpBlock(*pair, told) for pair in pairwise(features)])  # 64×8×8, 64×16×16, 64×32×32
        self.last = nn.Sequential(
            nn.BatchNorm2d(features[-1]), nn.ReLU(), nn.Conv2d(features[-1], channels, 3, padding=1), nn.Tanh()
        )  # 3×32×32
        gan.initialise(self, init)
        if spectral_norm:
            gan.normalise_spectra(module for name, module in self.named_modules() if name != "embed")

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        first, *chunks = z.split(self.chunks, 1)
        maps = self.project(first).unflatten(1, (-1, self.base, self.base))
        told = [] if self.embed is None else [self.embed(y)]
        for block, chunk in zip(self.blocks, chunks, strict=True):
            maps = block(maps, torch.cat([*told, chunk], 1))
        return self.last(maps)

    def embeddings(self) -> Tensor:
        """Those of the classes, classes×embedding, of a conditional one."""
        return self.embed.weight.detach().mT


class Discriminator(nn.Module):
    """Images B×channels×S×S and their labels to scores (B), high for real: a projection discriminator.

    What the blocks see, summed over the map, h, scores w·h + e·h with an embedding e of the class (Miyato & Koyama
    2018).
    """

    head = None  # it tells no classes

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        width: int = 64,
        spectral_norm: bool = True,
        init: str = "orthogonal",
        classes: Sequence[str] = (),
    ):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        blocks, inputs, side = [], channels, image_size
        least = 7 if gan.halvings(image_size, 4) <= 3 else 4  # small images keep maps of 7 pixels or more, as in SNGAN
        for outputs in reversed(widths(image_size, width)):
            halve = side // 2 >= least
            blocks.append(DownBlock(inputs, outputs, halve, first=not blocks))
            inputs, side = outputs, side // 2 if halve else side
        self.features = nn.Sequential(*blocks, nn.ReLU())  # 64×16×16, 64×8×8, 64×8×8, 64×8×8
        self.score = nn.Linear(inputs, 1)
        self.embed = nn.Linear(len(classes), inputs, bias=False) if classes else None
        gan.initialise(self, init)
        if spectral_norm:
            gan.normalise_spectra(self.modules())

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        seen = self.features(images).sum((2, 3))
        scores = self.score(seen).flatten()
        if self.embed is None:
            return scores
        return scores + (self.embed(gan.one_hot(labels, self.embed.in_features)) * seen).sum(1)

    def judge(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, None]:
        """The scores B, and no class logits."""
        return self(images, labels), None


def make_networks(options: argparse.Namespace, channels: int, classes: Sequence[str]) -> dict[str, nn.Module]:
    """G and D as the options ask for them, for the names of the classes if they are to be conditional."""
    common = dict(
        image_size=options.image_size,
        channels=channels,
        init=options.init,
        classes=classes if options.conditional else (),
    )
    generator = Generator(
        **common,
        latent_dim=options.latent_dim,
        width=options.width_g,
        embedding=options.embedding,
        spectral_norm=options.spectral_norm_g,
    )
    discriminator = Discriminator(**common, width=options.width_d, spectral_norm=options.spectral_norm)
    return {"generator": generator, "discriminator": discriminator}


########################################################################################################################
#                                                      Training                                                        #
########################################################################################################################

COMMON = dict(conditional=True, loss="hinge", spectral_norm=True, init="orthogonal", flip=True, beta1=0.0)
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10-small": COMMON | dict(
        width_g=48, width_d=48, lr_g=2e-4, lr_d=4e-4, epochs=10, ema=20_000,
    ),
    "cifar10-best": COMMON | dict(
        width_g=256, width_d=256, d_steps=4, iterations=30_000, sample_every=1000, ema=400_000,
        augment="colour,translation,cutout",
    ),
}  # fmt: skip
SHAPING = "image_size width_g width_d latent_dim embedding spectral_norm spectral_norm_g init conditional"


def build_parser() -> argparse.ArgumentParser:
    """The command line of training."""
    description = f"Train a BigGAN. Other commands, each with its --help: {', '.join(COMMANDS)}."
    parser = gan.Parser("labs.biggan", description)
    gan.add_main(parser, PRESETS)
    gan.add_data(parser)
    add = parser.add_argument_group("networks").add_argument
    add("--width-g", type=gan.whole(1, 1024), default=64, help="channels of G's maps at the full size")
    add("--width-d", type=gan.whole(1, 1024), default=64, help="channels of D's first block")
    add("--latent-dim", type=gan.whole(2, 4096), default=128, help="numbers in the noise z, for all blocks together")
    add("--embedding", type=gan.whole(1, 4096), default=128, help="numbers that stand for a class")
    add("--spectral-norm", **gan.SWITCH, help="of D's weights")
    add("--spectral-norm-g", **gan.SWITCH, help="of G's weights")
    add("--init", choices=gan.INITS, default="orthogonal", help="how weights are drawn")
    gan.add_objective(parser)
    gan.add_optimizers(parser)("--d-steps", **gan.D_STEPS)
    gan.add_stabilisers(parser)
    gan.add_performance(parser)
    gan.add_output(parser)
    gan.add_evaluation(parser)
    return parser


RECIPE = replace(
    gan.GAN,
    program="-m labs.biggan",
    presets=PRESETS,
    parser=build_parser,
    fixed=dict.fromkeys(SHAPING.split(), "has networks made with") | {"split": gan.TRAINED_WITH},
    constants=dict(multitask=False, class_weight=1.0, validation_split=None),
    kinds={"generator": Generator, "discriminator": Discriminator},
    limits=gan.LIMITS | {"embedding": lambda x: type(x) is int and 1 <= x <= 4096},
    networks=make_networks,
)


LONG_COMMANDS = ("interpolate", "embeddings", "paths", "truncation")  # of labs/between.py


def call_between(name: str, argv: Sequence[str]) -> Any:
    """A command of labs/between.py, which is loaded when one is asked for."""
    from labs import between

    return getattr(between, name)(argv)


COMMANDS = {
    "generate": partial(gan.call_with_options, "generate", gan.generate, RECIPE),
    "evaluate": partial(gan.call_with_options, "evaluate", partial(gan.call_extra, "evaluate"), RECIPE),
    **{name: partial(call_between, name) for name in LONG_COMMANDS},
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    return gan.main(argv, RECIPE, COMMANDS)


if __name__ == "__main__":
    gan.exit_with(main)
