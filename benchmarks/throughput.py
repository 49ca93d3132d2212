"""Images a second of the training loop against a textbook loop, turn by turn in one process, and against the machine.

    python -m benchmarks.throughput --data ./cifar10                      # batch 64, 128 and 512
    python -m benchmarks.throughput --batch-sizes 64 --rounds 9 --json

The textbook loop is what the tutorials teach: a loader with two workers, transforms to a normalised tensor, float32,
`.item()` on both losses. Networks, losses, optimizers, batch and data are the same in both. The machine's limit is what
the networks' multiplications, counted, would take at the rate of its own matrix products.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import benchmarks
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


def endless(loader: DataLoader) -> Iterator[torch.Tensor]:
    """Batch after batch, epoch after epoch."""
    while True:
        yield from loader


def textbook_loop(config: gan.Config, images: gan.Images, device: torch.device) -> Callable[[int], None]:
    """A function that does so many steps of the textbook loop."""
    model = gan.GAN(config, images.pixels.shape[3])
    generator, discriminator = model.generator.to(device), model.discriminator.to(device)
    betas = (config.beta1, config.beta2)
    optimizer_g = torch.optim.Adam(generator.parameters(), config.lr_g, betas)
    optimizer_d = torch.optim.Adam(discriminator.parameters(), config.lr_d, betas)
    criterion = nn.MSELoss()
    how = dict(shuffle=True, num_workers=2, drop_last=True, persistent_workers=True)
    batches = endless(DataLoader(Pictures(images.pixels), config.batch_size, **how))

    def steps(count: int) -> None:
        for _ in range(count):
            real = next(batches).to(device)
            ones, zeros = torch.ones(len(real), device=device), torch.zeros(len(real), device=device)
            fake = generator(torch.randn(len(real), config.latent_dim, device=device))
            loss_d = 0.5 * criterion(discriminator(real), ones) + 0.5 * criterion(discriminator(fake.detach()), zeros)
            optimizer_d.zero_grad()
            loss_d.backward()
            optimizer_d.step()
            fake = generator(torch.randn(len(real), config.latent_dim, device=device))
            loss_g = criterion(discriminator(fake), ones)
            optimizer_g.zero_grad()
            loss_g.backward()
            optimizer_g.step()
            losses = loss_d.item(), loss_g.item()
            assert all(loss == loss for loss in losses)

    return steps


def own_loop(config: gan.Config, images: gan.Images, device: torch.device) -> Callable[[int], None]:
    """A function that does so many steps of this tool's loop, `fit` in rollnumber_04.py, without its files."""
    model = gan.GAN(config, images.pixels.shape[3]).on(device)
    run = gan.Run(model, gan.on_device(images, device), None, None, {}, total=sys.maxsize)
    iterate, batches = gan.launcher(model), gan.batches(run)

    def steps(count: int) -> None:
        for _ in range(count):
            iterate(run.images, next(batches))
            run.count_step()
            if run.waiting == gan.LOG_EVERY:
                gan.take_means(run)  # for which the device is waited for

    return steps


def flops_of_a_step(config: gan.Config, channels: int, device: torch.device) -> int:
    """Multiplications and additions of one training step, counted as it runs."""
    model = gan.GAN(replace(config, precision="fp32"), channels).on(device)
    count, size = config.batch_size, config.image_size
    blank = gan.Images(torch.zeros(count, size, size, channels, dtype=torch.uint8, device=device), None, ())
    with FlopCounterMode(display=False) as counter:
        model.iterate(blank, torch.arange(count, device=device)[None])
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Multiplications and additions a second in a product of two square matrices, the best of six."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(benchmarks.seconds(lambda: a @ b, device) for _ in range(6))


def compare(batch: int, options: argparse.Namespace, images: gan.Images) -> benchmarks.Facts:
    """Both loops at a batch size, in turns; rates in images a second."""
    device, (_, size, _, channels) = options.device, images.pixels.shape
    precision = gan.choose_precision(options.precision, device)
    of_batch = dict(batch_size=batch, image_size=size, precision=precision, launch=options.launch)
    config = gan.Config(seed=0, flip=False, translation=False, **of_batch)  # the textbook's loop changes no images
    loops = {"textbook": textbook_loop(config, images, device), "own": own_loop(config, images, device)}
    steps = max(2, options.images // batch)
    rates = benchmarks.in_turns(loops, steps, options.rounds, max(speed.GRAPH_AFTER + 3, steps // 4), device)
    images_per_s = {name: batch * benchmarks.middle(found)[0] for name, found in rates.items()}
    ratio, spread = benchmarks.middle([own / other for own, other in zip(rates["own"], rates["textbook"], strict=True)])
    flops = flops_of_a_step(config, channels, device) / batch
    limit = matmul_rate(device, torch.bfloat16 if precision == "bf16" else torch.float32) / flops
    return {
        "batch_size": batch,
        "precision": precision,
        "launch": options.launch,
        "rounds": options.rounds,
        "images_per_s": images_per_s,
        "ratio": ratio,
        "ratio_from_to": spread,
        "mflop_per_image": flops / 1e6,
        "limit_images_per_s": limit,
        "share_of_the_limit": images_per_s["own"] / limit,
    }


def measure(options: argparse.Namespace) -> benchmarks.Facts:
    """The comparison at each batch size."""
    if options.launch == "compiled":
        speed.check_compiler(options.device)
    with gan.named("--data"):
        images = gan.load_images(options.data)
    return {"results": [compare(batch, options, images) for batch in options.batch_sizes]}


def text(facts: benchmarks.Facts) -> str:
    """What was found, as a table."""
    lines = [", ".join(facts[name] for name in ("device", "torch", "date"))]
    lines += ["batch  textbook       own   ratio  (from … to)   of the machine's limit"]
    for row in facts["results"]:
        low, high = row["ratio_from_to"]
        rates = "".join(f"{rate:10,.0f}" for rate in row["images_per_s"].values())
        share = f"{row['share_of_the_limit']:.0%} of {row['limit_images_per_s']:,.0f} ({row['precision']})"
        lines += [f"{row['batch_size']:5}{rates}   {row['ratio']:.2f}  ({low:.2f} … {high:.2f})   {share}"]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = benchmarks.make_parser("throughput", __doc__)
    add, count = parser.add_argument, gan.number_in(int, 2, 10**7)
    add("--batch-sizes", type=count, nargs="+", default=[64, 128, 512], metavar="N")
    add("--rounds", type=gan.number_in(int, 1, 1000), default=5, metavar="N", help="the loops take turns so often (5)")
    add("--images", type=count, default=6400, metavar="N", help="that each loop sees in a round (6400)")
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of this tool's loop (auto)")
    add("--launch", choices=("graph", "kernels", "compiled"), default="graph", help="of this tool's steps (graph)")
    return benchmarks.call(parser, measure, text, argv)


if __name__ == "__main__":
    gan.exit_with(main)
