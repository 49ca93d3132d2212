"""What lies between the classes of a BigGAN: paths, how smooth they are, embeddings, truncation.

    python -m labs.biggan interpolate MODEL --classes cat,dog --alphas 8 --out path.png
    python -m labs.biggan embeddings MODEL --out tsne.png              # which classes are near each other
    python -m labs.biggan paths MODEL --out paths/                     # how smooth the ways between them are
    python -m labs.biggan truncation MODEL --data ./cifar10 --out truncation.png

A class in between is r = α·r1 + (1 − α)·r2, of the embeddings of two.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import wraps
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import rollnumber_04 as gan
from labs import biggan, parts, pretrained
from rollnumber_04 import UserError, say

WEIGHTS = dict(
    type=gan.some_path, metavar="FILE", help="torch-fidelity's Inception weights; it fetches them if omitted"
)


def command_parser(name: str, described: str, out: str, foreign: bool = True, measures: bool = True) -> gan.Parser:
    """The command line that the lab's own commands share: model (also a `foreign` one), result, device."""
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
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 … or mps (auto)")
    return parser


def add_path_options(parser: gan.Parser, rows: int, least: int) -> None:
    """The arguments of commands that draw paths: `least` images on a path or more, sheets of `rows`, their noise."""
    add = parser.add_argument
    add("--alphas", type=gan.number_in(int, least, 1000), default=8, help="images on a path, both ends among them (8)")
    add("--rows", type=gan.number_in(int, 1, 100), default=rows, help=f"rows of a sheet, each with its own z ({rows})")
    truncation = "draw noise from -T … T only: less variety, better images"
    add("--truncation", type=gan.number_in(float, 0, 10, above=True), metavar="T", help=truncation)
    add("--seed", type=gan.number_in(int, 0, 2**31 - 1), default=0, help="seed of the noise (0)")


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


def opened(options: argparse.Namespace, conditional: bool = True) -> biggan.Generator | pretrained.PretrainedGenerator:
    """The generator that a command is to use, which may have to be conditional. Raises UserError."""
    device = gan.choose_device(options.device)
    if (options.model is None) == (options.pretrained is None):
        raise UserError("give one of MODEL and --pretrained FOLDER")
    if options.pretrained is not None:
        return pretrained.load_pretrained(options.pretrained, getattr(options, "truncation", None) or 1.0, device)
    generator = gan.load_generator(options.model, device)
    if not isinstance(generator, biggan.Generator):
        raise UserError("is no model of labs.biggan", options.model)
    if conditional and not generator.classes:
        raise UserError("is not conditional: it has no embeddings of classes", options.model)
    return generator


def interpolate(argv: Sequence[str]) -> None:
    """The command `interpolate`: a row for each z, r = α·r1 + (1 - α)·r2 from left to right, or a GIF of the rows.

    Raises UserError.
    """
    described = "Draw what lies between two classes."
    parser = command_parser("interpolate", described, "x.png (a sheet) or x.gif", measures=False)
    add_path_options(parser, rows=8, least=2)
    parser.add_argument("--classes", required=True, metavar="A,B", help="names or numbers: from A (α = 1) to B (α = 0)")
    options = parser.parse_args(argv)
    out, kind, alphas, rows, seed = options.out, options.out.suffix.lower(), options.alphas, options.rows, options.seed
    if kind not in (".png", ".gif"):
        raise UserError("must end in .png or .gif", f"--out {out}")
    if out.is_dir():
        raise UserError("is a folder", f"--out {out}")
    gan.check_writable("--out", out.parent)
    if rows * alphas > 10_000:
        raise UserError(f"{rows} rows of them are more than 10,000 images", f"--alphas {alphas}")
    generator = opened(options)
    pair = pair_of(generator, options.classes, "--classes")
    columns = path_images(generator, pair, alphas, rows, seed, options.truncation)
    stream = io.BytesIO()
    if kind == ".png":
        path_sheet(columns).save(stream, "PNG")
    else:  # there and back
        frames = [gan.sheet(column).quantize(128) for column in (*columns, *columns[-2:0:-1])]
        frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)
    gan.save_output("--out", out, stream.getvalue())
    of_classes = " to ".join(generator.classes[number] for number in pair)
    of_model = f"{options.model or options.pretrained}, seed {seed}"
    say(f"{rows} paths from class {of_classes} of {alphas} images of {of_model}: {out}")


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
def embeddings(argv: Sequence[str]) -> dict[str, Any]:
    """The command `embeddings`: the classes by t-SNE and their cosine distances, in a picture. Raises UserError."""
    described = "Draw the embeddings of the classes: t-SNE, and their cosine distances."
    parser = command_parser("embeddings", described, "a .png file")
    parser.add_argument("--seed", type=gan.number_in(int, 0, 2**31 - 1), default=0, help="seed of t-SNE (0)")
    options = parser.parse_args(argv)
    if options.out.suffix.lower() != ".png":
        raise UserError("must end in .png", f"--out {options.out}")
    gan.check_writable("--out", options.out.parent)
    generator = opened(options)
    rows, names = generator.embeddings().cpu(), generator.classes
    if len(names) < 4:
        raise UserError(f"has {len(names)} classes; t-SNE takes 4 or more", options.model or options.pretrained)
    distances = cosine_distances(rows)
    places = tsne(rows, options.seed)
    gan.save_output("--out", options.out, embeddings_plot(names, places, distances))
    facts: dict[str, Any] = {"model": str(options.model or options.pretrained), "classes": len(names)}
    if len(names) <= 50:
        facts["places"] = dict(zip(names, places.tolist(), strict=True))
        facts["cosine distances"] = distances.tolist()
    pairs = pairs_by_distance(distances)
    for what, chosen in (("nearest", pairs[:3]), ("farthest", pairs[:-4:-1])):
        facts[what] = [{"pair": [names[a], names[b]], "cosine distance": distances[a, b]} for a, b in chosen]
        said = ", ".join(f"{names[a]} and {names[b]} {distances[a, b]:.3f}" for a, b in chosen)
        say(f"{what:9} {said}")
    say(f"{len(names):,} embeddings of {facts['model']}: {options.out}")
    return facts


@gan.own_style()
def embeddings_plot(names: Sequence[str], places: np.ndarray, distances: np.ndarray) -> bytes:
    """A PNG: the classes at their places n×2, and their distances n×n; with names if there are up to 50."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 7), dpi=100, layout="constrained")
    map_axes, matrix_axes = figure.subplots(1, 2)
    map_axes.scatter(*places.T, s=60 if len(names) <= 50 else 6, color=gan.BLUE)
    map_axes.set(title="t-SNE of the classes' embeddings", xticks=[], yticks=[])
    map_axes.margins(0.12)  # for the names
    picture = matrix_axes.imshow(np.where(np.eye(len(names)), np.nan, distances), cmap="viridis")
    matrix_axes.set(title="cosine distance")
    figure.colorbar(picture, ax=matrix_axes)
    if len(names) <= 50:
        for name, place in zip(names, places, strict=True):
            map_axes.annotate(name, place, xytext=(6, 4), textcoords="offset points", parse_math=False)
        matrix_axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
        matrix_axes.set_yticks(range(len(names)), names, parse_math=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


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
    z, _ = generator.inputs(seed, 0, count, truncation=truncation)
    ends = parts.one_hot(torch.tensor(pair), len(generator.classes))
    shares = torch.linspace(1, 0, alphas).tolist()
    mixtures = [(share * ends[0] + (1 - share) * ends[1]).expand(count, -1) for share in shares]
    pieces = [zip(z.split(gan.GENERATE_BATCH), y.split(gan.GENERATE_BATCH), strict=True) for y in mixtures]
    return np.stack([np.concatenate([gan.draw_images(generator, *piece) for piece in of_y]) for of_y in pieces])


def path_sheet(images: np.ndarray) -> Image.Image:
    """Paths alphas×count×H×W[×3] as a sheet with a path a row."""
    return gan.sheet(images.swapaxes(0, 1).reshape(-1, *images.shape[2:]), len(images))


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
    parser = command_parser("paths", "Measure how smooth the paths between classes are.", "a new folder")
    add_path_options(parser, rows=4, least=3)  # with two images there is no way whose shape could be measured
    add = parser.add_argument
    add("--pairs", nargs="+", metavar="A,B", help="names or numbers; the two nearest and the two farthest if omitted")
    add("--all-pairs", action="store_true", help="of all classes; then also whether near ones have smoother paths")
    add(
        "--samples", type=gan.number_in(int, 2, 10_000), default=32, help="paths of each pair, each with its own z (32)"
    )
    add("--inception-weights", **WEIGHTS)
    options = parser.parse_args(argv)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError("is there already; name a new folder", f"--out {options.out}")
    gan.check_writable("--out", options.out)
    if options.pairs and options.all_pairs:
        raise UserError("does not go with --pairs", "--all-pairs")
    if options.all_pairs and importlib.util.find_spec("scipy") is None:
        raise UserError("needs scipy (pip install scipy)", "--all-pairs")
    generator, evaluation = opened(options), gan.extra("evaluate")
    names, distances = generator.classes, cosine_distances(generator.embeddings())
    if options.pairs:
        wanted = [pair_of(generator, words, "--pairs") for words in options.pairs]
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
        stream = io.BytesIO()
        path_sheet(images[:, : options.rows]).save(stream, "PNG")
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


def pair_of(generator: gan.BaseGenerator, words: str, flag: str) -> tuple[int, int]:
    """The numbers of two classes that a flag names with a comma between them. Raises UserError."""
    names = [name.strip() for name in words.split(",")]
    if len(names) != 2:
        raise UserError("takes two classes with a comma between them", f"{flag} {words}")
    with gan.named(flag):
        first, second = (parts.class_number(name, generator.classes) for name in names)
    if first == second:
        raise UserError("is one class; there is nothing between", f"{flag} {words}")
    return first, second


def safe_name(text: str) -> str:
    """A text as a part of a file's name."""
    return "".join(c if c.isalnum() or c == "-" else "_" for c in text)[:60]


@measuring
def truncation(argv: Sequence[str]) -> dict[str, Any]:
    """The command `truncation`: FID, precision and recall at several truncations, in a picture. Raises UserError."""
    described = "Measure what truncated noise gives and takes: fidelity (precision) and variety (recall)."
    parser = command_parser("truncation", described, "a .png file; a .csv of its name is written, too", foreign=False)
    add = parser.add_argument
    add("--data", type=gan.some_path, metavar="PATH", help="real images; drawn shapes if omitted")
    several = "truncations to measure, beside none (0.25 0.5 0.75 1 1.5 2)"
    many = dict(type=gan.number_in(float, 0, 10, above=True), nargs="+", default=[0.25, 0.5, 0.75, 1.0, 1.5, 2.0])
    add("--truncations", **many, metavar="T", help=several)
    counted = gan.number_in(int, gan.extra("evaluate").MIN_IMAGES, 10**7)
    add("--samples", type=counted, default=2000, metavar="N", help="generated images for each (2000)")
    add("--reference", type=counted, metavar="N", help="real images; all if omitted")
    add("--seed", type=gan.number_in(int, 0, 2**31 - 1), default=0, help="seed of the noise (0)")
    add("--skip-unreadable", action="store_true", help="leave damaged images out instead of stopping")
    add("--inception-weights", **WEIGHTS)
    options = parser.parse_args(argv)
    if options.out.suffix.lower() != ".png":
        raise UserError("must end in .png", f"--out {options.out}")
    gan.check_writable("--out", options.out.parent)
    for target in (options.out, options.out.with_suffix(".csv")):
        if target.is_dir():
            raise UserError(f"{target} is a folder", f"--out {options.out}")
    with gan.own_style():  # to find out now, not after the measuring, whether pictures can be drawn
        pass
    generator, evaluation = opened(options, conditional=False), gan.extra("evaluate")
    size, channels = generator.architecture["image_size"], generator.architecture["channels"]
    with gan.named("--data"):
        images = gan.load_images(options.data, "train", size, options.skip_unreadable)
    images, of_images = evaluation.as_drawn(images, channels, f"--data {options.data}")
    inception = evaluation.Inception(options.inception_weights, gan.choose_device(options.device))
    sample = evaluation.real_sample(images, options.reference or len(images.pixels))
    real = evaluation.reference_features(inception, *sample)
    found = []
    for value in (*sorted({*options.truncations}), None):
        stream = gan.stream(generator, options.samples, seed=options.seed, truncation=value)
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


@gan.own_style()
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
