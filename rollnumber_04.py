"""Train a small GAN on images: from a folder of pictures to a generator that draws new ones.

    python rollnumber_04.py                                    # ten classes of drawn shapes, nothing to fetch
    python rollnumber_04.py --data ./cifar10 --epochs 50       # a folder of images, an .npz, MNIST's or CIFAR's files
    python rollnumber_04.py --download cifar10 --epochs 50     # let torchvision fetch the data first
    python rollnumber_04.py --data ./cifar10 --multitask       # Task 2: the discriminator also tells the classes
    python rollnumber_04.py --resume --out runs/NAME           # go on where the last checkpoint stopped
    torchrun --nproc-per-node 4 rollnumber_04.py --data ...    # several GPUs, or --device cpu, train one run together
    python rollnumber_04.py generate MODEL --count 64 --seed 0 --out samples.png | samples.npz | folder/
    python rollnumber_04.py classify MODEL IMAGE… | FOLDER     # with the discriminator of a run with --multitask

From Python: `load_generator("generator.safetensors").generate(64, seed=0)` is an array of 64 uint8 images.

The file reads from top to bottom:

    Options        every option of a run
    Networks       the generator and the discriminator, with its optional classification head
    Losses         least squares, cross-entropy, classification
    Training       class GAN with a step of Algorithm 1, and the loop of steps
    Data           a folder of images as one tensor of bytes
    Pictures       samples, curves, weights, and the logs
    Checkpoints    saving a run, resuming it, saved models
    Commands       train, generate, classify

It stands alone. What only an engineer needs is in extras/, other courses' systems are in labs/; both import this file.
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
import platform
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext, redirect_stdout, suppress
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

if __name__ == "__main__":
    sys.modules.setdefault("rollnumber_04", sys.modules[__name__])  # what extras/ import: this module, no second copy
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

__version__ = "0.5.0"


########################################################################################################################
#                                                       Options                                                        #
########################################################################################################################


def option(
    default: Any, help: str, low: float = 0, high: float = 0, *, above: bool = False, choices: Sequence[str] = (),
    group: str = "", fixed: bool = False, saved: bool = True, word: str | None = None,
) -> Any:  # fmt: skip
    """A field of Config, which is a flag: what it does, the limits of a number (not `low` itself, if `above`), choices.

    `group` begins a group of --help. A resumed run cannot change a `fixed` option. One that is not `saved` belongs to
    the command and not to the run. `word` stands for the value in --help.
    """
    limits = dict(low=low, high=high, above=above, choices=choices)
    return field(default=default, metadata=limits | dict(help=help, group=group, fixed=fixed, saved=saved, word=word))


@dataclass(frozen=True)
class Config:
    """Every option of a run: the command line, options.json and a checkpoint's options all come from these fields.

    What the data or the machine decides (image size, batch size, seed, precision) is set once, by `replace`.
    """

    without: ClassVar[tuple[str, ...]] = ()  # options that a lab, which inherits them, does not have
    d_steps = 1  # batches of real images in a step; an option of labs
    epochs: int = option(50, "passes over the data", 1, 10**6, group="training")
    iterations: int | None = option(None, "train for N steps, instead of --epochs", 1, 10**8)
    batch_size: int = option(32, "real images in a step, of each process", 2, 2**16)
    seed: int | None = option(None, "random seed; chosen and printed if omitted", 0, 2**31 - 1)
    resume: Path | None = option(None, "go on from checkpoint PATH, or from the last one of --out", saved=False)
    dry_run: bool = option(False, "train one step and write every file", saved=False)

    data: Path | None = option(None, "folder of images, or a file of them; drawn shapes if omitted", group="data")
    download: str | None = option(
        None, "fetch the data into --data (or ./data) first, by torchvision", saved=False,
        choices=("cifar10", "cifar100", "mnist", "fashion-mnist", "emnist", "svhn"),
    )  # fmt: skip
    image_size: int | None = option(None, "pixels a side; the images' own if omitted", 1, 1024, fixed=True)
    validation_split: float | None = option(
        None, "keep this share of the training images from D, to validate it on; if omitted that is done on the test "
        "images, and where there are none, with --multitask, on a share of 0.1", 0, 0.9, above=True, fixed=True,
    )  # fmt: skip
    flip: bool | None = option(
        None, "mirror half of the real images; if omitted, those in colour whose classes are not all digits or letters"
    )
    translation: bool = option(True, "shift all that D sees by up to an eighth of its side")
    skip_unreadable: bool = option(False, "leave damaged images out instead of stopping")

    latent_dim: int = option(100, "how many numbers the noise z has", 1, 4096, group="networks", fixed=True)
    width_g: int = option(32, "channels of G's last hidden stage", 1, 1024, fixed=True)
    width_d: int = option(32, "channels of D's first stage", 1, 1024, fixed=True)

    loss: str = option("ls", "least squares or binary cross-entropy", choices=("ls", "bce"), group="objective")
    multitask: bool = option(False, "Task 2: D also tells the class of an image", fixed=True)
    class_weight: float = option(1.0, "weight of the class loss: J(D_total) = J(D) + X · J(C)", 0, 10**6)

    optimizer: str = option("adam", "of G and of D", choices=("adam", "adamw", "rmsprop", "sgd"), group="optimizers")
    lr_g: float = option(2e-4, "learning rate of G", 0, 10, above=True)
    lr_d: float = option(2e-4, "learning rate of D", 0, 10, above=True)
    beta1: float = option(0.5, "Adam's decay rate of the mean gradient; the momentum of sgd", 0, 0.9999)
    beta2: float = option(0.999, "Adam's decay rate of the mean squared gradient", 0, 0.999999)
    ema: float = option(200_000, "half-life, in images, of the average of G that draws the samples", 0, 10**9)

    device: str = option("auto", "auto, cpu, cuda, cuda:1 … or mps", group="performance", word="NAME")
    precision: str = option("auto", "auto is bf16 where a device knows it", choices=("auto", "fp32", "bf16"))
    deterministic: bool = option(False, "make runs on a GPU repeatable (slower)")
    launch: str = option(
        "graph", "how a GPU is given a step: as one CUDA graph, kernel by kernel, or compiled by torch.compile",
        choices=("graph", "kernels", "compiled"),
    )  # fmt: skip

    out: Path | None = option(None, "the run's folder; a new one in runs/ if omitted", saved=False, group="output")
    sample_every: int | None = option(None, "draw samples every N epochs (1) or iterations (200)", 1, 10**8)
    save_every: int | None = option(
        None, "keep a checkpoint every N epochs (10) or iterations (10 times --sample-every)", 1, 10**8
    )
    evaluate_every: int = option(
        0, "measure FID every N epochs or iterations; 0 is never", 0, 10**8, group="evaluation"
    )
    evaluate_samples: int = option(2000, "samples for each FID", 16, 10**6)
    inception_weights: Path | None = option(None, "torch-fidelity's weights; it fetches them if omitted")

    @property
    def unit(self) -> str:
        """What --sample-every and the like count, and what files are numbered by."""
        return "iteration" if self.iterations else "epoch"

    @property
    def intervals(self) -> tuple[int, int]:
        """How many of that unit lie between sheets of samples, and between numbered checkpoints."""
        every = self.sample_every or (200 if self.iterations else 1)
        return every, self.save_every or 10 * (every if self.iterations else 1)

    def check(self) -> None:
        """Raise UserError for options that do not go together."""
        if not (self.epochs or self.iterations):
            raise UserError("is missing, and so is --iterations", "--epochs")
        needs = {"class_weight": "multitask"}
        needs |= dict.fromkeys(("evaluate_samples", "inception_weights"), "evaluate_every")
        for name, other in needs.items():
            if not getattr(self, other) and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise UserError(f"needs {flag_of(other)}", flag_of(name))
        for name, every in (("save_every", self.intervals[1]), ("evaluate_every", self.evaluate_every)):
            if self.iterations and every % self.intervals[0]:
                raise UserError(f"must be a multiple of --sample-every {self.intervals[0]}", f"{flag_of(name)} {every}")


########################################################################################################################
#                                                       Networks                                                       #
########################################################################################################################


class BaseGenerator(nn.Module):
    """What draws images from noise z, B×latent_dim. A subclass is the network; a lab's may also be told classes.

    `architecture` holds its constructor's arguments, by which a saved model is built again.
    """

    architecture: dict[str, Any]
    classes: Sequence[str] = ()  # that it can be told
    latent = "normal"  # noise from N(0, 1), or "uniform" from (-1, 1)

    def generate(
        self, n: int, label: int | str | None = None, seed: int = 0, truncation: float | None = None
    ) -> np.ndarray:
        """Draw n images: uint8 n×H×W (grey) or n×H×W×3 (colour). Image i of a seed does not depend on n.

        `label` is the name or the number of a class, if it can be told one; None: image i is of class i modulo their
        number. `truncation` is that of `latents`. Raises UserError for a class that is none, n < 1 or seed < 0.
        """
        if n < 1 or n != int(n) or seed < 0:
            raise UserError(f"takes n of 1 or more and a seed of 0 or more, not {n} and {seed}", "generate")
        return collected(stream(self, n, label, seed, truncation), n)

    def labels(self, label: int | str | None, start: int, count: int) -> np.ndarray | None:
        """The labels, int64 count, of images start … of `generate`; None if it cannot be told classes."""
        if label is not None:
            raise UserError("the generator draws no class of choice; labs/ has those that do", f"--label {label}")
        return None

    def inputs(
        self, seed: int, start: int, count: int, label: int | str | None = None, truncation: float | None = None
    ) -> tuple[Tensor, ...]:
        """What `forward` takes for images start … of `generate`: noise, and in labs classes."""
        self.labels(label, start, count)  # raises for a class
        return (latents(seed, start, count, self.architecture["latent_dim"], self.latent, truncation),)


class Generator(BaseGenerator):
    """Noise z (B×latent_dim) to images (B×channels×S×S) in (-1, 1).

    A linear layer makes a small map; each transposed convolution doubles its size and halves its channels (Radford et
    al. 2016). The shapes beside the layers are those of the defaults, the assignment's network for CIFAR-10: 370,624
    parameters.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, latent_dim: int = 100, width: int = 32):
        super().__init__()
        self.architecture = arguments(self, locals())
        stages = halvings(image_size)
        self.base, features = image_size >> stages, width << (stages - 1)
        self.project = nn.Linear(latent_dim, features * self.base**2, bias=False)  # B×2048
        layers = [nn.Unflatten(1, (features, self.base, self.base))]  # B×128×4×4
        for _ in range(stages - 1):  # B×64×8×8, B×32×16×16
            layers += [nn.BatchNorm2d(features), nn.ReLU()]
            layers += [nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1, bias=False)]
            features //= 2
        layers += [nn.BatchNorm2d(features), nn.ReLU()]
        layers += [nn.ConvTranspose2d(features, channels, 4, stride=2, padding=1, bias=False), nn.Tanh()]  # B×3×32×32
        self.layers = nn.Sequential(*layers)
        initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(self.project(z))


class Discriminator(nn.Module):
    """Images (B×channels×S×S) to scores (B), high for real, without a sigmoid; and to class logits, if it has a head.

    Each convolution halves the size and doubles the channels; the last one sees the whole map. The defaults are the
    assignment's network for CIFAR-10: 167,872 parameters. With names of `classes` it is that of Task 2: a head of two
    fully connected layers tells the class of an image by the same features.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, width: int = 32, classes: Sequence[str] = ()):
        super().__init__()
        self.architecture = arguments(self, locals())
        self.base, inputs, outputs, layers = image_size, channels, width, []
        for _ in range(halvings(image_size)):  # B×32×16×16, B×64×8×8, B×128×4×4
            layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]
            self.base, inputs, outputs = self.base // 2, outputs, 2 * outputs
        self.features = nn.Sequential(*layers)
        self.score = nn.Conv2d(inputs, 1, self.base, stride=2, bias=False)  # B×1×1×1
        initialise(self, smooth=(nn.Conv2d,))
        self.head = None
        if classes:  # made last, so that a seed gives the other layers the same weights with and without it
            self.head = nn.Sequential(
                nn.Flatten(),  # B×2048
                nn.Linear(inputs * self.base**2, 256), nn.LeakyReLU(0.2), nn.Dropout(0.5),  # B×256
                nn.Linear(256, len(classes)),  # B×10
            )  # fmt: skip
            initialise(self.head)

    def forward(self, images: Tensor) -> Tensor:
        return self.score(self.features(images)).flatten()

    def scores_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The scores B and, with a head, the class logits B×classes, of the same features."""
        features = self.features(images)
        return self.score(features).flatten(), None if self.head is None else self.head(features)


def halvings(image_size: int) -> int:
    """How often a size can be halved and stay 4 or more: 3 for 32 (down to 4), 2 for 28 (down to 7); once at least."""
    return max(1, (checked_size(image_size) // 4).bit_length() - 1)


def initialise(network: nn.Module, smooth: tuple[type[nn.Module], ...] = (nn.ConvTranspose2d,)) -> None:
    """Draw the weights of convolutions and linear layers from N(0, 0.02²) (Radford et al. 2016, section 3).

    A layer of a kind in `smooth`, of 4×4, stride 2 and padding 1, begins smooth. A transposed one begins as an
    enlargement by the nearest pixel and a convolution of 3×3, which together are such a layer (compare Aitken et al.
    2017): drawn freely, it gives each pixel of a 2×2 square weights of its own, a chequerboard that G must unlearn. One
    that halves begins as a convolution of 3×3 and the sum of each 2×2: drawn freely, D won in one run of three.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.02)
        if isinstance(module, smooth) and (module.kernel_size[0], module.stride[0], module.padding[0]) == (4, 2, 1):
            kernels = 0.02 * torch.randn(*module.weight.shape[:2], 3, 3)
            # The sum of each over its four shifts has 2.25 times its mean square: / 1.5 leaves 0.02².
            module.weight.data.copy_(F.avg_pool2d(kernels, 2, stride=1, padding=1, divisor_override=1) / 1.5)


########################################################################################################################
#                                                        Losses                                                        #
########################################################################################################################


def ls_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """J(D) = 1/2m Σ (D(x) - 1)² + 1/2m Σ D(G(z))², from scores B (the assignment; Mao et al. 2017)."""
    return 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean()


def ls_g_loss(fake: Tensor) -> Tensor:
    """J(G) = 1/m Σ (D(G(z)) - 1)², from scores B (the assignment; without the factor 1/2 of Mao et al. 2017)."""
    return (fake - 1).square().mean()


def bce_d_loss(real: Tensor, fake: Tensor) -> Tensor:
    """J(D) = -1/2m Σ ln σ(D(x)) - 1/2m Σ ln(1 - σ(D(G(z)))), from logits B (Goodfellow et al. 2014)."""
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    of_real = F.binary_cross_entropy_with_logits(real, ones)
    return 0.5 * of_real + 0.5 * F.binary_cross_entropy_with_logits(fake, zeros)


def bce_g_loss(fake: Tensor) -> Tensor:
    """J(G) = -1/m Σ ln σ(D(G(z))), the non-saturating form, from logits B (Goodfellow et al. 2014, section 3)."""
    return F.binary_cross_entropy_with_logits(fake, torch.ones_like(fake))


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """J(C) = -1/m Σ ln softmax(logits)[label], from logits B×classes and labels B (the assignment's Task 2)."""
    return F.cross_entropy(logits, labels)


class Loss(NamedTuple):
    """The losses of D and of G, and the score of a D that cannot tell real from generated images."""

    name: str
    of_d: Callable[[Tensor, Tensor], Tensor]
    of_g: Callable[[Tensor], Tensor]
    undecided: float


LOSSES = {  # a new one has its functions above, a line here, and its name in the choices of --loss
    "ls": Loss("least squares", ls_d_loss, ls_g_loss, undecided=0.5),
    "bce": Loss("binary cross-entropy", bce_d_loss, bce_g_loss, undecided=0.0),
}


########################################################################################################################
#                                                       Training                                                       #
########################################################################################################################

LOG_EVERY = 50  # steps whose means make a row of log.csv
TRIED, FEWEST_TRIED = 1000, 100  # real images on which D is tried at an interval's end; fewer say too little
EMA_RAMP = 0.05  # while few images have been seen, the half-life is this share of them (Karras et al. 2022, EDM)
ADVICE = "the last checkpoint is whole: --resume, or begin again, with lower learning rates or with --precision fp32"


def fit(run: Run, signals: Sequence[int]) -> None:
    """Train to the end; a signal stops it after the step under way, and it is saved. All processes run this loop.

    Raises UserError (status 1) where a metric is not finite, and OSError where nothing can be written.
    """
    gan, is_cheap = run.gan, run.gan.sums.device.type == "cpu" or process_count() == 1
    with (
        nullcontext() if rank() else closing(RunLog(run)) as log,
        progress_bar(initial=run.step * run.of_step, total=run.total * run.of_step, unit="img") as bar,
    ):
        begin_or_redraw(run, log)
        iterate = launcher(gan)  # gan.iterate, or on a GPU what extras/speed.py makes of it
        began, first = run.mark = time.perf_counter(), run.step
        for index in batches(run):
            # Several processes agree by a message, for which a GPU is waited for: only after a row, as for the row.
            if (is_cheap or not run.waiting) and any(all_gather(bool(signals))):
                break
            iterate(run.images, index)
            ends = run.count_step()
            if not ends and run.waiting < LOG_EVERY:
                continue
            row = take_means(run)  # the one wait for a GPU
            seconds = time.perf_counter() - began
            row["images_per_s"], run.seconds = (run.step - first) * run.of_step / seconds, run.seconds + seconds
            show_progress(bar, run, row)
            if log:
                log.add(row)
            if ends:
                end_interval(run, log)
            began, first = time.perf_counter(), run.step
        else:
            return
        run.seconds += time.perf_counter() - began
        average_sums(gan)
        save_run(run)


def batches(run: Run) -> Iterator[Tensor]:
    """The indices d_steps×B of each step's images, until the run is done.

    An epoch's order is drawn from its number and the seed alone; each process takes its part of it.
    """
    config = run.gan.config
    shape = (config.d_steps, process_count(), config.batch_size)
    order, of_epoch = None, -1
    while run.step < run.total:
        if of_epoch != run.epoch:
            order, of_epoch = epoch_order(len(run.images.pixels), config.seed, run.epoch + 1), run.epoch
            order = order.to(run.images.pixels.device)
        yield order[run.seen :][: run.of_step].reshape(shape)[:, rank()]


class GAN(nn.Module):
    """A generator and a discriminator in training: networks, averages, optimizers, and a step of Algorithm 1.

    Its `state_dict()` is what a checkpoint holds: networks, moving averages of the weights of those that are saved, and
    counters. A lab subclasses this with other networks (`build`) or another `step`. So does a loss whose G also needs
    the scores of real images: its `step` scores them once more at line 9.
    """

    Config: ClassVar = Config
    networks: ClassVar[dict[str, type[nn.Module]]] = {"generator": Generator, "discriminator": Discriminator}
    commands: ClassVar[dict[str, Callable[[list[str]], Any]]] = {}  # a lab's own
    uses: ClassVar[dict[str, str]] = {  # what is done with the files of `models`
        "generator": "generate {} --out samples.png", "discriminator": "classify {} IMAGE",
    }  # fmt: skip

    def __init__(self, config: Config, channels: int = 3, classes: Sequence[str] = ()):
        super().__init__()
        self.config, self.channels, self.classes = config, channels, tuple(classes)
        self.pools: dict[str, nn.Module] = {}  # of a lab, with images of earlier steps; each process has its own
        self.planned = 1  # steps of the whole run
        torch.manual_seed(config.seed)
        self.build()
        saved = [name for names in self.models(config).values() for name in names]
        self.averages = nn.ModuleDict({name: deepcopy(getattr(self, name)) for name in saved})
        self.averages.requires_grad_(False).eval()
        counters = torch.zeros(2, len(self.columns(config)))
        self.register_buffer("sums", counters[0].clone())  # of the metrics of the steps since the last row of log.csv
        self.register_buffer("finite", counters[1].clone())  # per metric: how many of these steps kept the sum finite
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def build(self) -> None:
        """Make the networks."""
        config, size, channels = self.config, self.config.image_size, self.channels
        self.generator = Generator(size, channels, config.latent_dim, config.width_g)
        self.discriminator = Discriminator(size, channels, config.width_d, self.classes if config.multitask else ())

    def step(self, real: Tensor, labels: Tensor | None) -> list[Tensor]:
        """Lines 2 to 10 of the handout's Algorithm 1, on real images B×C×S×S and, with a head, their labels B.

        Returns the metrics of `columns`, on the device: nothing is read back in here.
        """
        config, discriminator, loss = self.config, self.discriminator, LOSSES[self.config.loss]
        # Line 2, the m real images, is the arguments'. Lines 3 and 4: noise, and images made of it.
        with self.autocast():
            with torch.no_grad():  # D's update does not reach into G
                fake = self.generator(self.noise(len(real)))
            real, fake = self.augment(real), self.augment(fake)
            # Real and generated images pass apart: batch norm must not mix their statistics, and only real ones may
            # leave a trace in its running averages, by which the head will classify.
            real_scores, logits = discriminator.scores_and_logits(real)
            with running_averages_kept(discriminator):
                fake_scores = discriminator(fake)
        # Line 5: J(D), and for Task 2 J(D_total) = J(D) + W · J(C).
        real_scores, fake_scores = real_scores.float(), fake_scores.float()
        d_loss = total = loss.of_d(real_scores, fake_scores)
        metrics = [real_scores.mean(), fake_scores.mean()]
        metrics += [(real_scores > loss.undecided).float().mean(), (fake_scores < loss.undecided).float().mean()]
        if logits is not None:
            c_loss = class_loss(logits.float(), labels)
            total = d_loss + config.class_weight * c_loss
            metrics += [c_loss, (logits.argmax(1) == labels).float().mean()]
        # Line 6: update D.
        self.update("discriminator", total)
        # Lines 7 and 8: fresh noise, and images made of it. The gradient passes through D; its own is not wanted.
        discriminator.requires_grad_(False)
        with self.autocast(), running_averages_kept(discriminator):
            fake_scores = discriminator(self.augment(self.generator(self.noise(len(real)))))
        # Line 9: J(G). Line 10: update G.
        g_loss = loss.of_g(fake_scores.float())
        self.update("generator", g_loss)
        discriminator.requires_grad_(True)
        return [metric.detach() for metric in (d_loss, g_loss, *metrics)]

    def update(self, name: str, loss: Tensor) -> None:
        """A step of an optimizer down a loss, by the mean of all processes' gradients."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        if process_count() > 1:
            extra("processes").average_gradients(optimizer)
        optimizer.step()

    def iterate(self, images: Images, index: Tensor) -> None:
        """A step on the images of `index`, d_steps×B, then the averages of the weights and the sums of the metrics.

        All that changes from one to the next is in tensors on the device, so that a CUDA graph can repeat it.
        """
        metrics = self.step(*self.batch(images, index))
        self.steps += 1
        share = ema_share(self.steps, index.shape[1] * process_count(), self.config.ema)
        for name, average in self.averages.items():
            update_average(average, getattr(self, name), share)
        self.sums += torch.stack(metrics)
        self.finite += self.sums.isfinite()

    def batch(self, images: Images, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `step` takes: real images float32 B×C×S×S in (-1, 1), and for a head their labels."""
        real = real_batch(images.pixels, index[0], self.config.flip, self.rng)
        return real, images.labels[index[0]] if self.config.multitask else None

    def noise(self, count: int) -> Tensor:
        """Fresh noise z from N(0, 1), count×latent_dim."""
        return torch.randn(count, self.config.latent_dim, generator=self.rng, device=self.rng.device)

    def augment(self, images: Tensor) -> Tensor:
        """Images as D is shown them; real and generated ones alike, so that G learns no changes (Zhao et al. 2020)."""
        return translated(images, self.rng) if self.config.translation else images

    def autocast(self) -> torch.autocast:
        """Convolutions in bfloat16 where the run has it; weights, losses and optimizers stay float32."""
        return torch.autocast(self.rng.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def on(self, device: torch.device) -> GAN:
        """Move it to a device, and make optimizers and random numbers there; each process has noise of its own."""
        self.to(device, memory_format=memory_format(device))
        self.optimizers = {}
        for name, (members, rate) in self.optimized().items():
            parameters = [parameter for member in members for parameter in getattr(self, member).parameters()]
            self.optimizers[name] = make_optimizer(parameters, rate, self.config)
        if rank():  # dropout of its own, as the noise; the weights are the same in all processes
            torch.manual_seed(self.config.seed + rank())
        for pool in self.pools.values():
            pool.to(device)
        self.rng = torch.Generator(device).manual_seed(noise_seed(self.config.seed))
        return self

    def optimized(self) -> dict[str, tuple[Sequence[str], float]]:
        """The optimizers: the networks whose weights each one changes, and its learning rate."""
        config = self.config
        return {"generator": (["generator"], config.lr_g), "discriminator": (["discriminator"], config.lr_d)}

    @staticmethod
    def models(config: Config) -> dict[str, Sequence[str]]:
        """The files of saved models: the networks in each, whose averages they are."""
        return {name: [name] for name in ("generator", "discriminator")[: 1 + config.multitask]}

    @staticmethod
    def columns(config: Config) -> tuple[str, ...]:
        """The metrics of a step, in the order in which it returns them."""
        of_d = ("d_real", "d_fake", "d_accuracy_real", "d_accuracy_fake")
        return ("d_loss", "g_loss", *of_d, *(("class_loss", "accuracy") if config.multitask else ()))

    @classmethod
    def load(cls, config: Config) -> tuple[Config, Images, Images | None]:
        """The training set, a validation set if there is to be one, and the options that the data decides."""
        return load_data(config)

    def look(self, images: Images, validation: Images | None) -> Snapshot:
        """Samples of the fixed noise, how much they differ, and how D and its head do on the validation set."""
        generator, known, confusion = self.averages["generator"], {}, None
        samples = generator.generate(sheet_count(generator), seed=self.config.seed)
        if self.config.multitask:
            loss, accuracy, confusion = validate(self.averages["discriminator"], validation)
            known = {"val_class_loss": loss, "val_accuracy": accuracy}
        if "d_accuracy_unseen" in self.interval_columns(self.config):
            for name, part in (("seen", images), ("unseen", validation)):
                is_enough = part and len(part.pixels) >= FEWEST_TRIED
                known[f"d_accuracy_{name}"] = self.share_real(part) if is_enough else ""
        metrics = known | {"diversity": diversity(samples, images), "fid": ""}
        return Snapshot(metrics, {"fixed_noise": sheet(samples, sheet_columns(generator, len(samples)))}, confusion)

    @classmethod
    def interval_columns(cls, config: Config) -> tuple[str, ...]:
        """What `look` measures, and the FID."""
        of_head = ("val_class_loss", "val_accuracy") if config.multitask else ()
        of_d = ("d_accuracy_seen", "d_accuracy_unseen") if "d_accuracy_real" in cls.columns(config) else ()
        return (*of_head, *of_d, "diversity", "fid")

    @torch.no_grad()
    def share_real(self, images: Images) -> float:
        """The share of real images, up to TRIED, that D takes for real: batches as in training, without dropout."""
        device, rng, right = self.sums.device, self.rng, []
        some = epoch_order(len(images.pixels), 0, 0)[:TRIED].to(images.pixels.device)
        is_compiled = self.config.launch == "compiled"  # for training's mode and shapes alone
        as_written = torch.compiler.set_stance("force_eager") if is_compiled else nullcontext()
        self.rng = torch.Generator(device).manual_seed(0)  # training's own goes on as if nobody had looked
        with in_eval_mode(self.discriminator), running_averages_kept(self.discriminator), self.autocast(), as_written:
            for index in some.split(self.config.batch_size):
                labels = None if images.labels is None else images.labels[index].to(device)
                real = self.augment(to_range(images.pixels[index].to(device)))
                right.append(self.score(real, labels).float() > self.undecided)
        self.rng = rng
        return float(torch.cat(right).double().mean())

    def score(self, real: Tensor, labels: Tensor | None) -> Tensor:
        """D's scores B of images B×C×H×W in (-1, 1), which labels B do not change."""
        return self.discriminator(real)

    @property
    def undecided(self) -> float:
        """The score of a D that cannot tell real from generated images."""
        return LOSSES[self.config.loss].undecided

    def curves(self) -> dict[str, tuple[str, str, str]]:
        """The pictures of losses: file, and the column of log.csv, title and formula that it shows."""
        kind = LOSSES[self.config.loss].name
        return {
            "generator_loss": ("g_loss", f"Generator loss ({kind})", "J(G)"),
            "discriminator_loss": ("d_loss", f"Discriminator loss ({kind})", "J(D)"),
        }

    def warnings(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        """What is wrong with the training, by the rows of epochs.csv."""
        diagnosis = extra("diagnosis", is_needed=False)
        return diagnosis.warnings(rows, LOSSES[self.config.loss], self.config) if diagnosis else []

    def describe(self) -> tuple[str, str]:
        """The networks and the objective, in words."""
        head = self.discriminator.head
        of_head = count_parameters(head) if head is not None else 0
        of_d = f"D {count_parameters(self.discriminator) - of_head:,} parameters"
        with_head = f", its classification head {of_head:,}" if of_head else ""
        return f"G {count_parameters(self.generator):,} and {of_d}{with_head}", LOSSES[self.config.loss].name

    @staticmethod
    def uses_classes(config: Config) -> bool:
        """Whether the networks are made for the classes of the data."""
        return config.multitask

    def sets(self, images: Images) -> dict[str, Images]:
        """The sets of images that the training has, by what the user called them."""
        return {str(self.config.data or "shapes"): images}

    def jumps(self, step: int, before: dict[str, Any]) -> list[str]:
        """What a new plan changes of a lab's training, where that follows the share of the run that is done."""
        return []


def end_interval(run: Run, log: RunLog | None) -> None:
    """Measure, save, then draw: no picture can cost training. Only rank 0 measures, writes and draws."""
    is_best, is_last = False, run.step == run.total
    if log:
        snapshot = run.gan.look(run.images, run.validation)
        if run.fid and (is_last or run.number % run.gan.config.evaluate_every == 0):
            snapshot.metrics["fid"] = run.fid(run.gan.averages["generator"])
        is_best = log.add_interval(epoch_row(run, snapshot.metrics))
        (run.out / UNDRAWN).touch()
    run.seconds = 0.0
    save_run(run, numbered=is_last or run.number % run.gan.config.intervals[1] == 0, best=is_best)
    if log:
        draw_all(run, snapshot, log)
        say(f"{progress(run)}  {interval_line(run)}")
    run.mark = time.perf_counter(), run.step


@dataclass
class Run:
    """A run of training: the GAN, its data, where it stands and what it has logged. `step` is its one clock."""

    gan: GAN
    images: Images
    validation: Images | None
    out: Path | None  # its folder
    facts: dict[str, Any]  # options.json: the options, and the data, machine and versions they met
    is_whole: bool = True  # False for one that began in another folder or with another seed
    fid: Callable[[BaseGenerator], float] | None = None
    total: int = 1  # steps, when it is done
    step: int = 0
    epoch: int = 0  # epochs done
    seen: int = 0  # images of the epoch under way
    waiting: int = 0  # steps since the last row of log.csv
    seconds: float = 0.0  # of training since the last row of epochs.csv
    mark: tuple[float, int] = (0.0, 0)  # time and step at which it began here, or the last interval ended
    log: list[dict[str, Any]] = field(default_factory=list)  # the rows of log.csv
    epochs: list[dict[str, Any]] = field(default_factory=list)  # and of epochs.csv

    @property
    def of_step(self) -> int:
        """Real images that a step takes, in all processes together."""
        return self.gan.config.batch_size * self.gan.config.d_steps * process_count()

    @property
    def epochs_begun(self) -> int:
        """How many epochs are done or begun."""
        return self.epoch + (self.seen > 0)

    @property
    def number(self) -> int:
        """What files are numbered by: epochs done or begun, or with --iterations steps."""
        return self.step if self.gan.config.iterations else self.epochs_begun

    def count_step(self) -> bool:
        """Count a step that is done; returns whether an interval ends with it, after which samples are drawn."""
        config = self.gan.config
        self.step, self.seen, self.waiting = self.step + 1, self.seen + self.of_step, self.waiting + 1
        if is_epoch := self.seen + self.of_step > len(self.images.pixels):
            self.epoch, self.seen = self.epoch + 1, 0
        return self.step == self.total or (self.step % config.intervals[0] == 0 if config.iterations else is_epoch)


def take_means(run: Run) -> dict[str, Any]:
    """The means of the metrics since the last row of log.csv, as the next row; the sums begin again.

    Raises UserError (status 1) that names the first metric which was not finite: its sum has not been finite since.
    """
    gan, names = run.gan, run.gan.columns(run.gan.config)
    average_sums(gan)
    if not gan.sums.isfinite().all():
        good = [int(steps) for steps in gan.finite.tolist()]
        metric, step = names[good.index(min(good))], run.step - run.waiting + min(good) + 1
        where = f"step {step:,}" if gan.config.iterations else f"step {step:,}, epoch {run.epochs_begun}"
        raise UserError(f"{metric} is not finite at {where}; {ADVICE}", status=1, common=True)
    means = dict(zip(names, (gan.sums / run.waiting).tolist(), strict=True))
    run.waiting = 0
    gan.sums.zero_()
    gan.finite.zero_()
    return {"step": run.step, "epoch": run.epochs_begun, **means}


def make_optimizer(parameters: list[nn.Parameter], rate: float, config: Config) -> torch.optim.Optimizer:
    """An optimizer of the kind that the options ask for; one on an NVIDIA GPU can be part of a CUDA graph."""
    on_cuda = parameters[0].device.type == "cuda"
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, rate, capturable=on_cuda)
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=config.beta1, fused=True)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, rate, betas=(config.beta1, config.beta2), fused=True, capturable=on_cuda)


@contextmanager
def running_averages_kept(network: nn.Module) -> Iterator[None]:
    """Let images pass by the statistics of their batch, without a trace in batch norm's running averages."""
    norms = [(module, module.training) for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm, _ in norms:
        norm.track_running_stats, norm.training = False, True
    try:
        yield
    finally:
        for norm, training in norms:
            norm.track_running_stats, norm.training = True, training


def ema_share(steps: Tensor, of_step: int, half_life: float) -> Tensor:
    """The share of the network in its average in step number `steps`, in each of which G draws `of_step` images.

    What the average holds halves every `half_life` images, or every EMA_RAMP of the images so far, if these are fewer;
    with 0 it keeps no past. For long ones the share is so small that 1 - decay would be lost in rounding.
    """
    return -torch.expm1(-math.log(2) * of_step / (EMA_RAMP * of_step * steps).clamp(max=half_life))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, share: Tensor) -> None:
    """average <- average + share · (network - average), for weights and batch-norm statistics.

    torch's own function for it takes the share as a Python number, which a CUDA graph would repeat for ever.
    """
    old, new = [], []
    for (name, averaged), current in zip(average.state_dict().items(), network.state_dict().values(), strict=True):
        if name.endswith(("._u", "._v")):  # spectral norm's singular vectors: a mean of unit vectors is none
            averaged.copy_(current)
        elif averaged.is_floating_point():
            old.append(averaged)
            new.append(current)
    change = torch._foreach_sub(new, old)
    torch._foreach_mul_(change, share)
    torch._foreach_add_(old, change)


def translated(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images B×C×H×W shifted by up to an eighth of each side; what comes in is 0.

    It multiplies by matrices of 0 and 1, which is exact but for the rounding of bfloat16 and TF32, and whose backward
    pass is the same each time on a GPU, unlike that of indexing.
    """
    moves = []
    for side in images.shape[2:]:
        at, most = torch.arange(side, device=rng.device), side // 8
        by = torch.randint(-most, most + 1, (len(images), 1, 1, 1), generator=rng, device=rng.device)
        moves.append((at[:, None] + by == at).to(images.dtype))
    return moves[0] @ images @ moves[1].mT


def choose_device(name: str) -> torch.device:
    """The asked device, or for "auto" a CUDA GPU, Apple's GPU or the CPU, whichever comes first. Raises UserError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise UserError("is none of auto, cpu, cuda, cuda:1 … and mps", f"--device {name}")
    with suppress(RuntimeError, AssertionError):  # said below
        device = torch.zeros(1, device=name).device
        if device.type == "cuda":
            torch.cuda.set_device(device)  # on which graphs are captured
        return device
    raise UserError("not available on this machine", f"--device {name}")


def choose_precision(precision: str, device: torch.device) -> str:
    """The asked precision; for "auto" bf16 where the device has instructions for it, as NVIDIA's GPUs since 2020 do.

    And CPUs with AVX512-BF16 or AMX. The same machine always gives the same answer, however busy it is: a stopwatch
    would not.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    on_cpu = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return "bf16" if on_cpu else "fp32"


def memory_format(device: str | torch.device) -> torch.memory_format:
    """Channels last, which bf16 kernels and tensor cores want; not on Apple's GPUs, whose batch norm is wrong there."""
    return torch.contiguous_format if torch.device(device).type == "mps" else torch.channels_last


def launcher(gan: GAN) -> Callable[[Images, Tensor], None]:
    """What does a step: `gan.iterate`, or what extras/speed.py makes of it: compiled, or a CUDA graph."""
    launch, on_cuda = gan.config.launch, gan.sums.device.type == "cuda"
    wants_speed = launch == "compiled" or (launch == "graph" and on_cuda)
    speed = extra("speed", is_needed=launch == "compiled") if wants_speed else None
    return speed.Launcher(gan) if speed else gan.iterate


# Several processes, which `torchrun` starts and extras/processes.py joins, train one run together. Only rank 0 prints
# and writes files.


def process_count() -> int:
    """How many processes train one run together."""
    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if joined else 1


def rank() -> int:
    """Which of the processes this is, from 0; known before they have joined each other."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, in all of them."""
    return extra("processes").all_gather(value) if process_count() > 1 else [value]


def broadcast(value: Any) -> Any:
    """Rank 0's value, in all processes."""
    return all_gather(value)[0]


def average_sums(gan: GAN) -> None:
    """Make the sums of the metrics those of all processes together."""
    if process_count() > 1:
        extra("processes").average_sums(gan)


def noise_seed(seed: int) -> int:
    """The seed of this process's noise: not that of the weights, and not another process's."""
    return seed + 1 + 1_000_003 * rank()


########################################################################################################################
#                                                         Data                                                         #
########################################################################################################################

IMAGE_SUFFIXES = frozenset(".png .jpg .jpeg .jfif .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .tga".split())
IMAGE_FORMATS = "PNG JPEG BMP GIF WEBP TIFF PPM TGA".split()  # Pillow knows more, some of which call other programs
SIZES = [base << halvings for halvings in range(1, 9) for base in (4, 5, 6, 7)]  # that the networks make: 8, 10 … 1792
DECODE_CHUNK = 256  # images of up to 32×32 that a worker decodes before it reports
MOST_CLASSES = 1000  # that a head can tell


@dataclass(frozen=True)
class Images:
    """A decoded set: `pixels` uint8 N×H×W×C (C is 1 or 3), `labels` int64 N or None, `classes` the labels' names.

    `found` says what the images were before they were scaled: "colour images of 256×256".
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    found: str = ""


@dataclass(frozen=True)
class Source:
    """A set found but not decoded yet: image files or a uint8 array N×H×W[×3], labels N or None, the labels' names.

    `where` is what the user called it, `left_out` counts what lies there and is not taken, by its kind: ".heic".
    """

    items: Sequence[str | Path] | np.ndarray
    labels: Sequence[int] | np.ndarray | None = None
    classes: tuple[str, ...] = ()
    where: str = ""
    left_out: Counter[str] = field(default_factory=Counter)


def load_images(
    path: str | Path | None = None, split: str = "train", image_size: int | None = None,
    skip_unreadable: bool = False, most: int | None = None,
) -> Images:  # fmt: skip
    """Load a whole data set as one uint8 tensor.

    `path` may be a folder with `train/` and `test/`, a folder of class folders, a flat folder of images, what else
    extras/folders.py and extras/formats.py know (other layouts, CIFAR's, MNIST's, EMNIST's and SVHN's files, an
    `.npz`), or None for the built-in shapes. `split` is "train", "test" or "all", both in this order; a set that comes
    undivided is all "train". Images of another size are resized (antialiased) so that the shorter side fits, and
    cropped to the centre. `image_size` None keeps the images' own size where the networks can make it. A set whose
    images are all grey has one channel. Of more than `most` files so many are taken, always the same. Raises UserError
    that names what is wrong.
    """
    if split == "all":
        return extra("folders").load_all(path, image_size, skip_unreadable)
    size = image_size and checked_size(image_size)
    if path is None:
        count, seed = (10_000, 0) if split == "train" else (2_000, 1)
        return draw_shapes(count, size or 32, seed)
    source = find_source(Path(os.path.expanduser(path)), split)
    if most and len(source.items) > most:
        some = sorted(epoch_order(len(source.items), 0, 0)[:most].tolist())
        items, labels = (part if part is None else [part[i] for i in some] for part in (source.items, source.labels))
        items = np.stack(items) if isinstance(source.items, np.ndarray) else items
        source = replace(source, items=items, labels=labels)
    return decode_source(source, size, skip_unreadable)


def find_source(path: Path, split: str) -> Source:
    """The image files of a folder with train/ and test/, of class folders, or flat. Raises UserError.

    This is what a copy of the file alone finds. extras/folders.py knows more layouts, and says what it leaves out.
    """
    if more := extra("folders", is_needed=False):
        return more.find_source(path, split)
    if not os.path.isdir(path):
        is_file = os.path.exists(path)
        what = "files of data sets take extras/, beside the script" if is_file else "there is no such file or folder"
        raise UserError(what, path)
    names = {folder.name for folder in path.iterdir() if folder.is_dir() and not is_hidden(folder.name)}
    is_divided = names in ({"train"}, {"train", "test"})
    if "train" not in names and any((path / name / "train").is_dir() or name == "test" for name in names):
        raise UserError("name a folder that holds train/ and test/", path)
    if split == "test" and not (is_divided and "test" in names):
        raise NoTestSplit("is not divided into train/ and test/", path)
    root = path / split if is_divided else path
    classes = sorted(folder.name for folder in root.iterdir() if folder.is_dir() and not is_hidden(folder.name))
    found = [image_files(root / name) for name in classes or ["."]]
    if not all(found):
        what = "there is no image in this folder; files of data sets take extras/, beside the script"
        raise UserError(what, root / classes[found.index([])] if classes else root)
    labels = [label for label, files in enumerate(found) for _ in files] if classes else None
    return Source([*itertools.chain(*found)], labels, tuple(map(class_name, classes)), str(path))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of a name is not meant for people: .thumbs, __MACOSX."""
    return name.startswith((".", "__"))


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and below it, in a fixed order; links to folders may loop and are not followed."""
    inside = sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    return [
        file
        for path in inside
        for file in (image_files(path) if path.is_dir() and not path.is_symlink() else [path])
        if file.suffix.lower() in IMAGE_SUFFIXES
    ]


def decode_source(source: Source, size: int | None = None, skip_unreadable: bool | None = None) -> Images:
    """Decode a set at a size, or at the first image's own as far as the networks make it. Raises UserError.

    extras/folders.py chooses the size by all images, knows more kinds of pixels, and can leave damaged images out.
    `skip_unreadable` is None where a command has no such option.
    """
    if more := extra("folders", is_needed=False):
        return more.decode_source(source, size, skip_unreadable)
    if not size:
        # A decoder may fail in any way; decoding will say so.
        with suppress(Exception), Image.open(source.items[0], formats=IMAGE_FORMATS) as first:
            size = max((side for side in SIZES if side <= min(*first.size, 64)), default=SIZES[0])
    pixels, unreadable = decode(source.items, size or SIZES[0])
    if unreadable:
        index, what = next(iter(unreadable.items()))
        advice = "; --skip-unreadable takes extras/, beside the script" if skip_unreadable else ""
        raise UserError(f"{what}{advice}", source.items[index])
    return as_images(pixels, source.labels, source.classes)


def decode(
    items: Sequence[Any], size: int, read: Callable[[Any, int], Any] | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Decode items by `read`, or files, to uint8 N×size×size×3; also {index: what is wrong} of the unreadable.

    A 32×32 PNG takes 0.08 ms, nearly all of it inside Python's lock: on two threads it takes 0.16. Forked workers have
    locks of their own and start at once. Where fork is not safe (macOS, Windows) threads decode larger ones.
    """
    pixels, unreadable = np.zeros((len(items), size, size, 3), np.uint8), {}
    step = max(1, min(DECODE_CHUNK, DECODE_CHUNK * 1024 // size**2))
    chunks, workers = [items[i : i + step] for i in range(0, len(items), step)], os.cpu_count() or 1
    if sys.platform == "linux":
        # Ctrl-C reaches the whole process group; a worker that died of it could leave the pool waiting for ever.
        ignore = (signal.SIGINT, signal.SIG_IGN)
        pool = ProcessPoolExecutor(
            min(len(chunks), workers), multiprocessing.get_context("fork"), signal.signal, ignore
        )
    else:
        pool = ThreadPoolExecutor(workers if size > 64 else 1)
    with pool, progress_bar(total=len(items), desc="decoding", unit="img", leave=False) as bar:
        decoded = pool.map(partial(decode_chunk, size=size, read=read or read_image), chunks)
        for start, (some, failed) in zip(range(0, len(items), step), decoded, strict=True):
            pixels[start : start + len(some)] = some
            unreadable |= {start + i: message for i, message in failed.items()}
            bar.update(len(some))
    return pixels, unreadable


def decode_chunk(items: Sequence[Any], size: int, read: Callable[[Any, int], Any]) -> tuple[np.ndarray, dict[int, str]]:
    """Decode some images: uint8 n×size×size×3, and {position: what is wrong} of those that cannot be read."""
    pixels, failed = np.zeros((len(items), size, size, 3), np.uint8), {}
    for i, item in enumerate(items):
        try:
            pixels[i] = read(item, size)
        except Exception as error:  # a decoder may fail in any way on a damaged file; the caller names them all
            failed[i] = complaint(error)
    return pixels, failed


def read_image(path: Path, size: int) -> Image.Image:
    """An image file as 8-bit RGB: upright, transparency on white, size×size. Raises what Pillow raises."""
    image = Image.open(io.BytesIO(path.read_bytes()), formats=IMAGE_FORMATS)
    image.draft(None, (2 * size, 2 * size))  # of a large JPEG fewer pixels are decoded
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":
        raise ValueError("its pixels are not of 8 bits, which takes extras/, beside the script")
    return fitted(on_white(image), size)


def on_white(image: Image.Image) -> Image.Image:
    """An image as 8-bit RGB, transparency on white; itself if it is that already."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def fitted(image: Image.Image, size: int) -> Image.Image:
    """An image scaled, antialiased, and cropped to the centre: size×size."""
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def as_images(pixels: np.ndarray, labels: Sequence[int] | np.ndarray | None, classes: Sequence[str]) -> Images:
    """A set of uint8 pixels N×H×W×3; one channel stays if all are grey, however they were stored."""
    if (pixels[..., :1] == pixels).all():
        pixels = pixels[..., :1]
    pixels = torch.from_numpy(np.require(pixels, requirements=("C", "W")))
    found = describe_images(pixels.shape[3], "{1}×{2}".format(*pixels.shape))
    return Images(pixels, None if labels is None else torch.tensor(np.array(labels, np.int64)), tuple(classes), found)


def describe_images(channels: int, size: str) -> str:
    """Images in words: "colour images of 32×32"."""
    return f"{'grey' if channels == 1 else 'colour'} images of {size}"


def printable(name: object) -> str:
    """A name with escapes for what cannot be printed: a file system takes names that no text file or terminal does."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def class_name(name: object) -> str:
    """A class's name as it is compared and shown: the same whether its letters were composed (Linux) or not (a Mac)."""
    return printable(unicodedata.normalize("NFC", str(name)))


def complaint(error: Exception) -> str:
    """What a reader's exception says, in a few words; some libraries' own words only repeat the file's name."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"
    if isinstance(error, KeyError):
        return f"there is no {error} in it"
    if "weights_only" in str(error):
        return "it holds more than tensors, or is damaged"  # torch's own words advise to run what is in the file
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def checked_size(size: int) -> int:
    """The size itself, or a UserError that names the nearest sizes that the networks can make."""
    if size not in SIZES:
        near = " and ".join(map(str, sorted(sorted(SIZES, key=lambda other: abs(other - size))[:2])))
        raise UserError(f"must be 4, 5, 6 or 7 times 2, 4, 8, 16 …; {near} are near", f"--image-size {size}")
    return size


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
    return as_images(pixels, labels, tuple(SHAPES))


def fingerprint(images: Images) -> str:
    """A short name for the decoded pixels and labels, to tell whether two runs saw the same data."""
    digest = hashlib.sha256(str(tuple(images.pixels.shape)).encode())
    for part in fields(images):
        if isinstance(tensor := getattr(images, part.name), Tensor):
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


def renumbered(images: Images, classes: Sequence[str]) -> Images:
    """A labelled set with the labels of its classes' names among others. KeyError: the name that is not among them."""
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([numbers[name] for name in images.classes])[images.labels]
    return replace(images, labels=labels, classes=tuple(classes))


def hold_out(images: Images, share: float) -> tuple[Images, Images]:
    """Divide a set into (the rest, a share for validation), as nearly as can be the same share of each class.

    The division depends on the labels alone: a resumed run with another seed must not train on what it held out.
    """
    count = len(images.pixels)
    labels = torch.zeros(count, dtype=torch.int64) if images.labels is None else images.labels
    order = np.random.default_rng(0).permutation(count)
    order = order[np.argsort(labels.numpy()[order], kind="stable")]  # shuffled, class after class
    taken = np.floor(np.arange(1, count + 1) * share) > np.floor(np.arange(count) * share)  # evenly spread
    starts = np.flatnonzero(np.diff(labels.numpy()[order], prepend=-1))
    taken[starts[np.minimum.reduceat(taken, starts)]] = False  # an image of each class stays, or it could not be learnt
    parts = (np.sort(order[~taken]), np.sort(order[taken]))
    of_parts = [None if images.labels is None else labels[part] for part in parts]
    kept, held = (replace(images, pixels=images.pixels[p], labels=of) for p, of in zip(parts, of_parts, strict=True))
    return kept, held


def load_data(config: Config, split: str = "train", validate: bool = True) -> tuple[Config, Images, Images | None]:
    """The options as the data decides them, the training set and, if it is to `validate`, a validation set if there is.

    Raises UserError.
    """
    with named("--data"):
        images, validation = load_images(config.data, split, config.image_size, config.skip_unreadable), None
    config = replace(config, image_size=images.pixels.shape[1])
    if config.flip is None:  # a mirrored digit or letter is another one, or none
        are_signs = images.classes and all(len(name) == 1 or name.isdigit() for name in images.classes)
        config = replace(config, flip=images.pixels.shape[3] == 3 and not are_signs)
    if config.multitask:
        check_classes(images, "--multitask")
    if validate:
        config, images, validation = load_validation(config, images)
    if config.evaluate_every:
        extra("evaluate").check_enough(images, f"--evaluate-every {config.evaluate_every}")
    if not data_share_between(images):
        say(f"note: {config.data or 'the data'}: the images are all alike; the diversity of samples cannot be told")
    return config, images, validation


def check_classes(images: Images, about: str) -> None:
    """Raise UserError, about a flag, if a set has no classes to tell apart, or more than a network can tell."""
    count = len(images.classes)
    if not 2 <= count <= MOST_CLASSES:
        found = f"{count:,} classes" if count > 1 else "one class only" if count else "no labels"
        raise UserError(f"the data has {found}; it takes 2 to {MOST_CLASSES:,} classes, a folder each", about)


def load_validation(config: Config, images: Images) -> tuple[Config, Images, Images | None]:
    """The options, the training set, and what D is not shown, to validate it on: a share held out, or test images.

    `validation_split` None means the test split, or for Task 1 some of it. Where there is none, a tenth of the training
    images is held out for Task 2, and `validation_split` set; Task 1 does without. Says which classes have no image.
    """
    share, held = config.validation_split, None
    if share is None:
        try:
            held = load_test(config, images)
        except NoTestSplit:
            share = 0.1 if config.multitask else None
        except UserError as error:
            if config.multitask:
                raise
            say(f"note: {error}; D is not tried on images that it has not seen")
    if share:
        config, count = replace(config, validation_split=share), len(images.pixels)
        images, held = hold_out(images, share)
        if not len(held.pixels):
            raise UserError(f"leaves none of the {count} images for validation", f"--validation-split {share}")
    if config.multitask:
        counts = torch.bincount(held.labels, minlength=len(images.classes)).tolist()
        if missing := [name for name, count in zip(images.classes, counts, strict=True) if not count]:
            say(f"note: without an image for validation: {listed(missing)}")
    return config, images, held


def load_test(config: Config, images: Images) -> Images:
    """The test images that go with a training set: all, labelled, for Task 2, and some for Task 1. Raises UserError."""
    most = None if config.multitask else TRIED
    with named("--data"):
        test = load_images(config.data, "test", config.image_size, config.skip_unreadable, most)
        test, stray = with_channels(test, images.pixels.shape[3]), set(test.classes) - set(images.classes)
        if test.labels is not None and images.labels is not None and not stray:
            return renumbered(test, images.classes)
        if not config.multitask:
            return replace(test, labels=None, classes=())
        if stray:
            raise UserError(f"class {min(stray)} of its test images has no training image", config.data)
        raise UserError("its test images have no labels; give --validation-split 0.1", config.data)


def plural(count: int, what: str) -> str:
    """A number of things: "1 epoch", "7,810 steps"."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def on_device(images: Images, device: torch.device) -> Images:
    """A set on the training device, whole."""
    tensors = {part.name: value for part in fields(images) if isinstance(value := getattr(images, part.name), Tensor)}
    return replace(images, **{name: tensor.to(device) for name, tensor in tensors.items()})


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order in which an epoch visits the images, int64 N: a permutation drawn from (seed, epoch) alone."""
    return torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(count))


def to_range(pixels: Tensor) -> Tensor:
    """uint8 B×H×W×C to float32 B×C×H×W in (-1, 1), as a channels-last view: no pixel moves."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def real_batch(pixels: Tensor, index: Tensor, flip: bool | None, rng: torch.Generator) -> Tensor:
    """Gather uint8 N×H×W×C as float32 B×C×H×W in (-1, 1); each is mirrored with chance ½ if `flip`."""
    batch = to_range(pixels[index])
    if rng.device.type == "mps":
        batch = batch.contiguous()  # see `memory_format`
    if flip:
        mirrored = torch.rand(len(index), 1, 1, 1, generator=rng, device=rng.device) < 0.5
        batch = torch.where(mirrored, batch.flip(3), batch)
    return batch


########################################################################################################################
#                                                       Pictures                                                       #
########################################################################################################################

CLASSIFY_PIXELS = 2**19  # at a time: 512 images of 32×32
SHEET = 64  # samples drawn from the fixed noise each interval, 8×8
GENERATE_BATCH = 128  # always this many at a time, so that an image does not depend on how many are asked for
UNDRAWN = ".undrawn"  # a file that a run's folder has while pictures of its last checkpoint are to be drawn
LEAST_SPREAD = 0.01  # deviation of pixel values from 0 to 255 over the images of a set: with less they are all alike
SHOWN = ("d_loss", "g_loss", "accuracy", "val_accuracy", "fid")  # while a run goes on
BLUE, ORANGE = "#2f6fb0", "#c8641b"


def stream(
    generator: BaseGenerator, n: int, label: int | str | None = None, seed: int = 0, truncation: float | None = None
) -> Iterator[np.ndarray]:
    """`generate` in pieces of up to GENERATE_BATCH images, for more than fit into memory."""
    for start in range(0, n, GENERATE_BATCH):
        yield draw_images(generator, *generator.inputs(seed, start, GENERATE_BATCH, label, truncation))[: n - start]


def collected(pieces: Iterator[np.ndarray], n: int) -> np.ndarray:
    """The n images of `stream` as one array, made beforehand: pieces that are kept would hold memory between them."""
    first = next(pieces)
    images, done = np.empty((n, *first.shape[1:]), np.uint8), 0
    for piece in itertools.chain([first], pieces):
        images[done : done + len(piece)] = piece
        done += len(piece)
    return images


@torch.no_grad()
def draw_images(generator: BaseGenerator, *inputs: Tensor) -> np.ndarray:
    """The images of noise z (and classes y) as uint8 n×H×W or n×H×W×3."""
    device = next(generator.parameters()).device
    with in_eval_mode(generator):
        images = to_uint8(generator(*(part.to(device) for part in inputs)))
    return (images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)).cpu().numpy()


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Batch norm by its running averages, so that no image depends on its neighbours, and no dropout."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def latents(
    seed: int, start: int, count: int, dim: int, latent: str = "normal", truncation: float | None = None
) -> Tensor:
    """Noise for images start .. start+count-1 of a seed, float32 count×dim; each image has a stream of its own.

    `truncation` T draws normal noise from -T … T alone: less variety, better images (Brock et al. 2019, section 3.1).
    Raises UserError for noise that cannot be truncated.
    """
    streams = (np.random.default_rng((seed, i)) for i in range(start, start + count))
    if truncation is not None:
        if latent != "normal":
            raise UserError(f"the generator's noise is {latent}, not normal", f"--truncation {truncation}")
        shares = torch.from_numpy(np.stack([stream.random(dim) for stream in streams]))
        below = torch.special.ndtr(torch.tensor(-truncation, dtype=torch.float64))  # the normal distribution's share
        return torch.special.ndtri(below + shares * (1 - 2 * below)).clamp(-truncation, truncation).float()
    if latent == "uniform":
        return torch.from_numpy(np.stack([stream.uniform(-1, 1, dim).astype(np.float32) for stream in streams]))
    return torch.from_numpy(np.stack([stream.standard_normal(dim, np.float32) for stream in streams]))


def to_uint8(images: Tensor) -> Tensor:
    """(-1, 1) to 0..255 by the fixed map, never stretched to the batch's own minimum and maximum."""
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def class_logits(discriminator: Discriminator, pixels: Tensor) -> Tensor:
    """The head's logits, float32 N×classes, for uint8 images N×H×W×C, on the network's device."""
    device = next(discriminator.parameters()).device
    pieces = pixels.split(max(1, CLASSIFY_PIXELS // discriminator.architecture["image_size"] ** 2))
    logits = torch.empty(len(pixels), len(discriminator.architecture["classes"]), device=device)
    with in_eval_mode(discriminator):
        for piece, rows in zip(pieces, logits.split(len(pieces[0])), strict=True):
            rows.copy_(discriminator.scores_and_logits(to_range(piece.to(device)))[1])
    return logits


def validate(discriminator: Discriminator, validation: Images) -> tuple[float, float, np.ndarray]:
    """Loss and accuracy of the classification head on a whole set, and its confusion matrix (true × predicted)."""
    logits = class_logits(discriminator, validation.pixels).cpu()
    labels, classes = validation.labels.cpu(), logits.shape[1]
    pairs = labels * classes + logits.argmax(1)
    confusion = torch.bincount(pairs, minlength=classes**2).reshape(classes, classes).numpy()
    return class_loss(logits, labels).item(), float(confusion.trace() / len(labels)), confusion


@dataclass(frozen=True)
class Snapshot:
    """How a run does at the end of an interval: its metrics for epochs.csv, sheets by name, the confusion matrix."""

    metrics: dict[str, Any]
    sheets: dict[str, Image.Image]
    confusion: np.ndarray | None = None


def share_between(images: np.ndarray) -> float:
    """The share of the pixels' variance that lies between images uint8 n×H×W[×C] and not in their mean; 0 if all alike.

    Dull images have as much of it as vivid ones.
    """
    images = images.astype(np.float32)
    between, of_mean = images.var(0).mean(), images.mean(0).var((0, 1)).mean()
    return float(between / (between + of_mean)) if between >= LEAST_SPREAD**2 else 0.0


def data_share_between(images: Images) -> float:
    """The same of up to 2,000 images of a set."""
    some = epoch_order(len(images.pixels), 0, 0)[:2000].to(images.pixels.device)
    return share_between(images.pixels[some].cpu().numpy())


def diversity(samples: np.ndarray, images: Images) -> float | str:
    """That share of samples uint8 n×H×W[×C], over the data's; "" where the data has none."""
    of_data = data_share_between(images)
    return share_between(samples) / of_data if of_data else ""


class RunLog:
    """The rows of log.csv and epochs.csv, as they come; with extras/records.py in TensorBoard, too."""

    def __init__(self, run: Run):
        gan = run.gan
        columns, of_interval = gan.columns(gan.config), gan.interval_columns(gan.config)
        names = {
            "log.csv": ("step", "epoch", *columns, "images_per_s"),
            "epochs.csv": ("epoch", "step", *columns, *of_interval, "images_per_s", "seconds", "warning"),
        }
        self.run, self.files = run, [open(run.out / name, "w", newline="", encoding="utf-8") for name in names]
        self.tables = [csv.DictWriter(*pair) for pair in zip(self.files, names.values(), strict=True)]
        # A resumed run drops the rows of what it will do again.
        for table, rows in zip(self.tables, (run.log, run.epochs), strict=True):
            table.writeheader()
            table.writerows(rows)
        records = extra("records", is_needed=False)
        self.board = records.Board(run) if records else None

    def add(self, row: dict[str, Any], which: int = 0) -> None:
        """Log the means of up to LOG_EVERY steps, or with `which` = 1 those of an interval."""
        (self.run.log, self.run.epochs)[which].append(row)
        self.tables[which].writerow(row)
        self.files[which].flush()
        if self.board:
            self.board.add_numbers(("train", "validation")[which], row)

    def add_interval(self, row: dict[str, Any]) -> bool:
        """Log an interval, with a warning if one is due; returns whether its FID is the best so far."""
        self.add(row, 1)
        if row["warning"]:
            say(f"warning: {progress(self.run)}: {row['warning']}")
        fids = [row["fid"] for row in self.run.epochs if row.get("fid", "") != ""]
        return row.get("fid", "") != "" and row["fid"] == min(fids)

    def close(self) -> None:
        """Close the files; what was logged is already in them."""
        for file in (*self.files, *([self.board] if self.board else [])):
            file.close()


def epoch_row(run: Run, metrics: dict[str, Any]) -> dict[str, Any]:
    """A row of epochs.csv for the steps since the last one: their means, what is measured now, and new warnings."""
    before = run.epochs[-1]["step"] if run.epochs else 0
    rows = [row for row in run.log if row["step"] > before]
    steps = np.diff([before, *(row["step"] for row in rows)])  # that each row is the mean of
    columns = run.gan.columns(run.gan.config)
    means = {name: float(np.average([row[name] for row in rows], weights=steps)) for name in columns}
    row = {"epoch": run.epochs_begun, "step": run.step, **means, **metrics}
    row |= {"images_per_s": (run.step - before) * run.of_step / run.seconds, "seconds": run.seconds}
    known = run.gan.warnings(run.epochs)
    return row | {"warning": "; ".join(w for w in run.gan.warnings([*run.epochs, row]) if w not in known)}


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
    return len(generator.classes) if 0 < len(generator.classes) <= count // 2 else None


def sheet_count(generator: BaseGenerator) -> int:
    """How many samples a run's sheets have: 8 of each class that G can be told, else 64, or 16 large ones."""
    classes, size = len(generator.classes), generator.architecture["image_size"]
    return 8 * classes if 0 < classes * size <= 6400 else SHEET if size <= 256 else 16


def milestone(config: Config, number: int) -> str:
    """The name of what is written at an epoch or a step: epoch_0010, iteration_000200."""
    return f"{config.unit}_{number:0{6 if config.iterations else 4}d}"


def numbered_files(folder: Path, unit: str, suffix: str, last: int) -> list[Path]:
    """The files <unit>_N.suffix, N ≤ last, in the order of N, which may have grown out of its digits.

    After a resume from an early checkpoint there are later ones, which stay until the run comes to them.
    """
    numbers = {path: path.stem.removeprefix(f"{unit}_") for path in folder.glob(f"{unit}_*{suffix}")}
    found = {path: int(number) for path, number in numbers.items() if number.isdecimal() and int(number) <= last}
    return sorted(found, key=found.__getitem__)


def begin_or_redraw(run: Run, log: RunLog | None) -> None:
    """Save a new run, so that there is something to resume from; draw of another what is undrawn."""
    if log:
        write_whole(run.out / "options.json", json.dumps(run.facts, indent=2).encode())
    if broadcast(not holds_checkpoint(run.out)):  # a new run or a branch
        save_run(run)
    if log and run.epochs and run.step == run.epochs[-1]["step"] and (run.out / UNDRAWN).exists():
        draw_all(run, run.gan.look(run.images, run.validation), log)
    elif log:
        draw_start(run)


def draw_all(run: Run, snapshot: Snapshot, log: RunLog) -> None:
    """Curves, sheets and a new run's weights; sheets every `sample_every`, weights at 1, 2, 5, 10, 20 … and at the end.

    A picture that cannot be drawn costs no training: that is said, and a file in the run's folder makes the next
    --resume draw again.
    """
    gan, out, number, is_last = run.gan, run.out, run.number, run.step == run.total
    due: list[Callable[[], Any]] = []
    if is_last or number % gan.config.intervals[0] == 0:
        for i, (name, picture) in enumerate(snapshot.sheets.items()):
            folder = out / "samples" / name if i else out / "samples"
            due.append(partial(save_picture, picture.save, folder / f"{milestone(gan.config, number)}.png"))
    for file, (column, title, formula) in gan.curves().items():
        due.append(partial(plot_curve, run, out / "plots" / f"{file}.png", column, title, formula))
    if "val_accuracy" in snapshot.metrics:
        due.append(partial(plot_classifier, run))
    if snapshot.confusion is not None and is_last:
        due.append(partial(save_confusion, snapshot.confusion, gan.classes, out))
    if is_last or f"{number}".rstrip("0") in ("1", "2", "5"):
        due.append(partial(plot_weights, gan, number, run.step, out))
    if records := extra("records", is_needed=False):
        due += records.pictures(run, snapshot, log.board)
    if all([draw_start(run), *map(draw_or_say, due)]):
        (out / UNDRAWN).unlink(missing_ok=True)


def draw_start(run: Run) -> bool:
    """The untrained weights, which the seed tells, unless they have been drawn; returns whether they could be."""
    gan, name = run.gan, milestone(run.gan.config, 0)
    if not run.is_whole or all((run.out / "weights" / f"{network}_{name}.png").exists() for network in gan.networks):
        return True
    get_state, set_state = default_rng(gan.rng.device)
    states = torch.get_rng_state(), get_state()  # making networks seeds the random numbers of all devices
    is_drawn = draw_or_say(lambda: plot_weights(type(gan)(gan.config, gan.channels, gan.classes), 0, 0, run.out))
    torch.set_rng_state(states[0])
    set_state(states[1])
    return is_drawn


def draw_or_say(picture: Callable[[], Any]) -> bool:
    """Draw a picture; if it cannot be drawn say so and return False, for no picture may end a run."""
    try:
        picture()
        return True
    except Exception as error:  # whatever a library, a font, a disk may do; the run has been saved before
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        say_once(f"note: a picture could not be drawn: {name}{complaint(error)}"[:300])
        return False


@contextmanager
def own_style() -> Iterator[None]:
    """Draw with matplotlib as it comes, without the user's settings: style, resolution, fonts, TeX."""
    try:
        import matplotlib
    except Exception as error:  # it is missing, or broken, or its settings cannot be read
        raise UserError(f"pictures need matplotlib, which does not work here ({complaint(error)})"[:300]) from None
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that matplotlib is about to give up, of letters a font lacks
        # A figure that is saved uses no backend, the one setting that the context would not put back.
        matplotlib.rcParams.update({k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"})
        yield


def save_picture(save: Callable[..., Any], path: Path) -> None:
    """Write a PNG by a picture's `save` or a figure's `savefig`; nobody finds it half written under its name."""
    stream = io.BytesIO()
    save(stream, format="png")
    path.parent.mkdir(exist_ok=True)
    write_whole(path, stream.getvalue())


@contextmanager
def plot(path: Path, **labels: str) -> Iterator[Any]:
    """Axes to draw curves on; they get a legend and the labels and are saved when the block ends."""
    with own_style():
        from matplotlib.figure import Figure  # the object interface draws without a display

        figure = Figure(figsize=(8, 4.5), dpi=120)
        axes = figure.subplots(gridspec_kw=dict(left=0.09, right=0.98, bottom=0.12, top=0.92))
        yield axes
        axes.legend(frameon=False)
        axes.set(**labels)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        save_picture(figure.savefig, path)


def plot_curve(run: Run, path: Path, column: str, title: str, formula: str) -> None:
    """A measure of the steps over iterations, as logged and smoothed."""
    steps, values = (np.array([row[name] for row in run.log]) for name in ("step", column))
    window = max(1, len(steps) // 40)
    ones = np.ones(window)
    smooth = np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
    few = window == 1
    with plot(path, title=title, xlabel="iteration", ylabel=formula) as axes:
        faint = dict(linewidth=1.2, marker=".") if few else dict(linewidth=0.8, alpha=0.35)
        axes.plot(steps, values, color=BLUE, label="mean of each logging interval", **faint)
        if not few:
            axes.plot(steps, smooth, color=BLUE, linewidth=1.8, label=f"smoothed over {window} intervals")


def plot_classifier(run: Run) -> None:
    """`plots/classifier_loss.png` and `classifier_accuracy.png`: the head on training and validation images."""
    unit = "step" if run.gan.config.iterations else "epoch"
    numbers = [row[unit] for row in run.epochs]
    for name, column, y in (("loss", "class_loss", "J(C), cross-entropy"), ("accuracy", "accuracy", "share right")):
        path = run.out / "plots" / f"classifier_{name}.png"
        with plot(path, title=f"Classification {name}", xlabel=unit.replace("step", "iteration"), ylabel=y) as axes:
            for key, label, color in ((column, "training", BLUE), (f"val_{column}", "validation", ORANGE)):
                values = [row[key] for row in run.epochs]
                axes.plot(numbers, values, color=color, marker=".", label=f"{label}, {values[-1]:.3g} last")


def save_confusion(confusion: np.ndarray, classes: Sequence[str], out: Path) -> None:
    """`confusion_matrix.csv`, a row per true class."""
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["true \\ predicted", *classes])
    table.writerows([name, *row] for name, row in zip(classes, confusion.tolist(), strict=True))
    write_whole(out / "confusion_matrix.csv", text.getvalue().encode())


@own_style()
def plot_weights(gan: GAN, number: int, step: int, out: Path) -> None:
    """`weights/<network>_<milestone>.png`: the layer at the pixels as filters, others as kernels, and histograms."""
    from matplotlib.figure import Figure

    after = f"iteration {step:,}" if gan.config.iterations else f"epoch {number} (iteration {step:,})"
    for title in gan.networks:
        network = deepcopy(getattr(gan, title)).cpu().eval()  # in training mode a look changes spectral norm's vectors
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
        if not hasattr(network, "base"):  # a lab's may be deep: its convolutions
            layers = [layer for layer in layers if not isinstance(layer, nn.Linear)]
        draws = isinstance(network, BaseGenerator)
        at_pixels = layers[-1 if draws else 0]
        inch = 1 / (2.3 * len(layers))  # of the figure's height; fixed margins, for a layout engine would draw it twice
        figure = Figure(figsize=(12, 1 / inch), dpi=80)
        figure.suptitle(f"Weights of the {title} after {after}")
        margins = dict(left=0.01, right=0.98, bottom=0.5 * inch, top=1 - 0.75 * inch, hspace=0.7, wspace=0.15)
        rows = figure.subplots(len(layers), 2, width_ratios=(3, 1), squeeze=False, gridspec_kw=margins)
        for (picture, histogram), layer in zip(rows, layers, strict=True):
            weight = layer.weight.detach().float()
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
                weight = weight[:, : gan.channels]  # not those of class planes
            kind = type(layer).__name__.removeprefix("Parametrized")
            picture.set_title(f"{kind} {draw_layer(picture, weight, layer is at_pixels)}", loc="left")
            picture.set_axis_off()
            picture.set_anchor("NW")
        save_picture(figure.savefig, out / "weights" / f"{title}_{milestone(gan.config, number)}.png")


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


########################################################################################################################
#                                             Checkpoints and saved models                                             #
########################################################################################################################

CHECKPOINT_FORMAT, MODEL_FORMAT = "rollnumber_04 checkpoint 7", "rollnumber_04 model 1"
PROGRESS = {"step": int, "epoch": int, "seen": int, "waiting": int, "seconds": float}  # of a run and its checkpoints
KEPT = 5  # numbered checkpoints that stay
KINDS = {  # of models and runs, by the file that has them, and the class there; a saved file says which it is of
    "rollnumber_04": "GAN", "labs.mnist": "MnistGAN", "labs.fashion": "FashionGAN", "labs.blocks": "BlocksGAN",
    "labs.conv": "ConvGAN", "labs.emoji": "EmojiGAN", "labs.cyclegan": "CycleGAN", "labs.biggan": "BigGAN",
}  # fmt: skip


def arguments(network: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """What a network was made with, for its file: its constructor's arguments, out of the names there."""
    names = inspect.signature(type(network)).parameters
    return {name: [*given[name]] if name == "classes" else given[name] for name in names}


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
        with suppress(PermissionError):
            return os.replace(new, old)
        time.sleep(wait)
    return os.replace(new, old)


def save_output(flag: str, path: Path, data: bytes) -> None:
    """Write the file that an option names, into a folder that is made. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise UserError(error.strerror or str(error), f"{flag} {path}") from None


def refuse_folder(out: Path | None, data: Sequence[Path]) -> None:
    """Raise UserError if `out` cannot be a new run's folder: not empty, not a folder, not writable, among the data.

    None is one in runs/, whose name is found when the run begins.
    """
    # One with a lock and no checkpoint is that of a run which was killed before it saved.
    if out and os.path.isdir(out) and os.listdir(out) and (holds_checkpoint(out) or not os.path.isfile(out / ".lock")):
        what = "already holds a run or other files; name a new folder, or --resume to go on"
        raise UserError(what, f"--out {out}")
    out = out or Path("runs")
    check_writable("--out", out)
    for folder in data:
        if os.path.isdir(folder) and out.resolve().is_relative_to(folder.resolve()):
            what = f"lies inside the data, {folder}, whose images it would join; name another folder"
            raise UserError(what, f"--out {out}")


def make_named_folder(name: str) -> Path:
    """A new folder runs/<name>-<date>-<time>, or with -2, -3 … if another run was begun in the same second."""
    name = time.strftime(f"{name}-%Y%m%d-%H%M%S")
    try:
        Path("runs").mkdir(exist_ok=True)
        for number in itertools.count(1):
            path = Path("runs", f"{name}-{number}" if number > 1 else name)
            with suppress(FileExistsError):
                path.mkdir()
                return path
    except OSError as error:
        raise UserError(error.strerror or str(error), f"--out {error.filename}") from None


def check_writable(flag: str, path: Path) -> None:
    """Raise UserError if nothing can be made at a path, because of the nearest folder above it that there is."""
    above = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    try:
        with tempfile.TemporaryFile(dir=above):  # the permissions alone do not tell
            pass
    except OSError as error:
        what = f"{above.resolve()} is not a folder that can be written to ({error.strerror})"
        raise UserError(what, f"{flag} {path}") from None


def holds_checkpoint(out: Path) -> bool:
    """Whether there is anything to resume from in a run's folder."""
    return any((out / "checkpoints").glob("*.pt"))


def goes_on(config: Config) -> bool:
    """Whether a run goes on in its own folder; if not it is a new one, or a branch."""
    return bool(config.resume) and (not config.out or config.resume.parent.parent.resolve() == config.out.resolve())


@contextmanager
def open_run_folder(out: Path, is_new: bool) -> Iterator[None]:
    """Make the run's folder and its parts, and keep other runs out of it; the lock ends with the process.

    The lock comes first: by it a folder is known as that of a run which was killed before it saved.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock").acquire(timeout=0)
        for part in ("checkpoints", "samples", "plots", "weights"):
            (out / part).mkdir(exist_ok=True)
    except Timeout:
        what = "another run is writing to it; wait for its end or name another folder"
        raise UserError(what, f"--out {out}") from None
    except OSError as error:
        raise UserError(f"{error.strerror}: {error.filename}", f"--out {out}") from None
    with lock:
        if is_new and holds_checkpoint(out):
            raise UserError("another run has just taken it; name another folder", f"--out {out}")
        yield


def rank_state(gan: GAN) -> dict[str, Any]:
    """What each process has of its own: the states of its random numbers, and a lab's pools of earlier images."""
    device = gan.rng.device
    random = {"device": device.type, "noise": gan.rng.get_state(), "dropout": default_rng(device)[0]()}
    return {"random": random, "pools": {name: dict(pool.state_dict()) for name, pool in gan.pools.items()}}


def default_rng(device: torch.device) -> tuple[Callable[[], Tensor], Callable[[Tensor], None]]:
    """How to get and to set the state of torch's own random numbers on a device, from which dropout draws."""
    module = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type, torch)
    return module.get_rng_state, module.set_rng_state


def on_host(parts: Any) -> Any:
    """The same containers with their tensors in host memory."""
    if isinstance(parts, dict):
        return {key: on_host(part) for key, part in parts.items()}
    return parts.cpu() if isinstance(parts, Tensor) else parts


def not_finite_in(parts: Any, name: str) -> str:
    """The name of a tensor in nested dictionaries that holds a number which is not finite; "" if there is none."""
    if isinstance(parts, dict):
        return next((found for key, part in parts.items() if (found := not_finite_in(part, f"{name}.{key}"))), "")
    return name if isinstance(parts, Tensor) and not parts.isfinite().all() else ""


def save_run(run: Run, numbered: bool = False, best: bool = False) -> None:
    """Write the models, if `best` checkpoints/best.pt, if `numbered` epoch_NNNN.pt (the newest stay), and last.pt.

    last.pt comes last, so that what a crash leaves out is written when the run goes on. Raises OSError, and UserError
    (status 1) instead of saving numbers that are not finite, as after a gradient that was not.
    """
    gan, config, folder = run.gan, run.gan.config, run.out / "checkpoints"
    ranks = all_gather(on_host(rank_state(gan)))
    if rank():
        return
    state = {
        "model": dict(gan.state_dict()),
        "optimizers": {name: optimizer.state_dict()["state"] for name, optimizer in gan.optimizers.items()},
        "progress": {name: getattr(run, name) for name in PROGRESS},
    }
    if wrong := not_finite_in(state, "the run's state"):
        what = f"{wrong} holds numbers that are not finite at step {run.step:,}, epoch {run.epochs_begun}; {ADVICE}"
        raise UserError(what, status=1)
    state |= {"ranks": ranks, "log": run.log, "epochs": run.epochs}
    about = {"format": CHECKPOINT_FORMAT, "kind": kind_of(gan), "channels": gan.channels, "classes": [*gan.classes]}
    about["architecture"] = {name: getattr(gan, name).architecture for name in gan.networks}
    stream = io.BytesIO()
    torch.save(about | {"options": run.facts} | state, stream)
    for file, members in gan.models(config).items():
        save_model(run.out / f"{file}.safetensors", {name: gan.averages[name] for name in members}, run)
    if best:
        write_whole(folder / "best.pt", stream.getvalue())
    if numbered:
        write_whole(folder / f"{milestone(config, run.number)}.pt", stream.getvalue())
        for old in numbered_files(folder, config.unit, ".pt", run.number)[:-KEPT]:
            old.unlink(missing_ok=True)
    write_whole(folder / "last.pt", stream.getvalue())


def save_model(path: Path, networks: dict[str, nn.Module], run: Run) -> None:
    """Write networks by their names as `.safetensors`, with what it takes to rebuild them and how they were trained."""
    architecture = {name: network.architecture for name, network in networks.items()}
    training = {"epoch": run.epoch, "step": run.step} | run.facts
    metadata = {"format": MODEL_FORMAT, "kind": kind_of(run.gan), "architecture": json.dumps(architecture)}
    metadata["training"] = json.dumps({name: value for name, value in training.items() if name not in ("data", "fid")})
    weights = {f"{name}.{key}": t.contiguous() for name, n in networks.items() for key, t in n.state_dict().items()}
    write_whole(path, safetensors.torch.save(weights, metadata))


def kind_of(gan: GAN | type[GAN]) -> str:
    """The key in KINDS of a GAN or its class. Raises UserError if it has none."""
    name = (gan if isinstance(gan, type) else type(gan)).__name__
    if found := [kind for kind, known in KINDS.items() if known == name]:
        return found[0]
    raise UserError("has no line in KINDS, by which its saved models would be known", f"class {name}")


def load_kind(kind: Any, path: object) -> type[GAN]:
    """The class of a key in KINDS, a lab's from its file. Raises UserError, about a path."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError("does not say what network of this program its weights are of", path)
    if kind == "rollnumber_04":
        return GAN
    try:
        return getattr(importlib.import_module(kind), KINDS[kind])
    except ModuleNotFoundError as error:
        if error.name not in ("labs", "extras", kind):
            raise
        what = f"is of {kind}; {error.name}, which lies beside the script where that comes from, is missing"
        raise UserError(what, path) from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint, plain containers and tensors only: the file can run no code. Raises UserError."""
    if not zipfile.is_zipfile(path):
        is_model = path.suffix == ".safetensors"
        what = "a model; a run goes on from a .pt" if is_model else "it is cut short, or something else"
        raise UserError(f"not a whole checkpoint: {what}", path)
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself checks neither sizes nor checksums
            if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                raise ValueError("it unpacks to more than it holds")
            if damaged := archive.testzip():
                raise ValueError(f"its part {damaged} is damaged")
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive may fail in any of its parts, with any exception
        raise UserError(f"not a whole checkpoint ({complaint(error)})"[:300], path) from None
    if not isinstance(saved, dict) or "format" not in saved:
        raise UserError("not a checkpoint of this program", path)
    if saved["format"] != CHECKPOINT_FORMAT:
        raise UserError(f"not a checkpoint of this version of the program, {CHECKPOINT_FORMAT!r}", path)
    if checks := extra("checks", is_needed=False):
        checks.check_parts(saved, path)
    return saved


def restore(run: Run, saved: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's state into a new run; learning rates and the like come from the options. Raises UserError."""
    gan, progress = run.gan, saved["progress"]
    if saved["classes"] != [*gan.classes]:
        raise UserError(f"its classes are not those of the data, {', '.join(gan.classes)}"[:300], path)
    if saved["channels"] != gan.channels:
        raise UserError(f"its images have {saved['channels']} channels, those of the data {gan.channels}", path)
    if gan.config.validation_split != saved["options"].get("validation_split"):
        raise UserError(f"its test images are gone, on which {path} was validated", f"--data {gan.config.data}")
    try:
        gan.load_state_dict(saved["model"])
        if saved["options"].get("optimizer", gan.config.optimizer) == gan.config.optimizer:
            for name, optimizer in gan.optimizers.items():
                groups = optimizer.state_dict()["param_groups"]
                optimizer.load_state_dict({"state": saved["optimizers"][name], "param_groups": groups})
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"its weights are not those of its options ({complaint(error)})"[:300], path) from None
    for name in PROGRESS:
        setattr(run, name, progress[name])
    run.log, run.epochs = saved["log"], saved["epochs"]
    if saved["options"].get("data_fingerprint") != run.facts["data_fingerprint"]:
        say("note: the data is not what the checkpoint was trained on; its epoch begins again")
        run.seen = 0
    if run.seen + run.of_step > len(run.images.pixels):  # each epoch ends with a step, after which it gets its row
        say("note: the rest of the checkpoint's epoch makes no batch of this size; the epoch begins again")
        run.seen = 0
    restore_rank(gan, saved, path)


def restore_rank(gan: GAN, saved: dict[str, Any], path: Path) -> None:
    """Put back what each process has of its own, as far as the checkpoint has it and it fits. Raises UserError."""
    if len(saved["ranks"]) != process_count():
        say(f"note: {path} is of {len(saved['ranks'])} processes together, this run of {process_count()}")
    own = next(iter(saved["ranks"][rank() : rank() + 1]), None)
    if own is not None and (checks := extra("checks", is_needed=False)):
        checks.check_rank(own, rank_state(gan), path)
    device = gan.rng.device
    if own is None or own["random"]["device"] != device.type:
        gan.rng.manual_seed(noise_seed(gan.config.seed) + saved["progress"]["step"])
        if own is None:
            return
        say("note: the checkpoint is from another kind of device; the noise goes on from another state")
        own = own | {"random": rank_state(gan)["random"]}
    try:
        gan.rng.set_state(own["random"]["noise"])
        default_rng(device)[1](own["random"]["dropout"])
        for name, state in own["pools"].items():
            gan.pools[name].load_state_dict(state)
    except (RuntimeError, ValueError) as error:  # of the right size, and yet no state
        raise UserError(f"its ranks are wrong ({complaint(error)})", path) from None


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> BaseGenerator:
    """The averaged generator of a `.safetensors` model or a `.pt` checkpoint, ready to `generate`. Raises UserError."""
    return load_network(path, "generator", device)


def load_network(path: str | Path, name: str, device: str | torch.device = "cpu") -> nn.Module:
    """The "generator", "discriminator" or a lab's network of a model or a checkpoint: its average, if there is one.

    Raises UserError.
    """
    if not os.path.isfile(path):
        what = "is a folder; name a model in it, such as generator.safetensors"
        raise UserError(what if os.path.isdir(path) else "there is no such model", path)
    if zipfile.is_zipfile(path):
        saved = load_checkpoint(Path(path))
        kind, architecture, tensors = saved["kind"], saved["architecture"], saved["model"]
    else:
        try:
            with safetensors.safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != MODEL_FORMAT:
                    raise UserError(f"not a model of this program: its metadata lack format {MODEL_FORMAT!r}", path)
                kind, architecture = metadata.get("kind", "rollnumber_04"), json.loads(metadata["architecture"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, ValueError, KeyError, RecursionError, safetensors.SafetensorError):
            raise UserError("neither a .safetensors model nor a checkpoint, or damaged", path) from None
    networks = load_kind(kind, path).networks
    known = architecture.get(name) if isinstance(architecture, dict) else None
    if not isinstance(known, dict) or name not in networks:
        has = listed([*map(printable, architecture)]) if isinstance(architecture, dict) else "nothing"
        advice = "; a run with --multitask saves one" if name == "discriminator" and kind == "rollnumber_04" else ""
        raise UserError(f"is of {kind} and holds {has}, but no {name}{advice}", path)
    prefix = next((p for p in (f"averages.{name}.", f"{name}.") if any(str(k).startswith(p) for k in tensors)), "-")
    weights = {key.removeprefix(prefix): tensors[key] for key in tensors if str(key).startswith(prefix)}
    if checks := extra("checks", is_needed=False):
        known = checks.checked_arguments(networks[name], known, weights, name, path)
    try:
        parameters = inspect.signature(networks[name]).parameters  # earlier versions had more, which say nothing
        network = networks[name](**{key: value for key, value in known.items() if key in parameters})
        network.load_state_dict(weights)
    except (TypeError, RuntimeError, UserError) as error:
        what = f"its {name} is not one that is made here ({complaint(error)})"
        raise UserError(what[:300], path) from None
    return network.to(device, memory_format=memory_format(device)).requires_grad_(False).eval()


########################################################################################################################
#                                                       Commands                                                       #
########################################################################################################################

COMMANDS = {  # of extras/, and the files there that have them
    "interpolate": "paths", "draw": "paths", "evaluate": "evaluate",
}  # fmt: skip


class UserError(argparse.ArgumentTypeError):
    """A mistake that the user can mend: `main` prints it as one sentence, "about: message", and exits with `status`.

    It is `about` a file, or a flag with its value; a file's flag is put before it by `named`. One that is `common` is
    raised in all processes, of which rank 0 prints it.
    """

    def __init__(self, message: str, about: object = "", status: int = 2, common: bool = False):
        super().__init__(message)
        self.about, self.status, self.common = str(about), status, common

    def __str__(self) -> str:
        return f"{self.about}: {self.args[0]}" if self.about else str(self.args[0])


class NoTestSplit(UserError):
    """The data is not divided into training and test images."""


class Stopped(KeyboardInterrupt):
    """A signal that ends a program now, such as the second to a run that is saving: its argument is its number."""


@contextmanager
def named(flag: str) -> Iterator[None]:
    """Say of a UserError raised inside which flag it is about, unless it does so itself."""
    try:
        yield
    except UserError as error:
        if not error.about.startswith("--"):
            error.about = f"{flag} {error.about}".strip()
        raise


class Parser(argparse.ArgumentParser):
    """An argument parser with the layout of all commands' help, whose complaint is one sentence."""

    def __init__(self, prog: str, description: str, epilog: str = ""):
        layout = partial(argparse.RawDescriptionHelpFormatter, max_help_position=34, width=120)
        super().__init__(prog, description=description, epilog=epilog, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str):
        raise UserError(message.removeprefix("argument "))


def check_value(value: Any, kind: type, limits: dict[str, Any]) -> None:
    """Raise UserError for a value that an option of a kind and with limits cannot have; it says what it should be."""
    low, high = limits["low"], limits["high"]
    if kind in (int, float):
        is_number = type(value) is int or (kind is float and type(value) is float)
        if not is_number or not (low < value <= high if limits["above"] else low <= value <= high):
            span = f"above {low}, up to {high}" if limits["above"] else f"from {low} to {high}"
            raise UserError(f"{value!r} is not a {'whole ' * (kind is int)}number {span}")
    elif not isinstance(value, kind) or (limits["choices"] and value not in limits["choices"]) or "\0" in str(value):
        raise UserError(f"{value!r} is not {' or '.join(limits['choices']) or f'a {kind.__name__}'}")


def read_value(text: str, kind: type, limits: dict[str, Any]) -> Any:
    """An argparse type: a word of the command line as the value of an option."""
    if kind is Path:
        return some_path(text)
    value: Any = text
    with suppress(ValueError):
        value = kind(text)
    check_value(value, kind, limits)
    return value


def number_in(kind: type, low: float, high: float, above: bool = False) -> Callable[[str], Any]:
    """An argparse type: an int or float from `low` (itself excluded if it is to lie `above`) to `high`."""
    return partial(read_value, kind=kind, limits=dict(low=low, high=high, above=above))


def some_path(text: str) -> Path:
    """An argparse type: a path, but not the empty one of a shell's unset variable, which Path takes for this folder."""
    if not text or "\0" in text:
        raise UserError("is empty" if not text else "is no path")
    path = os.path.expanduser(text)  # a shell does so in --out ~/x and not in --out=~/x
    if path.startswith("~"):  # ./~ is a folder of that name
        raise UserError(f"{text}: whose home this is, is not known here")
    return Path(path)


def flag_of(name: str, value: Any = None) -> str:
    """An option as on the command line: --flip, --no-flip, --lr-g 0.001."""
    flag = "--" + name.replace("_", "-")
    return flag if value is None or value is True else f"--no-{flag[2:]}" if value is False else f"{flag} {value}"


def kinds_of(config: type[Config]) -> dict[str, type]:
    """The type of each option's value, by name."""
    hints = typing.get_type_hints(config)
    return {part.name: next(iter(typing.get_args(hints[part.name])), hints[part.name]) for part in fields(config)}


def build_parser(kind: type[GAN]) -> Parser:
    """The command line of training: a flag for each field of its Config, absent from the result unless it is given."""
    description, *_ = (sys.modules[kind.__module__].__doc__ or "").split("\n")
    others = f"Other commands, each with its --help: {', '.join(commands_of(kind))}."
    parser = Parser(program_name(kind), f"{description}\nG is the generator, D the discriminator.", others)
    group, values = parser, kinds_of(kind.Config)
    for part in fields(kind.Config):
        limits, name = part.metadata, part.name
        if limits["group"]:
            group = parser.add_argument_group(limits["group"])
        if name in kind.Config.without:
            continue
        is_told = part.default is not None and part.default is not False
        says = limits["help"] + f" ({part.default})" * is_told
        word = limits["word"] or {int: "N", float: "X", Path: "PATH"}.get(values[name])
        how: dict[str, Any] = dict(type=partial(read_value, kind=values[name], limits=limits), metavar=word)
        if values[name] is bool:  # a resumed run may turn off what its checkpoint has
            how = dict(action=argparse.BooleanOptionalAction if limits["saved"] else "store_true")
        elif limits["choices"]:
            how["metavar"] = "{" + ",".join(limits["choices"]) + "}"
        elif name == "resume":
            how |= dict(nargs="?", const=True)
        group.add_argument(flag_of(name), default=argparse.SUPPRESS, help=says.replace("%", "%%"), **how)
    return parser


def config_from(argv: Sequence[str] = (), kind: type[GAN] = GAN) -> Config:
    """The options of a training run from its command line, over a checkpoint's or the defaults. Raises UserError.

    `train(config_from(["--data", "cifar10"]))` is `train(Config(data=Path("cifar10")))`.
    """
    given = vars(build_parser(kind).parse_args(argv))
    if given.get("epochs") and given.get("iterations"):
        raise UserError("does not go with --epochs; give one of them", "--iterations")
    if given.get("epochs"):
        given["iterations"] = None
    config = resumed(kind, given) if given.get("resume") else kind.Config(**given)
    check_options(config)
    return config


def with_paths(config: Config) -> Config:
    """The options with paths where a notebook gives text. Raises UserError for text that is no path."""
    given = {name: getattr(config, name) for name, kind in kinds_of(type(config)).items() if kind is Path}
    paths = {}
    for name, value in given.items():
        with named(flag_of(name)):
            paths[name] = some_path(value) if isinstance(value, str) else value
    return replace(config, **paths)


def check_options(config: Config) -> None:
    """Raise UserError for options that are out of their limits, or do not go together."""
    for part, kind in zip(fields(config), kinds_of(type(config)).values(), strict=True):
        value = getattr(config, part.name)
        if value is not None or "None" not in str(part.type):  # not by its default, which may be a lab's
            with named(flag_of(part.name)):
                check_value(value, kind, part.metadata)
    config.check()


def to_dict(config: Config) -> dict[str, Any]:
    """The options that describe a run, as plain values: what is written to options.json and into checkpoints."""
    saved = {part.name: getattr(config, part.name) for part in fields(config) if part.metadata["saved"]}
    saved = {name: value for name, value in saved.items() if name not in config.without}
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in saved.items()}


def config_of(saved: dict[str, Any], path: Path, kind: type[GAN]) -> Config:
    """A checkpoint's own options, checked as a user's are. Raises UserError."""
    values = kinds_of(kind.Config)
    known = {part.name for part in fields(kind.Config) if part.metadata["saved"]} - {*kind.Config.without}
    given = {name: value for name, value in saved["options"].items() if name in known}
    given = {name: Path(v) if values[name] is Path and isinstance(v, str) else v for name, v in given.items()}
    try:
        config = kind.Config(**given)
        check_options(config)
        if config.seed is None or config.image_size is None:
            raise UserError("no seed or no image size")
    except UserError as error:
        raise UserError(f"its options are wrong: {error}"[:300], path) from None
    return config


def resumed(kind: type[GAN], given: dict[str, Any]) -> Config:
    """A checkpoint's options under those that are given; `resume` is its path. Raises UserError for a fixed one."""
    for name in ("dry_run", "download"):
        if given.get(name):
            raise UserError("does not go with --resume", flag_of(name))
    path, saved = find_checkpoint(given["resume"], given.get("out"))
    if saved["kind"] != kind_of(kind):
        raise UserError(f"is of {saved['kind']}; {program_name(kind)} cannot go on with it"[:300], path)
    before = config_of(saved, path, kind)
    if checks := extra("checks", is_needed=False):
        checks.check_checkpoint(saved, path, kind, before)
    if not given.get("out") and path.parent.name != "checkpoints":
        raise UserError("lies in no run's folder; name one with --out", f"--resume {path}")
    config = replace(before, **{"out": path.parent.parent} | given | {"resume": path})
    resets = ["sample_every", "save_every", "evaluate_every"] if config.unit != before.unit else []  # they count it
    resets += ["save_every"] if "sample_every" in given else []
    defaults = {part.name: part.default for part in fields(config)}
    config = replace(config, **{name: given.get(name, defaults[name]) for name in resets})
    if not config.evaluate_every:  # turned off, perhaps because here there is neither the library nor the weights
        of_fid = ("evaluate_samples", "inception_weights")
        config = replace(config, **{name: given.get(name, defaults[name]) for name in of_fid})
    for part in fields(config):
        old, new = (getattr(each, part.name) for each in (before, config))
        old, new = (str(value.resolve()) if isinstance(value, Path) else value for value in (old, new))
        if not part.metadata["saved"] or old == new:
            continue
        if part.metadata["fixed"]:
            has = f"no {flag_of(part.name)}" if old is None else flag_of(part.name, old)
            raise UserError(f"the checkpoint {path} has {has}", flag_of(part.name, new))
        old, new = ("unset" if value is None else value for value in (old, new))
        say(f"note: {flag_of(part.name)} {old} in the checkpoint, {new} now")
    if goes_on(config) and path.name != "last.pt":
        step = saved["progress"]["step"]
        say(f"note: {config.out} goes on from step {step:,}; files of later steps stay until it comes to them")
    return config


def find_checkpoint(resume: Path | bool, out: Path | None) -> tuple[Path, dict[str, Any]]:
    """The path and contents of what `--resume [PATH]` means: PATH, or the newest whole checkpoint of a run's folder.

    That is last.pt, unless it is damaged: then the newest of those with numbers, with a note. Raises UserError.
    """
    if resume is True and out is None:
        raise UserError("name the run's folder with --out, or give a checkpoint's path", "--resume")
    path = out if resume is True else resume
    if os.path.isfile(path):  # unlike Path's, this takes names of any length
        return path, load_checkpoint(path)
    numbered = path.glob("checkpoints/*_*.pt") if os.path.isdir(path) else ()
    others = sorted(numbered, key=lambda file: (os.path.getmtime(file), file), reverse=True)
    candidates = [file for file in (path / "checkpoints" / "last.pt", *others) if os.path.isfile(file)]
    for file, following in itertools.zip_longest(candidates, candidates[1:]):
        try:
            return file, load_checkpoint(file)
        except UserError as error:
            if not following:
                raise
            say(f"note: {error}; trying {following.name}")
    missing = path / "checkpoints" / "last.pt" if os.path.isdir(path) else path
    raise UserError(f"there is no checkpoint {missing}", "--resume")


def train(config: Config, kind: type[GAN] = GAN) -> Path:
    """Train as the options say; returns the run's folder. Bad input: UserError."""
    begun, config = time.perf_counter(), with_paths(config)
    if config.resume and config.seed is None:  # made in Python: what is not a default is what is given
        values, defaults = vars(config), vars(type(config)())
        config = resumed(kind, {name: value for name, value in values.items() if value != defaults[name]})
    check_options(config)
    is_launched, is_new = "TORCHELASTIC_RUN_ID" in os.environ, not goes_on(config)
    joined = extra("processes").joined(config.device) if is_launched else nullcontext(choose_device(config.device))
    read = config.resume.stat().st_mtime_ns if config.resume else 0
    speed = extra("speed", is_needed=False)
    quick = speed.without_compiler() if speed and config.launch != "compiled" else nullcontext()
    with joined as device, quick:
        run = prepare(config, kind, device)
        if run is None:
            return config.out
        with nullcontext() if rank() else open_run_folder(run.out, is_new), noted_signals() as signals:
            if not is_new and not rank() and config.resume.stat().st_mtime_ns != read:
                raise UserError("another run has just written it; resume again", f"--resume {config.resume}")
            try:
                fit(run, signals)
            except Stopped as stop:
                raise UserError(f"stopped at once; {how_to_go_on(run)}", status=128 + stop.args[0]) from None
            except OSError as error:  # a full disk, a folder that has become read-only: no training without saving
                where = f"stopped at step {run.step:,}, for {error.filename or run.out} cannot be written"
                raise UserError(f"{where} ({error.strerror or error}); {how_to_go_on(run)}", status=1) from None
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                advice = f"try a lower --batch-size, --image-size or --width-*; {how_to_go_on(run)}"
                about = flag_of("batch_size", run.gan.config.batch_size)
                raise UserError(f"not enough memory on {device}: {advice}", about) from None
            if run.step < run.total:
                what = f"interrupted at step {run.step:,}, epoch {run.epochs_begun}; {how_to_go_on(run)}"
                raise UserError(what, status=128 + (signals or [signal.SIGTERM])[0], common=True)
    say(f"done       {plural(run.step, 'step')}; this time {clock(time.perf_counter() - begun)}")
    if speed:
        say(f"           peak memory {speed.peak_memory(device)}")
    say_what_next(run)
    return run.out


def prepare(config: Config, kind: type[GAN], device: torch.device) -> Run | None:
    """A run that is ready to go on, announced; None if there is nothing to do. Raises UserError."""
    saved = load_checkpoint(config.resume) if config.resume else None
    is_new, planned = not goes_on(config), config.iterations or config.epochs
    done = saved["progress"]["step" if config.iterations else "epoch"] if saved else 0
    if done >= planned and broadcast(is_new or not (config.out / UNDRAWN).exists()):
        what = f"{config.resume} has done {plural(done, config.unit)} of {planned:,}; a larger --{config.unit}s goes on"
        say(f"nothing to do: {what}")
        return None
    if is_new and not rank():
        given = (getattr(config, part.name) for part in fields(config) if part.metadata["saved"])
        refuse_folder(config.out, [value for value in given if isinstance(value, Path)])
    if not is_new and not rank():
        for folder in (config.out, config.out / "checkpoints"):
            check_writable("--out", folder)
    if config.launch == "compiled":
        extra("speed").check_compiler(device)
    config, images, validation = settle(config, kind, device)
    torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    if config.deterministic != torch.are_deterministic_algorithms_enabled():  # which imports torch's compiler
        torch.use_deterministic_algorithms(config.deterministic)
    measures_itself = config.evaluate_every and not config.dry_run and not rank()
    # Before the networks are made, for it may draw random numbers.
    fid, fid_facts = extra("evaluate").fid_during(config, images, device) if measures_itself else (None, {})
    gan = kind(config, images.pixels.shape[3], images.classes if kind.uses_classes(config) else ()).on(device)
    facts = to_dict(config) | {
        "data_fingerprint": fingerprint(images),
        "device_name": device_name(device),
        "versions": {"tool": __version__, "torch": str(torch.__version__), "python": platform.python_version()},
        "fid": fid_facts,
    }
    run = Run(gan, images, validation, config.out, facts, fid=fid)
    if saved:
        restore(run, saved, config.resume)
        if checks := extra("checks", is_needed=False):
            checks.check_comparable(run, saved, config.resume)
        facts["fid"] = fid_facts or saved["options"].get("fid", {})  # a pause of the measuring forgets no condition
        run.is_whole = not is_new and saved["options"].get("seed") == config.seed
    of_epoch = len(images.pixels) // run.of_step
    rest = (len(images.pixels) - run.seen) // run.of_step  # steps of the epoch under way
    run.total = config.iterations or run.step + rest + (config.epochs - run.epoch - 1) * of_epoch
    if config.dry_run:
        run.total = run.step + 1
    gan.planned = facts["planned"] = run.total
    for jump in gan.jumps(run.step, saved["options"]) if saved else ():
        say(f"note: the run is planned for {run.total:,} steps, not as before: {jump}")
    run.images = on_device(images, device)
    run.out = config.out or broadcast(None if rank() else make_named_folder(kind_of(kind).removeprefix("labs.")))
    announce(run, of_epoch)
    return run


def settle(config: Config, kind: type[GAN], device: torch.device) -> tuple[Config, Images, Images | None]:
    """The data, and the options as the data and the machine decide them. Raises UserError."""
    if config.download:
        where = config.data or Path("data")
        config = replace(config, data=broadcast(None if rank() else extra("formats").download(config.download, where)))
    if not config.data and "data" not in config.without:
        say("training on the built-in shapes, drawn on the fly; --data FOLDER trains on your own images")
    chosen = config.seed if config.seed is not None else secrets.randbelow(2**31)
    precision = broadcast(choose_precision(config.precision, device))
    config = replace(config, seed=broadcast(chosen), precision=precision)
    loaded = None if rank() else kind.load(config)
    broadcast(None)  # now the others find the images in rank 0's cache, and no mistake in them
    config, images, validation = loaded or kind.load(config)
    count, share, size = len(images.pixels), config.d_steps * process_count(), config.batch_size
    least = type(config).__dataclass_fields__["batch_size"].metadata["low"]
    if count < least * share:
        about = f"--data {config.data}" if config.data else ""
        raise UserError(f"training needs at least {least * share} images, found {count}", about)
    if size * share > count:
        times = f" times {config.d_steps} steps of D" if config.d_steps > 1 else ""
        times += f" times {process_count()} processes" if process_count() > 1 else ""
        say(f"note: --batch-size {size}{times} is more than the {count} images; using {count // share}")
    return replace(config, batch_size=min(size, count // share)), images, validation


def announce(run: Run, of_epoch: int) -> None:
    """A run's first lines: device, precision, data, networks, what is trained and how long, seed, output folder."""
    gan, config, facts = run.gan, run.gan.config, run.facts
    times = f"{process_count()} × " if process_count() > 1 else ""
    compiled = ", compiled" if config.launch == "compiled" else ""
    say(f"device     {times}{facts['device_name']}, {config.precision}{compiled}, torch {torch.__version__}")
    for name, images in gan.sets(run.images).items():
        what = describe_images(images.pixels.shape[3], "{0}×{0}".format(images.pixels.shape[1]))
        count = "one class" if len(images.classes) == 1 else f"{len(images.classes)} classes"
        classes = f" in {count}: {listed(images.classes)}" if images.classes else ", no labels"
        say(f"data       {name}: {len(images.pixels):,} {what}{classes}")
    if run.validation:
        counts = " and ".join(f"{len(part.pixels):,}" for part in gan.sets(run.validation).values())
        say(f"validation {counts} {'images held out' if config.validation_split else 'test images'}")
    if fid := facts["fid"]:
        counts = f"{fid['n_fake']:,} samples against {fid['n_real']:,} training images"
        say(f"FID        of {counts}, {fid['network']}, weights {fid['weights']}")
    networks, objective = gan.describe()
    length = plural(config.iterations or config.epochs, config.unit)
    length = "1 step" if config.dry_run else length + f" of {plural(of_epoch, 'step')}" * (not config.iterations)
    done = f", {plural(run.step, 'step')} done" if run.step else ""
    say(f"networks   {networks}")
    changes = [what for what, is_on in (("mirrored", config.flip), ("shifted", config.translation)) if is_on]
    changed = f", images {' and '.join(changes)} at random" if changes else ""
    say(f"training   {objective}, batch {config.batch_size}{changed}, {length}{done}")
    say(f"seed       {config.seed}")
    say(f"output     {run.out}")


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


def how_to_go_on(run: Run) -> str:
    """How to go on with a run that has stopped."""
    if not (run.out / "checkpoints" / "last.pt").exists():
        return "nothing was saved yet"
    return f"go on from what is saved with: {resume_command(run)}"


def resume_command(run: Run) -> str:
    """The command that goes on with a run."""
    start = f"torchrun --nproc-per-node {process_count()}" if process_count() > 1 else "python"
    return f"{start} {program_of(run)} {command_line('--resume', '--out', run.out)}"


def command_line(*words: object) -> str:
    """Words as a command line of this system."""
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    return join([*map(str, words)])


def program_of(run: Run) -> str:
    """What of a run follows `python` on a command line."""
    kind = kind_of(run.gan)
    return "rollnumber_04.py" if kind == "rollnumber_04" else f"-m {kind}"


def say_what_next(run: Run) -> None:
    """Say what to look at of a run that is done, and the commands that use it."""
    config, program = run.gan.config, f"python {program_of(run)}"
    if sheets := numbered_files(run.out / "samples", config.unit, ".png", run.number):
        moving = run.out / "samples" / "progress.gif"
        say(f"look at    {command_line(sheets[-1])}" + f"; how it came: {command_line(moving)}" * moving.exists())
    for file in run.gan.models(config):
        command, _, rest = run.gan.uses[file].partition(" ")
        say(f"{command:10} {program} {command} {rest.format(command_line(run.out / f'{file}.safetensors'))}")
    planned = config.iterations or config.epochs
    further = planned if planned > run.number else 2 * run.number  # a dry run leaves most of its plan to do
    say(f"go on      {resume_command(run)} --{config.unit}s {further}")
    if (run.out / "tensorboard").exists():
        say(f"curves     {command_line('tensorboard', '--logdir', run.out.parent)}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception says that there is too little memory, on whichever device; only CUDA has a class for it."""
    words = ("out of memory", "ALLOC_FAILED", "allocate memory", "not enough memory")  # of CUDA, cuBLAS, Linux, Windows
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def add_model(parser: Parser) -> None:
    """The arguments of every command that uses a saved model."""
    parser.add_argument("model", type=some_path, metavar="MODEL", help="a .safetensors model or a .pt checkpoint")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 … or mps (auto)")


def add_drawing(parser: Parser) -> None:
    """The arguments of every command that draws with a generator."""
    add_model(parser)
    add = parser.add_argument
    add("--seed", type=number_in(int, 0, 2**31 - 1), default=0, help="image i of a seed is always the same (0)")
    truncation = "draw noise from -T … T only: less variety, better images"
    add("--truncation", type=number_in(float, 0, 10, above=True), metavar="T", help=truncation)


def generate(argv: Sequence[str], program: str) -> Path:
    """The command `generate`: a sheet, an .npz with the array `images`, or a folder of PNGs. Returns what it wrote."""
    parser = Parser(f"{program} generate", "Draw images with a trained generator.")
    add_drawing(parser)
    add = parser.add_argument
    add("--count", type=number_in(int, 1, 10**8), default=64, help="how many images (64)")
    add("--label", metavar="CLASS", help="name or number of the class to draw; all classes in turn if omitted")
    add("--out", type=some_path, required=True, metavar="PATH", help="x.png (a sheet), x.npz or a new folder")
    options = parser.parse_args(argv)
    out, count, label, suffix = options.out, options.count, options.label, options.out.suffix.lower()
    if suffix not in ("", ".png", ".npz"):
        raise UserError("must end in .png or .npz, or name a folder without a dot", f"--out {out}")
    if suffix == ".png" and count > 10_000:
        raise UserError("a sheet holds 10,000; --out x.npz or a folder takes more", f"--count {count}")
    if out.is_dir() and (suffix or any(out.iterdir())):
        raise UserError("is a folder" if suffix else "the folder is not empty", f"--out {out}")
    generator = load_generator(options.model, choose_device(options.device))
    with named("--label"):
        labels = generator.labels(label, 0, count)
    pieces = with_bar(stream(generator, count, label, options.seed, options.truncation), count)
    try:
        if suffix:
            images, file = collected(pieces, count), io.BytesIO()
            if suffix == ".png":
                sheet(images, sheet_columns(generator, count) if label is None else None).save(file, "PNG")
            else:
                of_class = {"labels": labels, "classes": np.array(generator.classes)} if generator.classes else {}
                np.savez_compressed(file, images=images, **of_class)
            save_output("--out", out, file.getvalue())
        else:
            names = (out / f"{i:06d}.png" for i in itertools.count())
            for piece in pieces:
                out.mkdir(parents=True, exist_ok=True)  # not before the first images can be drawn
                for image in piece:
                    Image.fromarray(image).save(next(names))
    except KeyboardInterrupt:
        if not suffix:
            say(f"{out} holds the first of the {count:,} images")
        raise
    except MemoryError:
        raise UserError("do not fit into memory; --out folder/ takes any number", f"--count {count}") from None
    except OSError as error:
        raise UserError(f"{error.strerror or error}", f"--out {out}") from None
    which = f" of class {generator.classes[labels[0]]}" if label is not None else ""
    say(f"{plural(count, 'image')}{which} of {options.model}, seed {options.seed}: {out}")
    return out


def with_bar(pieces: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """The same pieces of so many images, with a bar that shows how far they are."""
    with progress_bar(total=count, unit="img", leave=False) as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece))


def classify(argv: Sequence[str], program: str) -> None:
    """The command `classify`: class and probability of each image, or accuracy and a table for a labelled set."""
    described = "Tell the classes of images with the discriminator of a run with --multitask."
    parser = Parser(f"{program} classify", described)
    add_model(parser)
    what = "image files, or a folder or file of data"
    parser.add_argument("images", type=some_path, nargs="+", metavar="IMAGE|DATA", help=what)
    parser.add_argument("--shares", action="store_true", help="print the share of each class alone")
    options = parser.parse_args(argv)
    discriminator = load_network(options.model, "discriminator", choose_device(options.device))
    size, channels = (discriminator.architecture[key] for key in ("image_size", "channels"))
    classes = discriminator.architecture.get("classes", [])
    if getattr(discriminator, "head", None) is None:
        raise UserError("its discriminator tells no classes; train one with --multitask", options.model)
    with redirect_stdout(sys.stderr):  # the notes; what is printed may be read by a program
        source = find_to_classify(options.images)
        images = with_channels(decode_source(source, size), channels)
    if images.labels is None or options.shares:
        width = min(max(map(len, classes)), 24)
        probabilities, numbers = class_logits(discriminator, images.pixels).softmax(1).max(1)
        if options.shares:
            extra("evaluate").print_shares(classes, probabilities, numbers, options.images, width)
            return
        names = range(len(images.pixels)) if isinstance(source.items, np.ndarray) else source.items
        for name, label, probability in zip(names, numbers.tolist(), probabilities.tolist(), strict=True):
            print(f"{classes[label]:{width}}  {probability:6.1%}  {printable(name)}")
    else:
        try:
            images = renumbered(images, classes)
        except KeyError as stray:
            raise UserError(f"class {stray.args[0]} is not one that {options.model} tells", options.images[0]) from None
        loss, accuracy, confusion = validate(discriminator, images)
        print(f"{len(images.labels):,} images of {options.images[0]}: {accuracy:.2%} right, cross-entropy {loss:.4f}")
        if more := extra("evaluate", is_needed=False):
            more.print_confusion(confusion, classes)


def find_to_classify(paths: Sequence[Path]) -> Source:
    """The images that `classify` is given: image files, or one set in any layout; of a divided set the test images."""
    if len(paths) > 1 or (paths[0].suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(paths[0])):
        for path in paths:
            if not os.path.isfile(path):
                what = "is a folder; give it alone" if os.path.isdir(path) else "there is no such image file"
                raise UserError(what, path)
        return Source(paths, where=f"{paths[0]} …" if len(paths) > 1 else str(paths[0]))
    try:
        return find_source(paths[0], "test")
    except NoTestSplit:
        return find_source(paths[0], "train")


def count_parameters(network: nn.Module) -> int:
    """How many numbers the optimizer may change."""
    return sum(parameter.numel() for parameter in network.parameters())


def device_name(device: torch.device) -> str:
    """A device for people to read: the GPU's model, or the CPU's threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def progress(run: Run) -> str:
    """How many epochs or steps are done, and of how many."""
    config = run.gan.config
    if config.iterations:
        return f"iteration {run.step:,}/{config.iterations:,}"
    return f"epoch {run.number}/{run.number if config.dry_run else config.epochs}"


def show_progress(bar: tqdm, run: Run, row: dict[str, Any]) -> None:
    """Bring the bar up to a row of log.csv."""
    bar.set_description(progress(run), refresh=False)
    bar.set_postfix({name: f"{row[name]:.3f}" for name in SHOWN if name in row}, refresh=False)
    bar.update(run.step * run.of_step - bar.n)


def interval_line(run: Run) -> str:
    """The last row of epochs.csv in a line, and the time that is left, with that of the pictures."""
    row, (began, first) = run.epochs[-1], run.mark
    metrics = "  ".join(f"{name} {row[name]:.3f}" for name in SHOWN if row.get(name, "") != "")
    left = (run.total - run.step) * (time.perf_counter() - began) / (run.step - first)
    return f"{metrics}  {row['images_per_s']:,.0f} images/s  {clock(left)} left"


def clock(seconds: float) -> str:
    """12.3 s, 4 min 05 s or 2 h 07 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def say(line: str) -> None:
    """Print a line above any progress bar, on rank 0. A run goes on when nobody reads it, as after `| head`."""
    if rank():
        return
    try:
        tqdm.write(line)
        sys.stdout.flush()
    except OSError:
        mute()


@cache
def say_once(line: str) -> None:
    """`say`, the first time in this process."""
    say(line)


def progress_bar(**settings: Any) -> tqdm:
    """A bar on standard error, where that is a terminal."""
    return tqdm(**settings, disable=bool(rank()) or None)


def mute() -> None:
    """Send standard output nowhere from now on, with what Python still holds of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def complain(program: str, sentence: str, status: int, common: bool = False) -> int:
    """Say what is wrong in one line, whatever the names in it hold; returns the exit status."""
    if rank() and (common or (status == 2 and process_count() == 1)):  # rank 0 finds it, too
        return status
    with suppress(OSError):  # nobody may be listening
        print(f"{program}:", " ".join(sentence.split()), file=sys.stderr, flush=True)
    return status


@contextmanager
def told(program: str) -> Iterator[list[int]]:
    """Say in one sentence what goes wrong inside; yields what will hold the exit status.

    That is 0, 2 for a user's mistake, 1 for a failure, 130 for Ctrl-C.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, or a program without a console
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        if isinstance(each := getattr(sys, name), io.TextIOWrapper):
            each.reconfigure(errors="replace")  # a console whose code page has no × must not end a run
    status = [0]
    try:
        yield status
    except UserError as error:
        status[0] = complain(program, str(error), error.status, error.common)
    except KeyboardInterrupt as stop:
        number = stop.args[0] if isinstance(stop, Stopped) else signal.SIGINT
        status[0] = complain(program, "interrupted", 128 + number)
    except BrokenPipeError:  # what reads the output, such as `head`, has gone
        mute()
        status[0] = 1
    except OSError as error:  # a full disk, a folder that has become read-only
        status[0] = complain(program, f"{error.filename or 'standard output'}: {error.strerror or error}", 1)
    except (MemoryError, RuntimeError) as error:
        if process_count() > 1 and "onnection" in str(error):  # another process has ended, and has said why
            status[0] = 1
        elif is_out_of_memory(error):
            advice = "lower --image-size, --batch-size or --width-*"
            status[0] = complain(program, f"not enough memory; {advice} ({error})"[:300], 2)
        else:
            raise


def exit_with(main: Callable[[], int]) -> None:
    """Run a `main` as a program and end the process with its status."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("MPLBACKEND", None)  # a notebook's, which may not be installed here; all pictures are files
    status = main()
    for number in (signal.SIGINT, signal.SIGTERM):  # all is saved and said; Python's own ending is not to be disturbed
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def main(argv: Sequence[str] | None = None, name: str = "rollnumber_04") -> int:
    """Run a command line of this script, or of the lab of a name in KINDS; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    with told(name if name != "rollnumber_04" else f"{name}.py") as status:
        kind, command = load_kind(name, name), argv[0] if argv else ""
        known = commands_of(kind)
        if command in known:
            known[command](argv[1:])
        elif command and command[0] != "-" and command != "train":
            raise UserError(f"is no command; there are {', '.join(('train', *known))}", command)
        else:
            train(config_from(argv[command == "train" :], kind), kind)
    return status[0]


def run_extra(file: str, name: str, program: str, argv: Sequence[str]) -> None:
    """A command that a file of extras/ has."""
    getattr(extra(file), name)(argv, program)


def commands_of(kind: type[GAN]) -> dict[str, Callable[[list[str]], Any]]:
    """What a program does besides training: each takes the words that follow."""
    program = program_name(kind)
    found: dict[str, Callable[[list[str]], Any]] = {}
    if "generator" in kind.networks:
        found["generate"] = partial(generate, program=program)
        found |= {name: partial(run_extra, file, name, program) for name, file in COMMANDS.items()}
    if kind is GAN:
        found["classify"] = partial(classify, program=program)
    found |= {name: partial(run_extra, name, name, program) for name in ("export", "explore")}
    return found | kind.commands


def extra(name: str, is_needed: bool = True) -> Any:
    """A module of extras/, the folder beside this file; where it is missing a UserError, or None unless it `is_needed`.

    Libraries that it needs and that are missing are a UserError, too.
    """
    try:
        return importlib.import_module(f"extras.{name}")
    except ModuleNotFoundError as error:
        if error.name not in ("extras", f"extras.{name}"):
            raise UserError(f"needs {error.name} (pip install {error.name})", f"extras/{name}.py") from None
        if is_needed:
            what = "is missing, which this takes; get it from where the script comes from"
            raise UserError(what, f"extras/{name}.py") from None
        return None


def program_name(kind: type[GAN]) -> str:
    """The name that a program's complaints begin with: labs.NAME of a lab."""
    return "rollnumber_04.py" if kind is GAN else kind_of(kind)


if __name__ == "__main__":
    exit_with(main)
