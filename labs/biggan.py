"""BigGAN: images of a class, and of what lies between two classes (Brock et al. 2019).

    python -m labs.biggan --data ./cifar10                             # a narrow one, which a CPU can train
    python -m labs.biggan --data ./cifar10 --preset cifar10-best       # for a GPU
    python -m labs.biggan --resume --out runs/NAME
    python -m labs.biggan generate MODEL --label cat --out cats.png    # and evaluate, as of rollnumber_04.py
    python -m labs.biggan interpolate MODEL --classes cat,dog --alphas 8 --out path.png
    python -m labs.biggan embeddings MODEL --out tsne.png              # which classes are near each other
    python -m labs.biggan paths MODEL --out paths/                     # how smooth the ways between them are
    python -m labs.biggan truncation MODEL --data ./cifar10 --out truncation.png
    python -m labs.biggan interpolate --pretrained biggan-deep-256 --classes "golden retriever,tabby" --out path.png

A residual generator, to each of whose blocks a part of z and the embedding of the class are told, and a residual
discriminator that compares what it sees with an embedding of the class. Training, with all its options, run folder,
checkpoints and resume, is that of rollnumber_04.py.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in the seconds of imports ends it without a traceback

import argparse
import csv
import io
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial, wraps
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rollnumber_04 as gan
from extras import evaluate as evaluation
from extras import explore
from rollnumber_04 import UserError, say

########################################################################################################################
#                                                      Networks                                                        #
########################################################################################################################


def widths(image_size: int, width: int) -> list[int]:
    """The channels of a generator's maps, from the first to the full size, where they are `width`.

    Up to 32 pixels the same for all (Miyato et al. 2018), above that twice as many at half the size, up to 16 times.
    """
    doublings = gan.halvings(image_size, 4)
    return [width * (1 if doublings <= 3 else min(16, 2 ** (doublings - stage))) for stage in range(doublings + 1)]


class ConditionalNorm(nn.Module):
    """Batch norm of B×features×H×W whose scale and shift a condition, B×dim, decides (de Vries et al. 2017)."""

    def __init__(self, features: int, dim: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(features, affine=False)
        self.scale = nn.Linear(dim, features, bias=False)
        self.shift = nn.Linear(dim, features, bias=False)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        scale, shift = (part(condition)[:, :, None, None] for part in (self.scale, self.shift))
        return self.norm(maps) * (1 + scale) + shift


class UpBlock(nn.Module):
    """B×inputs×S×S and a condition to B×outputs×2S×2S: what two convolutions of 3×3 add to the enlarged maps."""

    def __init__(self, inputs: int, outputs: int, dim: int):
        super().__init__()
        self.norms = nn.ModuleList([ConditionalNorm(inputs, dim), ConditionalNorm(outputs, dim)])
        self.convs = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        self.skip = nn.Conv2d(inputs, outputs, 1)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        added = F.interpolate(F.relu(self.norms[0](maps, condition)), scale_factor=2)
        added = F.relu(self.norms[1](self.convs[0](added), condition))
        # A convolution of 1×1 before enlarging is the same as after it, at a quarter of the work.
        return F.interpolate(self.skip(maps), scale_factor=2) + self.convs[1](added)


class DownBlock(nn.Module):
    """B×inputs×S×S to B×outputs×S×S, or to half the size if it is to `halve`: what two convolutions of 3×3 add."""

    def __init__(self, inputs: int, outputs: int, halve: bool, first: bool = False):
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)]
        )
        self.skip = nn.Conv2d(inputs, outputs, 1) if halve or inputs != outputs else nn.Identity()
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()
        self.first = first  # it sees pixels, which a ReLU would cut

    def forward(self, maps: Tensor) -> Tensor:
        added = self.convs[0](maps if self.first else F.relu(maps))
        added = self.pool(self.convs[1](F.relu(added)))
        return added + self.skip(self.pool(maps))  # the same as pooling after a convolution of 1×1, with less work


class Generator(gan.BaseGenerator):
    """Noise z (B×latent_dim) and classes y (B×classes, one-hot or a mixture) to images B×channels×S×S in (-1, 1).

    z is divided among the first layer and the blocks, so that it tells coarse and fine; y becomes the embedding r,
    which all blocks share, and a mixture of classes the same mixture of their embeddings: α·r1 + (1 - α)·r2.
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        latent_dim: int = 128,
        width: int = 64,
        embedding: int = 128,
        latent: str = "normal",
        spectral_norm: bool = False,
        init: str = "orthogonal",
        classes: Sequence[str] = (),
    ):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        features = widths(image_size, width)
        blocks = len(features) - 1
        if latent_dim <= blocks:
            raise UserError(
                f"the first layer and {blocks} blocks take {blocks + 1} or more", f"--latent-dim {latent_dim}"
            )
        self.base = image_size >> blocks
        chunk = latent_dim // (blocks + 1)
        self.chunks = [latent_dim - blocks * chunk, *[chunk] * blocks]
        self.embed = nn.Linear(len(classes), embedding, bias=False) if classes else None  # B×10 -> B×128
        told = chunk + (embedding if classes else 0)
        self.project = nn.Linear(self.chunks[0], features[0] * self.base**2)  # B×32 -> B×1024
        self.blocks = nn.ModuleList([UpBlock(*pair, told) for pair in pairwise(features)])  # 64×8×8, 64×16×16, 64×32×32
        self.last = nn.Sequential(
            nn.BatchNorm2d(features[-1]), nn.ReLU(), nn.Conv2d(features[-1], channels, 3, padding=1), nn.Tanh()
        )  # 3×32×32
        gan.initialise(self, init)
        if spectral_norm:
            gan.normalise_spectra(module for name, module in self.named_modules() if name != "embed")

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        first, *chunks = z.split(self.chunks, 1)
        maps = self.project(first).unflatten(1, (-1, self.base, self.base))
        told = [] if self.embed is None else [self.embed(y)]
        for block, chunk in zip(self.blocks, chunks, strict=True):
            maps = block(maps, torch.cat([*told, chunk], 1))
        return self.last(maps)

    def embeddings(self) -> Tensor:
        """Those of the classes, classes×embedding, of a conditional one."""
        return self.embed.weight.detach().mT


class Discriminator(nn.Module):
    """Images B×channels×S×S and their labels to scores (B), high for real: a projection discriminator.

    What the blocks see, summed over the map, h, scores w·h + e·h with an embedding e of the class (Miyato & Koyama
    2018).
    """

    head = None  # it tells no classes

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        width: int = 64,
        spectral_norm: bool = True,
        init: str = "orthogonal",
        classes: Sequence[str] = (),
    ):
        super().__init__()
        self.architecture = gan.arguments(self, locals())
        blocks, inputs, side = [], channels, image_size
        least = 7 if gan.halvings(image_size, 4) <= 3 else 4  # small images keep maps of 7 pixels or more, as in SNGAN
        for outputs in reversed(widths(image_size, width)):
            halve = side // 2 >= least
            blocks.append(DownBlock(inputs, outputs, halve, first=not blocks))
            inputs, side = outputs, side // 2 if halve else side
        self.features = nn.Sequential(*blocks, nn.ReLU())  # 64×16×16, 64×8×8, 64×8×8, 64×8×8
        self.score = nn.Linear(inputs, 1)
        self.embed = nn.Linear(len(classes), inputs, bias=False) if classes else None
        gan.initialise(self, init)
        if spectral_norm:
            gan.normalise_spectra(self.modules())

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        seen = self.features(images).sum((2, 3))
        scores = self.score(seen).flatten()
        if self.embed is None:
            return scores
        return scores + (self.embed(gan.one_hot(labels, self.embed.in_features)) * seen).sum(1)

    def judge(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, None]:
        """The scores B, and no class logits."""
        return self(images, labels), None


def make_networks(options: argparse.Namespace, channels: int, classes: Sequence[str]) -> dict[str, nn.Module]:
    """G and D as the options ask for them, for the names of the classes if they are to be conditional."""
    common = dict(
        image_size=options.image_size,
        channels=channels,
        init=options.init,
        classes=classes if options.conditional else (),
    )
    generator = Generator(
        **common,
        latent_dim=options.latent_dim,
        width=options.width_g,
        embedding=options.embedding,
        spectral_norm=options.spectral_norm_g,
    )
    discriminator = Discriminator(**common, width=options.width_d, spectral_norm=options.spectral_norm)
    return {"generator": generator, "discriminator": discriminator}


########################################################################################################################
#                                                      Training                                                        #
########################################################################################################################

COMMON = dict(conditional=True, loss="hinge", spectral_norm=True, init="orthogonal", flip=True, beta1=0.0)
PRESETS: dict[str, dict[str, Any]] = {
    "cifar10-small": COMMON | dict(
        width_g=48, width_d=48, lr_g=2e-4, lr_d=4e-4, epochs=10, ema=20_000,
    ),
    "cifar10-best": COMMON | dict(
        width_g=256, width_d=256, d_steps=4, iterations=30_000, sample_every=1000, ema=400_000,
        augment="colour,translation,cutout",
    ),
}  # fmt: skip
SHAPING = "image_size width_g width_d latent_dim embedding spectral_norm spectral_norm_g init conditional"


def build_parser() -> argparse.ArgumentParser:
    """The command line of training."""
    description = f"Train a BigGAN. Other commands, each with its --help: {', '.join(COMMANDS)}."
    parser = gan.Parser("labs.biggan", description)
    gan.add_main(parser, PRESETS)
    gan.add_data(parser)
    add = parser.add_argument_group("networks").add_argument
    add("--width-g", type=gan.whole(1, 1024), default=64, help="channels of G's maps at the full size")
    add("--width-d", type=gan.whole(1, 1024), default=64, help="channels of D's first block")
    add("--latent-dim", type=gan.whole(2, 4096), default=128, help="numbers in the noise z, for all blocks together")
    add("--embedding", type=gan.whole(1, 4096), default=128, help="numbers that stand for a class")
    add("--spectral-norm", **gan.SWITCH, help="of D's weights")
    add("--spectral-norm-g", **gan.SWITCH, help="of G's weights")
    add("--init", choices=gan.INITS, default="orthogonal", help="how weights are drawn")
    gan.add_objective(parser)
    gan.add_optimizers(parser)("--d-steps", **gan.D_STEPS)
    gan.add_stabilisers(parser)
    gan.add_performance(parser)
    gan.add_output(parser)
    gan.add_evaluation(parser)
    return parser


RECIPE = replace(
    gan.GAN,
    program="-m labs.biggan",
    presets=PRESETS,
    parser=build_parser,
    fixed=dict.fromkeys(SHAPING.split(), "has networks made with") | {"split": gan.TRAINED_WITH},
    constants=dict(multitask=False, class_weight=1.0, validation_split=None),
    kinds={"generator": Generator, "discriminator": Discriminator},
    limits=gan.LIMITS | {"embedding": lambda x: type(x) is int and 1 <= x <= 4096},
    networks=make_networks,
)


########################################################################################################################
#                                               Pretrained BigGAN-deep                                                 #
########################################################################################################################

FILES = ("config.json", "pytorch_model.bin")
WHERE = "https://s3.amazonaws.com/models.huggingface.co/biggan/biggan-deep-256-"  # as pytorch-pretrained-biggan has it


class StoredNorm(nn.Module):
    """Batch norm by statistics from a file; its scale and shift are a condition's, B×dim, or with dim 0 its own."""

    def __init__(self, features: int, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.register_buffer("running_means", torch.zeros(features))
        self.register_buffer("running_vars", torch.ones(features))
        if dim:
            self.scale, self.offset = (nn.Linear(dim, features, bias=False) for _ in range(2))
        else:
            self.weight, self.bias = (nn.Parameter(torch.zeros(features)) for _ in range(2))

    def forward(self, maps: Tensor, condition: Tensor | None = None) -> Tensor:
        own = (self.weight, self.bias) if condition is None else (None, None)
        maps = F.batch_norm(maps, self.running_means, self.running_vars, *own, eps=self.eps)
        if condition is None:
            return maps
        scale, shift = (part(condition)[:, :, None, None] for part in (self.scale, self.offset))
        return maps * (1 + scale) + shift


class Attention(nn.Module):
    """B×features×H×W to the same: each place adds what it finds at the places it attends to (Zhang et al. 2019)."""

    def __init__(self, features: int):
        super().__init__()
        outputs = {"theta": features // 8, "phi": features // 8, "g": features // 2}
        for name, count in outputs.items():
            setattr(self, f"snconv1x1_{name}", nn.Conv2d(features, count, 1, bias=False))
        self.snconv1x1_o_conv = nn.Conv2d(features // 2, features, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, maps: Tensor) -> Tensor:
        asked = self.snconv1x1_theta(maps).flatten(2).mT  # B×HW×features/8
        keys, values = (F.max_pool2d(part(maps), 2).flatten(2) for part in (self.snconv1x1_phi, self.snconv1x1_g))
        found = values @ (asked @ keys).softmax(-1).mT  # B×features/2×HW
        return maps + self.gamma * self.snconv1x1_o_conv(found.unflatten(2, maps.shape[2:]))


class DeepBlock(nn.Module):
    """B×inputs×S×S and a condition to B×outputs×S×S, or 2S×2S: a bottleneck of 1×1, 3×3, 3×3, 1×1 beside the maps."""

    def __init__(self, inputs: int, outputs: int, enlarge: bool, dim: int, eps: float):
        super().__init__()
        middle = inputs // 4
        self.enlarge, self.outputs = enlarge, outputs
        for i, (before, after, side) in enumerate(
            ((inputs, middle, 1), (middle, middle, 3), (middle, middle, 3), (middle, outputs, 1))
        ):
            setattr(self, f"bn_{i}", StoredNorm(before, dim, eps))
            setattr(self, f"conv_{i}", nn.Conv2d(before, after, side, padding=side // 2))

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        added = self.conv_0(F.relu(self.bn_0(maps, condition)))
        added, kept = F.relu(self.bn_1(added, condition)), maps[:, : self.outputs]
        if self.enlarge:
            added, kept = F.interpolate(added, scale_factor=2), F.interpolate(kept, scale_factor=2)
        added = self.conv_2(F.relu(self.bn_2(self.conv_1(added), condition)))
        return kept + self.conv_3(F.relu(self.bn_3(added, condition)))


class PretrainedGenerator(gan.BaseGenerator):
    """BigGAN-deep's generator, z (B×z_dim) and y (B×classes) to images B×3×S×S, for one truncation.

    Its parts are named as in the files of the package pytorch-pretrained-biggan. The statistics of its batch norms
    depend on the truncation, for which they are read.
    """

    def __init__(self, config: dict[str, Any], truncation: float, classes: Sequence[str]):
        super().__init__()
        dim, width, eps = config["z_dim"], config["channel_width"], config["eps"]
        self.architecture = dict(
            image_size=config["output_dim"], channels=3, latent_dim=dim, latent="normal", classes=[*classes]
        )
        self.truncation = truncation
        self.embeddings_of = nn.Linear(config["num_classes"], dim, bias=False)
        self.gen_z = nn.Linear(2 * dim, 16 * 16 * width)
        self.layers = nn.ModuleList()
        for i, (enlarge, inputs, outputs) in enumerate(config["layers"]):
            if i == config["attention_layer_position"]:
                self.layers.append(Attention(width * inputs))
            self.layers.append(DeepBlock(width * inputs, width * outputs, enlarge, 2 * dim, eps))
        self.bn = StoredNorm(width, 0, eps)
        self.conv_to_rgb = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        condition = torch.cat([z, self.embeddings_of(y)], 1)
        maps = self.gen_z(condition).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # TensorFlow's order
        for layer in self.layers:
            maps = layer(maps, condition) if isinstance(layer, DeepBlock) else layer(maps)
        return torch.tanh(self.conv_to_rgb(F.relu(self.bn(maps)))[:, :3])

    def noise(self, seed: int, start: int, count: int, truncation: float | None = None) -> Tensor:
        """Normal noise from -2 … 2, times the truncation: what the statistics are for."""
        return self.truncation * gan.latents(seed, start, count, self.architecture["latent_dim"], truncation=2.0)

    def embeddings(self) -> Tensor:
        """Those of the classes, classes×z_dim."""
        return self.embeddings_of.weight.detach().mT


def load_pretrained(folder: Path, truncation: float = 1.0, device: str | torch.device = "cpu") -> PretrainedGenerator:
    """BigGAN-deep from a folder with `config.json` and `pytorch_model.bin`. Raises UserError."""
    if not 0 < truncation <= 1:
        raise UserError("of a pretrained BigGAN must be above 0, up to 1", f"--truncation {truncation}")
    if not os.path.isdir(folder):
        raise UserError("is no folder", f"--pretrained {folder}")
    for name in FILES:
        if not os.path.isfile(folder / name):
            fetch = f"fetch {WHERE}{FILES[0]} and {WHERE}{FILES[1]} (or those of 128 or 512) into that folder"
            raise UserError(f"has no {name}; {fetch} as {' and '.join(FILES)}", f"--pretrained {folder}")
    config = read_config(folder / FILES[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of pickles that it does not read in any case
            state = torch.load(folder / FILES[1], map_location="cpu", weights_only=True)  # can run no code
        plain = folded({key.removeprefix("generator."): tensor for key, tensor in state.items()}, truncation)
    except Exception:  # whatever else a file is, it is not those weights; torch's words only advise to run its code
        raise UserError("is no file of weights, or damaged", f"--pretrained {folder / FILES[1]}") from None
    plain["embeddings_of.weight"] = plain.pop("embeddings.weight", None)
    make = partial(PretrainedGenerator, config, truncation, class_names(config["num_classes"]))
    with torch.device("meta"):
        network = make()
    if wrong := gan.difference(plain, network.state_dict(), "weights"):
        raise UserError(f"does not fit {FILES[0]}: {wrong}", f"--pretrained {folder / FILES[1]}")
    network.load_state_dict(plain, assign=True)
    return network.to(device, memory_format=torch.channels_last).requires_grad_(False).eval()


def read_config(path: Path) -> dict[str, Any]:
    """What a config.json says of the network, checked before anything of its size is built. Raises UserError."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{error.strerror}", f"--pretrained {path}") from None
    except (ValueError, RecursionError):
        raise UserError("is not JSON", f"--pretrained {path}") from None

    def is_whole(value: Any, low: int, high: int) -> bool:
        return type(value) is int and low <= value <= high

    limits = {
        "output_dim": lambda x: is_whole(x, 8, 1024),
        "z_dim": lambda x: is_whole(x, 1, 4096),
        "channel_width": lambda x: is_whole(x, 8, 1024),
        "num_classes": lambda x: is_whole(x, 1, 100_000),
        "attention_layer_position": lambda x: is_whole(x, 0, 100),
        "eps": lambda x: type(x) in (int, float) and 0 < x < 1,
        "layers": lambda x: isinstance(x, list) and 0 < len(x) <= 32 and all(map(is_layer, x)),
    }

    def is_layer(layer: Any) -> bool:
        is_list = isinstance(layer, list) and len(layer) == 3 and type(layer[0]) is bool
        return is_list and all(is_whole(factor, 1, 64) for factor in layer[1:]) and layer[2] <= layer[1]

    for name, fits in limits.items():
        if not isinstance(config, dict):
            raise UserError("is no configuration of BigGAN-deep", f"--pretrained {path}")
        if name not in config or not fits(config[name]):
            raise UserError(f"its {name} is missing or none of BigGAN-deep's", f"--pretrained {path}")
    layers = config["layers"]
    follow = [16, *(layer[2] for layer in layers)] == [*(layer[1] for layer in layers), 1]
    if not follow or config["output_dim"] != 4 << sum(layer[0] for layer in layers):
        raise UserError(f"its layers do not make images of {config['output_dim']} pixels", f"--pretrained {path}")
    return {name: config[name] for name in limits}


def folded(state: dict[str, Tensor], truncation: float) -> dict[str, Tensor]:
    """A file's weights as those of plain layers, with the batch norms' statistics for a truncation.

    A spectrally normalised weight is stored as W with its first singular vectors u and v: the layer's is W / uᵀWv.
    """
    plain = {}
    for key, tensor in state.items():
        name = key.removesuffix("_orig")
        if name != key:
            matrix, u = tensor.flatten(1), state[f"{name}_u"]
            v = state[f"{name}_v"] if f"{name}_v" in state else F.normalize(matrix.mT @ u, dim=0)
            plain[name] = tensor / (u @ matrix @ v)
        elif key.endswith(("running_means", "running_vars")):
            place = truncation * (len(tensor) - 1)  # between two the package itself weighs the wrong way round
            low = min(math.floor(place + 1e-9), len(tensor) - 2)
            plain[key] = torch.lerp(tensor[low], tensor[low + 1], max(0.0, place - low))
        elif not key.endswith((".weight_u", ".weight_v")):
            plain[key] = tensor
    return plain


def class_names(count: int) -> list[str]:
    """ImageNet's 1,000 as torchvision knows them; the numbers of other classes."""
    if count == 1000:
        try:
            from torchvision.models import ResNet18_Weights  # slow to import, and needed nowhere else

            return [*ResNet18_Weights.DEFAULT.meta["categories"]]
        except (ImportError, RuntimeError):  # there is none, or none for this torch
            say("note: without torchvision classes have numbers, no names")
    return [str(number) for number in range(count)]


########################################################################################################################
#                                                 Classes in between                                                   #
########################################################################################################################


def command_parser(
    name: str, described: str, out: str, rows: int | None = None, foreign: bool = True, measures: bool = True
) -> gan.Parser:
    """The command line that the lab's own commands share: model (also a `foreign` one), result, noise of `rows`."""
    parser = gan.Parser(f"labs.biggan {name}", described)
    add = parser.add_argument
    kind = dict(type=gan.some_path, metavar="MODEL", help="a .safetensors model or a .pt checkpoint")
    add("model", **kind | ({"nargs": "?"} if foreign else {}))
    if foreign:
        add("--pretrained", type=gan.some_path, metavar="FOLDER", help="a BigGAN-deep: config.json, pytorch_model.bin")
    parser.set_defaults(pretrained=None)
    add("--out", type=gan.some_path, required=True, metavar="PATH", help=out)
    if measures:
        add("--json", action="store_true", help="print one JSON object and nothing else")
    if rows:
        least = 3 if measures else 2  # with two there is no way whose shape could be measured
        add("--alphas", type=gan.whole(least, 1000), default=8, help="images on a path, both ends among them")
        add("--rows", type=gan.whole(1, 100), default=rows, help="of a sheet, each with its own z")
        add("--truncation", type=gan.real(0, 10, True), metavar="T", help="noise from -T … T")
        add("--seed", type=gan.whole(0, 2**31 - 1), default=0, help="of the noise")
    add("--device", **gan.DEVICE)
    return parser


def measuring(command: Callable[[Sequence[str]], dict[str, Any]]) -> Callable[[Sequence[str]], None]:
    """A command that writes pictures and finds facts; with --json it prints these, and its words on standard error."""

    @wraps(command)
    def call(argv: Sequence[str]) -> None:
        as_json = "--json" in argv
        with redirect_stdout(sys.stderr if as_json else sys.stdout):
            facts = command(argv)
        if as_json:
            print(json.dumps(facts, ensure_ascii=False))

    return call


def opened(options: argparse.Namespace, conditional: bool = False) -> Generator | PretrainedGenerator:
    """The generator that a command is to use, which may have to be conditional. Raises UserError."""
    device = gan.choose_device(options.device)
    if (options.model is None) == (options.pretrained is None):
        raise UserError("give one of MODEL and --pretrained FOLDER")
    if options.pretrained is not None:
        return load_pretrained(options.pretrained, getattr(options, "truncation", None) or 1.0, device)
    generator = gan.load_network(options.model, "generator", device, RECIPE)
    if conditional and not generator.architecture["classes"]:
        raise UserError("is not conditional: it has no embeddings of classes", options.model)
    return generator


def interpolate(argv: Sequence[str]) -> Path:
    """The command `interpolate`: a sheet of rows of z and columns of α, r = α·r1 + (1 - α)·r2. Raises UserError."""
    described = "Draw what lies between two classes."
    parser = command_parser("interpolate", described, "x.png (a sheet) or x.gif", 8, measures=False)
    parser.add_argument("--classes", required=True, metavar="A,B", help="names or numbers: from A (α = 1) to B (α = 0)")
    options = parser.parse_args(argv)
    script = argparse.Namespace(
        **vars(options) | {"labels": options.classes, "steps": options.alphas, "spherical": False}
    )
    script.model = options.model or options.pretrained
    try:
        return explore.interpolate(script, opened(options))
    except UserError as error:
        said = str(error).replace("--labels", "--classes").replace("--steps", "--alphas")
        raise type(error)(said, error.status) from None


def cosine_distances(embeddings: Tensor) -> np.ndarray:
    """1 - cosine of each pair of rows n×dim, n×n."""
    rows = F.normalize(embeddings.cpu().double(), dim=1)  # Apple's GPUs know no double
    return (1 - rows @ rows.mT).clamp(0, 2).numpy()


def pairs_by_distance(distances: np.ndarray) -> list[tuple[int, int]]:
    """All pairs of classes, the nearest first."""
    return sorted(combinations(range(len(distances)), 2), key=lambda pair: distances[pair])


def tsne(rows: Tensor, seed: int) -> np.ndarray:
    """Places n×2 at which near rows n×dim, by their cosines, are near (van der Maaten & Hinton 2008). Raises UserError.

    Of few rows the exact method: Barnes and Hut's may part them for good.
    """
    try:
        from sklearn.manifold import TSNE  # slow to import, and needed nowhere else
    except ImportError:
        raise UserError("embeddings: needs scikit-learn (pip install -r labs/requirements.txt)") from None
    init = "pca" if rows.shape[1] > 1 else "random"
    method = "exact" if len(rows) <= 100 else "barnes_hut"
    perplexity = min(30, (len(rows) - 1) / 3)
    fit = TSNE(perplexity=perplexity, metric="cosine", init=init, method=method, random_state=seed)
    return fit.fit_transform(rows.numpy())


@measuring
@gan.own_style()
def embeddings(argv: Sequence[str]) -> dict[str, Any]:
    """The command `embeddings`: the classes by t-SNE and their cosine distances, in a picture. Raises UserError."""
    described = "Draw the embeddings of the classes: t-SNE, and their cosine distances."
    parser = command_parser("embeddings", described, "a .png file")
    parser.add_argument("--seed", type=gan.whole(0, 2**31 - 1), default=0, help="of t-SNE")
    options = parser.parse_args(argv)
    if options.out.suffix.lower() != ".png":
        raise UserError("must end in .png", f"--out {options.out}")
    gan.check_writable("--out", options.out.parent)
    from matplotlib.figure import Figure

    generator = opened(options, conditional=True)
    rows, names = generator.embeddings().cpu(), generator.architecture["classes"]
    if len(names) < 4:
        raise UserError(f"has {len(names)} classes; t-SNE takes 4 or more", options.model or options.pretrained)
    distances = cosine_distances(rows)
    places = tsne(rows, options.seed)
    figure = Figure(figsize=(15, 7), dpi=100, layout="constrained")
    map_axes, matrix_axes = figure.subplots(1, 2)
    map_axes.scatter(*places.T, s=60 if len(names) <= 50 else 6, color=gan.BLUE)
    map_axes.set(title="t-SNE of the classes' embeddings", xticks=[], yticks=[])
    map_axes.margins(0.12)  # for the names
    picture = matrix_axes.imshow(np.where(np.eye(len(names)), np.nan, distances), cmap="viridis")
    matrix_axes.set(title="cosine distance")
    figure.colorbar(picture, ax=matrix_axes)
    facts: dict[str, Any] = {"model": str(options.model or options.pretrained), "classes": len(names)}
    if len(names) <= 50:
        facts["places"] = dict(zip(names, places.tolist(), strict=True))
        facts["cosine distances"] = distances.tolist()
        for name, place in zip(names, places, strict=True):
            map_axes.annotate(name, place, xytext=(6, 4), textcoords="offset points", parse_math=False)
        matrix_axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        matrix_axes.set_yticks(range(len(names)), names, parse_math=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    gan.save_output("--out", options.out, stream.getvalue())
    pairs = pairs_by_distance(distances)
    for what, chosen in (("nearest", pairs[:3]), ("farthest", pairs[:-4:-1])):
        facts[what] = [{"pair": [names[a], names[b]], "cosine distance": distances[a, b]} for a, b in chosen]
        said = ", ".join(f"{names[a]} and {names[b]} {distances[a, b]:.3f}" for a, b in chosen)
        say(f"{what:9} {said}")
    say(f"{len(names):,} embeddings of {facts['model']}: {options.out}")
    return facts


def save_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows of the same columns as csv. Raises UserError."""
    table = io.StringIO()
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    gan.save_output("--out", path, table.getvalue().encode())


def path_images(
    generator: gan.BaseGenerator, pair: Sequence[int], alphas: int, count: int, seed: int, truncation: float | None
) -> np.ndarray:
    """Uint8 images alphas×count×H×W[×3] between two classes, from the first to the second, at noises 0 … count - 1."""
    z = generator.noise(seed, 0, count, truncation)
    ends = gan.one_hot(torch.tensor(pair), len(generator.architecture["classes"]))
    shares = torch.linspace(1, 0, alphas).tolist()
    mixtures = [(share * ends[0] + (1 - share) * ends[1]).expand(count, -1) for share in shares]
    pieces = [zip(z.split(gan.GENERATE_BATCH), y.split(gan.GENERATE_BATCH), strict=True) for y in mixtures]
    return np.stack([np.concatenate([generator.draw(*part) for part in parts]) for parts in pieces])


def smoothness(features: Tensor) -> dict[str, float]:
    """How even the ways through features alphas×count×dim are, as means over the ways.

    `ppl`: the squares of the steps over that of the step of α (Karras et al. 2019, with Inception in the place of VGG);
    `detour`: the way's length over the distance of its ends, 1 if it is straight; `largest`: the longest step's share
    of the length, 1 / (alphas - 1) if all are alike. Inception's features are rough: the finer the steps, the longer
    is a way, without an end, so that only values of the same `alphas` compare.
    """
    steps = (features[1:] - features[:-1]).norm(dim=2)
    length, apart = steps.sum(0).clamp(min=1e-12), (features[-1] - features[0]).norm(dim=1).clamp(min=1e-12)
    return {
        "ppl": float((steps * len(steps)).square().mean()),
        "detour": float((length / apart).mean()),
        "largest": float((steps.amax(0) / length).mean()),
    }


@measuring
def paths(argv: Sequence[str]) -> dict[str, Any]:
    """The command `paths`: sheets of paths between classes, and how smooth they are. Raises UserError."""
    parser = command_parser("paths", "Measure how smooth the paths between classes are.", "a new folder", 4)
    add = parser.add_argument
    add("--pairs", nargs="+", metavar="A,B", help="names or numbers; the two nearest and the two farthest if left out")
    add("--all-pairs", action="store_true", help="of all classes; then also whether near ones have smoother paths")
    add("--samples", type=gan.whole(2, 10_000), default=32, help="paths of each pair, each with its own z")
    add("--inception-weights", **gan.WEIGHTS)
    options = parser.parse_args(argv)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError("is there already; name a new folder", f"--out {options.out}")
    gan.check_writable("--out", options.out)
    if options.pairs and options.all_pairs:
        raise UserError("does not go with --pairs", "--all-pairs")
    generator = opened(options, conditional=True)
    names, distances = generator.architecture["classes"], cosine_distances(generator.embeddings())
    if options.pairs:
        wanted = [pair_of(generator, words) for words in options.pairs]
        pairs = [*{frozenset(pair): pair for pair in wanted}.values()]  # each once, whichever way
    else:
        pairs = pairs_by_distance(distances)
        pairs = pairs if options.all_pairs else [*dict.fromkeys([*pairs[:2], *pairs[-2:]])]
    inception = evaluation.Inception(options.inception_weights, gan.choose_device(options.device))
    found = []
    for number, pair in enumerate(pairs, 1):
        title = "-".join(names[i] for i in pair)
        images = path_images(generator, pair, options.alphas, options.samples, options.seed, options.truncation)
        flat = images.reshape(-1, *images.shape[2:])
        pieces = np.array_split(flat, math.ceil(len(flat) / gan.GENERATE_BATCH))
        features = inception.features(iter(pieces), len(flat), title)[evaluation.FEATURES]
        found.append({"pair": title, "cosine distance": float(distances[tuple(pair)])})
        found[-1] |= smoothness(features.unflatten(0, images.shape[:2]))
        found[-1]["pixel detour"] = smoothness(torch.from_numpy(images).flatten(2).float())["detour"]
        rows = images[:, : options.rows].swapaxes(0, 1)
        stream = io.BytesIO()
        gan.sheet(rows.reshape(-1, *images.shape[2:]), options.alphas).save(stream, "PNG")
        name = f"{number:0{len(str(len(pairs)))}}-{safe_name(title)}.png"  # a listing has their order
        gan.save_output("--out", options.out / name, stream.getvalue())
    save_table(options.out / "paths.csv", found)
    say(f"{'pair':30} cosine distance        PPL   detour   largest step   detour in pixels")
    for row in found:
        numbers = f"{row['ppl']:10.1f} {row['detour']:8.3f} {row['largest']:14.3f} {row['pixel detour']:18.3f}"
        say(f"{row['pair'][:30]:30} {row['cosine distance']:15.3f} {numbers}")
    asked = {name: getattr(options, name) for name in ("alphas", "samples", "seed", "truncation")}
    facts = {"model": str(options.model or options.pretrained), **asked, "weights": inception.digest, "pairs": found}
    if options.all_pairs and len(found) < 5:
        say("note: too few pairs for a rank correlation of distance and smoothness")
    if len(found) > 4:
        from scipy.stats import spearmanr  # which evaluation needs, too

        facts["rank correlation"] = {}
        for column in ("ppl", "detour", "largest", "pixel detour"):
            rank = spearmanr([row["cosine distance"] for row in found], [row[column] for row in found])
            facts["rank correlation"][column] = {"rho": float(rank.statistic), "p": float(rank.pvalue)}
            name = {"ppl": "PPL", "largest": "largest step", "pixel detour": "detour in pixels"}.get(column, column)
            say(f"rank correlation of the distance with {name:16} {rank.statistic:6.3f} (p {rank.pvalue:.2g})")
    how = f"{options.samples} paths of {options.alphas} images a pair; Inception weights {inception.digest}"
    say(f"{how}: {options.out}")
    return facts


def pair_of(generator: gan.BaseGenerator, words: str) -> tuple[int, int]:
    """The numbers of two classes that are named with a comma between them. Raises UserError."""
    parts = [part.strip() for part in words.split(",")]
    if len(parts) != 2:
        raise UserError("takes two classes with a comma between them", f"--pairs {words}")
    with gan.named("--pairs"):
        first, second = (gan.class_number(part, generator.architecture["classes"]) for part in parts)
    if first == second:
        raise UserError("is one class; there is nothing between", f"--pairs {words}")
    return first, second


def safe_name(text: str) -> str:
    """A text as a part of a file's name."""
    return "".join(c if c.isalnum() or c == "-" else "_" for c in text)[:60]


@measuring
@gan.own_style()
def truncation(argv: Sequence[str]) -> dict[str, Any]:
    """The command `truncation`: FID, precision and recall at several truncations, in a picture. Raises UserError."""
    described = "Measure what truncated noise gives and takes: fidelity (precision) and variety (recall)."
    parser = command_parser("truncation", described, "a .png file; a .csv of its name is written, too", foreign=False)
    add = parser.add_argument
    add("--data", type=gan.some_path, metavar="PATH", help="real images; drawn shapes if left out")
    many = dict(type=gan.real(0, 10, True), nargs="+", default=[0.25, 0.5, 0.75, 1.0, 1.5, 2.0], metavar="T")
    add("--truncations", **many, help="beside none")
    add("--samples", type=gan.whole(gan.FEWEST, 10**7), default=2000, metavar="N", help="for each")
    add("--reference", type=gan.whole(gan.FEWEST, 10**7), metavar="N", help="real images; all if left out")
    add("--seed", type=gan.whole(0, 2**31 - 1), default=0, help="of the noise")
    add("--skip-unreadable", action="store_true", help="leave damaged images out instead of stopping")
    add("--inception-weights", **gan.WEIGHTS)
    options = parser.parse_args(argv)
    if options.out.suffix.lower() != ".png":
        raise UserError("must end in .png", f"--out {options.out}")
    gan.check_writable("--out", options.out.parent)
    for target in (options.out, options.out.with_suffix(".csv")):
        if target.is_dir():
            raise UserError(f"{target} is a folder", f"--out {options.out}")
    generator = opened(options)
    size, channels = generator.architecture["image_size"], generator.architecture["channels"]
    with gan.named("--data"):
        images = gan.load_images(options.data, "train", size, options.skip_unreadable)
    images, of_images = evaluation.as_drawn(images, channels, f"--data {options.data}")
    inception = evaluation.Inception(options.inception_weights, gan.choose_device(options.device))
    sample = evaluation.real_sample(images, options.reference or len(images.pixels))
    real = evaluation.reference_features(inception, *sample)
    found = []
    for value in (*sorted({*options.truncations}), None):
        stream = generator.stream(options.samples, seed=options.seed, truncation=value)
        fake = inception.features(stream, options.samples, f"truncation {value}")
        found.append({"truncation": value, "n_fake": options.samples, "n_real": len(real), "seed": options.seed})
        found[-1] |= evaluation.quality(fake, real, inception, options.seed)
        row = found[-1]
        numbers = f"FID {row['fid']:8.3f}  precision {row['precision']:.3f}  recall {row['recall']:.3f}"
        say(f"truncation {value or 'none':>5}  {numbers}")
    save_table(options.out.with_suffix(".csv"), found)
    gan.save_output("--out", options.out, truncation_plot(found, options.samples, len(real)))
    against = f"{len(real):,} training images of {options.data or 'shapes'}"
    say(f"{options.samples:,} samples each, seed {options.seed}, against {against}")
    say(f"{evaluation.NETWORK}, weights {inception.digest}, {evaluation.RESIZE}: {options.out}")
    return {"model": str(options.model), "against": against, "weights": inception.digest, **of_images, "figures": found}


def truncation_plot(found: list[dict[str, Any]], samples: int, reference: int) -> bytes:
    """A PNG: FID by truncation, and precision against recall."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    labels = [f"{row['truncation']:g}" if row["truncation"] else "none" for row in found]
    left.plot(labels, [row["fid"] for row in found], color=gan.BLUE, marker=".")
    left.set(
        xlabel="truncation",
        ylabel="FID",
        title=f"{samples:,} samples against {reference:,} images",
        ylim=(0, 1.08 * max(row["fid"] for row in found)),
    )
    right.plot([row["recall"] for row in found], [row["precision"] for row in found], color=gan.ORANGE, marker=".")
    for row, label in zip(found, labels, strict=True):
        right.annotate(label, (row["recall"], row["precision"]), xytext=(5, 4), textcoords="offset points")
    right.margins(0.12)  # for the labels
    right.set(xlabel="recall (variety)", ylabel="precision (fidelity)", title="by truncation")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


COMMANDS = {
    "generate": partial(gan.call_with_options, "generate", gan.generate, RECIPE),
    "evaluate": partial(gan.call_with_options, "evaluate", evaluation.evaluate, RECIPE),
    "interpolate": interpolate,
    "embeddings": embeddings,
    "paths": paths,
    "truncation": truncation,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns its exit status."""
    return gan.main(argv, RECIPE, COMMANDS)


if __name__ == "__main__":
    gan.exit_with(main)
