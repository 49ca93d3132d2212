"""A GAN of CBlocks and GBlocks, for MNIST, Fashion-MNIST, EMNIST or SVHN.

    python -m labs.blocks --data ./MNIST                     # or --download mnist, fashion-mnist, emnist, svhn
    python -m labs.blocks --resume --out runs/NAME
    python -m labs.blocks generate MODEL --count 64 --seed 1 --out digits.png
    python -m labs.blocks interpolate MODEL --out path.png   # G(z1 + α (z2 - z1))
    tensorboard --logdir runs                                # losses, and samples of the same noise each epoch

The task: the critic is made of three CBlocks and a linear layer, the generator of a linear layer, two GBlocks and a 1×1
convolution, for images of 28×28 or 32×32. Both learn by cross-entropy of logits over real and generated images
together, which is halved for the critic; the critic's accuracy is reported (`d_accuracy_real`, `d_accuracy_fake`).

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

SIZES = (28, 32)  # of images, which the critic's three CBlocks make 4×4


@dataclass(frozen=True)
class Config(parts.Config):
    """The script's options with the lab's defaults, and without those of another task."""

    without: ClassVar[tuple[str, ...]] = (
        *parts.Config.without, "flip", "optimizer",
    )  # fmt: skip
    epochs: int = parts.default("epochs", 6)
    batch_size: int = parts.default("batch_size", 32)
    image_size: int | None = parts.default("image_size", None, "28 or 32 pixels a side; the images' own if omitted")
    translation: bool = parts.default("translation", True)
    width_g: int = parts.default("width_g", 64)
    ema: float = parts.default("ema", 100_000)
    loss: str = parts.default("loss", "bce")

    def check(self) -> None:
        super().check()
        if self.image_size not in (None, *SIZES):
            what = "the networks are for images of 28 or 32; --image-size scales them"
            raise gan.UserError(what, f"--image-size {self.image_size}")


def g_block(inputs: int, outputs: int) -> list[nn.Module]:
    """GBlock: twice the size, then two convolutions of 3×3 with batch norm and ReLU."""
    return [
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    ]  # fmt: skip


def c_block(inputs: int, outputs: int) -> list[nn.Module]:
    """CBlock: two convolutions of 3×3 with batch norm and leaky ReLU, one that halves the size, and dropout."""
    return [
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2),
        nn.Conv2d(outputs, outputs, 3, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Dropout(0.3),
    ]  # fmt: skip


class Generator(gan.BaseGenerator):
    """Noise z (B×latent_dim) to images (B×channels×S×S) in (-1, 1): 1,808,705 parameters for S = 28."""

    def __init__(self, image_size: int = 28, channels: int = 1, latent_dim: int = 100, width: int = 64):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        self.base = image_size // 4
        self.project = nn.Linear(latent_dim, 4 * width * self.base**2, bias=False)  # B×12544
        self.layers = nn.Sequential(
            nn.Unflatten(1, (4 * width, self.base, self.base)), nn.BatchNorm2d(4 * width), nn.ReLU(),  # B×256×7×7
            *g_block(4 * width, 2 * width),  # B×128×14×14
            *g_block(2 * width, width),  # B×64×28×28
            nn.Conv2d(width, channels, 1), nn.Tanh(),  # B×1×28×28
        )  # fmt: skip

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.project(z))


class Critic(parts.PlainDiscriminator):
    """Images (B×channels×S×S) to logits (B), high for real: 334,561 parameters, of which 1,537 in the last layer."""

    def __init__(self, channels: int = 1, width: int = 32):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        self.features = nn.Sequential(
            *c_block(channels, width),  # B×32×14×14
            *c_block(width, 2 * width),  # B×64×7×7
            *c_block(2 * width, 3 * width),  # B×96×4×4
        )
        self.score = nn.Conv2d(3 * width, 1, 4, stride=2)  # B×1×1×1, of the whole map: linear


class BlocksGAN(gan.GAN):
    """The networks above in the script's training; torch's own initial weights."""

    Config = Config
    networks: ClassVar = {"generator": Generator, "discriminator": Critic}

    def build(self) -> None:
        config = self.config
        self.generator = Generator(config.image_size, self.channels, config.latent_dim, config.width_g)
        self.discriminator = Critic(self.channels, config.width_d)

    @classmethod
    def load(cls, config: Config) -> tuple[Config, gan.Images, gan.Images | None]:
        """The options as the data decides them, training and test images that the networks are for."""
        config, images, validation = super().load(config)
        config.check()
        return config, images, validation


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    return gan.main(argv, "labs.blocks")


if __name__ == "__main__":
    gan.exit_with(main)
