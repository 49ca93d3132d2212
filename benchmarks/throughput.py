"""Images a second of the training loop against a textbook loop, turn by turn in one process, and against the machine.

    python -m benchmarks.throughput --data ./cifar10                      # batch 64, 128 and 512
    python -m benchmarks.throughput --batch-sizes 64 --rounds 9 --json

The textbook loop is what the tutorials teach: a loader with two workers, transforms to a normalised tensor, float32,
`.item()` on both losses. Networks, losses, optimizers, batch and data are the same in both. The machine's limit is what
the networks' multiplications, counted, would take at the rate of its own matrix products. Beside it, on a GPU, stands
the rate at which its memory would let the operations of a step run one by one; kernels that are fused, and what stays
in the caches, can be faster than that.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import rollnumber_04 as gan
from extras import speed


class Pictures(Dataset):
    """Images as torchvision's data sets give them: a PIL image through a transform."""

    def __init__(self, pixels: torch.Tensor):
        from torchvision import transforms

        self.pixels = pixels.numpy()
        half = (0.5,) * self.pixels.shape[3]
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(half, half)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.transform(Image.fromarray(self.pixels[i].squeeze()))


def blank_images(
    count: int, options: argparse.Namespace, channels: int, device: torch.device
) -> tuple[gan.Images, torch.Tensor]:
    """Images of noise, and the index of an iteration's batches of them, to try how fast it can be."""
    pixels = torch.randint(256, (count, options.image_size, options.image_size, channels), dtype=torch.uint8)
    images = gan.Images(pixels, torch.zeros(count, dtype=torch.int64), ())
    images = gan.on_device(replace(images, other=images), device)
    return images, torch.arange(count, device=images.pixels.device).expand(options.d_steps, count)


def endless(loader: DataLoader) -> Iterator[torch.Tensor]:
    """Batch after batch, epoch after epoch."""
    while True:
        yield from loader


def textbook_loop(options: argparse.Namespace, images: gan.Images, device: torch.device) -> Callable[[int], None]:
    """A function that does so many steps of the textbook loop."""
    torch.manual_seed(options.seed)
    networks = gan.make_networks(options, images.pixels.shape[3], ())
    generator, discriminator = (network.to(device) for network in networks.values())
    betas = (options.beta1, options.beta2)
    optimizer_g = torch.optim.Adam(generator.parameters(), options.lr_g, betas)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), options.lr_d, betas)
    criterion = nn.MSELoss()
    loader = DataLoader(
        Pictures(images.pixels),
        options.batch_size,
        shuffle=True,
        num_workers=2,
        drop_last=True,
        persistent_workers=True,
    )
    batches = endless(loader)

    def steps(count: int) -> None:
        for _ in range(count):
            real = next(batches).to(device)
            ones, zeros = torch.ones(len(real), device=device), torch.zeros(len(real), device=device)
            fake = generator(torch.randn(len(real), options.latent_dim, device=device))
            loss_d = 0.5 * criterion(discriminator(real), ones) + 0.5 * criterion(discriminator(fake.detach()), zeros)
            optimizer_d.zero_grad()
            loss_d.backward()
            optimizer_d.step()
            fake = generator(torch.randn(len(real), options.latent_dim, device=device))
            loss_g = criterion(discriminator(fake), ones)
            optimizer_g.zero_grad()
            loss_g.backward()
            optimizer_g.step()
            losses = loss_d.item(), loss_g.item()
            assert all(loss == loss for loss in losses)

    return steps


def own_loop(
    options: argparse.Namespace, images: gan.Images, device: torch.device, bf16: bool
) -> Callable[[int], None]:
    """A function that does so many steps of this tool's loop."""
    run = gan.make_run(options, images.pixels.shape[3], device, bf16)
    if options.compile:
        speed.compile_networks(run)
    images = gan.on_device(images, device)

    def steps(count: int) -> None:
        while count:
            ahead = min(count, (len(images.pixels) - run.seen) // options.batch_size)
            for _ in gan.train_leg(run, images, ahead, options):
                pass
            count -= ahead
            if count:
                run.epoch, run.seen = run.epoch + 1, 0

    return steps


def flops_of_a_step(options: argparse.Namespace, channels: int, device: torch.device) -> int:
    """Multiplications and additions of one training step, counted as it runs."""
    run = gan.make_run(options, channels, device, bf16=False)
    with FlopCounterMode(display=False) as counter:
        gan.iteration(run, *blank_images(options.batch_size, options, channels, device), options)
    return counter.get_total_flops()


WRITE_ONLY = ("zero_", "fill_", "normal_", "uniform_")


class CountBytes(TorchDispatchMode):
    """Adds up the bytes of the tensors that each operation reads and writes; a view and fresh memory move none."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if not function.is_view and not name.startswith("empty"):
            written = [value for value in tree_leaves(result) if isinstance(value, torch.Tensor)]
            read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
            # Lists changed in place (_foreach_mul_, _fused_adam_) are not returned: what is read is written, too.
            tensors = [*(written or read), *([] if name in WRITE_ONLY else read)]
            self.total += sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors)
        return result


def bytes_of_a_step(options: argparse.Namespace, channels: int, device: torch.device, bf16: bool) -> int:
    """Bytes that the operations of one training step read and write, each on its own, as without fused kernels."""
    run = gan.make_run(options, channels, device, bf16)
    blank = blank_images(options.batch_size, options, channels, device)
    gan.iteration(run, *blank, options)  # in which the optimizers make their state
    with CountBytes() as counter:
        gan.iteration(run, *blank, options)
    return counter.total


def copy_rate(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes a second that a copy on a GPU reads and writes together, the best of six."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(6):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * size / best


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions a second in a product of two square matrices, the best of six."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(6):
        begun = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * size**3 / best


def timed(steps: Callable[[int], None], count: int, device: torch.device) -> float:
    """Seconds of so many steps."""
    begun = time.perf_counter()
    steps(count)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def compare(batch: int, options: argparse.Namespace, images: gan.Images, device: torch.device) -> dict[str, Any]:
    """Both loops at a batch size, in turns; rates in images a second."""
    words = ["--batch-size", str(batch), "--seed", "0", "--log-every", "1000000"]
    words += ["--compile"] * options.compile + ["--no-cuda-graph"] * (not options.cuda_graph)
    settings = gan.parse_options(words)
    settings.image_size = images.pixels.shape[1]
    channels = images.pixels.shape[3]
    bf16 = gan.wants_bf16(options.precision, device)
    loops = {"textbook": textbook_loop(settings, images, device), "own": own_loop(settings, images, device, bf16)}
    rates: dict[str, list[float]] = {name: [] for name in loops}
    steps = max(2, options.images // batch)
    for steps_of in loops.values():
        steps_of(max(speed.GRAPH_AFTER + 3, steps // 4))  # warm-up, capture: workers, allocations, kernels chosen
    for _ in range(options.rounds):
        for name, steps_of in loops.items():
            rates[name].append(steps * batch / timed(steps_of, steps, device))
    ratios = [own / textbook for own, textbook in zip(rates["own"], rates["textbook"], strict=True)]
    flops = flops_of_a_step(settings, channels, device) / batch
    limit = matmul_rate(device, torch.bfloat16 if bf16 else torch.float32) / flops
    moved = bytes_of_a_step(settings, channels, device, bf16) / batch
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        "batch_size": batch,
        "precision": "bf16" if bf16 else "fp32",
        "compiled": options.compile,
        "cuda_graph": options.cuda_graph and device.type == "cuda",
        "rounds": options.rounds,
        "images_per_s": medians,
        "ratio": statistics.median(ratios),
        "ratio_from_to": [min(ratios), max(ratios)],
        "mflop_per_image": flops / 1e6,
        "mbyte_per_image": moved / 1e6,
        "memory_images_per_s": copy_rate(device) / moved if device.type == "cuda" else None,
        "limit_images_per_s": limit,
        "share_of_the_limit": medians["own"] / limit,
    }


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=gan.some_path, help="images in any layout; drawn shapes of 32×32 if left out")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 512])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=6400, help="that each loop sees in a round")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of this tool's loop")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--compile", action=switch, default=False, help="this tool's networks by torch.compile")
    parser.add_argument("--cuda-graph", action=switch, default=True, help="this tool's steps as CUDA graphs on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        device = gan.choose_device(options.device)
        images = gan.load_images(options.data)
    except gan.UserError as error:
        print(error, file=sys.stderr)
        return error.status
    torch.set_float32_matmul_precision("high")
    results = [compare(batch, options, images, device) for batch in options.batch_sizes]
    facts = {"device": gan.device_name(device), "torch": str(torch.__version__), "date": time.strftime("%Y-%m-%d")}
    if options.json:
        print(json.dumps(facts | {"results": results}, indent=2))
        return 0
    print(", ".join(facts.values()))
    print("batch  textbook       own   ratio  (from … to)   of the machine's limit")
    for row in results:
        low, high = row["ratio_from_to"]
        rates = "".join(f"{rate:10,.0f}" for rate in row["images_per_s"].values())
        share = f"{row['share_of_the_limit']:.0%} of {row['limit_images_per_s']:,.0f} ({row['precision']})"
        print(f"{row['batch_size']:5}{rates}   {row['ratio']:.2f}  ({low:.2f} … {high:.2f})   {share}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
