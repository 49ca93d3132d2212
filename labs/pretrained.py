"""BigGAN-deep with published weights (Brock et al. 2019), in the layout of the package pytorch-pretrained-biggan.

    python -m labs.biggan interpolate --pretrained biggan-deep-256 --classes "golden retriever,tabby" --out path.png

The folder holds config.json and pytorch_model.bin; reading them runs none of their code.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extras import checks
from labs import parts
from rollnumber_04 import UserError, say

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


class PretrainedGenerator(parts.ConditionalGenerator):
    """BigGAN-deep's generator, z (B×z_dim) and y (B×classes) to images B×3×S×S, for one truncation.

    Its parts are named as in the files of the package pytorch-pretrained-biggan. The statistics of its batch norms
    depend on the truncation, for which they are read.
    """

    def __init__(self, config: dict[str, Any], truncation: float, classes: Sequence[str]):
        super().__init__()
        dim, width, eps = config["z_dim"], config["channel_width"], config["eps"]
        self.architecture = dict(image_size=config["output_dim"], channels=3, latent_dim=dim, classes=[*classes])
        self.classes, self.truncation = tuple(classes), truncation
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

    def inputs(
        self, seed: int, start: int, count: int, label: int | str | None = None, truncation: float | None = None
    ) -> tuple[Tensor, ...]:
        """Normal noise from -2 … 2, times the truncation: what the statistics are for; and one-hot y."""
        z, y = super().inputs(seed, start, count, label, truncation=2.0)
        return self.truncation * z, y

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
    if wrong := checks.mismatch(plain, network.state_dict(), "weights"):
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
