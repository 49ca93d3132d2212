"""Several processes that train one run together: joining them, and what they add up. `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed

import rollnumber_04 as gan
from rollnumber_04 import GAN, UserError


@contextmanager
def joined(name: str) -> Iterator[torch.device]:
    """Join the processes that `torchrun` has started; yields the device of this one, of the asked kind.

    With several GPUs each process takes its own. Raises UserError for a device that there is not.
    """
    if os.environ["WORLD_SIZE"] == "1":
        yield gan.choose_device(name)
        return
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        if int(os.environ["LOCAL_WORLD_SIZE"]) > torch.cuda.device_count():
            raise UserError(f"{torch.cuda.device_count()} GPUs are too few for as many processes", f"--device {name}")
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    elif name not in ("cpu", "cuda"):
        raise UserError("processes together take a GPU of NVIDIA's each (cuda), or the cpu", f"--device {name}")
    device = gan.choose_device(name)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if backend == "nccl" and not torch.distributed.is_nccl_available():
        what = "this build of torch lacks NCCL, which GPUs together need; it is not on Windows"
        raise UserError(what, f"--device {name}")
    torch.distributed.init_process_group(backend, timeout=timedelta(days=1))  # the others wait while FID is measured
    yield device
    torch.distributed.destroy_process_group()  # not after an error, for it would wait for the others


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, in all of them."""
    values = [None] * gan.process_count()
    torch.distributed.all_gather_object(values, value)
    return values


def average_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Replace each gradient by its mean over the processes, in one message; batch norm's statistics stay apart."""
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= gan.process_count()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def average_sums(model: GAN) -> None:
    """Make the sums of the metrics those of all processes: their mean, and for finite ones the least count."""
    torch.distributed.all_reduce(model.sums)
    model.sums /= gan.process_count()
    torch.distributed.all_reduce(model.finite, torch.distributed.ReduceOp.MIN)
