"""Train a small GAN on images: from a folder of pictures to a generator that draws new ones.

    python rollnumber_04.py                                    # ten classes of drawn shapes, nothing to fetch
    python rollnumber_04.py --data ./cifar10 --epochs 50       # a folder of images, an .npz, MNIST's or CIFAR's files
    python rollnumber_04.py --download cifar10 --epochs 50     # let torchvision fetch the data first
    python rollnumber_04.py --data ./cifar10 --multitask       # the discriminator also tells the classes
    python rollnumber_04.py --data MNIST --preset mnist-bce    # another lab's GAN; --help lists them
    python rollnumber_04.py --resume --out runs/NAME           # go on where the last checkpoint stopped
    torchrun --nproc-per-node 4 rollnumber_04.py --data ...    # several GPUs, or --device cpu, train one run together
    python rollnumber_04.py generate MODEL --count 64 --seed 0 [--label cat] --out samples.png | samples.npz | folder/
    python rollnumber_04.py interpolate MODEL --out path.png | path.gif
    python rollnumber_04.py classify MODEL IMAGE… | FOLDER     # with the discriminator of a run with --multitask

From Python: `load_generator("generator.safetensors").generate(64, seed=0)` is an array of 64 uint8 images.

The file reads from top to bottom:

    Networks       the generator and the discriminator, with its optional classification head
    Objectives     losses, penalties, and what D sees changed at random
    Training       one step, Algorithm 1; averages, several processes, the loop of steps
    Data           a folder of images as one tensor of bytes
    Pictures       sheets of samples, curves, weights, and the logs
    Checkpoints    saving a run, resuming it, saved models
    Commands       options, train, generate, classify

It stands alone. What only an engineer needs are extras/, other courses' systems are labs/; both import it.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import inspect
import io
import itertools
import json
import math
import multiprocessing
import os
import pickle
import platform
import re
import secrets
import shlex
import signal
import sys
import tempfile
import textwrap
import threading
import time
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, redirect_stdout, suppress
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.modules.setdefault("rollnumber_04", sys.modules[__name__])  # what extras/ imports: this module, no second copy
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # torch takes seconds to import, in which Ctrl-C would be a traceback
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))

import numpy as np
import safetensors
import safetensors.torch
import torch
import torch.distributed
import torch.nn.functional as F
from filelock import FileLock, Timeout
from PIL import Image, ImageOps
from torch import Tensor, nn
from tqdm import tqdm

__version__ = "0.1.0"


class UserError(Exception):
    """A mistake that the user can mend: `main` prints it as one sentence, "about: message", and exits with `status`.

    It is `about` a file, or a flag with its value; a file's flag is put before it by `named`. One that is `common` is
    met by all processes at once, and told by the first.
    """

    def __init__(self, message: str, about: object = "", status: int = 2, common: bool = False):
        super().__init__(message)
        self.about, self.status, self.common = str(about), status, common

    def __str__(self) -> str:
        return f"{self.about}: {self.args[0]}" if self.about else str(self.args[0])


@contextmanager
def named(flag: str) -> Iterator[None]:
    """Say of a UserError raised inside which flag it is about, unless it does so itself."""
    try:
        yield
    except UserError as error:
        if not error.about.startswith("--"):
            error.about = f"{flag} {error.about}".strip()
        raise


class Stopped(KeyboardInterrupt):
    """A signal that ends a program now, such as the second to a run that is saving: its argument is its number."""


class NoTestSplit(UserError):
    """The data is not divided into training and test images."""


########################################################################################################################
#                                                       Networks                                                       #
########################################################################################################################

MOST_CLASSES = 1000  # that a head can tell
HEAD_WIDTH, HEAD_DROPOUT = 256, 0.5  # of the classification head's hidden layer
CLASSIFY_PIXELS = 2**19  # at a time: 512 images of 32×32
GENERATE_BATCH = 128  # always this many at a time, so that an image does not depend on how many are asked for


NORMS = ("batch", "batch-inner", "instance", "instance-inner", "none")  # inner: not after a network's first layer
ARCHITECTURES, UPSAMPLES, LATENTS = ("dcgan", "blocks"), ("deconv", "nearest", "bilinear"), ("normal", "uniform")
INITS = ("normal", "dcgan", "orthogonal", "torch")


def halvings(image_size: int, smallest: int) -> int:
    """How often a size can be halved without going below `smallest`: 3 for 32 and 4, 2 for 28 and 4, once at least."""
    return max(1, (checked_size(image_size) // smallest).bit_length() - 1)


def has_norm(norm: str, first: bool = False) -> bool:
    """Whether a layer, the `first` of its network or another, is followed by a norm."""
    return norm != "none" and not (first and norm.endswith("-inner"))


def finish(norm: str, features: int, negative_slope: float, first: bool = False) -> list[nn.Module]:
    """What follows a layer's `features` maps: its norm, if it has one, and a (leaky) ReLU."""
    kinds = {"batch": nn.BatchNorm2d, "instance": partial(nn.InstanceNorm2d, affine=True)}
    norms = [kinds[norm.removesuffix("-inner")](features)] if has_norm(norm, first) else []
    return [*norms, nn.LeakyReLU(negative_slope) if negative_slope else nn.ReLU()]


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = False) -> list[nn.Module]:
    """A convolution that keeps the size, or at stride 2 halves it: up for an odd kernel (7 to 4), down for an even."""
    if stride == 1 and kernel % 2 == 0:  # such a kernel has no middle: a pixel more at the right and below
        less, more = (kernel - 1) // 2, kernel // 2
        return [nn.ZeroPad2d((less, more, less, more)), nn.Conv2d(inputs, outputs, kernel, bias=bias)]
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2, bias=bias)]


def upconv(inputs: int, outputs: int, kernel: int, upsample: str, bias: bool = False) -> list[nn.Module]:
    """Twice the size: a transposed convolution, or enlargement and then a convolution (Odena et al. 2016)."""
    if upsample == "deconv":
        padding, more = (kernel - 1) // 2, kernel % 2
        return [nn.ConvTranspose2d(inputs, outputs, kernel, 2, padding, output_padding=more, bias=bias)]
    return [nn.Upsample(scale_factor=2, mode=upsample), *conv(inputs, outputs, kernel, bias=bias)]


def initialise(network: nn.Module, kind: str) -> None:
    """Draw a network's weights.

    "normal": those of convolutions and linear layers from N(0, 0.02²) (Radford et al. 2016, section 3); "dcgan": those
    of norms from N(1, 0.02²), too, and all biases 0, as most programs do; "orthogonal": orthogonal matrices (Saxe et
    al. 2014), biases 0; "torch": torch's own.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and kind != "torch":
            nn.init.orthogonal_(module.weight) if kind == "orthogonal" else nn.init.normal_(module.weight, 0.0, 0.02)
            if module.bias is not None and kind != "normal":
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.InstanceNorm2d) and kind == "dcgan" and module.affine:
            nn.init.normal_(module.weight, 1.0, 0.02)


def normalise_spectra(modules: Iterable[nn.Module]) -> None:
    """Hold the largest singular value of each convolution's and linear layer's weight at 1 (Miyato et al. 2018)."""
    for module in [module for module in modules if isinstance(module, nn.Conv2d | nn.Linear)]:
        nn.utils.parametrizations.spectral_norm(module)


def class_number(label: int | str, classes: Sequence[str]) -> int:
    """Which class is meant by its name or its number, from 0. Raises UserError.

    Where all classes are named by numbers, a number is a name, with or without zeros in front: 1 is "01". Elsewhere one
    that is the name of a class and the number of another is an error; "name=2" and "number=2" are clear.
    """
    text, known = class_name(label), [class_name(name) for name in classes]
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


class BaseGenerator(nn.Module):
    """What draws images with a network from noise z (B×latent_dim) and, if it is conditional, from classes y.

    y is B×classes, one-hot or a mixture of classes. A subclass has the network, and an `architecture` that says
    `image_size`, `channels`, `latent_dim`, `latent` and the names of the `classes`, none if it is not conditional.
    """

    architecture: dict[str, Any]

    def generate(
        self, n: int, label: int | str | None = None, seed: int = 0, truncation: float | None = None
    ) -> np.ndarray:
        """Draw n ≥ 1 images: uint8 n×H×W (grey) or n×H×W×3 (colour). Image i of a seed does not depend on n.

        `label` is the name or the number of a class of a conditional generator, see `class_number`; None: image i is of
        class i modulo their number. `truncation` is that of `latents`. Raises UserError for a class that is none.
        """
        images = None
        for k, piece in enumerate(self.stream(n, label, seed, truncation)):
            if images is None:
                images = np.empty((n, *piece.shape[1:]), np.uint8)
            images[k * GENERATE_BATCH :][: len(piece)] = piece
        return images

    def labels_for(self, label: int | str | None, start: int, count: int) -> np.ndarray | None:
        """The labels, int64 count, of images start … of `generate`; None if it is not conditional. Raises UserError."""
        classes = self.architecture["classes"]
        if not classes:
            if label is not None:
                raise UserError("the generator is not conditional; train one with --conditional", f"--label {label}")
            return None
        if label is None:
            return np.arange(start, start + count) % len(classes)
        with named("--label"):
            return np.full(count, class_number(label, classes))

    def stream(
        self, n: int, label: int | str | None = None, seed: int = 0, truncation: float | None = None
    ) -> Iterator[np.ndarray]:
        """`generate` in pieces of up to GENERATE_BATCH images, for more than fit into memory."""
        for start in range(0, n, GENERATE_BATCH):
            labels = self.labels_for(label, start, GENERATE_BATCH)
            y = None if labels is None else one_hot(torch.from_numpy(labels), len(self.architecture["classes"]))
            yield self.draw(self.noise(seed, start, GENERATE_BATCH, truncation), y)[: n - start]

    def noise(self, seed: int, start: int, count: int, truncation: float | None = None) -> Tensor:
        """`latents` for this generator. Raises UserError if its noise is not one that can be truncated."""
        dim, latent = self.architecture["latent_dim"], self.architecture["latent"]
        if truncation is not None and latent != "normal":
            raise UserError(f"the generator's noise is {latent}, not normal", f"--truncation {truncation}")
        return latents(seed, start, count, dim, latent, truncation)

    @torch.no_grad()
    def draw(self, z: Tensor, y: Tensor | None = None) -> np.ndarray:
        """The images of noise z (and classes y) as uint8 n×H×W or n×H×W×3, in eval mode."""
        training, device = self.training, next(self.parameters()).device
        self.eval()  # batch norm must use its running averages: an image must not depend on its neighbours
        try:
            images = to_uint8(self(z.to(device), None if y is None else y.to(device)))
        finally:
            self.train(training)
        return (images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)).cpu().numpy()


class Generator(BaseGenerator):
    """Noise z (B×latent_dim) to images (B×channels×S×S) in (-1, 1).

    A linear layer makes a small map, each stage doubles its size and halves its channels. The defaults are the
    assignment's network for CIFAR-10: 370,624 parameters. `arch` is "dcgan", a transposed convolution a stage from
    4..7 pixels on (Radford et al. 2016), or "blocks", two convolutions a stage from 5..8 pixels on and a 1×1
    convolution at the end. With names of `classes` it is conditional: z and y go into the linear layer together (Mirza
    & Osindero 2014).
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        latent_dim: int = 100,
        width: int = 32,
        arch: str = "dcgan",
        upsample: str = "deconv",
        kernel: int = 4,
        norm: str = "batch",
        negative_slope: float = 0.0,
        bias: bool = False,
        latent: str = "normal",
        init: str = "normal",
        classes: Sequence[str] = (),
    ):
        super().__init__()
        self.architecture = arguments(self, locals())
        blocks = arch == "blocks"
        doublings = halvings(image_size, 5 if blocks else 4)
        self.base = image_size >> doublings
        features = width << (doublings if blocks else doublings - 1)
        maps_bias, after = bias and not has_norm(norm), partial(finish, norm, negative_slope=negative_slope)
        first_bias = bias and not has_norm(norm, first=True)
        self.project = nn.Linear(latent_dim + len(classes), features * self.base**2, first_bias)  # B×100 -> B×2048
        layers = [nn.Unflatten(1, (features, self.base, self.base)), *after(features, first=True)]  # 128×4×4
        for _ in range(doublings if blocks else doublings - 1):  # 64×8×8, 32×16×16
            layers += [*upconv(features, features // 2, kernel, upsample, maps_bias), *after(features // 2)]
            features //= 2
            if blocks:
                layers += [*conv(features, features, kernel, bias=maps_bias), *after(features)]
        last = conv(features, channels, 1, bias=bias) if blocks else upconv(features, channels, kernel, upsample, bias)
        self.layers = nn.Sequential(*layers, *last, nn.Tanh())  # 3×32×32
        initialise(self, init)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        return self.layers(self.project(z if y is None else torch.cat([z, y], 1)))


class Discriminator(nn.Module):
    """Images (B×channels×S×S) to scores (B), high for real; no sigmoid.

    Each stage halves the size; the last convolution sees the whole map. The defaults are the assignment's network for
    CIFAR-10: 167,872 parameters. `arch` is "dcgan", a strided convolution a stage that doubles the channels, down to
    4..7 pixels, or "blocks", two convolutions before each strided one, width, 2·width, 3·width … channels, down to 4
    pixels or fewer. With names of `classes` it is the assignment's Task 2: a head of two fully connected layers, on the
    same features, tells the class of an image; or, if `conditional`, it is told the class and judges whether the image
    is real and of that class: each class is a constant plane beside the image's channels (Mirza & Osindero 2014).
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        width: int = 32,
        negative_slope: float = 0.2,
        classes: Sequence[str] = (),
        conditional: bool = False,
        arch: str = "dcgan",
        kernel: int = 4,
        norm: str = "batch",
        dropout: float = 0.0,
        bias: bool = False,
        spectral_norm: bool = False,
        init: str = "normal",
    ):
        super().__init__()
        self.architecture = arguments(self, locals())
        layers, features, self.base = [], channels + (len(classes) if conditional else 0), image_size
        drop = [nn.Dropout(dropout)] if dropout else []
        blocks, after = arch == "blocks", partial(finish, norm, negative_slope=negative_slope)
        for stage in range(10 if blocks else halvings(image_size, 4)):  # 32×16×16, 64×8×8, 128×4×4
            if blocks and stage and self.base <= 4:
                break
            outputs = width * (stage + 1) if blocks else width << stage
            for repeat in range(2 if blocks else 0):
                first = stage == 0 and repeat == 0
                layers += conv(features, outputs, kernel, bias=bias and not has_norm(norm, first))
                layers += after(outputs, first=first)
                features = outputs
            after_stride = "none" if blocks else norm
            layers += conv(features, outputs, kernel, 2, bias and not has_norm(after_stride, stage == 0))
            layers += [*finish(after_stride, outputs, negative_slope, stage == 0), *drop]
            self.base = (self.base + kernel % 2) // 2
            features = outputs
        self.features = nn.Sequential(*layers)
        whole = max(self.base, kernel)  # wider than the map only as in the emoji lab, where 5×5 looks at 4×4
        self.score = nn.Conv2d(features, 1, whole, 2, padding=(whole - self.base + 1) // 2, bias=bias)  # 1×1×1
        initialise(self, init)
        self.head = None
        if classes and not conditional:  # made last, so that a seed gives the other layers the same weights without it
            first = nn.Linear(features * self.base**2, HEAD_WIDTH)  # B×2048 -> B×256
            last = nn.Linear(HEAD_WIDTH, len(classes))  # B×256 -> B×10
            hidden = [nn.LeakyReLU(negative_slope), nn.Dropout(HEAD_DROPOUT)]
            self.head = nn.Sequential(nn.Flatten(), first, *hidden, last)
            initialise(self.head, init)
        if spectral_norm:
            normalise_spectra(self.modules())

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.score(self.features(self.with_planes(images, labels))).flatten()

    def judge(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The scores B and, if it has a head, the class logits B×classes, of the same features."""
        features = self.features(self.with_planes(images, labels))
        return self.score(features).flatten(), None if self.head is None else self.head(features)

    def with_planes(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The images, if D is conditional with a plane for each class besides: 1 for that of the label, else 0."""
        if not self.architecture["conditional"]:
            return images
        planes = one_hot(labels, len(self.architecture["classes"]))[:, :, None, None].expand(-1, -1, *images.shape[2:])
        return torch.cat([images, planes], 1)

    @torch.no_grad()
    def classify(self, pixels: Tensor) -> Tensor:
        """Class logits, float32 N×classes, of uint8 images N×H×W×C, in eval mode and on the network's device."""
        training, device = self.training, next(self.parameters()).device
        self.eval()  # batch norm by its running averages, which are those of real images; no dropout
        try:
            pieces = pixels.split(max(1, CLASSIFY_PIXELS // self.architecture["image_size"] ** 2))
            logits = torch.empty(len(pixels), len(self.architecture["classes"]), device=device)
            for piece, rows in zip(pieces, logits.split(len(pieces[0])), strict=True):
                rows.copy_(self.head(self.features(to_range(piece.to(device)))))
            return logits
        finally:
            self.train(training)


def arguments(network: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """What a network was made with, for its file: its constructor's arguments, out of the names there."""
    names = inspect.signature(type(network)).parameters
    return {name: [*given[name]] if name == "classes" else given[name] for name in names}


def to_uint8(images: Tensor) -> Tensor:
    """(-1, 1) to 0..255 by the fixed map, never stretched to the batch's own minimum and maximum."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def latents(
    seed: int, start: int, count: int, dim: int, latent: str = "normal", truncation: float | None = None
) -> Tensor:
    """Noise for images start .. start+count-1 of a seed, float32 count×dim; each image has a stream of its own.

    `truncation` T draws normal noise from -T … T alone: less variety, better images (Brock et al. 2019, section 3.1).
    """
    streams = (np.random.default_rng((seed, i)) for i in range(start, start + count))
    if latent == "uniform":
        return torch.from_numpy(np.stack([stream.uniform(-1, 1, dim).astype(np.float32) for stream in streams]))
    if truncation is None:
        return torch.from_numpy(np.stack([stream.standard_normal(dim, np.float32) for stream in streams]))
    shares = torch.from_numpy(np.stack([stream.random(dim) for stream in streams]))
    below = torch.special.ndtr(torch.tensor(-truncation, dtype=torch.float64))  # the normal distribution's share
    return torch.special.ndtri(below + shares * (1 - 2 * below)).clamp(-truncation, truncation).float()


def count_parameters(network: nn.Module) -> int:
    """How many numbers the optimizer may change."""
    return sum(parameter.numel() for parameter in network.parameters())


########################################################################################################################
#                                                      Objectives                                                      #
########################################################################################################################


def ls_discriminator_loss(real: Tensor, fake: Tensor, target: float = 1.0) -> Tensor:
    """J(D) = 1/2m Σ (D(x) - target)² + 1/2m Σ D(G(z))², from scores B (the assignment; Mao et al. 2017)."""
    return 0.5 * (real - target).square().mean() + 0.5 * fake.square().mean()


def ls_generator_loss(fake: Tensor) -> Tensor:
    """J(G) = 1/m Σ (D(G(z)) - 1)², from scores B (the assignment; without the factor 1/2 of Mao et al. 2017)."""
    return (fake - 1).square().mean()


def bce_discriminator_loss(real: Tensor, fake: Tensor, target: float = 1.0) -> Tensor:
    """J(D) = -1/2m Σ ln σ(D(x)) - 1/2m Σ ln(1 - σ(D(G(z)))), from logits B (Goodfellow et al. 2014).

    A `target` under 1 is one-sided label smoothing (Salimans et al. 2016, section 3.4): the real images' share of the
    loss is -target · ln σ(D(x)) - (1 - target) · ln(1 - σ(D(x))); that of the generated images stays.
    """
    real_loss = F.binary_cross_entropy_with_logits(real, torch.full_like(real, target))
    return 0.5 * real_loss + 0.5 * F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def bce_generator_loss(fake: Tensor) -> Tensor:
    """J(G) = -1/m Σ ln σ(D(G(z))), the non-saturating form, from logits B (Goodfellow et al. 2014, section 3)."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """J(D) = 1/m Σ max(0, 1 - D(x)) + 1/m Σ max(0, 1 + D(G(z))), from scores B (Lim & Ye 2017; Miyato et al. 2018)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def wgan_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """J(D) = 1/m Σ D(G(z)) - 1/m Σ D(x), from scores B (Arjovsky et al. 2017)."""
    return fake.mean() - real.mean()


def wgan_generator_loss(fake: Tensor) -> Tensor:
    """J(G) = -1/m Σ D(G(z)), from scores B: of the hinge loss, too."""
    return -fake.mean()


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """J(C) = -1/m Σ ln softmax(logits)[label], from logits B×classes and labels B (the assignment's Task 2)."""
    return F.cross_entropy(logits, labels)


LOSSES = {
    "ls": (ls_discriminator_loss, ls_generator_loss),
    "bce": (bce_discriminator_loss, bce_generator_loss),
    "hinge": (hinge_discriminator_loss, wgan_generator_loss),
    "wgan": (wgan_discriminator_loss, wgan_generator_loss),
}
UNDECIDED = {"ls": 0.5, "bce": 0.0, "hinge": 0.0}  # the score of a D that cannot tell real from fake; wgan has none
SMOOTHABLE = ("ls", "bce")  # losses that have a target for real images
LOSS_NAMES = {"ls": "least squares", "bce": "binary cross-entropy", "hinge": "hinge", "wgan": "Wasserstein"}


def squared_gradient_norms(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """‖∇D(x)‖² of each image of B×C×H×W on its own, B; its own gradient can be taken in turn."""
    images = images.detach().requires_grad_(True)
    # The sum's gradient is each score's own, as long as D looks at one image at a time: batch norm does not.
    (gradient,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    return gradient.square().flatten(1).sum(1)


def between(real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """A random point on the line between each real and each generated image, B×C×H×W."""
    share = torch.rand(len(real), 1, 1, 1, generator=rng, device=real.device)
    return fake + share * (real - fake)


def wgan_gp(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """1/m Σ (‖∇D(x̂)‖ - 1)² at points x̂ between real and generated images (Gulrajani et al. 2017)."""
    squares = squared_gradient_norms(discriminator, between(real, fake, rng))
    return ((squares + 1e-12).sqrt() - 1).square().mean()  # the root's own gradient at 0 is infinite


def zero_gp(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """1/m Σ ‖∇D(x̂)‖² at points x̂ between real and generated images (the emoji lab; Thanh-Tung et al. 2019)."""
    return squared_gradient_norms(discriminator, between(real, fake, rng)).mean()


def r1(discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
    """1/2m Σ ‖∇D(x)‖² at real images (Mescheder et al. 2018); `fake` and `rng` are not looked at."""
    return 0.5 * squared_gradient_norms(discriminator, real).mean()


PENALTIES = {"wgan-gp": wgan_gp, "zero-gp": zero_gp, "r1": r1}


# Changes of images B×C×H×W in (-1, 1), of each in its own way. The gradient passes through them to G, which does not
# learn to draw them if D sees real images changed alike (Zhao et al. 2020, about whose amounts these are).


def recoloured(images: Tensor, rng: torch.Generator) -> Tensor:
    """Brightness changed by up to 0.5, saturation to 0 … 2 times, contrast to 0.5 … 1.5 times what it was."""
    brighter, purer, stronger = torch.rand(3, len(images), 1, 1, 1, generator=rng, device=rng.device)
    images = images + (brighter - 0.5)
    grey = images.mean(1, keepdim=True)
    images = grey + 2 * purer * (images - grey)
    middle = images.mean((1, 2, 3), keepdim=True)
    return middle + (0.5 + stronger) * (images - middle)


def translated(images: Tensor, rng: torch.Generator) -> Tensor:
    """Shifted by up to an eighth of each side; what comes in is 0.

    By matrices of 0 and 1 that say which old row or column a new one is: to multiply by them moves each number as it
    is, but for the rounding of bfloat16 or TF32 where training uses it, as D's first convolution does; and on a GPU,
    unlike indexing, its backward pass is the same each time.
    """
    moves = []
    for side in images.shape[2:]:
        at, most = torch.arange(side, device=rng.device), side // 8
        by = torch.randint(-most, most + 1, (len(images), 1, 1, 1), generator=rng, device=rng.device)
        moves.append((at[:, None] + by == at).to(images.dtype))
    return moves[0] @ images @ moves[1].mT


def cut_out(images: Tensor, rng: torch.Generator) -> Tensor:
    """With a hole of 0, half as high and half as wide, around a random pixel."""
    inside = []
    for side in images.shape[2:]:
        at, cut = torch.arange(side, device=rng.device), side // 2
        first = torch.randint(side, (len(images), 1, 1, 1), generator=rng, device=rng.device) - cut // 2
        inside.append((first <= at) & (at < first + cut))
    return images * ~(inside[0].mT & inside[1])


AUGMENTATIONS = {"colour": recoloured, "translation": translated, "cutout": cut_out}


########################################################################################################################
#                                                       Training                                                       #
########################################################################################################################

RANK_STRIDE = 1_000_003  # between the seeds of the processes' noise
ADVICE = "the last checkpoint is whole: --resume, or begin again, with lower --lr-g and --lr-d or with --precision fp32"
LONG, COLLAPSED = 1000, 0.25  # steps for which a trouble has lasted; share of the data's spread
LEAST_SPREAD = 0.01  # of pixel values from 0 to 255, over the images of a set: less is none
EMA_RAMP = 0.05  # while few images have been seen, the half-life is this share of them (Karras et al. 2022, EDM)
MEASURES = ("d_loss", "g_loss", "d_real", "d_fake")
SIDES = ("d_accuracy_real", "d_accuracy_fake")  # shares of real and generated images that D takes for what they are
CLASS_MEASURES = ("class_loss", "accuracy")  # of the classification head, on each batch of real images
VALIDATION_MEASURES = ("val_class_loss", "val_accuracy")
TAGS = dict(  # of what each epoch measures, in TensorBoard
    diversity="samples/diversity",
    fid="samples/fid",
    val_class_loss="validation/class_loss",
    val_accuracy="validation/accuracy",
)
SHOWN = ("d_loss", "g_loss", "accuracy", "val_accuracy", "fid")  # while a run goes on

# Of parameters, rate (on CUDA it may be a tensor, which a captured step reads anew), options, whether on CUDA.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p, lr, o, c: torch.optim.Adam(p, lr, betas=(o.beta1, o.beta2), fused=True, capturable=c),
    "adamw": lambda p, lr, o, c: torch.optim.AdamW(p, lr, betas=(o.beta1, o.beta2), fused=True, capturable=c),
    "rmsprop": lambda p, lr, o, c: torch.optim.RMSprop(p, lr, capturable=c),
    "sgd": lambda p, lr, o, c: torch.optim.SGD(p, lr, momentum=o.beta1, fused=True),
}


def is_launched() -> bool:
    """Whether `torchrun` has started this process, perhaps beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_follower() -> bool:
    """Whether it has, and this is not the first, which alone speaks and writes."""
    return is_launched() and os.environ["RANK"] != "0"


def process_count() -> int:
    """How many processes train one run together, as `torchrun` starts them."""
    return torch.distributed.get_world_size() if is_joined() else 1


def process_rank() -> int:
    """Which of them this is; 0 is the one that writes."""
    return torch.distributed.get_rank() if is_joined() else 0


def is_joined() -> bool:
    """Whether there are several processes, and this one has joined them."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def images_of_step(options: argparse.Namespace) -> int:
    """How many real images an iteration takes, in all processes together."""
    return options.batch_size * options.d_steps * process_count()


@contextmanager
def joined_processes(name: str) -> Iterator[torch.device]:
    """Join the processes that `torchrun` has started, if it has; yields the device of this one, of the asked kind.

    With several GPUs each process takes its own. Raises UserError for a device that there is not.
    """
    together = is_launched() and os.environ["WORLD_SIZE"] != "1"
    if together and name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if together and name == "cuda" and torch.cuda.is_available():
        if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
            raise UserError(f"{torch.cuda.device_count()} GPUs are too few for as many processes", f"--device {name}")
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    elif together and name not in ("cpu", "cuda"):
        raise UserError("processes together take a GPU of NVIDIA's each (cuda), or the cpu", f"--device {name}")
    device = choose_device(name)
    if not together:
        yield device
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and not torch.distributed.is_nccl_available():
        raise UserError(
            "this build of torch lacks NCCL, which GPUs together need; it is not on Windows", f"--device {name}"
        )
    torch.distributed.init_process_group(backend, timeout=timedelta(days=1))  # the others wait while FID is measured
    yield device
    torch.distributed.destroy_process_group()  # not after an error, for it would wait for the others


def shared(value: Any) -> Any:
    """The first process's value, in all of them."""
    if not is_joined():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def gathered(value: Any) -> list[Any]:
    """The values of all processes."""
    if not is_joined():
        return [value]
    values = [None] * process_count()
    torch.distributed.all_gather_object(values, value)
    return values


def agreed(flag: bool) -> bool:
    """Whether any process says so."""
    return any(gathered(flag))


def average_gradients(weights: Iterator[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one message; batch norm's statistics stay apart."""
    if not is_joined():
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= process_count()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def measures_of(options: argparse.Namespace) -> tuple[str, ...]:
    """What a step measures, which depends on the loss, the penalty and the classification head."""
    sides = SIDES if options.loss in UNDECIDED else ()
    penalty = () if options.penalty == "none" else ("penalty",)
    return (*MEASURES, *sides, *penalty, *(CLASS_MEASURES if options.multitask else ()))


class ReplayPool:
    """Generated images of earlier steps, which D is shown beside new ones so that it does not forget them.

    Each new image changes places with a random one of the pool with chance ½ (Shrivastava et al. 2017, section 2.3);
    until the pool is full it only takes. It stays on the device: how many it holds is known without looking.
    """

    def __init__(self, size: int, shape: Sequence[int], device: torch.device):
        self.images = torch.zeros(size, *shape, device=device)
        self.labels = torch.zeros(size, dtype=torch.int64, device=device)
        self.filled = 0

    def swap(self, images: Tensor, labels: Tensor | None, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """As many images B×C×H×W, B ≤ size, as are given, and their labels: new ones and old ones."""
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


@dataclass(frozen=True)
class Recipe:
    """What one kind of training does in its own way; the loop, checkpoints, log and commands are the same for all.

    `GAN` is this script's; a lab has its own. Options travel everywhere, and their recipe with them.
    """

    program: str  # how it is called: python ...
    least_batch: int
    presets: dict[str, dict[str, Any]]
    parser: Callable[[], argparse.ArgumentParser]
    check: Callable[[argparse.Namespace, argparse.ArgumentParser], None]  # UserError for what does not go together
    fixed: dict[str, str]  # options that a resumed run cannot change, and what of the checkpoint depends on them
    folders: Callable[[argparse.Namespace], Sequence[Path | None]]  # of data, in which no run may be written
    load: Callable[[argparse.Namespace], tuple[Images, Images | None, str]]  # training set, validation set, fingerprint
    constants: dict[str, Any]  # options that others have and this one does not
    kinds: dict[str, type[nn.Module]]  # of the networks, by their names
    limits: dict[str, Callable[[Any], bool]]  # which arguments a file may say that one was made with
    networks: Callable[[argparse.Namespace, int, Sequence[str]], dict[str, nn.Module]]  # for channels and classes
    trained: Callable[[argparse.Namespace], dict[str, tuple[Sequence[str], float]]]  # optimizers: networks, rate
    models: Callable[[argparse.Namespace], dict[str, Sequence[str]]]  # files: networks, whose moving average is kept
    pools: Callable[[argparse.Namespace], dict[str, int]]  # of earlier generated images, and how many they hold
    measures: Callable[[argparse.Namespace], tuple[str, ...]]  # of a step
    step: Callable[[Run, Images, Tensor, argparse.Namespace], Tensor]  # on an index d_steps×B; its measures
    measured: Callable[[argparse.Namespace], tuple[str, ...]]  # what `look` finds
    look: Callable[..., Look]  # at the end of each leg: an epoch, or `sample_every` iterations
    draw: Callable[..., None]
    troubles: Callable[[list[dict[str, Any]], argparse.Namespace], list[str]]  # to warn of
    describe: Callable[[Run, argparse.Namespace], tuple[str, str, list[str]]]  # networks, objective, notes


@dataclass
class Run:
    """The state that a run carries, and all that a checkpoint holds."""

    networks: dict[str, nn.Module]  # that are trained
    averages: dict[str, nn.Module]  # moving averages of the weights of some of them; these draw and classify
    optimizers: dict[str, torch.optim.Optimizer]
    pools: dict[str, ReplayPool]
    rng: torch.Generator  # noise and flips, on the device
    bf16: bool
    measures: tuple[str, ...]  # what each step measures
    measured: tuple[str, ...]  # what is measured at the end of each leg
    totals: Tensor  # the sums of the measures of the steps since the last row of log.csv, on the device
    finite: Tensor  # for each measure, after how many of these steps its sum was finite
    ticks: Tensor  # `step`, on the device, where a captured step reads it
    waiting: int = 0  # the steps since the last row of log.csv
    epoch: int = 0  # whole epochs done
    step: int = 0  # iterations done, of `planned`
    planned: int = 1
    seen: int = 0  # images of the epoch under way
    seconds: float = 0.0  # of training since the last row of epochs.csv
    captured: Callable[[Tensor], None] | None = None  # `iteration` as a CUDA graph
    is_capturable: bool = True  # until an attempt has failed
    plain: int = 0  # iterations done without it, with full pools
    log: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)

    @property
    def generator(self) -> BaseGenerator:
        """G, of a run that has one."""
        return self.networks["generator"]

    @property
    def discriminator(self) -> Discriminator:
        """D, of a run that has one; a lab's scores images when it is called, and has `judge` and `head`."""
        return self.networks["discriminator"]

    @property
    def log_columns(self) -> tuple[str, ...]:
        """The columns of log.csv."""
        return ("step", "epoch", *self.measures, "images_per_s")

    @property
    def epoch_columns(self) -> tuple[str, ...]:
        """The columns of epochs.csv."""
        return ("epoch", "step", *self.measures, *self.measured, "images_per_s", "seconds", "warning")

    def inputs(self, count: int, labels: Tensor | None = None) -> tuple[Tensor, ...]:
        """Fresh noise z, count×latent_dim, and for a conditional G the labels as one-hot y: what G takes."""
        dim, latent, classes = (self.generator.architecture[key] for key in ("latent_dim", "latent", "classes"))
        if latent == "uniform":
            z = torch.rand(count, dim, generator=self.rng, device=self.rng.device) * 2 - 1
        else:
            z = torch.randn(count, dim, generator=self.rng, device=self.rng.device)
        return (z, one_hot(labels, len(classes))) if classes else (z,)

    def autocast(self) -> torch.autocast:
        """Convolutions in bfloat16 where the run has it; weights, losses and optimizers stay float32."""
        return torch.autocast(self.rng.device.type, torch.bfloat16, enabled=self.bf16)


def make_networks(
    options: argparse.Namespace, channels: int, classes: Sequence[str]
) -> dict[str, Generator | Discriminator]:
    """G and D as the options ask for them: for a head, or conditional, with the names of the classes."""
    common = {name: getattr(options, name) for name in ("image_size", "arch", "kernel", "bias", "init")}
    norm_g, _, norm_d = options.norm.partition(",")
    generator = Generator(
        **common,
        channels=channels,
        latent_dim=options.latent_dim,
        width=options.width_g,
        upsample=options.upsample,
        norm=norm_g,
        negative_slope=options.negative_slope_g,
        latent=options.latent,
        classes=classes if options.conditional else (),
    )
    discriminator = Discriminator(
        **common,
        channels=channels,
        width=options.width_d,
        negative_slope=options.negative_slope,
        classes=classes,
        conditional=options.conditional,
        norm=norm_d or norm_g,
        dropout=options.dropout,
        spectral_norm=options.spectral_norm,
    )
    return {"generator": generator, "discriminator": discriminator}


def make_run(
    options: argparse.Namespace, channels: int, device: torch.device, bf16: bool, classes: Sequence[str] = ()
) -> Run:
    """Build networks, averages and optimizers; the same seed gives the same weights on every device."""
    recipe, cuda = options.recipe, device.type == "cuda"
    torch.manual_seed(options.seed)
    networks = recipe.networks(options, channels, classes)
    for network in networks.values():
        network.to(device, memory_format=memory_format(device))
    optimizers = {
        name: OPTIMIZERS[options.optimizer](
            parameters_of(networks, members),
            torch.tensor(rate, device=device) if cuda and options.lr_decay else rate,
            options,
            cuda,
        )
        for name, (members, rate) in recipe.trained(options).items()
    }
    shape, measures = (channels, options.image_size, options.image_size), recipe.measures(options)
    rank = process_rank()
    if rank:  # dropout of its own, as the noise
        torch.manual_seed(options.seed + rank)
    return Run(
        networks,
        averages={name: deepcopy(networks[name]).requires_grad_(False).eval() for name in averaged_by(options)},
        optimizers=optimizers,
        pools={name: ReplayPool(size, shape, device) for name, size in recipe.pools(options).items()},
        # Not the stream that the weights were drawn from; each process has its own.
        rng=torch.Generator(device).manual_seed(options.seed + 1 + RANK_STRIDE * rank),
        bf16=bf16,
        measures=measures,
        measured=recipe.measured(options),
        totals=torch.zeros(len(measures), device=device),
        finite=torch.zeros(len(measures), device=device),
        ticks=torch.zeros((), dtype=torch.int64, device=device),
    )


def memory_format(device: str | torch.device) -> torch.memory_format:
    """Channels last, which bf16 kernels and tensor cores want; not on Apple's GPUs, whose batch norm is wrong there."""
    return torch.contiguous_format if torch.device(device).type == "mps" else torch.channels_last


def averaged_by(options: argparse.Namespace) -> list[str]:
    """The networks whose moving average is kept, and saved."""
    return [name for names in options.recipe.models(options).values() for name in names]


def parameters_of(networks: dict[str, nn.Module], members: Sequence[str]) -> list[nn.Parameter]:
    """All parameters of the networks with these names."""
    return [parameter for name in members for parameter in networks[name].parameters()]


@contextmanager
def running_averages_kept(network: nn.Module) -> Iterator[None]:
    """Let images pass in training mode without a trace in batch norm's running averages.

    D's averages are to be those of real images alone: the classification head meets no others when it is used, and
    averages over real and generated images together fit neither.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def instance_noise(run: Run, images: Tensor, options: argparse.Namespace) -> Tensor:
    """Images with normal noise that fades over the run, so that real and generated ones overlap (Sønderby et al. 2017).

    Its deviation falls linearly from `instance_noise` to 0, in units of the range (-1, 1).
    """
    if not options.instance_noise:
        return images
    deviation = options.instance_noise * (1 - run.ticks / run.planned).clamp(min=0)
    noise = torch.randn(images.shape, generator=run.rng, device=run.rng.device)
    return images + (deviation * noise).to(images.dtype)


def augment(run: Run, images: Tensor, options: argparse.Namespace) -> Tensor:
    """Images B×C×H×W changed at random as `augment` asks: what D sees of real and generated images is changed alike."""
    for kind in AUGMENTATIONS:
        if kind in options.augment.split(","):
            images = AUGMENTATIONS[kind](images, run.rng)
    return images


def update(run: Run, name: str, loss: Tensor) -> None:
    """A step of an optimizer down a loss, by the gradient of all processes' losses."""
    optimizer = run.optimizers[name]
    optimizer.zero_grad()
    loss.backward()
    average_gradients(weight for group in optimizer.param_groups for weight in group["params"])
    optimizer.step()


def discriminator_step(
    run: Run, real: Tensor, options: argparse.Namespace, labels: Tensor | None = None
) -> tuple[Tensor, ...]:
    """One update of D on real images B×C×H×W and as many fakes; returns what it measures, on the device.

    That is J(D), the mean scores and, where the loss has an undecided score, the shares of real and generated images on
    the right side of it. What the options ask for is added: the penalty (times its weight, it joins J(D)); with a
    classification head and labels B, J(C) on the real images and its accuracy: the update is then that of J(D_total) =
    J(D) + class_weight · J(C). A conditional D is shown the labels with the real images and the fakes made for them.
    """
    network = run.discriminator
    with run.autocast():
        with torch.no_grad():  # D's step does not reach into G
            fake = run.generator(*run.inputs(len(real), labels))
        shown, shown_labels = run.pools["fakes"].swap(fake, labels, run.rng) if run.pools else (fake, labels)
        real, shown = augment(run, real, options), augment(run, shown, options)
        # Apart, so that batch norm never mixes the statistics of real and fake images.
        real_score, logits = network.judge(instance_noise(run, real, options), labels)
        with running_averages_kept(network):
            fake_score = network(instance_noise(run, shown, options), shown_labels)
    real_score, fake_score = real_score.float(), fake_score.float()
    smoothed = {"target": 1 - options.label_smoothing} if options.loss in SMOOTHABLE else {}
    value = total = LOSSES[options.loss][0](real_score, fake_score, **smoothed)
    measures = [value, real_score.mean(), fake_score.mean()]
    if (middle := UNDECIDED.get(options.loss)) is not None:
        measures += [(real_score > middle).float().mean(), (fake_score < middle).float().mean()]
    if options.penalty != "none":  # at images without noise; in float32, which a gradient's gradient needs
        fake = augment(run, fake, options)  # not `shown`, which may be of other labels
        with running_averages_kept(network):
            penalty = PENALTIES[options.penalty](lambda x: network(x, labels), real.float(), fake.float(), run.rng)
        total = total + options.penalty_weight * penalty
        measures.append(penalty)
    if logits is not None:
        class_loss = classification_loss(logits.float(), labels)
        total = total + options.class_weight * class_loss
        measures += [class_loss, (logits.argmax(1) == labels).float().mean()]
    update(run, "discriminator", total)
    return tuple(measure.detach() for measure in measures)


def generator_step(run: Run, count: int, options: argparse.Namespace, labels: Tensor | None = None) -> Tensor:
    """One update of G on `count` fresh noise vectors, for labels B if conditional; returns its loss, on the device."""
    run.discriminator.requires_grad_(False)  # the gradient passes through D; D's own is not wanted
    with run.autocast(), running_averages_kept(run.discriminator):
        fake = augment(run, run.generator(*run.inputs(count, labels)), options)
        fake = instance_noise(run, fake, options)
        fake_score = run.discriminator(fake, labels).float()
    value = LOSSES[options.loss][1](fake_score)
    update(run, "generator", value)
    run.discriminator.requires_grad_(True)
    return value.detach()


def ema_share(ticks: Tensor, of_step: int, half_life: float) -> Tensor:
    """The share of the network in its average in step `ticks` of `of_step` images, those that G draws in a step.

    What the average holds halves every `half_life` images, or every EMA_RAMP of the images so far, if these are fewer;
    with 0 it keeps no past. For long ones the share is so small that 1 - decay would be lost in rounding.
    """
    return -torch.expm1(-math.log(2) * of_step / (EMA_RAMP * of_step * ticks).clamp(max=half_life))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, share: Tensor) -> None:
    """average <- average + share · (network - average), for weights and batch-norm statistics.

    torch's own function for it takes the share as a Python number, which a CUDA graph would repeat for ever.
    """
    averaged, current = [], []
    for (name, old), (_, new) in zip(named_tensors(average), named_tensors(network), strict=True):
        if name.endswith(("._u", "._v")):  # spectral norm's singular vectors: a mean of unit vectors is none
            old.copy_(new)
        elif old.is_floating_point():
            averaged.append(old)
            current.append(new)
    change = torch._foreach_sub(current, averaged)
    torch._foreach_mul_(change, share)
    torch._foreach_add_(averaged, change)


def named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters, then all buffers, by name."""
    return [*network.named_parameters(), *network.named_buffers()]


def train_step(run: Run, batches: Sequence[tuple[Tensor, Tensor | None]], options: argparse.Namespace) -> Tensor:
    """A step of D on each batch (images, labels), one of G.

    Returns run.measures as a tensor on the device, those of D as means over its steps: nothing is read back here.
    """
    of_steps = [torch.stack(discriminator_step(run, real, options, labels)) for real, labels in batches]
    of_d = torch.stack(of_steps).mean(0)
    real, labels = batches[-1]
    g_loss = generator_step(run, len(real), options, labels)
    return torch.cat([of_d[:1], g_loss[None], of_d[1:]])


def choose_device(name: str) -> torch.device:
    """The asked device, or for "auto" a CUDA GPU, Apple's GPU or the CPU, whichever comes first. Raises UserError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        with suppress(RuntimeError, AssertionError):  # said below
            device = torch.zeros(1, device=name).device
            if device.type == "cuda":
                torch.cuda.set_device(device)  # on which graphs are captured
            return device
    raise UserError("not available on this machine", f"--device {name}")


def wants_bf16(precision: str, device: torch.device) -> bool:
    """Whether to train in bfloat16; "auto": where the device has instructions for it, as NVIDIA's GPUs since 2020 do.

    And CPUs with AVX512-BF16 or AMX. The same machine always gives the same answer, however busy it is: a stopwatch
    would not.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def gan_step(run: Run, images: Images, index: Tensor, options: argparse.Namespace) -> Tensor:
    """`train_step` on the images of `index`, d_steps×B."""
    with_labels, device = options.multitask or options.conditional, run.rng.device
    batches = [
        (
            real_batch(images.pixels, part, options.flip, run.rng),
            images.labels[part].to(device, non_blocking=True) if with_labels else None,
        )
        for part in index
    ]
    return train_step(run, batches, options)


def iteration(run: Run, images: Images, index: Tensor, options: argparse.Namespace) -> None:
    """An iteration on the images of `index`, d_steps×B: weights, their averages, and the sums of the measures.

    With full pools all that changes from one to the next is in tensors on the device: a CUDA graph can repeat it.
    """
    measures = options.recipe.step(run, images, index, options)
    run.ticks += 1
    share = ema_share(run.ticks, index.shape[1] * process_count(), options.ema)
    for name, average in run.averages.items():
        update_average(average, run.networks[name], share)
    run.totals += measures
    run.finite += run.totals.isfinite()


def why_no_graph(run: Run, images: Images, options: argparse.Namespace) -> str:
    """Why steps are not launched as one CUDA graph each; "" if they are, which extras/speed.py does."""
    if run.rng.device.type != "cuda":
        return "there is no CUDA GPU"
    speed = extra("speed", is_needed=False)
    if not (options.cuda_graph and run.is_capturable and speed):
        return "it is turned off" if not options.cuda_graph else "it failed" if speed else "extras/speed.py is missing"
    return speed.why_not_captured(run, images)


def train_leg(
    run: Run, images: Images, steps: int, options: argparse.Namespace, stop: Callable[[], bool] = lambda: False
) -> Iterator[dict[str, float]]:
    """Do `steps` iterations, `d_steps` batches of new real images each; `stop` may end them between two.

    Goes from epoch to epoch where the images of one no longer make a batch. Yields rows of log.csv, means over up to
    `log_every` iterations. The measures add up on the device; a GPU is waited for only where a row is made. Raises
    UserError (status 1) where a measure is not finite.
    """
    device, order, count = run.rng.device, None, len(images.pixels)
    batch, together, rank = options.batch_size, options.batch_size * process_count(), process_rank()
    at_once = device.type == "cpu" and process_count() == 1  # whether the measures are looked at after each step
    may_capture = why_no_graph(run, images, options) == ""
    began, timed = time.perf_counter(), 0
    for done in range(steps):
        # To agree on it is a message, on a GPU also a wait.
        if (process_count() == 1 or device.type == "cpu" or not run.waiting) and stop():
            average_sums(run)
            break
        index = []
        for _ in range(options.d_steps):
            if run.seen + together > count:
                run.epoch, run.seen, order = run.epoch + 1, 0, None
            if order is None:
                order = epoch_order(count, options.seed, run.epoch + 1).to(images.pixels.device)
            index.append(order[run.seen + rank * batch :][:batch])
            run.seen += together
        if not all(pool.filled == len(pool.images) for pool in run.pools.values()):
            run.plain = 0
        if may_capture and run.captured is None and run.plain >= extra("speed").GRAPH_AFTER:
            run.captured = extra("speed").capture_or_say(run, images, options)
            may_capture = run.is_capturable = run.captured is not None
        if options.lr_decay:
            set_rates(run, options)
        (run.captured or partial(iteration, run, images, options=options))(torch.stack(index))
        run.step, run.waiting, run.plain, timed = run.step + 1, run.waiting + 1, run.plain + 1, timed + 1
        row_is_due = run.waiting >= options.log_every or done == steps - 1
        if row_is_due:
            average_sums(run)
        if (row_is_due or at_once) and not run.totals.isfinite().all():  # the wait
            raise UserError(diverged(run), status=1, common=True)
        if row_is_due:
            seconds = time.perf_counter() - began
            run.seconds += seconds
            yield logged(run) | {"images_per_s": timed * together * options.d_steps / seconds}
            began, timed = time.perf_counter(), 0
    run.seconds += time.perf_counter() - began
    if run.waiting and not steps:  # resumed with a batch that no longer fits into the epoch
        yield logged(run) | {"images_per_s": 0.0}


def rate_share(step: int, planned: int) -> float:
    """The share of their rates in a step: 1 in the first half of the run, then it falls linearly to 0."""
    return max(0.0, min(1.0, 2 * (1 - step / planned)))


def noise_share(step: int, planned: int) -> float:
    """The share of the instance noise's deviation in a step: it falls linearly from 1 to 0."""
    return max(0.0, 1 - step / planned)


def planned_before(saved: dict[str, Any], run: Run, steps: int, ahead: int, options: argparse.Namespace) -> int:
    """How many steps a resumed run was planned for, by a checkpoint's options; older ones tell less."""
    before = saved.get("planned")
    if before is None:
        epochs = saved.get("epochs")
        more = (options.epochs - epochs) * steps if type(epochs) is int else 0
        before = saved.get("iterations") or run.step + ahead - more
    return before if type(before) is int and 0 < before < 2**62 else run.planned  # a file may say anything


def jumps(step: int, before: int, now: int, saved: dict[str, Any], options: argparse.Namespace) -> list[str]:
    """What changes at once in a run that is resumed at a step, planned for another number of steps than `before`."""
    falling = {"lr_decay": ("the learning rates", rate_share)}
    falling["instance_noise"] = ("the deviations of the instance noise", noise_share)
    found = []
    for name, (what, share) in falling.items():
        was, becomes = share(step, before), share(step, now)
        if saved.get(name) and getattr(options, name, 0) and was != becomes:
            found.append(f"{what} stood at {was:.0%} of their first value and go on at {becomes:.0%}")
    return found


def set_rates(run: Run, options: argparse.Namespace) -> None:
    """Set the rates of the step to come, as `rate_share` says."""
    share = rate_share(run.step, run.planned)
    for name, (_, rate) in options.recipe.trained(options).items():
        for group in run.optimizers[name].param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * share)
            else:
                group["lr"] = rate * share


def average_sums(run: Run) -> None:
    """Make the sums of the measures those of all processes: their mean, and for finite ones the least count."""
    if is_joined():
        torch.distributed.all_reduce(run.totals)
        run.totals /= process_count()
        torch.distributed.all_reduce(run.finite, torch.distributed.ReduceOp.MIN)


def logged(run: Run) -> dict[str, float]:
    """The means of the measures since the last row of log.csv, as the next row; the sums begin again."""
    means = dict(zip(run.measures, (run.totals / run.waiting).tolist(), strict=True))
    run.waiting = 0
    run.totals.zero_()
    run.finite.zero_()
    return {"step": run.step, "epoch": run.epoch + 1, **means}


def diverged(run: Run) -> str:
    """Which measure was the first that was not finite, and at which step: its sum has not been finite since."""
    good = [int(steps) for steps in run.finite.tolist()]
    first = good.index(min(good))
    step = run.step - run.waiting + good[first] + 1
    return f"{run.measures[first]} is not finite at step {step:,}, epoch {run.epoch + 1}; {ADVICE}"


def validate(discriminator: Discriminator, validation: Images) -> tuple[float, float, np.ndarray]:
    """Loss and accuracy of the classification head on a whole set, and its confusion matrix (true × predicted)."""
    logits = discriminator.classify(validation.pixels).cpu()
    labels, classes = validation.labels.cpu(), logits.shape[1]
    pairs = labels * classes + logits.argmax(1)
    confusion = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy()
    return classification_loss(logits, labels).item(), float(confusion.trace() / len(labels)), confusion


########################################################################################################################
#                                                         Data                                                         #
########################################################################################################################

IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .jfif .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .tga".split())
IMAGE_FORMATS = "PNG JPEG BMP GIF WEBP TIFF PPM TGA".split()  # Pillow knows more, some of which call other programs
SPLITS = {"train": {"train", "training"}, "test": {"test", "testing", "t10k", "val", "valid", "validation"}}
CACHED_FROM, CACHE_VERSION = 5_000, 2  # files that take a second to decode; the version is that of what decoding gives
SYSTEM_NAMES = frozenset(  # that systems and programs keep for themselves, beside those with a dot or __ in front
    "@eadir @recycle @recently-snapshot @synoresource @tmp #recycle #snapshot $recycle.bin recycler lost+found "
    "~snapshot thumbs.db ehthumbs.db desktop.ini icon\r".split(" ")
) | {"system volume information", "network trash folder", "temporary items"}
SIZES_LOOKED_AT = 1000  # files, to find a set's own size
FEW_VALUES = 32  # of 256: images that use fewer were probably stored in another range
LINK = "link to a folder"  # which is not followed
CACHE_BYTES = 4 << 30  # that the cache folder may hold
DECODE_CHUNK = 256  # images of up to 32×32 that a worker decodes before it reports
SIZES = [base << halvings for halvings in range(1, 9) for base in (4, 5, 6, 7)]  # that the networks make: 8, 10 … 1792


@dataclass(frozen=True)
class Images:
    """A decoded set: `pixels` uint8 N×H×W×C (C is 1 or 3), `labels` int64 N or None, `classes` the labels' names.

    `found` says what the images were before they were scaled: "colour images of 256×256".
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    other: Images | None = None  # the other set, for what turns images of one kind into another
    found: str = ""


@dataclass(frozen=True)
class Source:
    """A set found but not decoded yet: image files or a uint8 array N×H×W[×3], labels N or None, the labels' names.

    `where` is what the user called it, `left_out` counts what lies there and is not taken, by its kind: ".heic".
    """

    items: Sequence[Path] | np.ndarray
    labels: Sequence[int] | np.ndarray | None = None
    classes: tuple[str, ...] = ()
    where: str = ""
    left_out: Counter[str] = field(default_factory=Counter)


def load_images(
    path: str | Path | None = None,
    split: str = "train",
    image_size: int | None = None,
    skip_unreadable: bool = False,
    cache: bool = True,
) -> Images:
    """Load a whole data set as one uint8 tensor.

    `path` may be a folder with `train/` and `test/`, a folder of class folders, a flat folder of images, the CIFAR
    pickles, MNIST's IDX files (gzipped or not), EMNIST's (or one of a set's files, which means that set), SVHN's `.mat`
    files, an `.npz`, or None for the built-in shapes. `split` is "train", "test" or "all", both in this order; a set
    that comes undivided is all "train". Images of another size are resized (antialiased) so that the shorter side fits,
    and cropped to the centre. `image_size` None keeps the images' own size where the networks can make it. A set whose
    images are all grey has one channel. The pixels of many image files are kept in the user's `cache`, for the next
    time. Raises UserError that names what is wrong.
    """
    if split == "all":
        train = load_images(path, "train", image_size, skip_unreadable, cache)
        try:
            return merge(train, load_images(path, "test", train.pixels.shape[1], skip_unreadable, cache))
        except NoTestSplit:
            return train
    if path is None:
        count, seed = (10_000, 0) if split == "train" else (2_000, 1)
        return draw_shapes(count, checked_size(image_size or 32), seed)
    size = image_size and checked_size(image_size)
    return decode_source(find_source(Path(os.path.expanduser(path)), split), size, skip_unreadable, cache)


def find_source(path: Path, split: str) -> Source:
    """`find_images`, with the file system's complaints as UserError."""
    try:
        return find_images(path, split)
    except FileNotFoundError:
        raise UserError("there is no such file or folder", path) from None
    except OSError as error:
        raise UserError(f"{error.strerror}", error.filename or path) from None


def decode_source(
    source: Source, image_size: int | None = None, skip_unreadable: bool | None = None, cache: bool = False
) -> Images:
    """Decode a set at a size, or at the images' own; one channel if all are grey. Raises UserError.

    Says what was left out, and what of the images is not as one expects. `skip_unreadable` is None where a command has
    no such option.
    """
    if source.left_out:
        say(f"note: {source.where}: left out {counted(source.left_out)}")
    labels = None if source.labels is None else np.array(source.labels, np.int64)
    classes = tuple(map(class_name, source.classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's, of tags that are damaged where the pixels are not
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # a picture that unpacks to gigabytes is damage
        sizes = own_sizes(source)
        size = image_size or natural_size(sizes)
        name = cache_name(source.items, size) if cache else ""
        kept = load_cached(name) if name else None
        if kept and "pixels" in kept and len(kept["pixels"]) == len(source.items):
            images = Images(kept["pixels"], None if labels is None else torch.from_numpy(labels), classes)
            return noted(images, sizes, source.where)
        pixels, unreadable = decode(source.items, size)
    if unreadable:
        if not skip_unreadable:
            first, what = next(iter(unreadable.items()))
            others = f" (and {len(unreadable) - 1:,} more)" if len(unreadable) > 1 else ""
            advice = "; --skip-unreadable leaves such images out" if skip_unreadable is False else ""
            raise UserError(f"{what}{others}{advice}", source.items[first])
        lines = (printable(f"{source.items[i]}: {what}") for i, what in unreadable.items())
        say("\n  ".join([f"skipped {len(unreadable):,} unreadable images:", *lines]))
        keep = np.setdiff1d(np.arange(len(pixels)), list(unreadable))
        if not len(keep):
            raise UserError("none of its images can be read", source.where)
        pixels = pixels[keep]
        if labels is not None:  # a class may have lost all its images
            occurring, labels = np.unique(labels[keep], return_inverse=True)
            classes = tuple(classes[i] for i in occurring)
    if (pixels[..., :1] == pixels).all():  # grey in every pixel, however it was stored
        pixels = pixels[..., :1]
    pixels = torch.from_numpy(np.require(pixels, requirements=("C", "W")))
    if name and not unreadable:
        save_cached(name, {"pixels": pixels})
    images = Images(pixels, None if labels is None else torch.from_numpy(labels), classes)
    return noted(images, sizes, source.where)


def noted(images: Images, sizes: Counter[tuple[int, int]], where: str) -> Images:
    """A decoded set with what its images were; says if their sizes differ, or if they use few of the values."""
    (least, most), side = (
        (choose(sizes, key=lambda size: (math.prod(size), size)) for choose in (min, max)),
        images.pixels.shape[1],
    )
    span = "{}×{}".format(*least)
    if len(sizes) > 1:
        span += " … {}×{}".format(*most)
        say(f"note: {where}: the images' sizes differ, {span}; each is scaled and cropped to {side}×{side}")
    used = int(images.pixels.max()) - int(images.pixels.min()) + 1
    if used < FEW_VALUES:
        what = "all pixels have one value" if used == 1 else f"all pixels lie within {used} of the 256 values"
        say(f"note: {where}: {what}; scale images of another range to 0 … 255 first")
    return replace(images, found=f"{'grey' if images.pixels.shape[3] == 1 else 'colour'} images of {span}")


def ending(name: str | Path) -> str:
    """A file's ending, as what is left out is counted by: ".heic"."""
    return os.path.splitext(name)[1].lower() or "no ending"


def counted(kinds: Counter[str]) -> str:
    """What was left out, the most first: "20 × .heic, 1 × link to a folder"."""
    return ", ".join(f"{count:,} × {printable(kind)}" for kind, count in kinds.most_common())


def cache_folder() -> Path:
    """Where what takes long to compute, and can be computed again, is kept for the next time."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rollnumber_04")
    except RuntimeError:  # a user without a home, as in a container
        return Path(tempfile.gettempdir(), "rollnumber_04")


def load_cached(name: str) -> dict[str, Tensor] | None:
    """What `save_cached` kept under a name; None if there is nothing, or nothing whole."""
    path = cache_folder() / f"{name}.safetensors"
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError):
        return None
    with suppress(OSError):  # of a folder that can be read only
        os.utime(path)  # used just now
    return tensors


def save_cached(name: str, tensors: dict[str, Tensor]) -> None:
    """Keep tensors for the next time; what was used longest ago makes room. Says so where nothing can be written."""
    if is_follower():  # the first process has done so
        return
    folder, files = cache_folder(), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two runs that begin together must not write to one file.
        write_whole(folder / f"{name}.safetensors", safetensors.torch.save(tensors), f".{os.getpid()}.tmp")
        for path in folder.glob("*.safetensors*"):
            with suppress(FileNotFoundError):  # another run has just removed it
                files.append((path.stat().st_mtime, path.stat().st_size, path))
        room = CACHE_BYTES
        for _, size, path in sorted(files, reverse=True):
            room -= size
            if room < 0:
                path.unlink(missing_ok=True)
    except OSError as error:
        path = error.filename or folder
        print(f"note: {path} could not be written ({error.strerror}); the next time computes it again", file=sys.stderr)


def cache_name(items: Sequence[Path] | np.ndarray, size: int) -> str:
    """A name for the pixels of CACHED_FROM or more image files, from their paths, sizes and times; else ""."""
    if isinstance(items, np.ndarray) or not CACHED_FROM <= len(items) <= CACHE_BYTES / 2 / (3 * size**2):
        return ""
    lines = [f"{CACHE_VERSION} {size} {'' if items[0].is_absolute() else os.getcwd()}"]
    try:
        facts = [(item, os.stat(item)) for item in items]
    except OSError:  # a link that leads nowhere, which decoding will complain of
        return ""
    lines += [f"{item} {fact.st_size} {fact.st_mtime_ns} {fact.st_ctime_ns}" for item, fact in facts]
    digest = hashlib.sha256("\n".join(lines).encode(errors="surrogatepass"))
    return f"pixels-{digest.hexdigest()[:32]}"


def printable(name: object) -> str:
    """A name with escapes for what cannot be printed: a file system takes names that no text file or terminal does."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def class_name(name: object) -> str:
    """A class's name as it is compared and shown: the same whether its letters were composed (Linux) or not (a Mac)."""
    return printable(unicodedata.normalize("NFC", str(name)))


def checked_size(size: int) -> int:
    """The size itself, or a UserError that names the nearest sizes that the networks can make."""
    if size not in SIZES:
        near = " and ".join(map(str, sorted(sorted(SIZES, key=lambda other: abs(other - size))[:2])))
        raise UserError(f"must be 4, 5, 6 or 7 times 2, 4, 8, 16 …; {near} are near", f"--image-size {size}")
    return size


def find_images(path: Path, split: str) -> Source:
    """Tell by its content which layout `path` has, and list the split's images and labels without decoding them.

    Raises UserError, and OSError for a path that is not there or must not be read.
    """
    if not path.is_dir():
        path.stat()  # raises if there is nothing
        if source := extra("formats").find_arrays(path, split):
            return source
        raise UserError("neither a folder nor a file of images that is known here", path)
    folders = subfolders(path)
    if splits := split_folders(folders):
        if "train" not in splits:
            raise UserError("has no train/ beside its test/", path)
        if split not in splits:
            raise NoTestSplit("has no test/ beside its train/", path)
        beside = Counter(ending(file) for file in image_files(path))
        beside += Counter(f"folder {printable(folder.name)}/" for folder in folders if folder not in splits.values())
        if beside:
            say_once(f"note: {path}: left out {counted(beside)}")
        return find_split(splits["train"], splits[split])
    if divided := [folder for folder in folders if split_folders(subfolders(folder))]:
        return only(divided if len(folders) == 1 else folders, path, split)

    left_out: Counter[str] = Counter()
    images = image_files(path, left_out)
    members = {folder: image_files(folder, left_out, below=True) for folder in folders}
    if not images and not any(members.values()):
        formats = extra("formats", is_needed=False)
        if source := formats and formats.find_arrays(path, split):
            return source
        if containers := [folder for folder in folders if formats and formats.array_files(folder)]:
            return only(containers, path, split)
        if left_out:
            raise UserError(f"nothing in it is an image that is known here: {counted(left_out)}", path)
        what = "there is no image in this folder" if os.listdir(path) else "this folder is empty"
        raise UserError(f"{what}", path)
    if split == "test":
        raise NoTestSplit("is not divided into train/ and test/", path)
    if not any(members.values()):
        return Source(images, where=str(path), left_out=left_out)
    if images:
        raise UserError(f"images such as {images[0].name} lie beside its class folders", path)
    if empty := [folder for folder, files in members.items() if not files]:
        inside: Counter[str] = Counter()
        image_files(empty[0], inside, below=True)
        what = f"holds no image that is known here: {counted(inside)}" if inside else "has no image"
        raise UserError(f"this class folder {what}", empty[0])
    names = {folder: class_name(folder.name) for folder in members}
    classes = sorted({*names.values()})
    items = [file for files in members.values() for file in files]
    labels = [classes.index(names[folder]) for folder, files in members.items() for _ in files]
    return Source(items, labels, tuple(classes), str(path), left_out)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are meant for people, in order. Raises OSError."""
    return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and not is_hidden(entry.name))


def split_folders(folders: Sequence[Path]) -> dict[str, Path]:
    """{"train": folder, "test": folder} of a divided set, {} of any other: a class may be called "train", too."""
    found = {split: next((f for f in folders if f.name.lower() in names), None) for split, names in SPLITS.items()}
    splits = {split: folder for split, folder in found.items() if folder}
    whole = len(splits) == 2 or all(folder.name.lower() in SPLITS["train"] | SPLITS["test"] for folder in folders)
    return splits if whole else {}


def only(folders: Sequence[Path], parent: Path, split: str) -> Source:
    """The images of the only data set in a folder."""
    if len(folders) > 1:
        raise UserError(f"holds several data sets; name one of them, such as {folders[0]}", parent)
    return find_images(folders[0], split)


def find_split(train: Path, folder: Path) -> Source:
    """The images of a split's own folder, their labels numbered as in the training folder."""
    train, folder = within_split(train), within_split(folder)
    source = find_images(folder, "train")
    if folder == train or source.labels is None:
        return source
    known = tuple(map(class_name, find_images(train, "train").classes))
    try:
        return renumbered(source, known)
    except KeyError as stray:
        raise UserError(f"class {stray.args[0]} is not in {train}", folder) from None


def within_split(folder: Path) -> Path:
    """The folder itself, or the only one in it if that has a name of the same split: train/train, test/test."""
    (words,) = (words for words in SPLITS.values() if folder.name.lower() in words)
    inner = subfolders(folder)
    is_same = len(inner) == 1 and inner[0].name.lower() in words and not image_files(folder)
    return within_split(inner[0]) if is_same else folder


def renumbered(source: Source, known: Sequence[str]) -> Source:
    """A labelled set with the labels of its classes' names among the `known` ones. KeyError: the name that is not."""
    number = {name: label for label, name in enumerate(known)}
    of_label = [number[class_name(name)] for name in source.classes]
    return replace(source, labels=[of_label[label] for label in source.labels], classes=tuple(known))


def is_hidden(name: str) -> bool:
    """Whether a name is not meant for people: .git, .DS_Store, __MACOSX, Synology's @eaDir, $RECYCLE.BIN."""
    own = name.lower() in SYSTEM_NAMES or re.fullmatch(r"found\.\d{3}", name.lower())
    return name.startswith((".", "__")) or bool(own)


def is_image_name(name: str) -> bool:
    """Whether a file's name says that it is an image (.png, .JPG, …)."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_hidden(name)


def image_files(folder: Path, left_out: Counter[str] | None = None, below: bool = False) -> list[Path]:
    """The image files of a folder, and of the folders `below` it, in a fixed order. Raises OSError.

    Links to files are followed, one that leads nowhere is a damaged image; links to folders are not, for they may loop.
    What is meant for people and not taken is counted in `left_out`, by its ending.
    """
    found, others = [], Counter() if left_out is None else left_out
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        is_link, is_folder = entry.is_symlink(), False
        with suppress(OSError):  # a link that leads to itself, or where one may not look
            is_folder = entry.is_dir()
        if is_image_name(entry.name) and (entry.is_file() or is_link) and not is_folder:
            found.append(Path(entry.path))
        elif is_hidden(entry.name) or (is_folder and not below):
            continue
        elif not is_folder:
            others[ending(entry.name)] += 1
        elif is_link:
            others[LINK] += 1
        else:
            found += image_files(Path(entry.path), others, below)
    return found


def open_image(item: Path | np.ndarray) -> Image.Image:
    """An image file or a uint8 array H×W[×3] as Pillow's image, not decoded yet. Raises what Pillow raises."""
    if isinstance(item, np.ndarray):
        return Image.fromarray(item)
    return Image.open(io.BytesIO(item.read_bytes()), formats=IMAGE_FORMATS)


def complaint(error: Exception) -> str:
    """What a reader's exception says, in a few words; some libraries' own words only repeat the file's name."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, KeyError):
        return f"there is no {error} in it"
    if "weights_only" in str(error):
        return "it holds more than tensors, or is damaged"  # torch's own words advise to run what is in the file
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def own_sizes(source: Source) -> Counter[tuple[int, int]]:
    """How often each size, width and height as stored, occurs among up to SIZES_LOOKED_AT images, evenly over the set.

    Only headers are read. If none of them can be, decoding will say so.
    """
    if isinstance(source.items, np.ndarray):
        return Counter({source.items.shape[2:0:-1]: len(source.items)})
    sizes: Counter[tuple[int, int]] = Counter()
    for i in np.unique(np.linspace(0, len(source.items) - 1, min(len(source.items), SIZES_LOOKED_AT)).astype(int)):
        # A decoder may fail in any way on a damaged file; decoding will complain of it.
        with suppress(Exception), Image.open(source.items[i], formats=IMAGE_FORMATS) as image:
            sizes[image.size] += 1
    return sizes or Counter({(SIZES[0], SIZES[0]): 1})


def natural_size(sizes: Counter[tuple[int, int]]) -> int:
    """The size to train at when none is asked for.

    That is the size of more than half of the images, if there is one and the networks can make it (to 128); else the
    next lower one, up to 64, than its shorter side or than the median of all shorter sides.
    """
    (width, height), count = sizes.most_common(1)[0]
    if 2 * count > sizes.total():
        if width == height <= 128 and width in SIZES:
            return width
        shorter = min(width, height)
    else:
        shorter = int(np.median([min(size) for size in sizes.elements()]))
    return max((size for size in SIZES if size <= min(shorter, 64)), default=SIZES[0])


def decode(items: Sequence[Path] | np.ndarray, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode everything to uint8 N×size×size×C, on all cores; also returns {index: what is wrong} of the unreadable.

    A 32×32 PNG takes 0.08 ms, nearly all of it inside Python's lock: on two threads it takes 0.16. Forked workers have
    locks of their own and start at once. Where fork is not safe (macOS, Windows) threads decode larger files.
    """
    if isinstance(items, np.ndarray) and items.shape[1:3] == (size, size):
        return items if items.ndim == 4 else items[..., None], {}
    try:
        pixels = np.zeros((len(items), size, size, 3), np.uint8)
    except MemoryError:
        raise UserError(f"{len(items):,} images of {size}×{size} do not fit into memory") from None
    unreadable = {}
    step = max(1, min(DECODE_CHUNK, DECODE_CHUNK * 1024 // size**2))
    chunks = [items[i : i + step] for i in range(0, len(items), step)]
    workers = min(len(chunks), os.cpu_count() or 1)
    if sys.platform == "linux":
        # Ctrl-C reaches the whole process group; a worker that died of it could leave the pool waiting for ever.
        ignore = (signal.SIGINT, signal.SIG_IGN)
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), signal.signal, ignore)
    else:
        large = isinstance(items[0], np.ndarray) or (os.path.exists(items[0]) and os.path.getsize(items[0]) > 1 << 14)
        pool = ThreadPoolExecutor(workers if large else 1)
    with pool, progress_bar(total=len(items), desc="decoding", unit="img", leave=False) as bar:
        for chunk, (decoded, failed) in enumerate(pool.map(partial(decode_chunk, size=size), chunks)):
            start = chunk * step
            pixels[start : start + len(decoded)] = decoded
            unreadable |= {start + i: message for i, message in failed.items()}
            bar.update(len(decoded))
    return pixels, unreadable


def decode_chunk(items: Sequence[Path] | np.ndarray, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Decode some images: uint8 n×size×size×3, and {position: what is wrong} of those that cannot be read."""
    pixels, failed = np.zeros((len(items), size, size, 3), np.uint8), {}
    for i, item in enumerate(items):
        try:
            pixels[i] = to_rgb(open_image(item), size)
        except Exception as error:  # a decoder may fail in any way on a damaged file; the caller names them all
            failed[i] = complaint(error)
    return pixels, failed


def to_rgb(image: Image.Image, size: int) -> Image.Image:
    """An image of any mode as 8-bit RGB, size×size, antialiased, centre-cropped."""
    image = as_rgb(image)
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as 8-bit RGB: upright, transparency on white. Raises what Pillow raises."""
    # Of whole numbers only those of 16 bits have a range: "I" may hold 32, unless the format knows no more than 16.
    of_16_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    stored = str(image.tile[0][3]) if image.format == "PNG" and getattr(image, "tile", None) else ""
    image = ImageOps.exif_transpose(image)
    if (clear := image.info.get("transparency")) is not None:  # Pillow scales the pixels to 8 bits, and not this
        if stored in ("L;2", "L;4"):
            image.info["transparency"] = clear * {"L;2": 85, "L;4": 17}[stored]
        elif stored == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.mode == "F" or (image.mode.startswith("I") and not of_16_bits):
        kind = "floating-point" if image.mode == "F" else "whole"
        raise ValueError(f"its pixels are {kind} numbers of no known range")
    if of_16_bits:  # Pillow's own conversion clips at 255 instead of scaling
        values, clear = np.asarray(image, np.int64), image.info.get("transparency")
        grey = np.round(np.clip(values, 0, 65535) / 257).astype(np.uint8)
        image = Image.fromarray(np.where(values == clear, np.uint8(255), grey))  # the transparent grey is white
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


# Each shape is the set where f(x, y) < 0, in units of its radius; f is near enough to a distance to antialias with.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "bar": lambda x, y: np.maximum(abs(x) - 0.25, abs(y) - 0.95),
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.9, 0.75 - np.hypot(x - 0.5, y)),
    "cross": lambda x, y: np.maximum(np.minimum(abs(x), abs(y)) - 0.28, np.maximum(abs(x), abs(y)) - 0.9),
    "dots": lambda x, y: np.hypot(abs(x) - 0.5, y) - 0.38,
    "half": lambda x, y: np.maximum(np.hypot(x, y + 0.35) - 0.9, -y - 0.35),
    "hourglass": lambda x, y: np.maximum(abs(x) - abs(y), abs(y) - 0.85),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.68) - 0.22,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.75,
    "triangle": lambda x, y: np.maximum(abs(x) * 0.866 + y * 0.5, -y) - 0.5,
}


def draw_shapes(count: int, size: int, seed: int) -> Images:
    """The built-in data: `count` size×size images of ten bright shapes at random places, sizes, angles and colours."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(SHAPES)
    pixels = np.empty((count, size, size, 3), np.uint8)
    axis = (np.arange(size) + 0.5) / size * 2 - 1  # pixel centres in -1 .. 1
    for label, shape in enumerate(SHAPES.values()):
        mine = np.flatnonzero(labels == label)
        column = partial(rng.uniform, size=(len(mine), 1, 1))
        radius, angle = column(0.45, 0.8), column(-0.35, 0.35)
        x, y = axis[None, None, :] - column(-0.2, 0.2), axis[None, :, None] - column(-0.2, 0.2)
        u, v = (x * np.cos(angle) + y * np.sin(angle)) / radius, (y * np.cos(angle) - x * np.sin(angle)) / radius
        cover = np.clip(0.5 - shape(u, v) * radius * size / 2, 0, 1)[..., None]
        # Light on dark: on grounds of both kinds G stayed grey for 1,560 steps (seed 1).
        ink, paper = rng.uniform(100, 255, (len(mine), 1, 1, 3)), rng.uniform(0, 40, (len(mine), 1, 1, 3))
        pixels[mine] = np.round(cover * ink + (1 - cover) * paper)
    found = f"colour images of {size}×{size}"
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), tuple(SHAPES), found=found)


def fingerprint(images: Images) -> str:
    """A short name for the decoded pixels and labels, to tell whether two runs saw the same data."""
    digest = hashlib.sha256(str(tuple(images.pixels.shape)).encode())
    for tensor in (images.pixels, images.labels):
        if tensor is not None:
            digest.update(np.ascontiguousarray(tensor.numpy()))
    return digest.hexdigest()[:16]


def with_channels(images: Images, channels: int) -> Images:
    """The set with 1 or 3 channels: grey repeated as colour, colour weighed to grey (ITU-R 601, as Pillow does)."""
    pixels = images.pixels
    if channels == 3:
        pixels = pixels.expand(-1, -1, -1, 3)
    elif pixels.shape[3] == 3:
        pixels = (pixels.float() @ torch.tensor([[0.299], [0.587], [0.114]])).round().to(torch.uint8)
    return replace(images, pixels=pixels)


def merge(train: Images, test: Images) -> Images:
    """Training and test images of one size as one set: in colour if either is, labelled if both are."""
    channels = max(train.pixels.shape[3], test.pixels.shape[3])
    pixels = torch.cat([with_channels(images, channels).pixels for images in (train, test)])
    if train.labels is None or test.labels is None:
        return Images(pixels, None, (), found=train.found)
    classes = tuple(dict.fromkeys((*train.classes, *test.classes)))
    labels = torch.tensor([classes.index(name) for name in test.classes])[test.labels]
    return Images(pixels, torch.cat([train.labels, labels]), classes, found=train.found)


def hold_out(images: Images, share: float) -> tuple[Images, Images]:
    """Divide a labelled set into (the rest, a share for validation), as nearly as can be the same share of each class.

    The division depends on the labels alone: a resumed run with another seed must not train on what it held out.
    """
    count = len(images.labels)
    order = np.random.default_rng(0).permutation(count)
    order = order[np.argsort(images.labels.numpy()[order], kind="stable")]  # shuffled, class after class
    taken = np.floor(np.arange(1, count + 1) * share) > np.floor(np.arange(count) * share)  # evenly spread
    starts = np.flatnonzero(np.diff(images.labels.numpy()[order], prepend=-1))
    whole = np.minimum.reduceat(taken, starts)
    taken[starts[whole]] = False  # one image of each class stays: what is never trained on cannot be told
    parts = (np.sort(order[~taken]), np.sort(order[taken]))
    kept, held = (replace(images, pixels=images.pixels[part], labels=images.labels[part]) for part in parts)
    return kept, held


def load_validation(options: argparse.Namespace, images: Images) -> tuple[Images, Images]:
    """(training set, validation set) for the classification head: the test split, whole, or a share held out.

    `validation_split` None means the test split, or a tenth of the training images where there is none or where the
    test images are among them: it is set then. Says which classes have no image for validation.
    """
    held = None
    if options.validation_split is None and options.split != "all":
        with suppress(NoTestSplit), named("--data"):
            test = load_images(options.data, "test", options.image_size, options.skip_unreadable, options.cache)
            if test.labels is None:
                raise UserError("its test images have no labels; give --validation-split 0.1", options.data)
            if stray := set(test.classes) - set(images.classes):
                raise UserError(f"class {min(stray)} of its test images has no training image", options.data)
            to_training = torch.tensor([images.classes.index(name) for name in test.classes])
            held = replace(with_channels(test, images.pixels.shape[3]), labels=to_training[test.labels])
    if held is None:
        share = options.validation_split = options.validation_split or 0.1
        images, held = hold_out(images, share)
        if not len(held.labels):
            raise UserError(
                f"leaves none of the {len(images.labels)} images for validation", f"--validation-split {share}"
            )
    counts = torch.bincount(held.labels, minlength=len(images.classes))
    if missing := [name for name, count in zip(images.classes, counts.tolist(), strict=True) if not count]:
        say(f"note: without an image for validation: {listed(missing)}")
    return images, held


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def on_device(images: Images, device: torch.device) -> Images:
    """The set on the training device; one of over half a GPU's free memory stays on the host."""
    if device.type == "cuda" and images.pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
        size = images.pixels.nbytes / 2**30
        say(f"the data set ({size:.1f} GiB) stays in host memory; batches are copied to the GPU")
        return images
    labels = None if images.labels is None else images.labels.to(device)
    other = images.other and on_device(images.other, device)
    return replace(images, pixels=images.pixels.to(device), labels=labels, other=other)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the images, int64 N: a permutation drawn from (seed, epoch) alone."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))


def to_range(pixels: Tensor) -> Tensor:
    """uint8 B×H×W×C to float32 B×C×H×W in (-1, 1), as a channels-last view: no pixel moves."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def real_batch(pixels: Tensor, index: Tensor, flip: bool, rng: torch.Generator) -> Tensor:
    """Gather uint8 N×H×W×C as float32 B×C×H×W in (-1, 1) on rng's device; each is mirrored with chance ½ if `flip`."""
    batch = pixels[index]
    if batch.device.type != rng.device.type:  # not the devices themselves: a generator's "cuda" is a tensor's "cuda:0"
        batch = batch.pin_memory().to(rng.device, non_blocking=True)  # only pinned memory is copied in the background
    batch = to_range(batch)
    if rng.device.type == "mps":
        batch = batch.contiguous()  # see `memory_format`
    if flip:
        mirrored = torch.rand(len(index), 1, 1, 1, generator=rng, device=rng.device) < 0.5
        batch = torch.where(mirrored, batch.flip(3), batch)
    return batch


########################################################################################################################
#                                                   Pictures and log                                                   #
########################################################################################################################

UNDRAWN = ".undrawn"  # a file that a run's folder has while pictures of its last checkpoint are to be drawn
SHEET = 64  # samples drawn from the fixed noise each epoch, 8×8
BLUE, ORANGE = "#2f6fb0", "#c8641b"


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with matplotlib as it comes, without the user's settings: backend, style, resolution, fonts, TeX."""
    # A notebook's backend may not be installed where the script runs.
    backend = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
    try:
        import matplotlib
    except Exception as error:  # it is missing, or broken, or its settings cannot be read
        raise UserError(f"pictures need matplotlib (pip install matplotlib): {complaint(error)}"[:300]) from None
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend is not None:
        with suppress(ValueError):  # a notebook that imports this file keeps its backend
            matplotlib.rcParams["backend"] = backend
    with matplotlib.rc_context():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of settings that matplotlib is about to give up
            # A figure that is saved uses no backend, the one setting that the context would not put back.
            matplotlib.rcParams.update({k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"})
        yield


@cache
def say_once(line: str) -> None:
    """`say`, the first time in this process."""
    say(line)


lost_pictures: list[str] = []  # by what was to draw them, since a run looked here last


def costs_no_training(draw_picture: Callable[..., Any]) -> Callable[..., Any]:
    """A function that draws as one that says what goes wrong instead of raising it: no picture may end a run."""

    @wraps(draw_picture)
    def draw_or_say(*arguments: Any, **settings: Any) -> Any:
        try:
            return draw_picture(*arguments, **settings)
        except Exception as error:  # whatever a library, a font, a disk may do; the run has been saved before
            name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            say_once(f"note: a picture could not be drawn: {name}{complaint(error)}"[:300])
            lost_pictures.append(draw_picture.__name__)

    return draw_or_say


class RunLog:
    """`log.csv`, `epochs.csv` and TensorBoard; the run keeps each row too, so that checkpoints carry the history."""

    def __init__(self, out: Path, run: Run):
        self.run, self.out, self.begun = run, out, run.step
        columns = (run.log_columns, run.epoch_columns)
        self.files = [open(out / name, "w", newline="", encoding="utf-8") for name in ("log.csv", "epochs.csv")]
        self.log, self.epochs = (csv.DictWriter(*pair) for pair in zip(self.files, columns, strict=True))
        for table, rows in ((self.log, run.log), (self.epochs, run.epochs)):  # a resumed run drops what it will redo
            table.writeheader()
            table.writerows(rows)
        self.writer = None

    def show(self, kind: str, *arguments: Any, **settings: Any) -> None:
        """Call TensorBoard's writer, made when there is something to write: its import would delay the first step."""
        if self.writer is False:
            return
        try:
            if self.writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(self.out / "tensorboard"), purge_step=self.begun + 1)
            getattr(self.writer, kind)(*arguments, **settings)
        except OSError:  # a full disk, by which training ends, too
            raise
        except Exception as error:  # of the library or one that it needs, missing or of another version
            self.writer = False
            say(f"note: nothing more is written for TensorBoard, which does not work here ({complaint(error)})"[:300])

    def add(self, row: dict[str, float]) -> None:
        """Log the means of one logging interval."""
        self.run.log.append(row)
        self.log.writerow(row)
        self.files[0].flush()
        for column in (*self.run.measures, "images_per_s"):
            self.show("add_scalar", f"train/{column}", row[column], row["step"])

    def add_epoch(self, row: dict[str, float]) -> None:
        """Log an epoch's means."""
        self.run.epochs.append(row)
        self.epochs.writerow(row)
        self.files[1].flush()
        for column in self.run.measured:
            if row[column] != "":
                self.show("add_scalar", TAGS.get(column, f"validation/{column}"), row[column], row["step"])

    def add_picture(self, name: str, picture: Image.Image) -> None:
        """Show a picture in TensorBoard."""
        self.show("add_image", name, np.atleast_3d(np.asarray(picture)), self.run.step, dataformats="HWC")

    def close(self) -> None:
        """Close the files; what was logged is already in them."""
        for file in self.files:
            file.close()
        if self.writer:
            self.writer.close()


def pixel_spread(pixels: np.ndarray | Tensor) -> float:
    """How much uint8 images N×H×W[×C] differ: each pixel's standard deviation over the images, averaged over pixels."""
    return float(np.asarray(pixels, dtype=np.float32).std(0).mean())


def data_spread(images: Images) -> float:
    """`pixel_spread` of a set, of up to 2,000 of its images; 0 where these are as good as alike."""
    some = epoch_order(len(images.pixels), 0, 0)[:2000].to(images.pixels.device)
    spread = pixel_spread(images.pixels[some].cpu())
    return spread if spread >= LEAST_SPREAD else 0.0


def diversity(samples: np.ndarray, images: Images) -> float | str:
    """The spread of samples over that of the data; "" where the data has none."""
    of_data = data_spread(images)
    return pixel_spread(samples) / of_data if of_data else ""


def epoch_row(run: Run, measured: dict[str, float], options: argparse.Namespace) -> dict[str, Any]:
    """A row of epochs.csv for the steps since the last one: their means, what is given, and a warning."""
    before = run.epochs[-1]["step"] if run.epochs else 0
    rows = [row for row in run.log if row["step"] > before]
    steps = np.diff([before, *(row["step"] for row in rows)])  # that each row is the mean of
    means = {name: float(np.average([row[name] for row in rows], weights=steps)) for name in run.measures}
    row = {"epoch": run.epoch + (run.seen > 0), "step": run.step, **means, **measured}
    seen = (run.step - before) * images_of_step(options)
    row |= {"images_per_s": seen / run.seconds, "seconds": run.seconds}
    known = options.recipe.troubles(run.epochs, options)
    begun = [trouble for trouble in options.recipe.troubles([*run.epochs, row], options) if trouble not in known]
    return row | {"warning": "; ".join(begun)}


def troubles(epochs: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    """What has been wrong for LONG steps and three epochs: D has won, or the samples hardly differ.

    D has won when J(D) is under a tenth, and J(G) over twice, of what undecided scores give; with smoothed targets the
    least that cross-entropy can be does not count. The samples hardly differ when their spread is under COLLAPSED of
    the data's; those of the first LONG steps are grey in every run.
    """
    if not epochs:
        return []
    loss, smoothing = options.loss, options.label_smoothing
    recent = [row for row in epochs if row["step"] > epochs[-1]["step"] - LONG]
    recent = epochs[-max(3, len(recent)) :]
    if len(recent) < 3 or recent[0]["step"] < LONG:
        return []
    found = []
    if loss in UNDECIDED:
        undecided = torch.full((1,), UNDECIDED[loss])
        d_undecided, g_undecided = LOSSES[loss][0](undecided, undecided), LOSSES[loss][1](undecided)
        least = 0.0
        if loss == "bce" and smoothing:
            least = -0.5 * (smoothing * math.log(smoothing) + (1 - smoothing) * math.log(1 - smoothing))
        if all(row["d_loss"] - least < d_undecided / 10 and row["g_loss"] > 2 * g_undecided for row in recent):
            penalty = "--penalty zero-gp, " if options.penalty == "none" else ""
            found.append(f"D has won and teaches G little: try {penalty}a lower --lr-d or a higher --lr-g")
    if all(row["diversity"] != "" and row["diversity"] < COLLAPSED for row in recent):
        found.append("the samples hardly differ, G has collapsed: try a lower --lr-g, a higher --lr-d, more --d-steps")
    return found


def grid(images: np.ndarray, columns: int, gap: int, fill: float) -> np.ndarray:
    """Lay out n×H×W[×3] in rows of `columns` on a canvas of `fill`, `gap` pixels apart."""
    height, width = images.shape[1] + gap, images.shape[2] + gap
    rows = math.ceil(len(images) / columns)
    canvas = np.full((rows * height + gap, columns * width + gap, *images.shape[3:]), fill, images.dtype)
    for i, image in enumerate(images):
        top, left = gap + i // columns * height, gap + i % columns * width
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def sheet(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """Uint8 images n×H×W[×3] on white, in a square without `columns`; those under 64 pixels are enlarged evenly."""
    scale = max(1, 64 // images.shape[1])
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    return Image.fromarray(grid(images, columns or math.ceil(math.sqrt(len(images))), gap=2, fill=255))


def sheet_columns(generator: BaseGenerator, count: int) -> int | None:
    """The columns of a sheet of labels in turn: one for each class, if that many images fill two rows."""
    classes = len(generator.architecture["classes"])
    return classes if 0 < classes <= count // 2 else None


def sheet_count(generator: BaseGenerator) -> int:
    """How many samples a run's sheets have: 8 rows of a column for each class of a conditional G, else 64."""
    classes, size = len(generator.architecture["classes"]), generator.architecture["image_size"]
    return 8 * classes if 0 < classes * size <= 6400 else SHEET


def numbered(folder: Path, unit: str, suffix: str, last: int) -> list[Path]:
    """The files <unit>_N.suffix, N ≤ last, in the order of N, which may have grown out of its digits.

    After a resume from an early checkpoint there are later ones, which stay until the run comes to them.
    """
    numbers = {path: path.stem.removeprefix(f"{unit}_") for path in folder.glob(f"{unit}_*{suffix}")}
    found = {path: int(number) for path, number in numbers.items() if number.isdecimal() and int(number) <= last}
    return sorted(found, key=found.__getitem__)


@costs_no_training
def save_gif(folder: Path, unit: str, last: int, most: int = 100) -> None:
    """`progress.gif` of a folder's sheets up to number `last`, evenly thinned to at most `most` frames."""
    paths = numbered(folder, unit, ".png", last)
    paths = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int))]
    frames = []
    for path in paths:
        try:
            frames.append(Image.open(path).convert("RGB").quantize(128))
        except OSError as error:  # Pillow's for damage, such as a power cut leaves
            say(f"note: {path} is left out of progress.gif ({complaint(error)})")
    first, *others = frames
    milliseconds = [150] * len(others) + [2000]
    stream = io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    write_whole(folder / "progress.gif", stream.getvalue())


@dataclass(frozen=True)
class Look:
    """What a run is looked at with at the end of a leg: its numbers for epochs.csv, and what is drawn of it."""

    measured: dict[str, Any]
    samples: Any
    confusion: np.ndarray | None = None


def look(
    run: Run, images: Images, validation: Images | None, fid: Callable[[], float] | None, options: argparse.Namespace
) -> Look:
    """Samples of the fixed noise, how much they differ, the head on the validation set, the FID where it is due."""
    samples = run.averages["generator"].generate(sheet_count(run.generator), seed=options.seed)
    measured = {"diversity": diversity(samples, images), "fid": ""}
    confusion = None
    if validation:
        *values, confusion = validate(run.averages["discriminator"], validation)
        measured = dict(zip(VALIDATION_MEASURES, values, strict=True)) | measured
    if fid:
        measured["fid"] = fid(run.averages["generator"])
    return Look(measured, samples, confusion)


def draw(run: Run, seen: Look, options: argparse.Namespace, log: RunLog, last: bool) -> None:
    """The curves, a sheet of samples every `sample_every`, the weights at 1, 2, 5, 10, 20 … and last."""
    out, samples = options.out, seen.samples
    for network, column, formula in (("generator", "g_loss", "J(G)"), ("discriminator", "d_loss", "J(D)")):
        title = f"{network.capitalize()} loss ({LOSS_NAMES[options.loss]})"
        plot_curve(run, out / "plots" / f"{network}_loss.png", column, title, formula)
    if any(row["fid"] != "" for row in run.epochs):
        plot_fid(run, out, options)
    if run.discriminator.head is not None:
        plot_classifier(run, out, "step" if options.iterations else "epoch")
    if seen.confusion is not None and last:
        classes = run.discriminator.architecture["classes"]
        save_confusion(seen.confusion, classes, out)
        plot_confusion(seen.confusion, classes, log)
    shown = samples if options.image_size <= 256 else samples[:16]
    save_sheets(run, {"fixed_noise": sheet(shown, sheet_columns(run.generator, len(shown)))}, options, log, last)


def save_sheets(run: Run, sheets: dict[str, Image.Image], options: argparse.Namespace, log: RunLog, last: bool) -> None:
    """Write the weights at 1, 2, 5, 10, 20 …, sheets of samples every `sample_every`, and at the `last` all and a GIF.

    The first sheet is samples/<milestone>.png, any other in a folder of its name there.
    """
    unit, number, name = milestone(run, options.iterations)
    if last or f"{number}".rstrip("0") in ("1", "2", "5"):
        plot_weights(run.networks, (unit, number, name), run.step, options.out)
    for i, (kind, picture) in reversed([*enumerate(sheets.items())]):
        folder = options.out / "samples" / kind if i else options.out / "samples"
        if last or number % options.sample_every == 0:
            save_sheet(picture, folder / f"{name}.png", kind, log)
        if last:
            save_gif(folder, unit, number)


@costs_no_training
def save_sheet(picture: Image.Image, path: Path, kind: str, log: RunLog) -> None:
    """Write a sheet of samples, and show it in TensorBoard."""
    path.parent.mkdir(exist_ok=True)
    picture.save(path)
    log.add_picture(f"samples/{kind}", picture)


def milestone(run: Run, iterations: int | None) -> tuple[str, int, str]:
    """What a run's progress is counted in, how many of them it has done, and the name of what is written there."""
    unit, number = ("iteration", run.step) if iterations else ("epoch", run.epoch)
    return unit, number, milestone_name(unit, number)


def milestone_name(unit: str, number: int) -> str:
    """The name of what is written there: epoch_0010, iteration_000200."""
    return f"{unit}_{number:0{6 if unit == 'iteration' else 4}d}"


@contextmanager
def plot(path: Path, **labels: str) -> Iterator[Any]:
    """Axes to draw curves on; they get a legend and the labels and are saved when the block ends."""
    from matplotlib.figure import Figure  # the object interface draws without a display

    figure = Figure(figsize=(8, 4.5), dpi=120)
    axes = figure.subplots(gridspec_kw=dict(left=0.09, right=0.98, bottom=0.12, top=0.92))
    yield axes
    axes.legend(frameon=False)
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


@costs_no_training
@own_style()
def plot_curve(run: Run, path: Path, column: str, title: str, formula: str) -> None:
    """A measure of the steps over iterations, as logged and smoothed."""
    steps, values = (np.array([row[name] for row in run.log]) for name in ("step", column))
    window = max(1, len(steps) // 40)
    ones = np.ones(window)
    smooth = np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
    with plot(path, title=title, xlabel="iteration", ylabel=formula) as axes:
        label = "mean of each logging interval"
        if window == 1:
            axes.plot(steps, values, color=BLUE, linewidth=1.2, marker=".", label=label)
        else:
            axes.plot(steps, values, color=BLUE, alpha=0.35, linewidth=0.8, label=label)
            axes.plot(steps, smooth, color=BLUE, linewidth=1.8, label=f"smoothed over {window} intervals")


@costs_no_training
@own_style()
def plot_fid(run: Run, out: Path, options: argparse.Namespace) -> None:
    """`plots/fid.png`: the Fréchet distance of the samples to the training images over iterations."""
    rows = [row for row in run.epochs if row["fid"] != ""]
    steps, values = [row["step"] for row in rows], [row["fid"] for row in rows]
    title = f"FID of {options.evaluate_samples:,} samples against as many training images at most"
    with plot(out / "plots" / "fid.png", title=title, xlabel="iteration", ylabel="FID") as axes:
        axes.plot(steps, values, color=BLUE, marker=".", label=f"{values[-1]:.4g} last")
        best = min(range(len(values)), key=values.__getitem__)
        axes.plot(steps[best], values[best], "o", color=ORANGE, label=f"{values[best]:.4g} best")


@costs_no_training
@own_style()
def plot_classifier(run: Run, out: Path, unit: str) -> None:
    """`plots/classifier_loss.png` and `classifier_accuracy.png`: the head on training and validation images."""
    numbers = [row[unit] for row in run.epochs]
    for name, column, y in (("loss", "class_loss", "J(C), cross-entropy"), ("accuracy", "accuracy", "share right")):
        path = out / "plots" / f"classifier_{name}.png"
        with plot(path, title=f"Classification {name}", xlabel=unit.replace("step", "iteration"), ylabel=y) as axes:
            for key, label, color in ((column, "training", BLUE), (f"val_{column}", "validation", ORANGE)):
                values = [row[key] for row in run.epochs]
                label += f", {values[-1]:.3g} last"
                axes.plot(numbers, values, color=color, marker=".", label=label)


def save_confusion(confusion: np.ndarray, classes: Sequence[str], out: Path) -> None:
    """`confusion_matrix.csv`, a row per true class."""
    with open(out / "confusion_matrix.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["true \\ predicted", *classes])
        table.writerows([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))


@costs_no_training
@own_style()
def plot_confusion(confusion: np.ndarray, classes: Sequence[str], log: RunLog) -> None:
    """`plots/confusion_matrix.png`, a row per true class."""
    from matplotlib.figure import Figure

    out = log.out
    side = min(5 + 0.3 * len(classes), 30)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(confusion):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
    if len(classes) <= 100:
        names = [name if len(name) <= 24 else name[:23] + "…" for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90, parse_math=False)  # a $ in a name is a $
        axes.set_yticks(range(len(classes)), names, parse_math=False)
    accuracy = confusion.trace() / confusion.sum()
    axes.set(title=f"{confusion.sum():,} validation images, {accuracy:.1%} right", xlabel="predicted", ylabel="true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font lacks are drawn as boxes
        figure.savefig(out / "plots" / "confusion_matrix.png")
    with Image.open(out / "plots" / "confusion_matrix.png") as picture:
        log.add_picture("validation/confusion_matrix", picture.convert("RGB"))


def draw_layer(axes: Any, weight: Tensor, at_pixels: bool) -> str:
    """Draw a weight, filters × channels × h × w `at_pixels`, else outputs × inputs × h × w; returns what is shown."""
    outputs, inputs, height, width = weight.shape
    limit = float(weight.abs().max()) or 1.0
    if at_pixels:
        filters = weight[:96].permute(0, 2, 3, 1) / (2 * limit) + 0.5
        axes.imshow(grid(filters.squeeze(-1).numpy(), columns=16, gap=1, fill=1.0), cmap="gray", vmin=0, vmax=1)
        return f"{outputs} filters {inputs}×{height}×{width} as images (grey 0, black −{limit:.2g}, white +{limit:.2g})"
    shown = (weight[:8, :48] if outputs > 1 else weight[:, :192]).flatten(0, 1)
    columns = min(inputs, 48 if outputs > 1 else 24)
    axes.imshow(grid(shown.numpy(), columns, gap=1, fill=math.nan), cmap="RdBu_r", vmin=-limit, vmax=limit)
    kind = f"{inputs} → {outputs}, {height}×{width}: {len(shown):,} of {outputs * inputs:,} kernels"
    return kind + ", a row per output" * (outputs > 1) + f" (blue −{limit:.2g}, red +{limit:.2g})"


@costs_no_training
@own_style()
def plot_weights(networks: dict[str, nn.Module], at: tuple[str, int, str], step: int, out: Path) -> None:
    """`weights/<network>_<milestone>.png`: the layer at the pixels as filters, others as kernels, and histograms."""
    from matplotlib.figure import Figure

    unit, number, name = at
    after = f"{unit} {number:,}" if unit == "iteration" else f"{unit} {number} (iteration {step:,})"
    for title, trained in networks.items():
        network = deepcopy(trained).eval()  # in training mode looking at a spectrally normalised weight changes it
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
        if not isinstance(trained, Generator | Discriminator):  # a lab's may be deep: its convolutions
            layers = [layer for layer in layers if not isinstance(layer, nn.Linear)]
        draws = isinstance(trained, BaseGenerator)
        at_pixels = layers[-1 if draws else 0]
        inch = 1 / (2.3 * len(layers))  # of the figure's height; fixed margins, for a layout engine would draw it twice
        figure = Figure(figsize=(12, 1 / inch), dpi=80)
        figure.suptitle(f"Weights of the {title} after {after}")
        margins = dict(left=0.01, right=0.98, bottom=0.5 * inch, top=1 - 0.75 * inch, hspace=0.7, wspace=0.15)
        rows = figure.subplots(len(layers), 2, width_ratios=(3, 1), squeeze=False, gridspec_kw=margins)
        for (picture, histogram), layer in zip(rows, layers, strict=True):
            weight = layer.weight.detach().float().cpu()
            histogram.hist(weight.numpy().ravel(), bins=80, color=BLUE, histtype="stepfilled")
            histogram.set(title=f"standard deviation {weight.std():.3g}", xlabel="weight", ylabel="count")
            histogram.spines[["top", "right"]].set_visible(False)
            histogram.locator_params(nbins=5)
            # Torch keeps a transposed convolution's weight as inputs × outputs. At the pixels of G inputs are filters.
            if isinstance(layer, nn.ConvTranspose2d) != (layer is at_pixels and draws):
                weight = weight.transpose(0, 1)
            elif layer is getattr(network, "project", None):  # a number of z adds a base×base map to each channel
                weight = weight.unflatten(0, (-1, network.base, network.base)).permute(0, 3, 1, 2)
            elif isinstance(layer, nn.Linear):  # the head's first layer sees maps of base×base
                side = network.base if getattr(network, "head", None) and layer is network.head[1] else 1
                weight = weight.unflatten(1, (-1, side, side))
            if layer is at_pixels:
                weight = weight[:, : network.architecture["channels"]]  # not those of the class planes
            kind = type(layer).__name__.removeprefix("Parametrized")
            picture.set_title(f"{kind} {draw_layer(picture, weight, layer is at_pixels)}", loc="left")
            picture.set_axis_off()
            picture.set_anchor("NW")
        figure.savefig(out / "weights" / f"{title}_{name}.png")


########################################################################################################################
#                                             Checkpoints and saved models                                             #
########################################################################################################################

CHECKPOINT_FORMAT, MODEL_FORMAT = "rollnumber_04 checkpoint 5", "rollnumber_04 model 1"
COUNTERS = {"epoch": int, "step": int, "seen": int, "waiting": int, "seconds": float}  # of a run and its checkpoints
PARTS = ("options", "architecture", "networks", "average", "optimizers", "rng", "sums", "pools", "history")
SHAPING = (
    "image_size arch upsample kernel width_g width_d latent_dim latent norm spectral_norm bias init dropout "
    "multitask conditional"
)
TRAINED_WITH = "was trained with"
FIXED_OPTIONS = {  # that a resumed run cannot change, and what of the checkpoint depends on them
    **dict.fromkeys(SHAPING.split(), "has networks made with"),
    "validation_split": TRAINED_WITH,  # on what would now be held out
    "split": TRAINED_WITH,
}


def write_whole(path: Path, data: bytes, suffix: str = ".tmp") -> None:
    """Write a file so that a crash leaves either the old one or the new one: beside it, to the disk, then renamed."""
    beside = path.with_name(path.name + suffix)
    try:
        with open(beside, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        replace_file(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself reaches the disk with the folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def replace_file(new: Path, old: Path) -> None:
    """os.replace, but on Windows tried again for a second: a virus scanner may have either file open."""
    for wait in (0.05, 0.1, 0.2, 0.4) if os.name == "nt" else ():
        try:
            os.replace(new, old)
            return
        except PermissionError:
            time.sleep(wait)
    os.replace(new, old)


def save_output(flag: str, path: Path, data: bytes) -> None:
    """Write the file that an option names, into a folder that is made. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise UserError(error.strerror or str(error), f"{flag} {path}") from None


def refuse_folder(out: Path | None, data: Sequence[Path | None]) -> None:
    """Raise UserError if `out` cannot be a new run's folder: not empty, not a folder, not writable, among the data.

    None stands for a folder in runs/ whose name is found when the run begins.
    """
    if out is None:
        out = Path("runs")
    elif os.path.isdir(out) and os.listdir(out):
        begun = os.path.isfile(out / ".lock") and not holds_checkpoint(out)  # by a run that was killed before it saved
        if not begun:
            raise UserError(
                "already holds a run or other files; name a new folder, or --resume to go on", f"--out {out}"
            )
    check_writable("--out", out)
    for folder in data:
        if folder and os.path.isdir(folder) and out.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"lies inside the data, {folder}, whose images it would join; name another folder", f"--out {out}"
            )


def make_named_folder(name: str) -> Path:
    """A new folder runs/<name>-<date>-<time>, or with -2, -3 … if another run was begun in the same second."""
    name = time.strftime(f"{name}-%Y%m%d-%H%M%S")
    try:
        Path("runs").mkdir(exist_ok=True)
        for number in itertools.count(1):
            path = Path("runs", f"{name}-{number}" if number > 1 else name)
            with suppress(FileExistsError):
                path.mkdir()
                break
    except OSError as error:
        raise UserError(f"{error.strerror}", f"--out {error.filename}") from None
    return path


def check_writable(flag: str, path: Path) -> None:
    """Raise UserError if nothing can be made at a path, because of the nearest folder above it that there is."""
    above = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    try:
        with tempfile.TemporaryFile(dir=above):  # the permissions alone do not tell
            pass
    except OSError:
        raise UserError(f"{above} is not a folder that can be written to", f"{flag} {path}") from None


def holds_checkpoint(out: Path) -> bool:
    """Whether there is anything to resume from in a run's folder."""
    return any((out / "checkpoints").glob("*.pt"))


@contextmanager
def open_run_folder(out: Path, is_new: bool) -> Iterator[None]:
    """Make the run's folder and its parts, and keep other runs out of it; the lock ends with the process.

    The lock comes first: by it a folder is known as that of a run which was killed before it saved.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock").acquire(timeout=0)
        for part in ("checkpoints", "samples", "plots", "weights", "tensorboard"):
            (out / part).mkdir(exist_ok=True)
    except Timeout:
        raise UserError(
            "another run is writing to it; wait for its end or name another folder", f"--out {out}"
        ) from None
    except OSError as error:
        raise UserError(f"{error.strerror}: {error.filename}", f"--out {out}") from None
    with lock:
        if is_new and holds_checkpoint(out):
            raise UserError("another run has just taken it; name another folder", f"--out {out}")
        yield


def snapshot(run: Run) -> dict[str, Any]:
    """All that a run is, as tensors and plain containers."""
    return {
        "networks": {name: network.state_dict() for name, network in run.networks.items()},
        "average": {name: network.state_dict() for name, network in run.averages.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in run.optimizers.items()},
        **own_state(run),
        **{name: getattr(run, name) for name in COUNTERS},
        "sums": {"totals": run.totals, "finite": run.finite},
        "history": {"log": run.log, "epochs": run.epochs},
    }


def own_state(run: Run) -> dict[str, Any]:
    """What each process has of its own: random states and replay pool."""
    random = {"noise": run.rng.get_state(), "dropout": default_rng(run.rng.device)[0]()}
    return {
        "rng": {"device": run.rng.device.type, **random},
        "pools": {name: vars(pool) for name, pool in run.pools.items()},
    }


def on_host(parts: Any) -> Any:
    """The same containers with their tensors in host memory."""
    if isinstance(parts, dict):
        return {key: on_host(part) for key, part in parts.items()}
    return parts.cpu() if isinstance(parts, Tensor) else parts


def save_run(run: Run, options: argparse.Namespace, facts: dict[str, Any], keep: bool, best: bool = False) -> None:
    """Write the models, if `best` `checkpoints/best.pt`, if to `keep` `epoch_NNNN.pt` (the newest stay), and `last.pt`.

    last.pt comes last, so that what a crash leaves out is written when the run goes on. Raises OSError, and UserError
    (status 1) instead of saving numbers that are not finite, as after a gradient that was not.
    """
    out, models = options.out, options.recipe.models(options)
    others = gathered(on_host(own_state(run)) if is_follower() else None)[1:]
    if is_follower():
        return
    state = snapshot(run)
    if wrong := difference(state, state, "state"):
        raise UserError(f"{wrong} at step {run.step:,}, epoch {run.epoch + 1}; {ADVICE}", status=1)
    architecture = {name: network.architecture for name, network in run.networks.items()}
    stream = io.BytesIO()
    torch.save(
        {"format": CHECKPOINT_FORMAT, "options": facts, "architecture": architecture, **state, "others": others}, stream
    )
    trained_with = (name for name, how in options.recipe.fixed.items() if how == TRAINED_WITH)
    passed_on = ("loss", "seed", "image_size", "batch_size", *trained_with, "data_fingerprint", "versions")
    training = {"epoch": run.epoch, "step": run.step} | {name: facts[name] for name in passed_on if name in facts}
    for file, names in models.items():
        save_model(out / f"{file}.safetensors", {name: run.averages[name] for name in names}, training)
    if best:
        write_whole(out / "checkpoints" / "best.pt", stream.getvalue())
    if keep:
        unit, number, name = milestone(run, facts["iterations"])
        write_whole(out / "checkpoints" / f"{name}.pt", stream.getvalue())
        for old in numbered(out / "checkpoints", unit, ".pt", number)[: -facts["keep"]]:
            old.unlink(missing_ok=True)
    write_whole(out / "checkpoints" / "last.pt", stream.getvalue())


def default_rng(device: torch.device) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    """How to get and to set the state of torch's own random numbers on a device, from which dropout draws."""
    module = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type, torch)
    return module.get_rng_state, module.set_rng_state


def save_model(path: Path, networks: dict[str, nn.Module], training: dict[str, Any]) -> None:
    """Write networks by their names as `.safetensors`, with what it takes to rebuild them."""
    architecture = {name: network.architecture for name, network in networks.items()}
    metadata = {"format": MODEL_FORMAT, "architecture": json.dumps(architecture), "training": json.dumps(training)}
    weights = {f"{name}.{key}": t.contiguous() for name, n in networks.items() for key, t in n.state_dict().items()}
    write_whole(path, safetensors.torch.save(weights, metadata))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, plain containers and tensors only: the file can run no code. Raises UserError."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself checks neither sizes nor checksums
            if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                raise ValueError("it unpacks to more than it holds")
            if damaged := archive.testzip():
                raise ValueError(f"its part {damaged} is damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError("not a checkpoint of this program: it holds more than tensors and numbers", path) from None
    except Exception as error:  # a damaged archive may fail in any of its parts, with any exception
        raise UserError(f"not a whole checkpoint ({complaint(error)})"[:300], path) from None
    kinds = {"format": str, **dict.fromkeys(PARTS, dict), **COUNTERS}
    if missing := [name for name in kinds if not isinstance(saved, dict) or name not in saved]:
        raise UserError(f"not a checkpoint of this program: it lacks {', '.join(missing)}", path)
    if saved["format"] != CHECKPOINT_FORMAT:
        raise UserError(f"not a checkpoint of this version of the program, {CHECKPOINT_FORMAT!r}", path)
    for name, kind in kinds.items():
        if type(saved[name]) is not kind or (name in COUNTERS and not 0 <= saved[name] < 2**62):
            raise UserError(f"not a whole checkpoint: its {name} is wrong", path)
    others = saved.setdefault("others", [])  # the other processes' own states
    if not isinstance(others, list) or not all(is_own_state(other) for other in others):
        raise UserError("not a whole checkpoint: its others is wrong", path)
    return saved


def is_own_state(part: Any) -> bool:
    """Whether something is made as `own_state`; what is in it is looked at where it is put back."""
    return isinstance(part, dict) and all(isinstance(part.get(name), dict) for name in ("rng", "pools"))


def difference(found: Any, expected: Any, name: str) -> str:
    """Where `found` is not made as `expected`, of the same keys, types and shapes and of finite numbers; or ""."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return f"its {name} holds other parts than it should"
        return next((said for key in expected if (said := difference(found[key], expected[key], f"{name}.{key}"))), "")
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (expected.shape, expected.dtype):
            return f"its {name} has not the shape that it should"
        if found.layout is not torch.strided or found.is_meta or found.untyped_storage().nbytes() < found.nbytes:
            return f"its {name} holds fewer numbers than it claims"
        return "" if found.isfinite().all() else f"its {name} holds numbers that are not finite"
    return "" if type(found) is type(expected) else f"its {name} is wrong"


def check_checkpoint(saved: dict[str, Any], path: Path, options: argparse.Namespace) -> None:
    """Raise UserError unless a checkpoint holds a run of its own options, before anything of its size is built."""
    recipe = options.recipe
    of = {name: checked_architecture(path, name, saved["architecture"].get(name), recipe) for name in recipe.kinds}
    if any(architecture.get("image_size", options.image_size) != options.image_size for architecture in of.values()):
        raise UserError(f"its networks are not for --image-size {options.image_size}", path)
    channels = max(architecture["channels"] for architecture in of.values())
    # A conditional G and D have the same classes; with a head only D has any.
    classes = max((architecture.get("classes", []) for architecture in of.values()), key=len)
    classes = classes if options.multitask or options.conditional else ()
    with torch.device("meta"):  # shapes without memory
        networks = recipe.networks(options, channels, classes)
        states = {name: network.state_dict() for name, network in networks.items()}
        sums = torch.zeros(len(recipe.measures(options)))
    if wrong := next((name for name, network in networks.items() if network.architecture != of[name]), ""):
        raise UserError(f"its {wrong} is not that of its options", path)
    shape = (channels, options.image_size, options.image_size)
    pools = {name: ReplayPool(size, shape, torch.device("meta")) for name, size in recipe.pools(options).items()}
    expected = {
        "networks": states,
        "average": {name: states[name] for name in averaged_by(options)},
        "sums": {"totals": sums, "finite": sums},
        "pools": {name: vars(pool) for name, pool in pools.items()},
    }
    wrong = next((said for part in expected if (said := difference(saved[part], expected[part], part))), "")
    for name, (members, _) in recipe.trained(options).items():
        wrong = wrong or optimizer_difference(saved["optimizers"].get(name), parameters_of(networks, members), options)
    if wrong:
        raise UserError(f"{wrong}", path)


def optimizer_difference(found: Any, weights: Sequence[nn.Parameter], options: argparse.Namespace) -> str:
    """What is wrong with an optimizer's state for some weights: it has some for each, of its shape, or for none."""
    example = nn.Parameter(torch.zeros(2))  # optimizers make their state in their first step
    example.grad = torch.zeros(2)
    optimizer = OPTIMIZERS[options.optimizer]([example], 1e-3, options, False)
    optimizer.step()
    (kinds,) = optimizer.state_dict()["state"].values() or ({},)
    state = found.get("state") if isinstance(found, dict) else None
    if state == {}:
        return ""
    expected = {
        i: {key: torch.empty_like(weight if value.ndim else value, device="meta") for key, value in kinds.items()}
        for i, weight in enumerate(weights)
    }
    return difference(state, expected, "optimizer's state")


def restore(run: Run, saved: dict[str, Any], options: argparse.Namespace) -> None:
    """Put a checked checkpoint's state into a new run; learning rates and the like come from the options."""
    recipe = options.recipe
    for name, network in run.networks.items():
        was, now = checked_architecture(options.resume, name, saved["architecture"][name], recipe), network.architecture
        if was.get("classes") != now.get("classes"):
            raise UserError(f"its classes are not those of the data, {', '.join(now['classes'])}"[:300], options.resume)
        if was.get("channels") != now["channels"]:
            found = f"its images have {was.get('channels')} channels, those of the data {now['channels']}"
            raise UserError(f"{found}", options.resume)
    for name, network in run.networks.items():
        network.load_state_dict(saved["networks"][name])
    for name, network in run.averages.items():
        network.load_state_dict(saved["average"][name])
    if saved["options"].get("optimizer", options.optimizer) == options.optimizer:
        for name, optimizer in run.optimizers.items():
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": saved["optimizers"][name]["state"], "param_groups": groups})
    for name in COUNTERS:
        setattr(run, name, saved[name])
    run.ticks.fill_(run.step)
    run.totals.copy_(saved["sums"]["totals"])
    run.finite.copy_(saved["sums"]["finite"])
    for name, columns in (("log", run.log_columns), ("epochs", run.epoch_columns)):
        rows = saved["history"].get(name)
        if not is_table(rows, columns, run.step):
            raise UserError("its history is not that of a run with these options", options.resume)
        setattr(run, name, rows)
    measured, of_fid = any(row.get("fid", "") != "" for row in run.epochs), saved["options"].get("fid")
    before = saved["options"].get("evaluate_samples")
    if isinstance(of_fid, dict):  # which a pause of the measuring has kept
        before = of_fid.get("n_fake", before)
    if measured and options.evaluate_every and options.evaluate_samples != before:
        wrong = f"the FIDs of {options.resume} are of {before} samples"
        about = f"--evaluate-samples {options.evaluate_samples}"
        raise UserError(f"{wrong}; those of other numbers cannot be compared", about)
    before = run.epochs[-1]["step"] if run.epochs else 0
    if run.step - before > run.waiting and not any(row["step"] > before for row in run.log):
        raise UserError(f"its history lacks the steps since step {before:,}", options.resume)
    restore_own(run, saved, options)


def restore_own(run: Run, saved: dict[str, Any], options: argparse.Namespace) -> None:
    """Put back what each process has of its own, random states and replay pool, as far as the checkpoint has them."""
    own, rank, expected = [saved, *saved["others"]], process_rank(), own_state(run)
    if len(own) != process_count():
        say(f"note: {options.resume} is of {len(own)} processes together, this run of {process_count()}")
    own = own[rank] if rank < len(own) else {}
    wrong, classes = "", max((len(n.architecture.get("classes", ())) for n in run.networks.values()), default=0)
    for name, pool in run.pools.items() if own else ():
        if name in saved["pools"] and len(saved["pools"][name]["images"]) == len(pool.images):  # else it begins empty
            kept = own["pools"].get(name)
            if wrong := difference(kept, vars(pool), f"pools.{name}"):
                break
            pool.images.copy_(kept["images"])
            pool.labels.copy_(kept["labels"].clamp(0, max(0, classes - 1)))
            pool.filled = min(max(0, kept["filled"]), len(pool.images))
    if wrong:
        raise UserError(f"{wrong}", options.resume)
    if not own or own["rng"].get("device") != run.rng.device.type:
        run.rng.manual_seed(options.seed + 1 + run.step + RANK_STRIDE * rank)
        if own:
            say("note: the checkpoint is from another kind of device; the noise goes on from another state")
        return
    wrong = difference(own["rng"], expected["rng"], "rng")
    try:
        if not wrong:
            run.rng.set_state(own["rng"]["noise"])
            default_rng(run.rng.device)[1](own["rng"]["dropout"])
    except RuntimeError as error:  # of the right size, and yet no state
        wrong = f"its rng is wrong ({error})"
    if wrong:
        raise UserError(f"{wrong}", options.resume)


def is_table(rows: Any, columns: Sequence[str], last: int) -> bool:
    """Whether something is a list of rows with numbers (a text for a warning), their steps growing up to `last`.

    What could not be measured, an FID or the diversity, may be missing.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) and tuple(row) == columns for row in rows):
        return False
    rows = [{n: 0 if n in ("fid", "diversity") and value == "" else value for n, value in r.items()} for r in rows]
    kinds = {name: str if name == "warning" else int | float for name in columns}
    if not all(isinstance(row[name], kind) for row in rows for name, kind in kinds.items()):
        return False
    steps = [0, *(row["step"] for row in rows), last + 1]
    numbers = (row[name] for row in rows for name in columns if name != "warning")
    in_order = all(before < after for before, after in itertools.pairwise(steps))
    return in_order and all(abs(value) < 2**62 for value in numbers)


# What a file may say of a network, checked before it is built: a false header must not allocate anything.
LIMITS: dict[str, Callable[[Any], bool]] = {
    "image_size": lambda x: type(x) is int and x in SIZES,
    "channels": lambda x: type(x) is int and x in (1, 3),
    "latent_dim": lambda x: type(x) is int and 1 <= x <= 4096,
    "width": lambda x: type(x) is int and 1 <= x <= 1024,
    "negative_slope": lambda x: type(x) in (int, float) and 0 <= x <= 1,
    "dropout": lambda x: type(x) in (int, float) and 0 <= x < 1,
    "kernel": lambda x: type(x) is int and 1 <= x <= MOST_KERNEL,
    "arch": lambda x: x in ARCHITECTURES,
    "upsample": lambda x: x in UPSAMPLES,
    "norm": lambda x: x in NORMS,
    "latent": lambda x: x in LATENTS,
    "init": lambda x: x in INITS,
    **dict.fromkeys(("bias", "spectral_norm", "conditional"), lambda x: type(x) is bool),
    "classes": lambda x: (
        type(x) is list and len(x) <= MOST_CLASSES and all(type(n) is str and n.isprintable() for n in x)
    ),
}


def checked_architecture(path: str | Path, name: str, architecture: Any, recipe: Recipe) -> dict[str, Any]:
    """What a file says of a network, if it is one that the recipe makes. Raises UserError."""
    kind = inspect.signature(recipe.kinds[name]).parameters
    defaults = {key: [] if key == "classes" else parameter.default for key, parameter in kind.items()}
    if not isinstance(architecture, dict) or not {"channels"} <= architecture.keys() <= defaults.keys():
        raise UserError(f"does not say what {name} of this program its weights are of; labs have their own", path)
    architecture = defaults | architecture  # older files do not know the later ones
    if not all(recipe.limits[key](value) for key, value in architecture.items()):
        raise UserError(f"its {name} is not one that is made here: {str(architecture)[:200]}", path)
    if "classes" in architecture:
        architecture["classes"] = [*map(class_name, architecture["classes"])]
    return architecture


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> Generator:
    """The averaged generator of a `.safetensors` model or a `.pt` checkpoint, ready to `generate`. Raises UserError."""
    return load_network(path, "generator", device)


def load_network(
    path: str | Path,
    name: str,
    device: str | torch.device = "cpu",
    recipe: Recipe | None = None,
) -> nn.Module:
    """The "generator" or "discriminator" of a `.safetensors` model or a checkpoint: its average, if there is one.

    That of a lab is of the lab's `recipe`. Raises UserError.
    """
    recipe = recipe or GAN
    if not os.path.isfile(path):
        raise UserError("there is no such model", path)
    if zipfile.is_zipfile(path):
        saved = load_checkpoint(Path(path))
        architecture = saved["architecture"].get(name)
        weights = saved["average"].get(name, saved["networks"].get(name))
    else:
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != MODEL_FORMAT:
                    raise UserError(f"not a model of this program: its metadata lack format {MODEL_FORMAT!r}", path)
                architectures = json.loads(metadata["architecture"])
                if not isinstance(architectures, dict) or name not in architectures:
                    raise UserError(f"holds no {name}: it is no model of this program, or another command's", path)
                architecture, prefix = architectures[name], f"{name}."
                keys = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 (not a dict)
                weights = {key.removeprefix(prefix): file.get_tensor(key) for key in keys}
        except (OSError, ValueError, KeyError, RecursionError, safetensors.SafetensorError):
            raise UserError("neither a .safetensors model nor a checkpoint, or damaged", path) from None
    kind, architecture = recipe.kinds[name], checked_architecture(path, name, architecture, recipe)
    with torch.device("meta"):
        expected = kind(**architecture).state_dict()
    if wrong := difference(weights, expected, name):
        raise UserError(f"{wrong}: it is no model of {program_name(recipe)}, or damaged", path)
    drawn = {"init": "torch"} if "init" in architecture else {}  # an orthogonal one takes long, and is overwritten
    network = kind(**architecture | drawn)
    network.architecture = architecture
    network.load_state_dict(weights)
    return network.to(device, memory_format=memory_format(device)).requires_grad_(False).eval()


FEWEST = 16  # images of which anything is measured


def check_enough(images: Images, flag: str) -> None:
    """Raise UserError if there are too few real images for an FID that says anything."""
    if len(images.pixels) < FEWEST:
        raise UserError(f"the data has {len(images.pixels)} images; FID needs {FEWEST}, and says little of few", flag)


########################################################################################################################
#                                                       Commands                                                       #
########################################################################################################################

# A preset is a named set of defaults; a flag that is given wins. `cifar10-ls` is the assignment: every default below.
EMOJI = dict(
    image_size=32, upsample="nearest", kernel=5, norm="batch-inner,batch", width_d=64, negative_slope=0.0,
    latent="uniform", batch_size=32, iterations=10_000, sample_every=200, lr_g=3e-4, lr_d=6e-4,
)  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10-ls": {},
    "mnist-bce": dict(loss="bce", width_g=64, epochs=15, ema=10_000),
    "fashion-cwgan-gp": dict(
        conditional=True, loss="wgan", penalty="wgan-gp", d_steps=5, norm="batch,none", bias=True, init="torch",
        width_g=64, width_d=48, beta1=0.0, beta2=0.9, epochs=25, ema=10_000,
    ),
    "mnist-blocks": dict(
        arch="blocks", upsample="nearest", kernel=3, width_g=64, dropout=0.3, bias=True, init="torch", loss="bce",
        epochs=3, ema=10_000,
    ),
    "mnist-conv": dict(
        norm="batch-inner", negative_slope_g=0.2, bias=True, init="dcgan", loss="bce", split="all", iterations=10_000,
        sample_every=500, ema=10_000,
    ),
    "emoji-ls": EMOJI,
    "emoji-ls-gp": EMOJI | dict(penalty="zero-gp", iterations=6_000),
}  # fmt: skip
MOST_KERNEL = 15
COMMANDS = ("train", "generate", "interpolate", "evaluate", "classify")
EXTRA_COMMANDS = {"interpolate": "explore", "evaluate": "evaluate"}  # and the file in extras/ that has them


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows each default there is, and what presets change of them."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser with the layout of all commands' help, whose complaint is one sentence."""

    def __init__(self, prog: str, description: str):
        layout = partial(Help, max_help_position=34, width=120)
        super().__init__(prog, description=description, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str):
        raise UserError(message.removeprefix("argument "))


def number(kind: type, low: float, high: float, open_low: bool = False) -> Callable[[str], Any]:
    """An argparse type: an int or float from `low` (itself excluded if `open_low`) to `high`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (low < value <= high if open_low else low <= value <= high):
            what = "a whole number" if kind is int else "a number"
            span = f"above {low}, up to {high}" if open_low else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {span}")
        return value

    return parse


def norms(text: str) -> str:
    """An argparse type: the norm of both networks, or those of G and D with a comma between them."""
    if not 1 <= text.count(",") + 1 <= 2 or not set(text.split(",")) <= set(NORMS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one of {', '.join(NORMS)}, nor two of them, as in batch,none"
        )
    return text


def augmentations(text: str) -> str:
    """An argparse type: "none", or some of AUGMENTATIONS with commas between them."""
    if text != "none" and not set(text.split(",")) <= set(AUGMENTATIONS):
        known = ",".join(AUGMENTATIONS)
        raise argparse.ArgumentTypeError(f"{text!r} is neither none nor {known}, nor some of these")
    return text


def some_path(text: str) -> Path:
    """An argparse type: a path, but not the empty one of a shell's unset variable, which Path takes for this folder."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("is empty" if not text else "is no path")
    path = os.path.expanduser(text)  # a shell does so in --out ~/x and not in --out=~/x
    if path.startswith("~"):  # ./~ is a folder of that name
        raise argparse.ArgumentTypeError(f"{text}: whose home this is, is not known here")
    return Path(path)


whole, real = partial(number, int), partial(number, float)
DEVICE = dict(default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 … or mps")
SWITCH = dict(action=argparse.BooleanOptionalAction, default=False)
WEIGHTS = dict(type=some_path, metavar="FILE", help="torch-fidelity's Inception weights; fetched by it if left out")
D_STEPS = dict(type=whole(1, 100), default=1, help="steps of D, a new batch each, to one of G")
CACHE = SWITCH | dict(default=True, help="keep many files' pixels for the next time")


def add_main(parser: argparse.ArgumentParser, presets: dict[str, dict[str, Any]], least_batch: int = 2) -> None:
    """What is trained, how long, and from where on; the first preset is that of the defaults."""
    lines = ["what a preset sets, if nothing else is given:"]
    for name, preset in presets.items():
        words = " ".join(command_line(preset)).replace("=", " ") or "all defaults"
        lines.append(textwrap.fill(f"{name}: {words}", 116, subsequent_indent="    "))
    parser.epilog = "\n  ".join(lines)
    add = parser.add_argument_group("main").add_argument
    add("--preset", choices=presets, default=next(iter(presets)), help="a named set of defaults")
    add("--epochs", type=whole(1, 10**6), help="passes over the data (50)")
    add("--iterations", type=whole(1, 10**8), metavar="N", help="steps of G, instead of --epochs")
    add("--batch-size", type=whole(least_batch, 2**16), default=64, help="images a step, of each process")
    add("--seed", type=whole(0, 2**31 - 1), help="of everything random; drawn and printed if left out")
    add("--resume", nargs="?", type=some_path, const=True, metavar="PATH", help="go on from PATH or --out's last.pt")
    add("--dry-run", action="store_true", help="one real step, every file written")


def add_data(parser: argparse.ArgumentParser) -> None:
    """The images that are trained on."""
    add = parser.add_argument_group("data").add_argument
    add("--data", type=some_path, metavar="PATH", help="images; drawn shapes if left out")
    add("--split", choices=("train", "all"), default="train", help="all: the test images, too")
    names = ("cifar10", "cifar100", "mnist", "fashion-mnist", "emnist", "svhn")
    add("--download", choices=names, help="fetch it into --data (or ./data) first, by torchvision")
    add("--image-size", type=whole(1, 1024), help="pixels a side; the images' own if left out")
    add("--flip", **SWITCH, help="mirror half of the images")
    add("--skip-unreadable", **SWITCH, help="leave damaged images out instead of stopping")
    add("--cache", **CACHE)


def add_objective(parser: argparse.ArgumentParser) -> None:
    """What G and D minimise."""
    add = parser.add_argument_group("objective").add_argument
    add("--loss", choices=LOSSES, default="ls", help="least squares, cross-entropy on logits, hinge or Wasserstein")
    add("--conditional", **SWITCH, help="G draws, and D judges, an image of a given class")
    add("--penalty", choices=("none", *PENALTIES), default="none", help="on D's gradient at images")
    add("--penalty-weight", type=real(0, 10**6), default=10.0, metavar="W", help="W · the penalty joins J(D)")


def add_optimizers(parser: argparse.ArgumentParser) -> Callable[..., Any]:
    """Optimizers and rates; returns what adds to their group."""
    add = parser.add_argument_group("optimizers").add_argument
    add("--optimizer", choices=OPTIMIZERS, default="adam", help="one for G and one for D")
    add("--lr-g", type=real(0, 10, True), default=2e-4, help="learning rate of G")
    add("--lr-d", type=real(0, 10, True), default=2e-4, help="learning rate of D")
    add("--beta1", type=real(0, 0.9999), default=0.5, help="Adam's first decay; sgd's momentum")
    add("--beta2", type=real(0, 0.999999), default=0.999, help="Adam's second decay")
    add("--lr-decay", **SWITCH, help="rates fall linearly to 0 over the second half of the run")
    return add


def add_stabilisers(parser: argparse.ArgumentParser) -> None:
    """What keeps D from winning, and G from swinging."""
    add = parser.add_argument_group("stabilisers").add_argument
    add("--label-smoothing", type=real(0, 0.5), default=0.0, metavar="S", help="D's target for real images is 1 - S")
    add(
        "--instance-noise",
        type=real(0, 10),
        default=0.0,
        metavar="SIGMA",
        help="noise on all that D sees, falling to 0 over the run; the images' range is -1 … 1",
    )
    add("--replay", type=whole(0, 2**16), default=0, metavar="N", help="D also sees earlier fakes, from a pool of N")
    add(
        "--augment",
        type=augmentations,
        default="none",
        metavar="KIND[,KIND]",
        help=f"change all that D sees at random: some of {','.join(AUGMENTATIONS)}",
    )
    add("--ema", type=real(0, 10**9), default=50_000, help="half-life of the averages, in images")


def add_performance(parser: argparse.ArgumentParser) -> None:
    """Device and precision."""
    add = parser.add_argument_group("performance").add_argument
    add("--device", **DEVICE)
    add(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="auto: bf16 if the device has instructions for it",
    )
    add("--deterministic", **SWITCH, help="the same run again on a GPU, too, if slower")
    add("--compile", **SWITCH, help="fuse kernels by torch.compile: half a minute at the start, faster steps on a GPU")
    add("--cuda-graph", **SWITCH | dict(default=True), help="on an NVIDIA GPU launch a whole step at once")


def add_output(parser: argparse.ArgumentParser) -> None:
    """What is written, and how often."""
    add = parser.add_argument_group("output").add_argument
    add("--out", type=some_path, metavar="DIR", help="runs/<preset>-<date>-<time> if left out")
    add("--log-every", type=whole(1, 10**6), default=50, help="steps that a row of log.csv averages")
    add(
        "--sample-every",
        type=whole(1, 10**8),
        metavar="N",
        help="epochs (1), or with --iterations iterations (200), between sheets of samples",
    )
    add(
        "--save-every",
        type=whole(1, 10**8),
        metavar="N",
        help="likewise between numbered checkpoints; 10 times that if left out",
    )
    add("--keep", type=whole(1, 10**6), default=5, help="numbered checkpoints that stay")


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """FID while a run goes on."""
    add = parser.add_argument_group("evaluation").add_argument
    add("--evaluate-every", type=whole(0, 10**8), default=0, metavar="N", help="likewise between FIDs; 0 is none")
    add("--evaluate-samples", type=whole(FEWEST, 10**6), default=2000, metavar="N", help="samples for each of them")
    add("--inception-weights", **WEIGHTS)


def build_parser(command: str = "train", program: str = "rollnumber_04.py") -> argparse.ArgumentParser:
    """The command line of one command; `train` is the one that needs no name."""
    prog = program if command == "train" else f"{program} {command}"
    description = {
        "train": f"Train a GAN on small images. Other commands, each with its --help: {', '.join(COMMANDS[1:])}.",
        "generate": "Draw images with a trained generator. Image i of a seed is the same however many are drawn.",
        "interpolate": "Draw the images on a path between two noise vectors, or between two classes.",
        "evaluate": "Measure a generator against real images: FID, KID, precision and recall, by torch-fidelity.",
        "classify": "Tell the classes of images with the discriminator of a run with --multitask.",
    }[command]
    parser = Parser(prog, description)

    add = parser.add_argument
    if command != "train":
        add("model", type=some_path, metavar="MODEL", help="a .safetensors model or a .pt checkpoint")
        add("--device", **DEVICE)
    if command == "classify":
        add("images", type=some_path, nargs="+", metavar="IMAGE|DATA", help="image files, or a folder or file of data")
        add("--shares", action="store_true", help="print the share of each class alone")
        return parser
    if command != "train":
        truncation = "noise from -T … T: less variety, better images"
        add("--truncation", type=real(0, 10, True), metavar="T", help=truncation)
    if command in ("generate", "interpolate"):
        add("--seed", type=whole(0, 2**31 - 1), default=0, help="image i of a seed is always the same")
    if command == "generate":
        add("--count", type=whole(1, 10**8), default=64, help="how many images")
        add("--label", metavar="CLASS", help="name or number, if conditional; in turn if left out")
        add("--out", type=some_path, required=True, metavar="PATH", help="x.png (a sheet), x.npz or a new folder")
        return parser
    if command in EXTRA_COMMANDS:
        extra(EXTRA_COMMANDS[command]).add_arguments(add)
        return parser

    add_main(parser, PRESETS)
    add_data(parser)
    add = parser.add_argument_group("networks").add_argument
    add("--arch", choices=ARCHITECTURES, default="dcgan", help="a convolution a stage, or blocks of two and three")
    add("--upsample", choices=UPSAMPLES, default="deconv", help="how G's stages double the size")
    add("--kernel", type=whole(1, MOST_KERNEL), default=4, help="side of the convolutions' kernels")
    add("--width-g", type=whole(1, 1024), default=32, help="channels of G's last hidden stage")
    add("--width-d", type=whole(1, 1024), default=32, help="channels of D's first stage")
    add("--latent-dim", type=whole(1, 4096), default=100, help="numbers in the noise z")
    add("--latent", choices=LATENTS, default="normal", help="noise from N(0, 1) or from -1 … 1")
    add(
        "--norm",
        type=norms,
        default="batch",
        metavar="KIND[,KIND]",
        help=f"of both networks, or of G and of D: {', '.join(NORMS)}; inner: not after the first layer",
    )
    add("--spectral-norm", **SWITCH, help="of D's weights")
    add("--bias", **SWITCH, help="biases in the layers that no norm follows")
    add("--init", choices=INITS, default="normal", help="how weights are drawn; normal: N(0, 0.02²)")
    add("--negative-slope-g", type=real(0, 1), default=0.0, help="of G's leaky ReLU; 0 is a ReLU")
    add("--negative-slope", type=real(0, 1), default=0.2, help="of D's leaky ReLU")
    add("--dropout", type=real(0, 0.99), default=0.0, metavar="P", help="after each of D's stages")
    add_objective(parser)
    add = parser.add_argument_group("classification").add_argument
    add("--multitask", **SWITCH, help="D also tells the class of an image")
    add("--class-weight", type=real(0, 10**6), default=1.0, metavar="W", help="J(D_total) = J(D) + W·J(C)")
    add(
        "--validation-split",
        type=real(0, 0.9, True),
        metavar="SHARE",
        help="of the training images, held out for validation; if left out, the test images, or 0.1 without them",
    )
    add_optimizers(parser)("--d-steps", **D_STEPS)
    add_stabilisers(parser)
    add_performance(parser)
    add_output(parser)
    add_evaluation(parser)
    return parser


def parse_options(argv: Sequence[str] = (), recipe: Recipe | None = None) -> argparse.Namespace:
    """The options of a training run from its command line: flags, over a checkpoint's or a preset's, over the defaults.

    Raises UserError. `train(parse_options(["--data", "cifar10"]))` is the way to train from Python.
    """
    recipe = recipe or GAN
    parser = recipe.parser()
    parser.set_defaults(recipe=recipe, **recipe.constants)
    given = parser.parse_args(argv)
    if given.epochs and given.iterations:
        raise UserError("does not go with --epochs; give one of them", "--iterations")
    preset = recipe.presets[given.preset] if given.resume is None else {}  # a checkpoint has all options
    parser.set_defaults(**{"epochs": 50, "saved": None} | preset)
    if given.resume is None:
        options = parser.parse_args(argv)
        count_in(options, given, "iterations" in preset)
    else:
        options = resumed_options(parser, given, argv)
    for flag, every in (("--save-every", options.save_every), ("--evaluate-every", options.evaluate_every)):
        if options.iterations and every % options.sample_every:
            raise UserError(f"must be a multiple of --sample-every {options.sample_every}", f"{flag} {every}")
    recipe.check(options, parser)
    if options.seed is None:
        options.seed = secrets.randbelow(2**31)
    return options


def count_in(options: argparse.Namespace, given: argparse.Namespace, iterations_before: bool) -> None:
    """Settle whether a run is counted in epochs or in iterations, and the intervals that are counted in the same."""
    if given.epochs:
        options.iterations = None
    if bool(options.iterations) != iterations_before:  # what was counted in the other is worth nothing
        for name in ("sample_every", "save_every", "evaluate_every"):
            setattr(options, name, getattr(given, name))
    elif options.iterations and given.sample_every:
        options.save_every = given.save_every  # else it is derived anew
    options.sample_every = options.sample_every or (200 if options.iterations else 1)
    options.save_every = options.save_every or 10 * (options.sample_every if options.iterations else 1)


def check_together(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Raise UserError for options that do not go together."""
    needs = {
        "class_weight": "multitask",
        "validation_split": "multitask",
        "penalty_weight": "penalty",
        "evaluate_samples": "evaluate_every",
        "inception_weights": "evaluate_every",
    }
    for name, other in needs.items():
        if getattr(options, other) in (False, 0, "none") and getattr(options, name) != parser.get_default(name):
            raise UserError(f"needs --{other.replace('_', '-')}", f"--{name.replace('_', '-')}")
    if options.multitask and options.conditional:
        raise UserError("not with --conditional: D is told the classes that its head is to tell", "--multitask")
    if options.compile and options.penalty != "none":
        raise UserError("not with --penalty: torch.compile does not take the gradient of a gradient", "--compile")
    if options.label_smoothing and options.loss not in SMOOTHABLE:
        raise UserError(f"--loss {options.loss} has no target for real images; ls and bce have", "--label-smoothing")
    if options.replay and options.replay < options.batch_size:
        raise UserError(f"must hold at least a batch, --batch-size {options.batch_size}", f"--replay {options.replay}")


def resumed_options(
    parser: argparse.ArgumentParser, given: argparse.Namespace, argv: Sequence[str]
) -> argparse.Namespace:
    """A checkpoint's options under those that are given, with its path as `resume` and its contents as `saved`."""
    for flag in ("dry_run", "download", "preset"):
        if getattr(given, flag) != parser.get_default(flag):
            raise UserError("does not go with --resume", f"--{flag.replace('_', '-')}")
    path, saved = find_checkpoint(given)
    if saved["architecture"].keys() != given.recipe.kinds.keys():
        raise UserError(f"holds {', '.join(map(str, saved['architecture']))}: it is no run of this program"[:300], path)
    for name, architecture in saved["architecture"].items():
        checked_architecture(path, name, architecture, given.recipe)
    described = {name: value for name, value in saved["options"].items() if name in plain(given)}
    words = command_line(described)
    try:
        before = parser.parse_args(words)
    except UserError as error:
        raise UserError(f"its options are wrong: {error}"[:300], path) from None
    check_checkpoint(saved, path, before)
    options = parser.parse_args([*words, *argv])  # what is given last wins
    count_in(options, given, bool(before.iterations))
    if not options.evaluate_every:  # turned off, perhaps because here there is neither the library nor the weights
        options.evaluate_samples, options.inception_weights = given.evaluate_samples, given.inception_weights
    options.resume, options.saved = path, saved
    if options.out is None and path.parent.name != "checkpoints":
        raise UserError("lies in no run's folder; name one with --out", f"--resume {path}")
    options.out = options.out or path.parent.parent
    for name, new in plain(options).items():
        flag, old = "--" + name.replace("_", "-"), plain(before)[name]
        if new != old and name in options.recipe.fixed:
            typed, before_it = (
                " ".join(command_line({name: value})).replace("=", " ") or f"no {flag}" for value in (new, old)
            )
            raise UserError(f"the checkpoint {path} {options.recipe.fixed[name]} {before_it}", typed)
        columns = options.recipe.measures
        if new != old and name in ("loss", "penalty") and columns(options) != columns(before):
            raise UserError(
                f"the log of {path}, with {flag} {old}, has other columns; begin a new run", f"{flag} {new}"
            )
        if new != old:
            say(f"note: {flag} {old} in the checkpoint, {new} now")
    return options


def find_checkpoint(options: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that `--resume [PATH]` means, and what it holds: PATH, or the newest whole one of a run's folder.

    That is last.pt, unless it is damaged: then the newest of those with numbers, with a note. Raises UserError.
    """
    if options.resume is True and options.out is None:
        raise UserError("name the run's folder with --out, or give a checkpoint's path", "--resume")
    path = options.out if options.resume is True else options.resume
    if not os.path.isdir(path):  # unlike Path's, these take names of any length
        if not os.path.isfile(path):
            raise UserError(f"there is no checkpoint {path}", "--resume")
        return path, load_checkpoint(path)
    first = path / "checkpoints" / "last.pt"
    others = sorted(
        (path / "checkpoints").glob("*_*.pt"), key=lambda file: (os.path.getmtime(file), file), reverse=True
    )
    candidates = [file for file in (first, *others) if file.is_file()]
    for i, file in enumerate(candidates):
        try:
            return file, load_checkpoint(file)
        except UserError as error:
            if i + 1 == len(candidates):
                raise
            say(f"note: {error}; trying {candidates[i + 1].name}")
    raise UserError(f"there is no checkpoint {first}", "--resume")


def command_line(saved: dict[str, Any]) -> list[str]:
    """Saved options as words of a command line, so that a file's values are checked as a user's are."""
    given = {name.replace("_", "-"): value for name, value in saved.items() if value is not None}
    words = {True: "--{}", False: "--no-{}"}
    return [
        words[value].format(flag) if value is True or value is False else f"--{flag}={value}"
        for flag, value in given.items()
    ]


def plain(options: argparse.Namespace) -> dict[str, Any]:
    """The options that describe a run, as plain values: what is written to options.json and into checkpoints."""
    here_only = {"resume", "saved", "dry_run", "out", "download", "cache", "recipe"} | options.recipe.constants.keys()
    items = {name: value for name, value in vars(options).items() if name not in here_only}
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in items.items()}


def load_data(options: argparse.Namespace) -> tuple[Images, Images | None, str]:
    """(training set, validation set of a multi-task run, the data's fingerprint), enough of them to train on.

    Settles the options that depend on the data, `image_size` and `batch_size`. Raises UserError.
    """
    how = (options.image_size, options.skip_unreadable, options.cache)
    with named("--data"):
        images, validation = load_images(options.data, options.split, *how), None
    options.image_size = images.pixels.shape[1]
    data_fingerprint = fingerprint(images)
    if options.multitask or options.conditional:
        count, flag = len(images.classes), "--multitask" if options.multitask else "--conditional"
        if not 2 <= count <= MOST_CLASSES:
            found = f"{count:,} classes" if count > 1 else "one class only" if count else "no labels"
            without = f"--no-{flag[2:]} does without them"
            raise UserError(f"the data has {found}; it takes 2 to {MOST_CLASSES:,}, a folder each; {without}", flag)
    if options.multitask:
        images, validation = load_validation(options, images)
    count = len(images.pixels)
    fewest = 2 * options.d_steps * process_count()
    if count < fewest:
        needed = f"{fewest} images" + " (--d-steps)" * (options.d_steps > 1)
        raise UserError(f"training needs at least {needed}, found {count}", f"--data {options.data}")
    if options.evaluate_every:
        check_enough(images, f"--evaluate-every {options.evaluate_every}")
    if not data_spread(images):
        say(f"note: --data {options.data}: the images are all alike; the diversity of samples cannot be told")
    lower_batch(options, count)
    return images, validation, data_fingerprint


def lower_batch(options: argparse.Namespace, count: int) -> None:
    """Lower `batch_size` to what the images suffice for, with a note."""
    if images_of_step(options) > count:
        most = count // (options.d_steps * process_count())
        times = f" times --d-steps {options.d_steps}" if options.d_steps > 1 else ""
        times += f" times {process_count()} processes" if process_count() > 1 else ""
        say(f"note: --batch-size {options.batch_size}{times} is more than the {count} images; using {most}")
        options.batch_size = most


def describe(run: Run, options: argparse.Namespace) -> tuple[str, str, list[str]]:
    """Networks and objective in words, and what of them is doubtful."""
    of_head = count_parameters(run.discriminator.head) if run.discriminator.head is not None else 0
    of_d = f"D {count_parameters(run.discriminator) - of_head:,} parameters"
    with_head = f", its classification head {of_head:,}" if of_head else ""
    objective = "conditional " * options.conditional + LOSS_NAMES[options.loss]
    if options.penalty != "none":
        objective += f" with {options.penalty_weight:g} · {options.penalty}"
    if options.augment != "none":
        objective += f", augmented ({options.augment})"
    notes = []
    if options.loss == "wgan" and options.penalty == "none" and not options.spectral_norm:
        notes.append("nothing bounds the critic's slope, without which --loss wgan means little; add --penalty wgan-gp")
    if options.penalty != "none" and any(isinstance(m, nn.BatchNorm2d) for m in run.discriminator.modules()):
        notes.append(
            "with batch norm in D an image's gradient depends on its batch; --norm batch,none leaves it out of D"
        )
    return f"G {count_parameters(run.generator):,} and {of_d}{with_head}", objective, notes


GAN = Recipe(
    program="rollnumber_04.py",
    least_batch=2,
    presets=PRESETS,
    parser=build_parser,
    check=check_together,
    fixed=FIXED_OPTIONS,
    folders=lambda o: [o.data],
    load=load_data,
    constants={},
    kinds={"generator": Generator, "discriminator": Discriminator},
    limits=LIMITS,
    networks=make_networks,
    trained=lambda o: {"generator": (("generator",), o.lr_g), "discriminator": (("discriminator",), o.lr_d)},
    models=lambda o: {name: (name,) for name in ("generator", *(["discriminator"] if o.multitask else []))},
    pools=lambda o: {"fakes": o.replay} if o.replay else {},
    measures=measures_of,
    step=gan_step,
    measured=lambda o: (*(VALIDATION_MEASURES if o.multitask else ()), "diversity", "fid"),
    look=look,
    draw=draw,
    troubles=troubles,
    describe=describe,
)


def train(options: argparse.Namespace) -> Path:
    """Train as `options` (from `parse_options`) say; returns the run's folder. Bad input: UserError."""
    with joined_processes(options.device) as device:
        options.seed = shared(options.seed)  # it may have been drawn
        return train_on(device, options)


def train_on(device: torch.device, options: argparse.Namespace) -> Path:
    """`train`, by this process on this device, perhaps together with others."""
    start = time.perf_counter()
    if not any(options.recipe.folders(options)) and not options.download:
        say("training on the built-in shapes, drawn on the fly; --data FOLDER trains on your own images")
    saved = options.saved
    unit, planned = ("iterations", options.iterations) if options.iterations else ("epochs", options.epochs)
    is_new = not saved or options.resume.parent.parent.resolve() != options.out.resolve()
    has_ended = saved and saved["step" if options.iterations else "epoch"] >= planned
    if has_ended and shared(is_new or not (options.out / UNDRAWN).exists()):
        say(f"nothing to do: {options.resume} has done its {planned:,} {unit}; a larger --{unit} goes on from it")
        return options.out
    if is_new and not is_follower():
        refuse_folder(options.out, options.recipe.folders(options))
    if options.download:
        where = options.data or Path("data")
        options.data = shared(None if is_follower() else extra("formats").download(options.download, where))
    loaded = None if is_follower() else options.recipe.load(options)
    shared(None)  # now the others find the first one's images in the cache
    images, validation, data_fingerprint = loaded or options.recipe.load(options)
    channels, classes = images.pixels.shape[3], images.classes if options.multitask or options.conditional else ()
    torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(True)
    options.precision = shared("bf16" if wants_bf16(options.precision, device) else "fp32")
    measures_itself = options.evaluate_every and not options.dry_run and not is_follower()
    # Before make_run sets the random numbers, which this may draw.
    fid, fid_facts = extra("evaluate").fid_during(options, images, device) if measures_itself else (None, {})
    run = make_run(options, channels, device, options.precision == "bf16", classes)
    if options.compile:
        extra("speed").compile_networks(run)
    drawn = [*(options.out / "weights").glob("*.png")] if saved else []
    of_start = [path for path in drawn if re.search(r"_0+$", path.stem)]
    is_missing = not drawn or 0 < len(of_start) < len(run.networks)  # a branch has none of the start
    is_drawn_first = not saved or (not is_new and is_missing and saved["options"].get("seed") == options.seed)
    untrained = deepcopy(run.networks) if is_drawn_first and not is_follower() else {}
    if saved:
        restore(run, saved, options)
        if saved["options"].get("data_fingerprint") != data_fingerprint:
            say("note: the data is not what the checkpoint was trained on; its epoch begins again")
            run.seen = 0
        if options.validation_split != saved["options"].get("validation_split"):
            raise UserError(
                f"its test images are gone, on which {options.resume} was validated", f"--data {options.data}"
            )
        if run.seen > len(images.pixels):
            raise UserError("has seen more images of its epoch than there are", options.resume)
    was = saved["options"].get("fid") if saved else None
    compared = ("n_real", "n_fake", "weights") if isinstance(was, dict) and was and fid_facts else ()
    if any(was.get(name) != fid_facts[name] for name in compared):
        what = f"the FIDs of {options.resume} are of other images or weights; 0 turns it off"
        raise UserError(what, "--evaluate-every")
    facts = plain(options) | {
        "data_fingerprint": data_fingerprint,
        "device_name": device_name(device),
        "versions": {"tool": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "fid": fid_facts or (was if isinstance(was, dict) else {}),  # a pause forgets no condition
    }
    if run.seen and is_at_a_row(run) and not options.iterations and not leg_steps(run, len(images.pixels), options):
        run.epoch, run.seen = run.epoch + 1, 0  # counted in iterations so far, and these had used up an epoch
    steps = len(images.pixels) // images_of_step(options)  # of an epoch
    ahead = (options.epochs - run.epoch) * steps - run.seen // images_of_step(options)
    run.planned = run.step + 1 if options.dry_run else options.iterations or run.step + ahead
    if saved:
        before = planned_before(saved["options"], run, steps, ahead, options)
        for jump in jumps(run.step, before, run.planned, saved["options"], options):
            say(f"note: the run is planned for {run.planned:,} steps, no longer for {before:,}: {jump}")
    length = f"{planned:,} iterations" if options.iterations else f"{planned:,} epochs of {steps:,} steps"
    length = "1 step" if options.dry_run else length
    facts["planned"] = run.planned
    images = on_device(images, device)
    if options.out is None:
        options.out = shared(None if is_follower() else make_named_folder(options.preset))
    announce(run, images, validation, facts, length, options)
    folder = nullcontext() if is_follower() else open_run_folder(options.out, is_new)
    with folder, noted_signals() as signals:
        try:
            parts = run_legs(run, images, validation, fid, facts, untrained, options, partial(heard, signals))
        except Stopped as stop:
            raise UserError(f"stopped at once; {what_is_saved(options)}", status=128 + stop.args[0]) from None
        except OSError as error:  # a full disk, a folder that has become read-only: no training without saving
            where = f"stopped at step {run.step:,}, for {error.filename or options.out} cannot be written"
            raise UserError(f"{where} ({error.strerror or error}); {what_is_saved(options)}", status=1) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            advice = f"try a lower --batch-size, --image-size or --width-*; {what_is_saved(options)}"
            about = f"--batch-size {options.batch_size}"
            raise UserError(f"not enough memory on {device}: {advice}", about) from None
        if not is_done(run, options):
            what = f"interrupted at step {run.step:,}, epoch {run.epoch + 1}; {what_is_saved(options)}"
            raise UserError(what, status=128 + (signals or [signal.SIGTERM])[0], common=True)
    spent = ", ".join(f"{part} {clock(seconds)}" for part, seconds in parts.items())
    say(f"done       {run.step:,} steps; this time {clock(time.perf_counter() - start)}: {spent}")
    say(f"           peak memory {peak_memory(device)}")
    for file in options.recipe.models(options):
        say(f"{file:10} {options.out / f'{file}.safetensors'}")
    return options.out


def leg_steps(run: Run, count: int, options: argparse.Namespace) -> int:
    """How many iterations are left until the run is looked at, drawn and saved: an epoch's, or `sample_every`."""
    if options.dry_run:
        return 1
    if options.iterations:
        return min(options.sample_every - run.step % options.sample_every, options.iterations - run.step)
    return (count - run.seen) // images_of_step(options)


def is_at_a_row(run: Run) -> bool:
    """Whether a run stands where its last row of epochs.csv was written, or at its start."""
    return run.step == (run.epochs[-1]["step"] if run.epochs else 0)


def is_done(run: Run, options: argparse.Namespace) -> bool:
    """Whether a run has come to its end."""
    if options.dry_run:
        return run.step >= run.planned
    return run.step >= options.iterations if options.iterations else run.epoch >= options.epochs


def run_legs(
    run: Run,
    images: Images,
    validation: Images | None,
    fid: Callable[[nn.Module], float] | None,
    facts: dict[str, Any],
    untrained: dict[str, nn.Module],
    options: argparse.Namespace,
    stop: Callable[[], bool],
) -> dict[str, float]:
    """Train, measure, save and draw, an epoch or `sample_every` iterations at a time, to the end or until `stop`.

    All processes run this loop; rank 0 alone measures, writes and draws. Each time the run is saved before it is drawn:
    what a picture does cannot cost training. Pictures that a crash left out are drawn when the run goes on, those of
    the `untrained` networks among them. Returns the seconds of each part. A run that is stopped is saved between two
    steps. Raises UserError for what is not finite, and OSError.
    """
    out, count, of_step = options.out, len(images.pixels), images_of_step(options)
    seconds = dict.fromkeys(("training", "evaluation", "saving", "pictures"), 0.0)
    leads = not is_follower()
    if leads:
        write_whole(out / "options.json", json.dumps(facts, indent=2).encode())

    def draw_all(seen: Look, last: bool) -> None:
        lost_pictures.clear()
        if untrained:
            unit = "iteration" if options.iterations else "epoch"
            plot_weights(untrained, (unit, 0, milestone_name(unit, 0)), 0, out)
            untrained.clear()
        costs_no_training(options.recipe.draw)(run, seen, options, log, last)
        if not lost_pictures:
            (out / UNDRAWN).unlink(missing_ok=True)

    with (
        closing(RunLog(out, run)) if leads else nullcontext() as log,
        progress_bar(initial=run.step * of_step, total=run.planned * of_step, unit="img") as bar,
    ):
        if shared(not holds_checkpoint(out)):  # a new run or a branch: from here on there is something to resume from
            save_run(run, options, facts, keep=False)
        elif leads and run.epochs and is_at_a_row(run) and (out / UNDRAWN).exists():
            draw_all(options.recipe.look(run, images, validation, None, options), is_done(run, options))
        while not is_done(run, options):
            times, begun, steps = [time.perf_counter()], run.step, leg_steps(run, count, options)
            bar.set_description(progress(run, options))
            for row in train_leg(run, images, steps, options, stop):
                bar.set_postfix({name: f"{row[name]:.3f}" for name in SHOWN if name in row}, refresh=False)
                bar.update(row["step"] * of_step - bar.n)
                if leads:
                    log.add(row)
            times.append(time.perf_counter())
            if run.step < begun + steps:  # it was stopped
                save_run(run, options, facts, keep=False)
                break
            if not options.iterations:
                run.epoch, run.seen = run.epoch + 1, 0
            last, (_, number, _) = is_done(run, options), milestone(run, options.iterations)
            seen, best = None, False
            if leads:
                due = fid if fid and (last or number % options.evaluate_every == 0) else None
                seen = options.recipe.look(run, images, validation, due, options)
                row = epoch_row(run, seen.measured, options)
                log.add_epoch(row)
                if row["warning"]:
                    say(f"warning: {progress(run, options, done=True)}: {row['warning']}")
                fids = [row["fid"] for row in run.epochs if row.get("fid", "") != ""]
                best = row.get("fid", "") != "" and row["fid"] == min(fids)
                (out / UNDRAWN).touch()
            times.append(time.perf_counter())
            run.seconds = 0.0
            save_run(run, options, facts, last or number % options.save_every == 0, best)
            times.append(time.perf_counter())
            if leads:
                draw_all(seen, last)
            times.append(time.perf_counter())
            for part, time_spent in zip(seconds, np.diff(times), strict=True):
                seconds[part] += time_spent
            if leads:
                left = (run.planned - run.step) / max(1, run.step - begun) * (times[-1] - times[0])
                say(f"{progress(run, options, done=True)}  {epoch_line(row, left)}")
    return seconds


def progress(run: Run, options: argparse.Namespace, done: bool = False) -> str:
    """Which epoch is under way, or `done`, and of how many; likewise of iterations."""
    if options.iterations:
        return f"iteration {run.step:,}/{options.iterations:,}"
    return f"epoch {run.epoch + (not done)}/{run.epoch + (not done) if options.dry_run else options.epochs}"


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note Ctrl-C, SIGTERM and a terminal's end instead of dying of them, so that the run can end its step and save.

    Yields the list of the signals that have come; the second raises Stopped.
    """
    signals: list[int] = []

    def note(number: int, frame: Any) -> None:
        if signals:
            raise Stopped(number)
        signals.append(number)
        with suppress(OSError):  # what shows the output, such as `tee`, may have had the same Ctrl-C
            os.write(2, b"\nsaving after this step; once more to stop at once\n")  # print is not safe in here

    if threading.current_thread() is not threading.main_thread():  # only it is told of signals
        yield signals
        return
    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ignored = (signal.SIG_IGN, None)  # nohup stays nohup
    before = {number: old for number in wanted if (old := signal.getsignal(number)) not in ignored}
    for number in before:
        signal.signal(number, note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heard(signals: list[int]) -> bool:
    """Whether any process has been told to stop."""
    return agreed(bool(signals))


def what_is_saved(options: argparse.Namespace) -> str:
    """How to go on with a run that has stopped."""
    if not (options.out / "checkpoints" / "last.pt").exists():
        return "nothing was saved yet"
    start = f"torchrun --nproc-per-node {process_count()}" if process_count() > 1 else "python"
    command = f"{start} {options.recipe.program} --resume --out {shlex.quote(str(options.out))}"
    return f"go on from what is saved with: {command}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that there is too little memory, on whichever device; only CUDA has a class for it."""
    words = ("out of memory", "ALLOC_FAILED", "allocate memory", "not enough memory")  # of CUDA, cuBLAS, Linux, Windows
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def announce(
    run: Run,
    images: Images,
    validation: Images | None,
    facts: dict[str, Any],
    length: str,
    options: argparse.Namespace,
) -> None:
    """A run's first lines: device, precision, data, networks, what is trained and how long, seed, output folder."""
    _, height, width, channels = images.pixels.shape
    colours, classes = "grey" if channels == 1 else "colour", images.classes
    of_classes = f" in {len(classes)} classes: {listed(classes)}" if classes else ", no labels"
    kind = f"{colours} images of {height}×{width}{of_classes}"
    times = f"{process_count()} × " if process_count() > 1 else ""
    how = f"{facts['precision']}{', compiled' if options.compile else ''}"
    if run.rng.device.type == "cuda":
        reason = why_no_graph(run, images, options)
        how += f", no CUDA graph: {reason}" if reason else ", steps as a CUDA graph"
    say(f"device     {times}{facts['device_name']}, {how}, torch {facts['versions']['torch']}")
    flags = [name for name in ("data", "x", "y") if name in facts]
    for flag, part in zip(flags, (images, images.other), strict=False):
        say(f"data       {facts[flag] or 'shapes'}: {len(part.pixels):,} {kind}")
    if validation:
        source = "images held out" if facts.get("validation_split") else "test images"
        both = f" and {len(validation.other.pixels):,}" if validation.other else ""
        say(f"validation {len(validation.pixels):,}{both} {source}")
    if facts["fid"]:
        counts = f"{facts['fid']['n_fake']:,} samples against {facts['fid']['n_real']:,} training images"
        say(f"FID        of {counts}, {extra('evaluate').NETWORK}, weights {facts['fid']['weights']}")
    networks, objective, notes = options.recipe.describe(run, options)
    say(f"networks   {networks}")
    steps_of_d = f", {options.d_steps} steps of D to one of G" if options.d_steps > 1 else ""
    done = f", {run.step:,} steps done" if run.step else ""
    decay = ", rates falling to 0" if options.lr_decay else ""
    say(f"training   {objective}, batch {options.batch_size}{steps_of_d}{decay}, {length}{done}")
    for note in notes:
        say(f"note: {note}")
    say(f"seed       {facts['seed']}")
    say(f"output     {options.out}")


def epoch_line(row: dict[str, float], seconds_left: float) -> str:
    """A row of epochs.csv in a line."""
    measures = "  ".join(f"{name} {row[name]:.3f}" for name in SHOWN if row.get(name, "") != "")
    return f"{measures}  {row['images_per_s']:,.0f} images/s  {clock(seconds_left)} left"


def generate(options: argparse.Namespace) -> Path:
    """The command `generate`: a sheet, an .npz with the array `images`, or a folder of PNGs. Returns what it wrote."""
    out, kind = options.out, options.out.suffix.lower()
    if kind not in ("", ".png", ".npz"):
        raise UserError("must end in .png or .npz, or name a folder without a dot", f"--out {out}")
    if kind == ".png" and options.count > 10_000:
        raise UserError("a sheet holds 10,000; --out x.npz or a folder takes more", f"--count {options.count}")
    generator = load_network(options.model, "generator", choose_device(options.device), options.recipe)
    try:
        if kind and out.is_dir():
            raise UserError("is a folder", f"--out {out}")
        if not kind and out.is_dir() and any(out.iterdir()):
            raise UserError("the folder is not empty", f"--out {out}")
        shape = generator.generate(1, options.label, options.seed, options.truncation).shape[1:]
        images = np.empty((options.count if kind else 0, *shape), np.uint8)
        (out.parent if kind else out).mkdir(parents=True, exist_ok=True)
        with progress_bar(total=options.count, unit="img", leave=False) as bar:
            pieces = generator.stream(options.count, options.label, options.seed, options.truncation)
            for k, piece in enumerate(pieces):
                start = k * GENERATE_BATCH
                if kind:
                    images[start : start + len(piece)] = piece
                else:
                    for i, image in enumerate(piece, start):
                        Image.fromarray(image).save(out / f"{i:06d}.png")
                bar.update(len(piece))
        if kind:
            stream = io.BytesIO()
            if kind == ".png":
                columns = sheet_columns(generator, options.count) if options.label is None else None
                sheet(images, columns).save(stream, "PNG")
            else:
                classes = generator.architecture["classes"]
                labels = generator.labels_for(options.label, 0, options.count)
                of_class = {"labels": labels, "classes": np.array(classes)} if classes else {}
                np.savez_compressed(stream, images=images, **of_class)
            write_whole(out, stream.getvalue())
    except KeyboardInterrupt:
        if not kind:
            say(f"{out} holds the first of the {options.count:,} images")
        raise
    except MemoryError:
        raise UserError("do not fit into memory; --out folder/ takes any number", f"--count {options.count}") from None
    except OSError as error:
        raise UserError(f"{error.strerror or error}", f"--out {out}") from None
    classes = generator.architecture["classes"]
    of_class = f" of class {classes[class_number(options.label, classes)]}" if options.label is not None else ""
    say(f"{options.count:,} images{of_class} of {options.model}, seed {options.seed}: {out}")
    return out


def classify(options: argparse.Namespace) -> None:
    """The command `classify`: class and probability of each image, or accuracy and a table for a labelled set."""
    discriminator = load_network(options.model, "discriminator", choose_device(options.device))
    size, channels, classes = (discriminator.architecture[key] for key in ("image_size", "channels", "classes"))
    if discriminator.head is None:
        raise UserError("its discriminator tells no classes; train one with --multitask", options.model)
    with redirect_stdout(sys.stderr):  # the notes; what is printed may be read by a program
        source = find_to_classify(options.images)
        images = with_channels(decode_source(source, size), channels)
    if images.labels is None or options.shares:
        width = min(max(map(len, classes)), 24)
        probabilities, numbers = discriminator.classify(images.pixels).softmax(1).max(1)
        if options.shares:
            shares = torch.bincount(numbers.cpu(), minlength=len(classes)) / len(numbers)
            these = options.images[0] if len(options.images) == 1 else f"{options.images[0]} …"
            print(f"{len(numbers):,} images of {these}: mean probability {probabilities.mean():.4f}")
            for name, share in zip(classes, shares.tolist(), strict=True):
                print(f"{name:{width}}  {share:7.2%}")
            return
        names = range(len(images.pixels)) if isinstance(source.items, np.ndarray) else source.items
        for name, number, probability in zip(names, numbers.tolist(), probabilities.tolist(), strict=True):
            print(f"{classes[number]:{width}}  {probability:6.1%}  {printable(name)}")
        return
    if stray := set(images.classes) - set(classes):
        raise UserError(f"class {min(stray)} is not one that {options.model} tells", options.images[0])
    to_model = torch.tensor([classes.index(name) for name in images.classes])
    loss, accuracy, confusion = validate(discriminator, replace(images, labels=to_model[images.labels]))
    print(f"{len(images.labels):,} images of {options.images[0]}: {accuracy:.2%} right, cross-entropy {loss:.4f}")
    width = max(map(len, [*classes, "class"]))
    print(f"{'class':{width}}   images    right   most often taken for")
    for i, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        if count := row.sum():
            right, row[i] = row[i] / count, 0
            taken = f"{classes[row.argmax()]} {row.max() / count:.1%}" if row.any() else ""
            print(f"{name:{width}}  {count:7,}  {right:6.1%}   {taken}".rstrip())


def find_to_classify(paths: Sequence[Path]) -> Source:
    """The images that `classify` is given: image files, or one set in any layout; of a divided set the test images."""
    if len(paths) > 1 or (is_image_name(paths[0].name) and not os.path.isdir(paths[0])):
        for path in paths:
            if not os.path.isfile(path):
                what = "is a folder; give it alone" if os.path.isdir(path) else "there is no such image file"
                raise UserError(f"{what}", path)
        return Source(paths, where=f"{paths[0]} …" if len(paths) > 1 else str(paths[0]))
    try:
        return find_source(paths[0], "test")
    except NoTestSplit:
        return find_source(paths[0], "train")


def device_name(device: torch.device) -> str:
    """A device for people to read: the GPU's model, or the CPU's threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def peak_memory(device: torch.device) -> str:
    """The most memory the process has held, and the most on the GPU."""
    parts = []
    if device.type == "cuda":
        parts.append(f"{torch.cuda.max_memory_reserved(device) / 2**30:.2f} GiB on the GPU")
    if os.name == "posix":
        import resource  # not on Windows

        unit = 1 if sys.platform == "darwin" else 1024
        parts.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB on the host")
    return ", ".join(parts) or "not measured on this system"


def clock(seconds: float) -> str:
    """12.3 s, 4 min 05 s or 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def say(line: str) -> None:
    """Print a line above any progress bar; a run goes on when nobody reads it any more, as after `| head`."""
    if is_follower():
        return
    try:
        tqdm.write(line)
        sys.stdout.flush()
    except OSError:
        mute()


def progress_bar(**settings: Any) -> tqdm:
    """A bar on standard error, where that is a terminal."""
    return tqdm(**settings, disable=is_follower() or None)


def mute() -> None:
    """Send standard output nowhere from now on, with what Python still holds of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(program: str, sentence: str, status: int, common: bool = False) -> int:
    """Say what is wrong in one line, whatever the names in it hold; returns the exit status."""
    if is_follower() and (common or (status == 2 and not is_joined())):  # the first process finds it, too
        return status
    with suppress(OSError):  # nobody may be listening
        print(f"{program}:", " ".join(sentence.split()), file=sys.stderr, flush=True)
    return status


def call_command(command: Callable[[], Any], program: str) -> int:
    """Do what a command line asks for; returns the exit status: 0, 2 for a user's mistake, 1 for a failure, 130 …"""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, or a program without a console
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console whose code page has no × must not end a run
    # TensorBoard's writer has a thread; when a disk is full its error is raised again where the writer is used.
    threading.excepthook = lambda args: None if issubclass(args.exc_type, OSError) else threading.__excepthook__(args)
    try:
        command()
    except UserError as error:
        return complain(program, str(error), error.status, error.common)
    except KeyboardInterrupt as stop:
        return complain(program, "interrupted", 128 + (stop.args[0] if isinstance(stop, Stopped) else signal.SIGINT))
    except BrokenPipeError:  # what reads the output, such as `head`, has gone
        mute()
        return 1
    except OSError as error:  # a full disk, a folder that has become read-only
        return complain(program, f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        if is_joined() and "onnection" in str(error):  # another process has ended, and has said why
            return 1
        if not is_out_of_memory(error):
            raise
        advice = "lower --image-size, --batch-size or --width-*"
        return complain(program, f"not enough memory; {advice} ({error})"[:300], 2)
    return 0


def exit_with(main: Callable[[], int]) -> None:
    """Run a `main` as a program and end the process with its status."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = main()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is saved and said; Python's own ending is not to be disturbed
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def main(
    argv: Sequence[str] | None = None, recipe: Recipe = GAN, others: dict[str, Callable[[list[str]], Any]] | None = None
) -> int:
    """Run a command line; returns its exit status: 0, 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C.

    A lab's `recipe` comes with the lab's own commands, functions of the words after their name.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["train"]:
        argv = argv[1:]
    if others is None:
        calls = {"generate": generate, "classify": classify}
        calls |= {name: partial(call_extra, name) for name in EXTRA_COMMANDS}
        others = {name: partial(call_with_options, name, call, recipe) for name, call in calls.items()}
    command = others.get(argv[0]) if argv else None
    call = partial(command, argv[1:]) if command else lambda: train(parse_options(argv, recipe))
    return call_command(call, program_name(recipe))


def call_extra(name: str, options: argparse.Namespace) -> Any:
    """Call a command that a file in extras/ has under its name."""
    return getattr(extra(EXTRA_COMMANDS[name]), name)(options)


def extra(name: str, is_needed: bool = True) -> Any:
    """A module of extras/, the folder beside this file; where it is missing a UserError, or None if it `is_needed` not.

    Libraries that it needs and that are missing are a UserError, too.
    """
    try:
        return importlib.import_module(f"extras.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("extras", f"extras.{name}"):
            raise UserError(f"needs {error.name} (pip install {error.name})", f"extras/{name}.py") from None
        if is_needed:
            raise UserError(
                "is missing; it lies beside the script where that comes from", f"extras/{name}.py"
            ) from None
        return None


def call_with_options(name: str, call: Callable[[argparse.Namespace], Any], recipe: Recipe, argv: Sequence[str]) -> Any:
    """Call one of this script's commands with a command line, on models of a recipe."""
    parser = build_parser(name, program_name(recipe))
    parser.set_defaults(recipe=recipe)
    return call(parser.parse_args(argv))


def program_name(recipe: Recipe) -> str:
    """The name that a program's complaints begin with: labs.NAME of a lab."""
    return recipe.program.removeprefix("-m ")


if __name__ == "__main__":
    exit_with(main)
