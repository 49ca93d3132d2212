"""A fully convolutional GAN that draws MNIST's digits, with four improvements to try.

    python -m labs.conv --data ./MNIST                       # 40,000 iterations; or --download mnist
    python -m labs.conv --data ./MNIST --r1 10 --label-smoothing 0.1 --replay 1024 --instance-noise 0.1
    python -m labs.conv --resume --out runs/NAME --iterations 80000     # go on
    python -m labs.conv generate MODEL --count 64 --seed 1 --out digits.png

The task: no pooling, linear layers only at the ends, leaky ReLU in both networks, batch norm in neither first nor last
layers; weights of convolutions from N(0, 0.02²), of norms from N(1, 0.02²), biases 0. Training counts iterations, not
epochs (the handout's `num_iter`, 10,000 there, is --iterations, its `show_every` is --sample-every), and uses the
training and the test images together. The network whose turn it is not has its gradients turned off:

    J(D) = -1/2m Σ ln D(x) - 1/2m Σ ln(1 - D(G(z)))        J(G) = -1/m Σ ln D(G(z)), here without the handout's ½

The four improvements: a penalty on D's gradient at real images (R1), one-sided label smoothing, a buffer of generated
images of earlier steps, and noise on all that D sees. What each of them changes in 10,000 iterations is in Report.pdf,
"The other labs: Digits".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rollnumber_04 as gan
from extras import diagnosis
from labs import parts


@dataclass(frozen=True)
class Config(parts.Config):
    """The script's options with the lab's defaults, without those of another task, and the four improvements."""

    without: ClassVar[tuple[str, ...]] = (
        *parts.Config.without, "image_size", "flip", "optimizer",
    )  # fmt: skip
    epochs: int | None = parts.default("epochs", None)
    iterations: int | None = parts.default("iterations", 40_000)
    batch_size: int = parts.default("batch_size", 32)
    image_size: int | None = parts.default("image_size", 28)
    translation: bool = parts.default("translation", True)
    width_d: int = parts.default("width_d", 64)
    ema: float = parts.default("ema", 100_000)
    loss: str = parts.default("loss", "bce")
    r1: float = gan.option(
        0.0, "weight γ of the R1 penalty; 0 is none", 0, 10**6, group="improvements", fixed=True, word="W"
    )
    label_smoothing: float = gan.option(0.0, "D's target for real images is 1 - S", 0, 0.5, word="S")
    replay: int = gan.option(
        0, "D also sees earlier generated images, from a buffer of N; 0 is none", 0, 2**16, fixed=True, word="N"
    )
    instance_noise: float = gan.option(
        0.0, "deviation of the noise on all that D sees, falling to 0 over the run", 0, 10, word="SIGMA"
    )

    def check(self) -> None:
        super().check()
        if self.r1:
            parts.refuse_compiled(self, "--r1")
        if self.replay and self.replay < self.batch_size:
            what = f"must hold at least a batch, --batch-size {self.batch_size}"
            raise gan.UserError(what, f"--replay {self.replay}")


class Generator(gan.BaseGenerator):
    """Noise z (B×latent_dim) to images (B×channels×28×28) in (-1, 1): 387,073 parameters with 3 `convolutions`.

    Training takes 3. With 2 the one at 7×7 is left out, as in earlier models, whose files name no number.
    """

    def __init__(
        self, image_size: int = 28, channels: int = 1, latent_dim: int = 100, width: int = 32, convolutions: int = 2
    ):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        self.base = image_size // 4
        first = []
        if convolutions == 3:
            convolution = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
            first = [convolution, nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2)]
        self.project = nn.Linear(latent_dim, 2 * width * self.base**2)  # B×3136
        self.layers = nn.Sequential(
            nn.Unflatten(1, (2 * width, self.base, self.base)), nn.LeakyReLU(0.2),  # B×64×7×7
            *first,  # B×64×7×7
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1, bias=False),  # B×32×14×14
            nn.BatchNorm2d(width), nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), nn.Tanh(),  # B×1×28×28
        )  # fmt: skip
        parts.initialise_dcgan(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.project(z))


class Discriminator(parts.PlainDiscriminator):
    """Images (B×channels×28×28) to logits (B): σ of one is the handout's D(x). 286,401 parameters."""

    def __init__(self, image_size: int = 28, channels: int = 1, width: int = 64):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2),  # B×64×14×14
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),  # B×128×7×7
            nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False),  # B×128×7×7
            nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.score = nn.Conv2d(2 * width, 1, image_size // 4)  # B×1×1×1, of the whole map: linear
        parts.initialise_dcgan(self)


def smoothed_d_loss(real: Tensor, fake: Tensor, smoothing: float) -> Tensor:
    """J(D) from logits B, where the target of real images is 1 - S (Salimans et al. 2016, section 3.4).

    A real image's share is -(1 - S) ln σ(D(x)) - S ln(1 - σ(D(x))); that of the generated images stays.
    """
    of_real = F.binary_cross_entropy_with_logits(real, torch.full_like(real, 1 - smoothing))
    return 0.5 * of_real + 0.5 * F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


class ConvGAN(gan.GAN):
    """The networks above, and a step with the four improvements."""

    Config = Config
    networks: ClassVar = {"generator": Generator, "discriminator": Discriminator}

    def build(self) -> None:
        config, size = self.config, self.config.image_size
        self.generator = Generator(size, self.channels, config.latent_dim, config.width_g, convolutions=3)
        self.discriminator = Discriminator(size, self.channels, config.width_d)
        if config.replay:
            self.pools["replay"] = parts.Pool(config.replay, (self.channels, size, size))

    @classmethod
    def load(cls, config: Config) -> tuple[Config, gan.Images, None]:
        """The training and the test images together."""
        return gan.load_data(config, "all", validate=False)

    @staticmethod
    def columns(config: Config) -> tuple[str, ...]:
        return (*gan.GAN.columns(config), *(("penalty",) if config.r1 else ()))

    def step(self, real: Tensor, labels: None) -> list[Tensor]:
        """An update of D on real images B×C×28×28, and one of G; returns the metrics of `columns`."""
        config, discriminator = self.config, self.discriminator
        # D's turn: G has no gradient.
        with self.autocast():
            with torch.no_grad():
                fake = self.generator(self.noise(len(real)))
            if config.replay:
                fake, _ = self.pools["replay"].swap(fake, None, self.rng)
            real, fake = self.augment(real), self.augment(fake)
            real_scores = discriminator(self.noisy(real))  # apart from the others, so that batch norm mixes nothing
            with gan.running_averages_kept(discriminator):
                fake_scores = discriminator(self.noisy(fake))
        real_scores, fake_scores = real_scores.float(), fake_scores.float()
        d_loss = total = smoothed_d_loss(real_scores, fake_scores, config.label_smoothing)
        metrics = [real_scores.mean(), fake_scores.mean()]
        metrics += [(real_scores > 0).float().mean(), (fake_scores < 0).float().mean()]
        if config.r1:  # J(D) + γ/2m Σ ‖∇D(x)‖², at images without noise and in float32
            with gan.running_averages_kept(discriminator):
                penalty = parts.r1(discriminator, real.float())
            total = d_loss + config.r1 * penalty
            metrics.append(penalty)
        self.update("discriminator", total)
        # G's turn: D has no gradient of its own; G's passes through it.
        discriminator.requires_grad_(False)
        with self.autocast(), gan.running_averages_kept(discriminator):
            scores = discriminator(self.noisy(self.augment(self.generator(self.noise(len(real))))))
        g_loss = gan.bce_g_loss(scores.float())
        self.update("generator", g_loss)
        discriminator.requires_grad_(True)
        return [metric.detach() for metric in (d_loss, g_loss, *metrics)]

    def noisy(self, images: Tensor) -> Tensor:
        """Images with noise, so that real and generated ones overlap (Sønderby et al. 2017).

        Its deviation, in units of the range (-1, 1), falls linearly from --instance-noise to 0 over the run.
        """
        if not self.config.instance_noise:
            return images
        deviation = self.config.instance_noise * (1 - self.steps / self.planned).clamp(min=0)
        noise = torch.randn(images.shape, generator=self.rng, device=self.rng.device)
        return images + (deviation * noise).to(images.dtype)

    def score(self, real: Tensor, labels: Tensor | None) -> Tensor:
        """Logits B of images B×C×28×28 with the noise of the step."""
        return self.discriminator(self.noisy(real))

    def jumps(self, step: int, before: dict[str, Any]) -> list[str]:
        planned = before.get("planned")
        if not (self.config.instance_noise and before.get("instance_noise")):
            return []
        if type(planned) is not int or planned < 1:  # a file may say anything
            return []
        was, now = (max(0.0, 1 - step / steps) for steps in (planned, self.planned))
        what = f"the deviation of the instance noise stood at {was:.0%} of its first value and goes on at {now:.0%}"
        return [what] if was != now else []

    def warnings(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        smoothing, least = self.config.label_smoothing, 0.0
        if smoothing:  # the least that J(D) can be: half the entropy of the targets
            least = -0.5 * (smoothing * math.log(smoothing) + (1 - smoothing) * math.log(1 - smoothing))
        advice = ["--translation"] * (not self.config.translation)
        won = diagnosis.d_has_won(rows, gan.LOSSES["bce"], advice, least)
        return [*won, *diagnosis.g_has_collapsed(rows)]

    def describe(self) -> tuple[str, str]:
        config, (networks, objective) = self.config, super().describe()
        improvements = {
            f"{config.r1:g} · R1": config.r1,
            f"label smoothing {config.label_smoothing:g}": config.label_smoothing,
            f"a replay buffer of {config.replay:,}": config.replay,
            f"instance noise {config.instance_noise:g}": config.instance_noise,
        }
        return networks, ", ".join([objective, *(what for what, is_used in improvements.items() if is_used)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    return gan.main(argv, "labs.conv")


if __name__ == "__main__":
    gan.exit_with(main)
