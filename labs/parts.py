"""What more than one lab is made of: losses, gradient penalties, a replay pool, augmentations, classes, weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rollnumber_04 as gan
from rollnumber_04 import UserError


def default(name: str, value: Any, help: str = "") -> Any:
    """A field of a lab's Config: an option of the script with another default, or other words."""
    known = gan.Config.__dataclass_fields__[name].metadata
    return field(default=value, metadata=known | {"help": help or known["help"]})


@dataclass(frozen=True)
class Config(gan.Config):
    """The options of a lab: the script's without those of the assignment, with what the handouts set or leave out."""

    without: ClassVar[tuple[str, ...]] = ("loss", "multitask", "class_weight", "validation_split")
    batch_size: int = default("batch_size", 64)
    flip: bool = default("flip", False)
    translation: bool = default("translation", False)
    ema: float = default("ema", 10_000)


# Losses of scores.


def hinge_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """J(D) = 1/m Σ max(0, 1 - D(x)) + 1/m Σ max(0, 1 + D(G(z))), from scores B (Lim & Ye 2017; Miyato et al. 2018)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def wgan_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """J(D) = 1/m Σ D(G(z)) - 1/m Σ D(x), from scores B (Arjovsky et al. 2017)."""
    return fake.mean() - real.mean()


def wgan_g_loss(fake: Tensor) -> Tensor:
    """J(G) = -1/m Σ D(G(z)), from scores B; G's loss beside the hinge loss, too."""
    return -fake.mean()


# Penalties on D's gradient. `discriminator` maps images B×C×H×W to scores B. They want float32, for the gradient of a
# gradient is taken, and a D without batch norm: with it, an image's gradient depends on the others of its batch.


def squared_gradient_norms(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """‖∇D(x)‖² of each image of B×C×H×W on its own, B; its own gradient can be taken in turn."""
    images = images.detach().requires_grad_(True)
    # The sum's gradient is each score's own, as long as D looks at one image at a time.
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def points_between(real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """A random point x̂ on the line between each real and each generated image, B×C×H×W."""
    share = torch.rand(len(real), 1, 1, 1, generator=rng, device=real.device)
    return fake + share * (real - fake)


def wgan_gp(discriminator: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """1/m Σ (‖∇D(x̂)‖ - 1)² at points between real and generated images (Gulrajani et al. 2017)."""
    squares = squared_gradient_norms(discriminator, points)
    return ((squares + 1e-12).sqrt() - 1).square().mean()  # the root's own gradient at 0 is infinite


def zero_gp(discriminator: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """1/m Σ ‖∇D(x̂)‖² at points between real and generated images (Thanh-Tung et al. 2019)."""
    return squared_gradient_norms(discriminator, points).mean()


def r1(discriminator: Callable[[Tensor], Tensor], real: Tensor) -> Tensor:
    """1/2m Σ ‖∇D(x)‖² at real images (Mescheder et al. 2018)."""
    return 0.5 * squared_gradient_norms(discriminator, real).mean()


def refuse_compiled(config: gan.Config, flag: str = "") -> None:
    """Raise UserError for --launch compiled, together with the flag of a gradient penalty."""
    if config.launch == "compiled":
        what = "torch.compile does not take the gradient of a gradient, which the penalty needs"
        raise UserError(f"not with {flag}: {what}" if flag else what, "--launch compiled")


class Pool(nn.Module):
    """Generated images of earlier steps, which D is shown beside new ones so that it does not forget them.

    Each new image changes places with a random one of the pool with chance ½ (Shrivastava et al. 2017, section 2.3);
    until the pool is full it only takes. How many it holds is a number of the host's: a GPU need not be asked.
    """

    def __init__(self, size: int, shape: Sequence[int]):
        super().__init__()
        self.register_buffer("images", torch.zeros(size, *shape))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.filled = 0

    @property
    def is_full(self) -> bool:
        """Whether it gives, too: from then on a step is always the same kernels."""
        return self.filled == len(self.images)

    def get_extra_state(self) -> int:
        return self.filled

    def set_extra_state(self, state: int) -> None:
        """Raises ValueError for a number of images that it cannot hold."""
        if not 0 <= state <= len(self.images):
            raise ValueError(f"a pool of {len(self.images)} images does not hold {state}")
        self.filled = state

    @torch.no_grad()
    def swap(self, images: Tensor, labels: Tensor | None, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """As many images B×C×H×W, B ≤ size, as are given, and their labels B: new ones and old ones."""
        free = min(len(self.images) - self.filled, len(images))
        if free:
            self.images[self.filled : self.filled + free] = images[:free]
            if labels is not None:
                self.labels[self.filled : self.filled + free] = labels[:free]
            self.filled += free
            return images, labels
        places = torch.randperm(len(self.images), generator=rng, device=rng.device)[: len(images)]
        swapped = torch.rand(len(images), generator=rng, device=rng.device) < 0.5
        old, mask = self.images[places].to(images.dtype), swapped[:, None, None, None]
        self.images[places] = torch.where(mask, images, old).to(self.images.dtype)
        if labels is not None:
            old_labels = self.labels[places]
            self.labels[places] = torch.where(swapped, labels, old_labels)
            labels = torch.where(swapped, old_labels, labels)
        return torch.where(mask, old, images), labels


# Changes of images B×C×H×W in (-1, 1), of each in its own way. The gradient passes through them to G, which does not
# learn to draw them if D sees real images changed alike (Zhao et al. 2020, whose amounts these are).


def recoloured(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images with the brightness changed by up to 0.5, saturation 0 … 2 and contrast 0.5 … 1.5 times what it was."""
    brighter, purer, stronger = torch.rand(3, len(images), 1, 1, 1, generator=rng, device=rng.device)
    images = images + (brighter - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + 2 * purer * (images - grey)
    middle = images.mean((1, 2, 3), keepdim=True)
    return middle + (0.5 + stronger) * (images - middle)


def cut_out(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images with a hole of 0, half as high and half as wide, around a random pixel."""
    inside = []
    for side in images.shape[2:]:
        at, cut = torch.arange(side, device=rng.device), side // 2
        first = torch.randint(side, (len(images), 1, 1, 1), generator=rng, device=rng.device) - cut // 2
        inside.append((first <= at) & (at < first + cut))
    return images * ~(inside[0].mT & inside[1])


AUGMENTATIONS = {"colour": recoloured, "translation": gan.translated, "cutout": cut_out}


# Classes.


def class_number(label: int | str, classes: Sequence[str]) -> int:
    """Which class is meant by its name or its number, from 0. Raises UserError.

    Where all classes are named by numbers, a number is a name, with or without zeros in front: 1 is "01". Elsewhere one
    that is the name of a class and the number of another is an error; "name=2" and "number=2" are clear.
    """
    text, known = gan.class_name(label), [gan.class_name(name) for name in classes]
    how, _, rest = text.partition("=")
    how, wanted = (how, rest) if how in ("name", "number") and text not in known else ("", text)
    is_number = re.fullmatch("[0-9]{1,9}", wanted) is not None
    named = [i for i, name in enumerate(known) if name == wanted]
    numbered = [int(wanted)] if is_number and int(wanted) < len(known) else []
    if how:
        found = named if how == "name" else numbered
    elif all(re.fullmatch("[0-9]+", name) for name in known):
        found = named or [i for i, name in enumerate(known) if is_number and int(name) == int(wanted)]
    else:
        found = [*dict.fromkeys(named + numbered)]
    if len(found) == 1:
        return found[0]
    if found:
        meant = " or ".join(f"{known[i]} (number {i})" for i in found)
        raise UserError(f"may be {meant}; say name=… or number=…", label)
    raise UserError(f"is not among the classes {', '.join(classes)}"[:300], label)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels int64 B as float32 B×classes."""
    return F.one_hot(labels, classes).float()


# Networks and their weights.


class ConditionalGenerator(gan.BaseGenerator):
    """A generator that is told classes: `forward` takes noise z, B×latent_dim, and y, B×classes, one-hot or mixed."""

    def labels(self, label: int | str | None, start: int, count: int) -> np.ndarray:
        """The labels of images start … of `generate`: those of one class, or of all in turn. Raises UserError."""
        if label is None:
            return np.arange(start, start + count) % len(self.classes)
        return np.full(count, class_number(label, self.classes))

    def inputs(
        self, seed: int, start: int, count: int, label: int | str | None = None, truncation: float | None = None
    ) -> tuple[Tensor, ...]:
        """Noise z and one-hot y for images start … of `generate`."""
        labels = torch.from_numpy(self.labels(label, start, count))
        z = gan.latents(seed, start, count, self.architecture["latent_dim"], self.latent, truncation)
        return z, one_hot(labels, len(self.classes))


class PlainDiscriminator(nn.Module):
    """Images to scores B by `features` and `score`, which a subclass makes; it has no classification head."""

    features: nn.Module
    score: nn.Module
    head = None

    def forward(self, images: Tensor) -> Tensor:
        return self.score(self.features(images)).flatten()

    def scores_and_logits(self, images: Tensor) -> tuple[Tensor, None]:
        """The scores B, and no class logits."""
        return self(images), None


def initialise_dcgan(network: nn.Module) -> None:
    """`initialise`, biases 0, and the weights of norms from N(1, 0.02²), as most programs do."""
    gan.initialise(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d) and module.affine:
            nn.init.normal_(module.weight, 1.0, 0.02)


def initialise_orthogonal(network: nn.Module) -> None:
    """Make weights random orthogonal matrices (Saxe et al. 2014), biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def normalise_spectra(modules: Iterable[nn.Module]) -> None:
    """Hold the largest singular value of each convolution's and linear layer's weight at 1 (Miyato et al. 2018)."""
    for module in [module for module in modules if isinstance(module, nn.Conv2d | nn.Linear)]:
        nn.utils.parametrizations.spectral_norm(module)
