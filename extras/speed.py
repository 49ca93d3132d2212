"""Faster: a whole step as one CUDA graph, kernels that torch.compile fuses, a start without the compiler."""

from __future__ import annotations

import importlib
import os
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import rollnumber_04 as gan
from rollnumber_04 import GAN, Images, UserError

GRAPH_AFTER = 3  # iterations, in which kernels are chosen and optimizers make their state, before one is captured


def check_compiler(device: torch.device) -> None:
    """Raise UserError if torch.compile does not work on a device."""
    try:  # a small network, to find out before anything else whether there is a compiler
        torch._dynamo.reset()  # what another run of this process has compiled counts against a limit
        torch.compile(nn.Tanh())(torch.zeros(2, device=device))
    except Exception as error:  # of whichever of the compiler's parts
        what = f"torch.compile does not work here ({gan.complaint(error)})"[:300]
        raise UserError(what, "--launch compiled") from None


def compile_networks(model: GAN) -> None:
    """Let torch.compile fuse the networks' kernels where training calls them."""
    for name in model.networks:
        network = getattr(model, name)
        parts = (network.features, network.score) if isinstance(network, gan.Discriminator) else (network,)
        for part in parts:
            part.compile(dynamic=False)


class Deferred(types.ModuleType):
    """Stands for torch._dynamo, the front of torch's compiler, until something is asked of it that it does not know.

    torch's optimizers import it to tell it to keep out of their way, which takes 890 modules, 1.3 s and 90 MB; while
    nothing is compiled, there is nothing to keep out. What else is asked imports the module itself.
    """

    NAME = "torch._dynamo"

    def graph_break(self, *words: Any, **options: Any) -> None:
        """Where compiled code ends: nowhere."""

    def disable(self, function: Callable[..., Any] | None = None, *words: Any, **options: Any) -> Callable[..., Any]:
        """A function that is not to be compiled: itself."""
        return function or (lambda other: other)

    def __getattr__(self, name: str) -> Any:
        self.leave()
        return getattr(importlib.import_module(self.NAME), name)

    def leave(self) -> None:
        """Make way for the module itself."""
        if sys.modules.get(self.NAME) is self:
            del sys.modules[self.NAME]
            vars(torch).pop("_dynamo", None)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Import torch's compiler when something is compiled in here, and not for an optimizer."""
    if Deferred.NAME in sys.modules:
        yield
        return
    sys.modules[Deferred.NAME] = torch._dynamo = deferred = Deferred(Deferred.NAME)
    try:
        yield
    finally:
        deferred.leave()


def why_not_captured(model: GAN) -> str:
    """Why an iteration cannot be a CUDA graph; "" if it can."""
    if model.rng.device.type != "cuda":
        return "there is no CUDA GPU"
    if torch.version.hip:
        return "AMD's GPUs are not tried yet"
    return "several processes share the work" if gan.process_count() > 1 else ""


class Launcher:
    """`GAN.iterate`, compiled if the options say so, and after GRAPH_AFTER iterations as a CUDA graph if it can be."""

    def __init__(self, model: GAN):
        self.model, self.captured, self.plain = model, None, 0
        if model.config.launch == "compiled":
            compile_networks(model)
        why = why_not_captured(model)
        self.may_capture = not why
        if why and model.rng.device.type == "cuda":
            gan.say(f"note: steps are launched one kernel at a time, for {why}")

    def __call__(self, images: Images, index: Tensor) -> None:
        if not all(pool.is_full for pool in self.model.pools.values()):
            self.plain = 0
        if self.may_capture and self.captured is None and self.plain >= GRAPH_AFTER:
            self.captured = capture_or_say(self.model, images, index)
            self.may_capture = self.captured is not None
        self.plain += 1
        if self.captured:
            self.captured(index)
        else:
            self.model.iterate(images, index)


def capture(model: GAN, images: Images, index: Tensor) -> Callable[[Tensor], None]:
    """`iterate` as a CUDA graph: its few hundred kernels in one launch, on the images of the index it is called with.

    The iterations before it have made all that is made once; capturing itself trains nothing.
    """
    of_graph = torch.zeros_like(index)
    graph = torch.cuda.CUDAGraph()
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14):  # from then on a graph finds its generators itself
        graph.register_generator_state(model.rng)
    with torch.cuda.graph(graph):
        model.iterate(images, of_graph)

    def replay(other: Tensor) -> None:
        of_graph.copy_(other)
        graph.replay()

    return replay


def capture_or_say(model: GAN, images: Images, index: Tensor) -> Callable[[Tensor], None] | None:
    """`capture`, or None if it raises anything: what it has changed is put back, and plain steps go on.

    None of a failed graph's kernels has run, so that weights, averages, sums and the optimizers' states are untouched.
    """
    device, get_state, set_state = model.rng.device, *gan.default_rng(model.rng.device)
    states = model.rng.get_state(), get_state()
    parameters = [parameter for name in model.networks for parameter in getattr(model, name).parameters()]
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        return capture(model, images, index)
    except Exception as error:  # of a driver, an operation, an option: a run must not die of an optimisation
        if device.type == "cuda":
            # torch stays on its own stream where ending a capture fails
            torch.cuda.set_stream(torch.cuda.default_stream(device))
            torch.cuda.synchronize(device)
            # Up to torch 2.13 a generator may take itself to be captured still: others take their places.
            model.rng = torch.Generator(device)
            torch.cuda.default_generators[device.index].graphsafe_set_state(torch.Generator(device))
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = None
        model.rng.set_state(states[0])
        set_state(states[1])
        why = f"for no CUDA graph can be made here: {gan.complaint(error)}"
        gan.say(f"note: steps are launched one kernel at a time, {why}"[:300])
        return None


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
