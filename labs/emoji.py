"""A least-squares DCGAN that draws emoji, and what keeps its discriminator from winning.

    python -m labs.emoji --data ./emojis/Apple               # 10,000 iterations, samples every 200
    python -m labs.emoji --data ./emojis/Apple --gradient-penalty --iterations 6000
    python -m labs.emoji --data ./emojis/Apple --spectral-norm --d-train-iters 2
    python -m labs.emoji --resume --out runs/NAME
    python -m labs.emoji generate MODEL --count 64 --seed 1 --out emoji.png

The task: a generator that enlarges its maps by repeating pixels before each convolution of 5×5, noise from (-1, 1), a
discriminator without a sigmoid; D learns at twice the rate of G (--lr):

    J(D) = 1/2m Σ (D(x) - 1)² + 1/2m Σ D(G(z))²        J(G) = 1/m Σ (D(G(z)) - 1)²

Three ways to steady them: a penalty 10/m Σ ‖∇D(x̂)‖² at points x̂ = ε x + (1 - ε) G(z) between real and generated images
(centred at 0, unlike WGAN-GP's), spectral normalisation of D (Miyato et al. 2018), and more updates of D for one of G.
The handout runs 20,000 iterations, and those with the penalty at --lr 3e-5.

What each of them changes is in Report.pdf, "The other labs: Emoji".
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

PENALTY_WEIGHT = 10.0  # the handout's


@dataclass(frozen=True)
class Config(parts.Config):
    """The script's options with the lab's defaults, without those of another task, and what the handout tries."""

    without: ClassVar[tuple[str, ...]] = (
        *parts.Config.without, "image_size", "flip", "optimizer", "lr_g", "lr_d",
    )  # fmt: skip
    epochs: int | None = parts.default("epochs", None)
    iterations: int | None = parts.default("iterations", 10_000)
    batch_size: int = parts.default("batch_size", 32)
    image_size: int | None = parts.default("image_size", 32)
    width_d: int = parts.default("width_d", 64)
    ema: float = parts.default("ema", 50_000)
    lr: float = gan.option(
        3e-4, "learning rate of G; that of D is twice as high", 0, 5, above=True, group="the handout's", word="RATE"
    )
    d_train_iters: int = gan.option(1, "updates of D, a batch each, for one of G", 1, 100, word="N")
    gradient_penalty: bool = gan.option(False, "hold the slope of D low between real and generated images", fixed=True)
    spectral_norm: bool = gan.option(False, "hold the largest singular value of D's weights at 1", fixed=True)

    @property
    def d_steps(self) -> int:
        """Batches of real images in a step."""
        return self.d_train_iters

    def check(self) -> None:
        super().check()
        if self.gradient_penalty:
            parts.refuse_compiled(self, "--gradient-penalty")


def upconv(inputs: int, outputs: int) -> list[nn.Module]:
    """Twice the size: each pixel four times, then a convolution of 5×5 (Odena et al. 2016)."""
    return [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(inputs, outputs, 5, padding=2, bias=False)]


class Generator(gan.BaseGenerator):
    """Noise z (B×latent_dim) in (-1, 1) to images (B×channels×32×32) in (-1, 1): 463,392 parameters."""

    latent = "uniform"

    def __init__(self, image_size: int = 32, channels: int = 3, latent_dim: int = 100, width: int = 32):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        self.base = image_size // 8
        self.project = nn.Linear(latent_dim, 4 * width * self.base**2, bias=False)  # B×2048
        self.layers = nn.Sequential(
            nn.Unflatten(1, (4 * width, self.base, self.base)), nn.ReLU(),  # B×128×4×4
            *upconv(4 * width, 2 * width), nn.BatchNorm2d(2 * width), nn.ReLU(),  # B×64×8×8
            *upconv(2 * width, width), nn.BatchNorm2d(width), nn.ReLU(),  # B×32×16×16
            *upconv(width, channels), nn.Tanh(),  # B×3×32×32
        )  # fmt: skip
        gan.initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.project(z))


class Discriminator(parts.PlainDiscriminator):
    """Images (B×channels×32×32) to scores (B), high for real, without a sigmoid: 1,036,096 parameters."""

    def __init__(self, channels: int = 3, width: int = 64, spectral_norm: bool = False):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        self.features = nn.Sequential(
            *self.halving(channels, width),  # B×64×16×16
            *self.halving(width, 2 * width),  # B×128×8×8
            *self.halving(2 * width, 4 * width),  # B×256×4×4
        )
        self.score = nn.Conv2d(4 * width, 1, 5, stride=2, padding=1, bias=False)  # B×1×1×1
        gan.initialise(self)
        if spectral_norm:
            parts.normalise_spectra(self.modules())

    @staticmethod
    def halving(inputs: int, outputs: int) -> list[nn.Module]:
        """Half the size, with batch norm and ReLU."""
        convolution = nn.Conv2d(inputs, outputs, 5, stride=2, padding=2, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]


class EmojiGAN(gan.GAN):
    """The networks above, and a step with more updates of D, or a penalty on its gradient."""

    Config = Config
    networks: ClassVar = {"generator": Generator, "discriminator": Discriminator}

    def build(self) -> None:
        config = self.config
        self.generator = Generator(config.image_size, self.channels, config.latent_dim, config.width_g)
        self.discriminator = Discriminator(self.channels, config.width_d, config.spectral_norm)

    def optimized(self) -> dict[str, tuple[Sequence[str], float]]:
        rate = self.config.lr
        return {"generator": (["generator"], rate), "discriminator": (["discriminator"], 2 * rate)}

    @staticmethod
    def columns(config: Config) -> tuple[str, ...]:
        return (*gan.GAN.columns(config), *(("penalty",) if config.gradient_penalty else ()))

    def noise(self, count: int) -> Tensor:
        """Fresh noise z from (-1, 1), count×latent_dim."""
        return torch.rand(count, self.config.latent_dim, generator=self.rng, device=self.rng.device) * 2 - 1

    def batch(self, images: gan.Images, index: Tensor) -> tuple[list[Tensor]]:
        """What `step` takes: d_train_iters batches of new real images, float32 B×C×32×32 in (-1, 1)."""
        return ([gan.real_batch(images.pixels, part, False, self.rng) for part in index],)

    def step(self, batches: list[Tensor]) -> list[Tensor]:
        """An update of D on each batch of real images, whose metrics are means over them, and one of G."""
        of_d = torch.stack([torch.stack(self.discriminator_step(real)) for real in batches])
        d_loss, *others = of_d.mean(0)
        return [d_loss, self.generator_step(len(batches[-1])), *others]

    def discriminator_step(self, real: Tensor) -> list[Tensor]:
        """An update of D on real images B×C×32×32 and as many generated ones."""
        discriminator = self.discriminator
        with self.autocast():
            with torch.no_grad():  # D's update does not reach into G
                fake = self.generator(self.noise(len(real)))
            real, fake = self.augment(real), self.augment(fake)
            real_scores = discriminator(real)  # apart from the others, so that batch norm mixes nothing
            with gan.running_averages_kept(discriminator):
                fake_scores = discriminator(fake)
        real_scores, fake_scores = real_scores.float(), fake_scores.float()
        d_loss = total = gan.ls_d_loss(real_scores, fake_scores)
        metrics = [real_scores.mean(), fake_scores.mean()]
        metrics += [(real_scores > 0.5).float().mean(), (fake_scores < 0.5).float().mean()]
        if self.config.gradient_penalty:  # in float32, which a gradient's gradient needs
            between = parts.points_between(real.float(), fake.float(), self.rng)
            with gan.running_averages_kept(discriminator):
                penalty = parts.zero_gp(discriminator, between)
            total = d_loss + PENALTY_WEIGHT * penalty
            metrics.append(penalty)
        self.update("discriminator", total)
        return [metric.detach() for metric in (d_loss, *metrics)]

    def generator_step(self, count: int) -> Tensor:
        """An update of G by `count` images; returns J(G)."""
        discriminator = self.discriminator.requires_grad_(False)  # the gradient passes through; its own is not wanted
        with self.autocast(), gan.running_averages_kept(discriminator):
            scores = discriminator(self.augment(self.generator(self.noise(count))))
        g_loss = gan.ls_g_loss(scores.float())
        self.update("generator", g_loss)
        discriminator.requires_grad_(True)
        return g_loss.detach()

    def warnings(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """The script's, with the advice that this lab has options for."""
        config, found = self.config, []
        untried = {"--gradient-penalty": config.gradient_penalty, "--translation": config.translation}
        advice = [flag for flag, is_on in untried.items() if not is_on]
        if diagnosis.d_has_won(rows, gan.LOSSES["ls"]):
            found.append(f"D has won and teaches G little: try {' or '.join(advice or ['a lower --lr'])}")
        if diagnosis.g_has_collapsed(rows):
            found.append("the samples hardly differ, G has collapsed: try a lower --lr or a higher --d-train-iters")
        return [*found, *diagnosis.d_learns_by_heart(rows, advice)]

    def describe(self) -> tuple[str, str]:
        config, (networks, objective) = self.config, super().describe()
        objective += f" with {PENALTY_WEIGHT:g} · zero-centred penalty" if config.gradient_penalty else ""
        return networks, objective + (", spectral norm in D" if config.spectral_norm else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    return gan.main(argv, "labs.emoji")


if __name__ == "__main__":
    gan.exit_with(main)
