"""Faster steps on a GPU: a whole step as one CUDA graph, and kernels that torch.compile fuses."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

import rollnumber_04 as gan
from rollnumber_04 import Images, Run, UserError

GRAPH_AFTER = 3  # iterations, in which kernels are chosen and optimizers make their state, before one is captured


def compile_networks(run: Run) -> None:
    """Let torch.compile fuse the networks' kernels where training calls them. Raises UserError if it cannot here."""
    try:  # a small network, to find out now whether there is a compiler for this device
        torch._dynamo.reset()  # what another run of this process has compiled counts against a limit
        torch.compile(nn.Tanh())(torch.zeros(2, device=run.rng.device))
    except Exception as error:  # of whichever of the compiler's parts
        raise UserError(f"torch.compile does not work here ({gan.complaint(error)})"[:300], "--compile") from None
    for network in run.networks.values():
        for part in (network.features, network.score) if isinstance(network, gan.Discriminator) else (network,):
            part.compile(dynamic=False)


def why_not_captured(run: Run, images: Images) -> str:
    """Why an iteration cannot be a CUDA graph; "" if it can."""
    if any(part and part.pixels.device.type != "cuda" for part in (images, images.other)):
        return "the data is in host memory"
    if torch.version.hip:
        return "not on AMD's GPUs yet"
    return "several processes share the work" if gan.process_count() > 1 else ""


def capture(run: Run, images: Images, options: argparse.Namespace) -> Callable[[Tensor], None]:
    """`iteration` as a CUDA graph: its few hundred kernels in one launch, on the images of the index it is called with.

    The iterations before it have made all that is made once; capturing itself trains nothing.
    """
    index = torch.zeros(options.d_steps, options.batch_size, dtype=torch.int64, device=run.rng.device)
    graph = torch.cuda.CUDAGraph()
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14):  # from then on a graph finds its generators itself
        graph.register_generator_state(run.rng)
    with torch.cuda.graph(graph):
        gan.iteration(run, images, index, options)

    def replay(other: Tensor) -> None:
        index.copy_(other)
        graph.replay()

    return replay


def capture_or_say(run: Run, images: Images, options: argparse.Namespace) -> Callable[[Tensor], None] | None:
    """`capture`, or None if it raises anything: what it has changed is put back, and plain steps go on.

    None of a failed graph's kernels has run, so that weights, averages, sums and the optimizers' states are untouched.
    """
    device, get_state, set_state = run.rng.device, *gan.default_rng(run.rng.device)
    states = run.rng.get_state(), get_state()
    parameters = [parameter for network in run.networks.values() for parameter in network.parameters()]
    flags = [parameter.requires_grad for parameter in parameters]
    try:
        return capture(run, images, options)
    except Exception as error:  # of a driver, an operation, an option: a run must not die of an optimisation
        if device.type == "cuda":
            torch.cuda.set_stream(
                torch.cuda.default_stream(device)
            )  # torch stays on its own where ending a capture fails
            torch.cuda.synchronize(device)
            # Up to torch 2.13 a generator may take itself to be captured still: others take their places.
            run.rng = torch.Generator(device)
            torch.cuda.default_generators[device.index].graphsafe_set_state(torch.Generator(device))
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
            parameter.grad = None
        run.rng.set_state(states[0])
        set_state(states[1])
        why = f"for no CUDA graph can be made here: {gan.complaint(error)}"
        gan.say(f"note: steps are launched one kernel at a time, {why}"[:300])
        return None
