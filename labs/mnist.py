"""A DCGAN with binary cross-entropy that draws MNIST's digits (Goodfellow et al. 2014; Radford et al. 2016).

    python -m labs.mnist --data ./MNIST --epochs 25          # or --download mnist
    python -m labs.mnist --resume --out runs/NAME
    python -m labs.mnist generate MODEL --count 64 --seed 1 --out digits.png | digits.npz
    python -m labs.mnist evaluate MODEL --data ./MNIST

The task: a generator makes images of 28×28 from noise z of 100 numbers by two or three convolutional layers; a
discriminator of three or four and a linear layer gives the probability that an image is real; both learn by
cross-entropy; `generate(n)` returns an array n×28×28. From Python, with `load_generator` of rollnumber_04:
`load_generator("generator.safetensors").generate(n)`.

The step is Algorithm 1 in rollnumber_04.py, with the losses `bce_d_loss` and `bce_g_loss` there:

    J(D) = -1/2m Σ ln σ(D(x)) - 1/2m Σ ln(1 - σ(D(G(z))))        J(G) = -1/m Σ ln σ(D(G(z)))

What it draws, and how often each digit, is in saved_models/MODELS.txt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

import rollnumber_04 as gan
from labs import parts


@dataclass(frozen=True)
class Config(parts.Config):
    """The script's options with the lab's defaults, and without those of another task."""

    without: ClassVar[tuple[str, ...]] = (
        *parts.Config.without, "image_size", "flip", "optimizer",
    )  # fmt: skip
    epochs: int = parts.default("epochs", 25)
    batch_size: int = parts.default("batch_size", 32)
    image_size: int | None = parts.default("image_size", 28)
    translation: bool = parts.default("translation", True)
    width_g: int = parts.default("width_g", 64)
    width_d: int = parts.default("width_d", 64)
    ema: float = parts.default("ema", 100_000)
    loss: str = parts.default("loss", "bce")


class Generator(gan.BaseGenerator):
    """Noise z (B×latent_dim) to images (B×channels×28×28) in (-1, 1): 907,392 parameters with 3 `convolutions`.

    Training takes 3. 2 are for models of before version 0.5, whose files name no number: that at 7×7 is left out.
    """

    def __init__(
        self, image_size: int = 28, channels: int = 1, latent_dim: int = 100, width: int = 64, convolutions: int = 2
    ):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        self.base = image_size // 4
        first = []
        if convolutions == 3:
            first = [nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()]
        self.project = nn.Linear(latent_dim, 2 * width * self.base**2, bias=False)  # B×6272
        self.layers = nn.Sequential(
            nn.Unflatten(1, (2 * width, self.base, self.base)), nn.BatchNorm2d(2 * width), nn.ReLU(),  # B×128×7×7
            *first,  # B×128×7×7
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),  # B×64×14×14
            nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1, bias=False), nn.Tanh(),  # B×1×28×28
        )  # fmt: skip
        gan.initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.project(z))


class Discriminator(parts.PlainDiscriminator):
    """Images (B×channels×28×28) to logits (B): σ of one is the probability that it is real. 432,000 parameters."""

    def __init__(self, image_size: int = 28, channels: int = 1, width: int = 64):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1, bias=False),  # B×64×14×14
            nn.BatchNorm2d(width), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),  # B×128×7×7
            nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1, bias=False),  # B×256×4×4
            nn.BatchNorm2d(4 * width), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.score = nn.Conv2d(4 * width, 1, (image_size // 4 + 1) // 2, bias=False)  # B×1×1×1, of all: linear
        gan.initialise(self)


class MnistGAN(gan.GAN):
    """The networks above in the script's training."""

    Config = Config
    networks: ClassVar = {"generator": Generator, "discriminator": Discriminator}

    def build(self) -> None:
        config, size = self.config, self.config.image_size
        self.generator = Generator(size, self.channels, config.latent_dim, config.width_g, convolutions=3)
        self.discriminator = Discriminator(size, self.channels, config.width_d)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    return gan.main(argv, "labs.mnist")


if __name__ == "__main__":
    gan.exit_with(main)
