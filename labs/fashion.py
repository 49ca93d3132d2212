"""A conditional WGAN-GP that draws clothes of a class of choice (Gulrajani et al. 2017; Mirza & Osindero 2014).

    python -m labs.fashion --data ./FashionMNIST --epochs 25 # or --download fashion-mnist
    python -m labs.fashion --resume --out runs/NAME
    python -m labs.fashion generate MODEL --label 5 --count 64 --out sandals.png
    python -m labs.fashion generate MODEL --count 80 --out all.png                # all classes in turn
    python -m labs.fashion interpolate MODEL --out path.png

The task: the generator is told a class c beside the noise z, as 10 more numbers (one-hot); the critic is shown it as 10
more planes of the image, of which that of the class is 1 and the others are 0. The critic is updated n_critic times for
each update of the generator:

    J(D) = 1/m Σ D(x̃|c) - 1/m Σ D(x|c) + λ/m Σ (‖∇D(x̂|c)‖ - 1)²       with x̃ = G(z|c), x̂ = ε x + (1 - ε) x̃
    J(G) = -1/m Σ D(G(z|c)|c)

The norm is that of each image's own gradient, so the critic has no batch norm: it would make the gradient of an image
depend on the others. `generate(n, c)` returns an array n×28×28 of class c. From Python:
`load_generator("generator.safetensors").generate(n, 5)`, from rollnumber_04; a class is told by its name or its number.

How often the asked class is drawn is in saved_models/MODELS.txt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import rollnumber_04 as gan
from extras import diagnosis
from labs import parts


@dataclass(frozen=True)
class Config(parts.Config):
    """The script's options with the lab's defaults, without those of another task, and the two of WGAN-GP."""

    without: ClassVar[tuple[str, ...]] = (
        *parts.Config.without, "image_size", "flip", "translation", "optimizer",
    )  # fmt: skip
    epochs: int = parts.default("epochs", 25)
    batch_size: int = parts.default("batch_size", 32)
    image_size: int | None = parts.default("image_size", 28)
    width_g: int = parts.default("width_g", 64)
    width_d: int = parts.default("width_d", 48)
    lr_g: float = parts.default("lr_g", 5e-4)
    lr_d: float = parts.default("lr_d", 5e-4)
    beta1: float = parts.default("beta1", 0.0)
    beta2: float = parts.default("beta2", 0.9)
    ema: float = parts.default("ema", 100_000)
    n_critic: int = gan.option(
        5, "updates of the critic, a batch each, for one of the generator", 1, 100, group="WGAN-GP", word="N"
    )
    lambda_gp: float = gan.option(10.0, "weight λ of the gradient penalty", 0, 10**6, word="W")

    @property
    def d_steps(self) -> int:
        """Batches of real images in a step."""
        return self.n_critic

    def check(self) -> None:
        super().check()
        parts.refuse_compiled(self)


class Generator(parts.ConditionalGenerator):
    """Noise z (B×latent_dim) and classes y (B×classes) to images (B×channels×28×28) in (-1, 1): 822,401 parameters."""

    def __init__(
        self, image_size: int = 28, channels: int = 1, latent_dim: int = 100, width: int = 64,
        classes: Sequence[str] = (),
    ):  # fmt: skip
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        self.base, self.classes = image_size // 4, tuple(classes)
        self.project = nn.Linear(latent_dim + len(classes), 2 * width * self.base**2, bias=False)  # B×110 to B×6272
        self.layers = nn.Sequential(
            nn.Unflatten(1, (2 * width, self.base, self.base)), nn.BatchNorm2d(2 * width), nn.ReLU(),  # B×128×7×7
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),  # B×64×14×14
            nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), nn.Tanh(),  # B×1×28×28
        )  # fmt: skip
        gan.initialise(self)  # smooth, so that no grid is left; the critic's weights begin as torch's own

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return self.layers(self.project(torch.cat([z, y], 1)))


class Critic(parts.PlainDiscriminator):
    """Images (B×channels×28×28) and labels (B) to scores (B), high for real ones of their class: 87,025 parameters."""

    def __init__(self, image_size: int = 28, channels: int = 1, width: int = 48, classes: Sequence[str] = ()):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        self.classes = len(classes)
        self.features = nn.Sequential(
            nn.Conv2d(channels + self.classes, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),  # 11×28×28, 48×14×14
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),  # B×96×7×7
        )  # fmt: skip
        self.score = nn.Conv2d(2 * width, 1, image_size // 4, stride=2)  # B×1×1×1, of the whole map: linear

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        planes = parts.one_hot(labels, self.classes)[:, :, None, None].expand(-1, -1, *images.shape[2:])
        return super().forward(torch.cat([images, planes], 1))


class FashionGAN(gan.GAN):
    """A conditional generator and its critic."""

    Config = Config
    networks: ClassVar = {"generator": Generator, "discriminator": Critic}

    def build(self) -> None:
        config, size = self.config, self.config.image_size
        self.generator = Generator(size, self.channels, config.latent_dim, config.width_g, self.classes)
        self.discriminator = Critic(size, self.channels, config.width_d, self.classes)

    @staticmethod
    def uses_classes(config: Config) -> bool:
        return True

    @classmethod
    def load(cls, config: Config) -> tuple[Config, gan.Images, None]:
        """The training set, with classes, and the options as it decides them. Raises UserError."""
        config, images, _ = gan.load_data(config, validate=False)
        gan.check_classes(images, f"--data {config.data}")
        return config, images, None

    @staticmethod
    def columns(config: Config) -> tuple[str, ...]:
        return ("d_loss", "g_loss", "d_real", "d_fake", "penalty")  # a score has no sign here that says real or fake

    def batch(self, images: gan.Images, index: Tensor) -> tuple[list[tuple[Tensor, Tensor]]]:
        """What `step` takes: n_critic batches of new real images, float32 B×C×28×28 in (-1, 1), with their labels B."""
        real = [gan.real_batch(images.pixels, part, False, self.rng) for part in index]
        labels = [images.labels[part] for part in index]
        return ([*zip(real, labels, strict=True)],)

    def step(self, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """n_critic updates of the critic, whose metrics are means over them, and one of the generator."""
        of_critic = torch.stack([torch.stack(self.critic_step(real, labels)) for real, labels in batches])
        d_loss, *scores_and_penalty = of_critic.mean(0)
        return [d_loss, self.generator_step(batches[-1][1]), *scores_and_penalty]

    def critic_step(self, real: Tensor, labels: Tensor) -> list[Tensor]:
        """An update of the critic on real images B×C×28×28 and as many generated ones of the same classes B."""
        critic = self.discriminator
        with self.autocast():
            with torch.no_grad():  # the critic's update does not reach into G
                fake = self.generator(self.noise(len(real)), parts.one_hot(labels, len(self.classes)))
            real_scores, fake_scores = critic(real, labels).float(), critic(fake, labels).float()
        distance = parts.wgan_d_loss(real_scores, fake_scores)  # J(D) is logged without the penalty
        between = parts.points_between(real.float(), fake.float(), self.rng)
        penalty = parts.wgan_gp(lambda points: critic(points, labels), between)  # in float32
        self.update("discriminator", distance + self.config.lambda_gp * penalty)
        return [metric.detach() for metric in (distance, real_scores.mean(), fake_scores.mean(), penalty)]

    def generator_step(self, labels: Tensor) -> Tensor:
        """An update of the generator for classes B; returns J(G)."""
        critic = self.discriminator.requires_grad_(False)  # the gradient passes through it; its own is not wanted
        with self.autocast():
            fake = self.generator(self.noise(len(labels)), parts.one_hot(labels, len(self.classes)))
            scores = critic(fake, labels)
        loss = parts.wgan_g_loss(scores.float())
        self.update("generator", loss)
        critic.requires_grad_(True)
        return loss.detach()

    def curves(self) -> dict[str, tuple[str, str, str]]:
        return {
            "generator_loss": ("g_loss", "Generator loss (Wasserstein)", "J(G)"),
            "discriminator_loss": ("d_loss", "Critic loss without the penalty (Wasserstein)", "J(D)"),
        }

    def warnings(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        return diagnosis.g_has_collapsed(rows)  # a critic cannot win too early

    def describe(self) -> tuple[str, str]:
        networks, _ = super().describe()
        return networks, f"conditional Wasserstein with {self.config.lambda_gp:g} · gradient penalty"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    return gan.main(argv, "labs.fashion")


if __name__ == "__main__":
    gan.exit_with(main)
