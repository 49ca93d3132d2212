"""A classifier that names the classes of samples, trained on real images for nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rollnumber_04 as gan
from extras import cache
from rollnumber_04 import BaseGenerator, Images

EPOCHS, LEAST_STEPS, BATCH, RATE, DECAY = 12, 500, 128, 4e-3, 0.02
VERSION = 1  # of what training gives


class Judge(nn.Module):
    """Images (B×channels×S×S) to class logits (B×classes): three stages of two convolutions of 3×3 with batch norm.

    They have `width`, twice and four times as many channels, at the full size, half and a quarter of it. Images of 64
    pixels and more are first averaged down to 32 to 63.
    """

    def __init__(self, image_size: int = 32, channels: int = 3, width: int = 32, classes: Sequence[str] = ()):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        layers, inputs = [], channels
        for stage in range(3):
            layers.append(nn.MaxPool2d(2) if stage else nn.AvgPool2d(max(1, image_size // 32)))
            for _ in range(2):
                outputs = width << stage
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
        self.layers = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(0.3))
        self.last = nn.Linear(inputs, len(classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.layers(images))

    def scores_and_logits(self, images: Tensor) -> tuple[None, Tensor]:
        """Class logits where a discriminator of Task 2 has them; it scores nothing."""
        return None, self(images)


def judge_of(images: Images, device: torch.device) -> Judge:
    """The classifier of a labelled set: from the cache, or trained on it and put there."""
    name = f"judge-{VERSION}-{gan.fingerprint(images)}-{len(images.classes)}"
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        judge = Judge(images.pixels.shape[1], images.pixels.shape[3], classes=images.classes)
        judge.to(device, memory_format=gan.memory_format(device))
        if kept := cache.load(name):
            judge.load_state_dict(kept)
        else:
            learn(judge, gan.on_device(images, device))
            cache.save(name, {key: tensor.cpu().contiguous() for key, tensor in judge.state_dict().items()})
    return judge.eval()


def learn(judge: Judge, images: Images) -> None:
    """Train a classifier on shifted images, with AdamW and a rate that rises and falls (Smith & Topin 2019)."""
    device = images.pixels.device
    rng = torch.Generator(device).manual_seed(0)
    batch = min(BATCH, len(images.pixels))
    of_epoch = len(images.pixels) // batch
    epochs = max(EPOCHS, math.ceil(LEAST_STEPS / of_epoch))
    optimizer = torch.optim.AdamW(judge.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=epochs * of_epoch)
    is_bf16 = gan.choose_precision("auto", device) == "bf16"
    with gan.progress_bar(total=epochs * of_epoch, desc="classifier", unit="step", leave=False) as bar:
        for epoch in range(epochs):
            for index in gan.epoch_order(len(images.pixels), 0, epoch).to(device).split(batch)[:of_epoch]:
                real = gan.translated(gan.real_batch(images.pixels, index, False, rng), rng)
                with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
                    logits = judge(real)
                optimizer.zero_grad()
                F.cross_entropy(logits.float(), images.labels[index]).backward()
                optimizer.step()
                schedule.step()
                bar.update()


def labelled_samples(
    generator: BaseGenerator, count: int, seed: int, truncation: float | None
) -> tuple[Tensor, np.ndarray | None]:
    """Samples uint8 n×H×W×C, classes in turn, and their labels; None if the generator is not conditional."""
    samples = torch.from_numpy(generator.generate(count, seed=seed, truncation=truncation))
    return samples.reshape(*samples.shape[:3], -1), generator.labels(None, 0, count)


def judged(classifier: Judge | gan.Discriminator, pixels: Tensor, asked: np.ndarray | None) -> dict[str, Any]:
    """What a classifier says of samples uint8 n×H×W×C: the share of each class, how even they are, the asked class.

    `chi2` is that of the classes' counts against equal ones, with classes - 1 degrees of freedom.
    """
    classes, channels = (classifier.architecture[key] for key in ("classes", "channels"))
    pixels = gan.with_channels(Images(pixels, None, ()), channels).pixels
    probabilities, found = gan.class_logits(classifier, pixels).softmax(1).max(1)
    counts, even = torch.bincount(found.cpu(), minlength=len(classes)), len(pixels) / len(classes)
    result = {
        "samples": len(pixels),
        "mean probability of the class named": float(probabilities.mean()),
        "share of each class": dict(zip(classes, (counts.double() / len(pixels)).tolist(), strict=True)),
        "chi2": float(((counts - even) ** 2 / even).sum()),
    }
    if asked is not None:
        result["share in the asked class"] = float((found.cpu().numpy() == asked).mean())
    return result
