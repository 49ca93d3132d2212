"""BigGAN: images of a class, and of what lies between two classes (Brock et al. 2019).

    python -m labs.biggan --data ./cifar10                             # a narrow one, which a CPU can train
    python -m labs.biggan --data ./photos --image-size 128             # without classes, if the data has none
    python -m labs.biggan --resume --out runs/NAME
    python -m labs.biggan generate MODEL --label cat --out cats.png    # and evaluate, as of rollnumber_04.py
    python -m labs.biggan interpolate MODEL --classes cat,dog --alphas 8 --out path.png
    python -m labs.biggan embeddings MODEL --out tsne.png              # which classes are near each other
    python -m labs.biggan paths MODEL --out paths/                     # how smooth the ways between them are
    python -m labs.biggan truncation MODEL --data ./cifar10 --out truncation.png
    python -m labs.biggan interpolate --pretrained biggan-deep-256 --classes "golden retriever,tabby" --out path.png

A few thousand images of one's own, without classes; 20 minutes of one CPU core for 32×32:

    python -m labs.biggan --data ./cars --iterations 12000 --sample-every 1000 --augment translation

A wide one for a GPU, which benchmarks/biggan.py trains and measures:

    python -m labs.biggan --data ./cifar10 --width-g 256 --width-d 256 --batch-size 64 --lr-d 2e-4 --d-steps 4 \
        --ema 400000 --augment colour,translation,cutout --iterations 30000 --sample-every 1000

A residual generator, to each of whose blocks a part of z and the embedding of the class are told, and a residual
discriminator that compares what it sees with an embedding of the class. The run folder, checkpoints and resume are
those of rollnumber_04.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rollnumber_04 as gan
from extras import diagnosis
from labs import parts
from rollnumber_04 import Images, UserError

########################################################################################################################
#                                                       Options                                                        #
########################################################################################################################


@dataclass(frozen=True)
class Config(parts.Config):
    """The options of a BigGAN; the defaults are those of a narrow one, which a CPU can train."""

    without: ClassVar[tuple[str, ...]] = (*parts.Config.without, "translation")
    epochs: int = parts.default("epochs", 16)
    batch_size: int = parts.default("batch_size", 16)
    flip: bool | None = parts.default("flip", None)
    latent_dim: int = parts.default("latent_dim", 128, "numbers in the noise z, for all blocks together")
    width_g: int = parts.default("width_g", 48, "channels of G's maps at the full size")
    width_d: int = parts.default("width_d", 48, "channels of D's first block")
    lr_d: float = parts.default("lr_d", 4e-4)
    beta1: float = parts.default("beta1", 0.0)
    ema: float = parts.default("ema", 100_000)
    conditional: bool | None = gan.option(
        None, "tell both networks the class of an image; if omitted, where the data has classes", group="BigGAN",
        fixed=True,
    )  # fmt: skip
    embedding: int = gan.option(128, "numbers that stand for a class", 1, 4096, fixed=True)
    spectral_norm_g: bool = gan.option(False, "spectral normalisation in G, as in D", fixed=True)
    d_steps: int = gan.option(1, "steps of D, each on a new batch, to one of G", 1, 100)
    augment: str = gan.option(
        "none", f"change all that D sees at random: some of {','.join(parts.AUGMENTATIONS)}", word="KIND[,KIND]"
    )

    def check(self) -> None:
        """Raise UserError for options that do not go together, and for a change of images that is not known."""
        super().check()
        known = ",".join(parts.AUGMENTATIONS)
        if self.augment != "none" and not {*self.augment.split(",")} <= {*known.split(",")}:
            raise UserError(f"{self.augment!r} is neither none nor {known}, nor some of these", "--augment")


########################################################################################################################
#                                                      Networks                                                        #
########################################################################################################################


def widths(image_size: int, width: int) -> list[int]:
    """The channels of a generator's maps, from the first to the full size, where they are `width`.

    Up to 32 pixels the same for all (Miyato et al. 2018), above that twice as many at half the size, up to 16 times.
    """
    doublings = gan.halvings(image_size)
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


def summed(kernels: Tensor) -> Tensor:
    """Kernels …×3×3 as …×4×4: each summed over its four shifts by 0 or 1 pixel, down and to the right.

    A convolution by 3×3 of maps enlarged to twice their size is one transposed convolution of these, stride 2, and the
    means of 2×2 pixels after a convolution by 3×3 are one convolution of a quarter of these, stride 2: the same sums,
    ordered so that fewer are taken.
    """
    padded = F.pad(kernels, (1, 1, 1, 1))
    rows = padded[..., 1:, :] + padded[..., :-1, :]
    return rows[..., 1:] + rows[..., :-1]


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
        added, first = F.relu(self.norms[0](maps, condition)), self.convs[0]
        # The first convolution of the enlarged maps. A transposed one has its kernels turned and input channels first.
        kernels = summed(first.weight.flip(2, 3)).transpose(0, 1)
        added = F.conv_transpose2d(added, kernels, first.bias, stride=2, padding=1)
        added = F.relu(self.norms[1](added, condition))
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
        self.halve = halve
        self.first = first  # it sees pixels, which a ReLU would cut

    def forward(self, maps: Tensor) -> Tensor:
        added = F.relu(self.convs[0](maps if self.first else F.relu(maps)))
        if not self.halve:
            return self.skip(maps) + self.convs[1](added)
        last = self.convs[1]  # of whose maps the means of 2×2 pixels are taken
        added = F.conv2d(added, summed(last.weight) / 4, last.bias, stride=2, padding=1)
        return added + self.skip(F.avg_pool2d(maps, 2))  # the same as pooling after a convolution of 1×1, at less work


class Generator(parts.ConditionalGenerator):
    """Noise z (B×latent_dim) and classes y (B×classes, one-hot or a mixture) to images B×channels×S×S in (-1, 1).

    z is divided among the first layer and the blocks, so that it tells coarse and fine; y becomes the embedding r,
    which all blocks share, and a mixture of classes the same mixture of their embeddings: α·r1 + (1 - α)·r2. Without
    `classes` it takes z alone.
    """

    def __init__(
        self, image_size: int = 32, channels: int = 3, latent_dim: int = 128, width: int = 48, embedding: int = 128,
        spectral_norm: bool = False, classes: Sequence[str] = (),
    ):  # fmt: skip
        super().__init__()
        self.architecture, self.classes = gan.arguments(self, locals()), tuple(classes)
        features = widths(image_size, width)
        blocks = len(features) - 1
        if latent_dim <= blocks:
            what = f"the first layer and {blocks} blocks take {blocks + 1} or more"
            raise UserError(what, f"--latent-dim {latent_dim}")
        self.base = image_size >> blocks
        chunk = latent_dim // (blocks + 1)
        self.chunks = [latent_dim - blocks * chunk, *[chunk] * blocks]
        self.embed = nn.Linear(len(classes), embedding, bias=False) if classes else None  # B×10 -> B×128
        told = chunk + (embedding if classes else 0)
        self.project = nn.Linear(self.chunks[0], features[0] * self.base**2)  # B×32 -> B×768
        self.blocks = nn.ModuleList([UpBlock(*pair, told) for pair in pairwise(features)])  # 48×8×8, 48×16×16, 48×32×32
        self.last = nn.Sequential(
            nn.BatchNorm2d(features[-1]), nn.ReLU(), nn.Conv2d(features[-1], channels, 3, padding=1), nn.Tanh()
        )  # 3×32×32
        parts.initialise_orthogonal(self)
        if spectral_norm:
            parts.normalise_spectra(module for name, module in self.named_modules() if name != "embed")

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        first, *chunks = z.split(self.chunks, 1)
        maps = self.project(first).unflatten(1, (-1, self.base, self.base))
        told = [] if self.embed is None else [self.embed(y)]
        for block, chunk in zip(self.blocks, chunks, strict=True):
            maps = block(maps, torch.cat([*told, chunk], 1))
        return self.last(maps)

    def labels(self, label: int | str | None, start: int, count: int) -> np.ndarray | None:
        """The labels of images start … of `generate`; None without classes. Raises UserError."""
        kind = super() if self.classes else super(parts.ConditionalGenerator, self)
        return kind.labels(label, start, count)

    def inputs(
        self, seed: int, start: int, count: int, label: int | str | None = None, truncation: float | None = None
    ) -> tuple[Tensor, ...]:
        """Noise z and, with classes, one-hot y for images start … of `generate`."""
        if self.classes:
            return super().inputs(seed, start, count, label, truncation)
        self.labels(label, start, count)  # a class is refused
        return super(parts.ConditionalGenerator, self).inputs(seed, start, count, label, truncation)

    def embeddings(self) -> Tensor:
        """Those of the classes, classes×embedding, of a conditional one."""
        return self.embed.weight.detach().mT


class Discriminator(nn.Module):
    """Images B×channels×S×S and their labels B to scores (B), high for real: a projection discriminator.

    What the blocks see, summed over the map, h, scores w·h + e·h with an embedding e of the class (Miyato & Koyama
    2018). Its weights are spectrally normalised (Miyato et al. 2018). Without `classes` it takes images alone.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, width: int = 48, classes: Sequence[str] = ()):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        blocks, inputs, side = [], channels, image_size
        least = 7 if gan.halvings(image_size) <= 3 else 4  # small images keep maps of 7 pixels or more, as in SNGAN
        for outputs in reversed(widths(image_size, width)):
            halve = side // 2 >= least
            blocks.append(DownBlock(inputs, outputs, halve, first=not blocks))
            inputs, side = outputs, side // 2 if halve else side
        self.features = nn.Sequential(*blocks, nn.ReLU())  # 48×16×16, 48×8×8, 48×8×8, 48×8×8
        self.score = nn.Linear(inputs, 1)
        self.embed = nn.Linear(len(classes), inputs, bias=False) if classes else None
        parts.initialise_orthogonal(self)
        parts.normalise_spectra(self.modules())

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        seen = self.features(images).sum((2, 3))
        scores = self.score(seen).flatten()
        if self.embed is None:
            return scores
        return scores + (self.embed(parts.one_hot(labels, self.embed.in_features)) * seen).sum(1)


########################################################################################################################
#                                                      Training                                                        #
########################################################################################################################


def call_between(name: str, argv: Sequence[str]) -> None:
    """A command of labs/between.py, which is loaded when one is asked for."""
    getattr(importlib.import_module("labs.between"), name)(argv)


def evaluate(argv: Sequence[str]) -> None:
    """The command `evaluate` of extras/."""
    gan.extra("evaluate").evaluate(argv, "labs.biggan")


class BigGAN(gan.GAN):
    """BigGAN in training: hinge losses, `d_steps` updates of D to one of G, and classes if the data has some."""

    Config: ClassVar = Config
    undecided = 0.0  # of the hinge loss
    networks: ClassVar[dict[str, type[nn.Module]]] = {"generator": Generator, "discriminator": Discriminator}
    commands: ClassVar[dict[str, Any]] = {
        "generate": partial(gan.generate, program="labs.biggan"),
        "evaluate": evaluate,
        **{name: partial(call_between, name) for name in ("interpolate", "embeddings", "paths", "truncation")},
    }

    def build(self) -> None:
        """Make the networks, conditional ones if they are to be told classes."""
        config, size = self.config, self.config.image_size
        classes = self.classes if config.conditional else ()
        self.generator = Generator(
            size, self.channels, config.latent_dim, config.width_g, config.embedding, config.spectral_norm_g, classes
        )
        self.discriminator = Discriminator(size, self.channels, config.width_d, classes)

    def step(self, *batches: tuple[Tensor, Tensor | None]) -> list[Tensor]:
        """An update of D on each batch, real images B×C×S×S and their labels B or None, then one of G.

        Returns the metrics of `columns`, those of D as means over its updates: nothing is read back in here.
        """
        discriminator, of_updates = self.discriminator, []
        for real, labels in batches:
            with self.autocast():
                with torch.no_grad():  # D's update does not reach into G
                    fake = self.draw(len(real), labels)
                real_scores = discriminator(self.augment(real), labels).float()
                fake_scores = discriminator(self.augment(fake), labels).float()
            d_loss = parts.hinge_d_loss(real_scores, fake_scores)
            right = [(real_scores > 0).float().mean(), (fake_scores < 0).float().mean()]
            of_updates.append(torch.stack([d_loss, real_scores.mean(), fake_scores.mean(), *right]).detach())
            self.update("discriminator", d_loss)
        discriminator.requires_grad_(False)  # the gradient passes through D; its own is not wanted
        with self.autocast():
            fake_scores = discriminator(self.augment(self.draw(len(real), labels)), labels).float()
        g_loss = parts.wgan_g_loss(fake_scores)
        self.update("generator", g_loss)
        discriminator.requires_grad_(True)
        d_loss, *of_scores = torch.stack(of_updates).mean(0)
        return [d_loss, g_loss.detach(), *of_scores]

    def draw(self, count: int, labels: Tensor | None) -> Tensor:
        """Images of fresh noise, count×C×S×S, and of the labels' classes if there are any."""
        told = () if labels is None else (parts.one_hot(labels, len(self.classes)),)
        return self.generator(self.noise(count), *told)

    def batch(self, images: Images, index: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        """What `step` takes: d_steps batches of real images in (-1, 1), with their labels if it is conditional."""
        labels = images.labels if self.config.conditional else None
        return [
            (
                gan.real_batch(images.pixels, part, self.config.flip, self.rng),
                None if labels is None else labels[part],
            )
            for part in index
        ]

    def augment(self, images: Tensor) -> Tensor:
        """Images as D is shown them, real and generated ones alike (Zhao et al. 2020)."""
        for name, change in parts.AUGMENTATIONS.items():
            if name in self.config.augment.split(","):
                images = change(images, self.rng)
        return images

    def score(self, real: Tensor, labels: Tensor | None) -> Tensor:
        """D's scores B of images B×C×H×W in (-1, 1), if it is conditional as images of the labels' classes."""
        return self.discriminator(real, labels if self.config.conditional else None)

    @classmethod
    def load(cls, config: Config) -> tuple[Config, Images, Images | None]:
        """The training set, and whether the networks are told classes, which the data decides if no option does."""
        config, images, validation = super().load(config)
        conditional = len(images.classes) > 1 if config.conditional is None else config.conditional
        if conditional:
            gan.check_classes(images, "--conditional")
            validation = validation if validation and validation.labels is not None else None  # D is told classes
        return replace(config, conditional=conditional), images, validation

    @staticmethod
    def uses_classes(config: Config) -> bool:
        """Whether the networks are made for the classes of the data."""
        return bool(config.conditional)

    def curves(self) -> dict[str, tuple[str, str, str]]:
        """The pictures of losses."""
        return {
            "generator_loss": ("g_loss", "Generator loss (hinge)", "J(G)"),
            "discriminator_loss": ("d_loss", "Discriminator loss (hinge)", "J(D)"),
        }

    def warnings(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """What is wrong with the training, by the rows of epochs.csv."""
        hinge = gan.Loss("hinge", parts.hinge_d_loss, parts.wgan_g_loss, undecided=self.undecided)
        advice = ["--augment translation"] * (self.config.augment == "none")
        by_heart = diagnosis.d_learns_by_heart(rows, advice)
        return [*diagnosis.d_has_won(rows, hinge, advice), *diagnosis.g_has_collapsed(rows), *by_heart]

    def describe(self) -> tuple[str, str]:
        """The networks and the objective, in words."""
        of_g, of_d = (gan.count_parameters(network) for network in (self.generator, self.discriminator))
        return f"G {of_g:,} and D {of_d:,} parameters", "conditional " * bool(self.config.conditional) + "hinge loss"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    return gan.main(argv, "labs.biggan")


if __name__ == "__main__":
    gan.exit_with(main)
