"""A trained network as ONNX, for programs without torch.

    python rollnumber_04.py export MODEL --out model.onnx [--uint8] [--network discriminator]

The file says in its metadata what goes in and what comes out; it is kept only if onnxruntime, which most such programs
use, computes with it what torch does.
"""

import json
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401 (torch's exporter writes with it)
import torch
from torch import Tensor, nn

import rollnumber_04 as gan
from extras.checks import check_file
from rollnumber_04 import UserError

NEAR = 1e-4  # by which numbers may differ from torch's; of 256 values one
TRANSLATORS = ("xy", "yx")  # of labs.cyclegan


class Drawing(nn.Module):
    """A generator or translator whose images come out in (-1, 1), B×C×S×S, or `as_uint8` as `generate` gives them."""

    def __init__(self, network: nn.Module, as_uint8: bool):
        super().__init__()
        self.network, self.as_uint8 = network, as_uint8

    def forward(self, *inputs: Tensor) -> Tensor:
        images = self.network(*inputs)
        if not self.as_uint8:
            return images
        images = gan.to_uint8(images)
        return images[:, 0] if images.shape[1] == 1 else images.permute(0, 2, 3, 1)


class Telling(nn.Module):
    """The discriminator of Task 2: scores B, high for real, and class logits B×classes."""

    def __init__(self, network: gan.Discriminator):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.scores_and_logits(images)


def export(argv: Sequence[str], program: str) -> Path:
    """The command `export`: writes, and returns, an ONNX file with a batch of any size. Raises UserError."""
    parser = gan.Parser(f"{program} export", "Write a trained network as ONNX, for programs without torch.")
    parser.add_argument("model", type=gan.some_path, metavar="MODEL", help="a .safetensors model or a .pt checkpoint")
    add = parser.add_argument
    what = "which of the model's networks; the generator, or the only one, if omitted"
    add("--network", choices=("generator", "discriminator", *TRANSLATORS), help=what)
    add("--uint8", action="store_true", help="let images come out as 0 … 255, B×H×W[×3], as `generate` gives them")
    what = "the sides of a translator's images; those of its training if omitted"
    add("--image-size", type=gan.number_in(int, 8, 4096), metavar="N", help=what)
    add("--out", type=gan.some_path, required=True, metavar="PATH", help="x.onnx")
    options = parser.parse_args(argv)
    out = options.out
    check_file("--out", out, ".onnx")
    name, network = find_network(options.model, options.network)
    if options.image_size and name not in TRANSLATORS:
        raise UserError(f"is a translator's; this {name} has its own size", f"--image-size {options.image_size}")
    if name == "discriminator":
        if getattr(network, "head", None) is None:
            raise UserError("its discriminator tells no classes; train one with --multitask", options.model)
        if options.uint8:
            raise UserError("is for images that come out; this network takes images", "--uint8")
        module: nn.Module = Telling(network)
    else:
        module = Drawing(network, options.uint8)
    module = module.to(memory_format=torch.contiguous_format).eval()
    examples = examples_of(name, network, options.model, options.image_size)
    said = described(name, network, examples, options.uint8)
    model = to_onnx(module, examples, said)
    facts = {"program": f"rollnumber_04 {gan.__version__}", "network": name, "model": options.model.name}
    facts |= {key: json.dumps(value) for key, value in said.items()}
    onnx.helper.set_model_props(model, facts)
    data = model.SerializeToString()
    check_same(data, module, examples)
    gan.save_output("--out", out, data)
    gan.say(f"{name} of {options.model}, {len(data) / 1e6:.1f} MB: {out}")
    for kind, parts in (("in", said["inputs"]), ("out", said["outputs"])):
        for key, text in parts.items():
            gan.say(f"  {kind:3}  {key:10}  {text}")
    return out


def find_network(model: Path, name: str | None) -> tuple[str, nn.Module]:
    """The network that is asked for, or the one that a model is about. Raises UserError."""
    if name:
        return name, gan.load_network(model, name)
    try:
        return "generator", gan.load_network(model, "generator")
    except UserError as error:
        if "but no generator" not in str(error):
            raise
        if "labs.cyclegan" in str(error):
            advice = "--network xy or --network yx names one of its translators"
            raise UserError(f"{error.args[0]}; {advice}", error.about) from None
    return "discriminator", gan.load_network(model, "discriminator")


def examples_of(name: str, network: nn.Module, model: Path, image_size: int | None) -> dict[str, Tensor]:
    """Three of each of a network's inputs, by name."""
    if name == "generator":
        return dict(zip("zy", network.inputs(0, 0, 3), strict=False))
    if name == "discriminator":
        channels, size = (network.architecture[key] for key in ("channels", "image_size"))
    else:
        from labs import pairs  # which need more than a generator does

        channels, size = 3, image_size or pairs.training_of(model).get("image_size")
        if not size:
            raise UserError(f"{model} does not say what it was trained with; give one", "--image-size")
        if size % 4:
            raise UserError("must be a multiple of 4", f"--image-size {size}")
    return {"images": 2 * torch.rand(3, channels, size, size, generator=torch.Generator().manual_seed(0)) - 1}


def described(name: str, network: nn.Module, examples: dict[str, Tensor], as_uint8: bool) -> dict[str, Any]:
    """What goes in and what comes out, in words, by name; and the classes, if there are any."""
    classes = [*(network.architecture.get("classes") or ())]

    def shape(of: Sequence[int]) -> str:
        return "×".join(["batch", *map(str, of)])

    said: dict[str, Any] = {"inputs": {}, "outputs": {}, "classes": classes}
    for key, example in examples.items():
        of = {
            "z": "from N(0, 1)" if getattr(network, "latent", "") == "normal" else "uniform in (-1, 1)",
            "y": "1 at the class and 0 elsewhere, or shares of classes",
            "images": "in (-1, 1): value / 127.5 - 1",
        }[key]
        said["inputs"][key] = f"float32 {shape(example.shape[1:])}, {of}"
    if name == "discriminator":
        said["outputs"]["scores"] = f"float32 {shape(())}, high for real images"
        said["outputs"]["logits"] = f"float32 {shape((len(classes),))}; the softmax gives the classes' probabilities"
        return said
    with torch.no_grad():
        channels, *sides = network(*examples.values()).shape[1:]
    whole = [*sides, *[channels] * (channels > 1)]
    what = f"uint8 {shape(whole)}" if as_uint8 else f"float32 {shape((channels, *sides))}, in (-1, 1)"
    said["outputs"]["images" if name == "generator" else "translated"] = what
    return said


def to_onnx(module: nn.Module, examples: dict[str, Tensor], said: dict[str, Any]) -> onnx.ModelProto:
    """A network as ONNX, for any number of images at once. Raises UserError."""
    batch = torch.export.Dim("batch", min=1)
    of_each = tuple({0: batch} for _ in examples)
    shapes = of_each if isinstance(module, Telling) else (of_each,)  # a Drawing takes them as one tuple
    logger, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    try:
        logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                module, tuple(examples.values()), dynamo=True, verbose=False, dynamic_shapes=shapes,
                input_names=[*examples], output_names=[*said["outputs"]],
            )  # fmt: skip
    except Exception as error:  # of whichever of the exporter's parts
        why = gan.complaint(error.__cause__ or error)
        raise UserError(f"cannot be exported ({why})"[:300], "export", status=1) from None
    finally:
        logger.setLevel(level)
    return exported.model_proto


def check_same(data: bytes, module: nn.Module, examples: dict[str, Tensor]) -> None:
    """Raise UserError if onnxruntime computes something else than torch, for one or for three at once."""
    try:
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        for count in (1, 3):
            inputs = {name: example[:count] for name, example in examples.items()}
            with torch.no_grad():
                expected = module(*inputs.values())
            found = session.run(None, {name: part.numpy() for name, part in inputs.items()})
            for one, other in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
                near = 1 if one.dtype == np.uint8 else NEAR
                np.testing.assert_allclose(one, other.numpy(), rtol=NEAR, atol=near, strict=True)
    except Exception as error:  # of whichever of its parts, or of the comparison
        raise UserError(f"onnxruntime does not compute the same ({gan.complaint(error)})"[:300], status=1) from None
