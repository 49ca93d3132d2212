"""The report's vector figures, strips of samples and facts of the networks, drawn from results/ alone."""

import csv
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

import rollnumber_04 as gan
from report import GAP, ROOT, SEED

RESULTS = ROOT / "report" / "results"
SPECTRA = {"average": "spectrum", "last weights": "spectrum-of-last-weights"}  # of samples by which weights: RUN-….csv
COLOURS = ("#2f6fb0", "#c8641b", "#3a8f4d", "#8b4fa8", "#a8323e", "#6b6b6b", "#b59a00", "#18a0a8")
STYLE = {"font.size": 8, "svg.fonttype": "path", "axes.spines.top": False, "axes.spines.right": False}
WIDTH = 6.5  # inches, of the text

ADVERSARIAL = {"d_loss": "J(D)", "g_loss": "J(G)"}
SCORES = {"d_real": "D's mean score on real images", "d_fake": "on generated images"}


def facts(experiment: str) -> dict[str, Any]:
    """What metrics.json says of an experiment."""
    return json.loads((RESULTS / experiment / "metrics.json").read_text(encoding="utf-8"))


def runs_of(experiment: str) -> list[str]:
    """An experiment's runs; of those that differ in the seed only, the first."""
    return [run for run in facts(experiment)["runs"] if SEED not in run]


def table(experiment: str, run: str) -> dict[str, np.ndarray]:
    """The columns of a run's thinned epochs.csv; NaN where there is no value."""
    with open(RESULTS / experiment / f"{run}.csv", newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


Lines = dict[str, tuple[np.ndarray, np.ndarray]]  # label: x, y


def curves(panels: Sequence[tuple[str, Lines]], xlabel: str) -> Figure:
    """Panels side by side, each a title and its lines; one legend, or one for each panel if their lines differ."""
    figure = Figure(figsize=(WIDTH, 2.1), layout="constrained")
    for axes, (title, lines) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        for (label, (x, y)), colour in zip(lines.items(), COLOURS, strict=False):
            known = ~np.isnan(y)
            few = "." if known.sum() < 12 else ""
            axes.plot(x[known], y[known], color=colour, linewidth=1.1, label=label, marker=few)
        axes.set(title=title, xlabel=xlabel)
        axes.grid(alpha=0.25)
    several = [axes for axes in figure.axes if len(axes.lines) > 1]
    if len({tuple(axes.get_legend_handles_labels()[1]) for axes in several}) > 1:
        for axes in several:
            axes.legend(frameon=False, fontsize=7)
    elif several:
        handles, labels = several[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize=7, loc="outside lower center", ncols=min(len(labels), 5))
    return figure


def of_runs(*experiments: str, columns: dict[str, str], x: str = "step") -> Figure:
    """A panel for each column {column: title}, in it a line for each run of experiments."""
    tables = {run: table(experiment, run) for experiment in experiments for run in runs_of(experiment)}
    panels = []
    for column, title in columns.items():
        panels.append((title, {run: (rows[x], rows[column]) for run, rows in tables.items() if column in rows}))
    return curves(panels, "iteration" if x == "step" else x)


def fid_panel(experiment: str, run: str) -> tuple[str, Lines]:
    """FID over epochs, from a run's measures fid-<epoch>."""
    measured = {key: value for key, value in facts(experiment)["runs"][run].items() if key.startswith("fid-")}
    epochs, fids = [int(key.removeprefix("fid-")) for key in measured], [value["fid"] for value in measured.values()]
    return "FID", {"FID": (np.array(epochs), np.array(fids))}


def of_one(
    experiment: str,
    run: str,
    panels: dict[str, dict[str, str]],
    x: str = "epoch",
    more: Sequence[tuple[str, Lines]] = (),
) -> Figure:
    """A run's curves: a panel for each title, in it the columns {label: column}; then `more` panels."""
    rows = table(experiment, run)
    drawn = []
    for title, lines in panels.items():
        drawn.append((title, {label: (rows[x], rows[column]) for label, column in lines.items()}))
    return curves([*drawn, *more], "iteration" if x == "step" else x)


def shares(experiment: str, measures: Sequence[str]) -> Figure:
    """Bars: each class's share of the samples that an experiment measures, by a classifier; a line at even shares."""
    figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(measures)
    for i, (measure, colour) in enumerate(zip(measures, COLOURS, strict=False)):
        found = facts(experiment)[measure]["classes"]["share of each class"]
        axes.bar(np.arange(len(found)) + i * width, found.values(), width, color=colour, label=measure)
        axes.set_xticks(np.arange(len(found)) + 0.4 - width / 2, found)
    axes.axhline(1 / len(found), color="black", linewidth=0.6)
    axes.set(xlabel="digit", ylabel="share of the samples")
    figure.legend(frameon=False, fontsize=7, ncols=len(measures), loc="outside upper center")
    return figure


def confusion(experiment: str, run: str) -> Figure:
    """A head's confusion matrix, shares of each true class."""
    with open(RESULTS / experiment / f"{run}-confusion_matrix.csv", newline="", encoding="utf-8") as file:
        (_, *names), *rows = csv.reader(file)
    counts = np.array([[int(value) for value in row[1:]] for row in rows])
    part = counts / counts.sum(1, keepdims=True)
    figure = Figure(figsize=(3.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.imshow(part, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(part):
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=6)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true, per cent of each")
    return figure


def saturation() -> Figure:
    """The minimax and the non-saturating loss of G for one sample, and their slopes, over D's logit for it."""
    logit = np.linspace(-6, 6, 121)
    sigma = 1 / (1 + np.exp(-logit))
    losses = {"minimax, ln(1 - σ)": (logit, np.log(1 - sigma)), "non-saturating, -ln σ": (logit, -np.log(sigma))}
    slopes = {name: (logit, slope) for name, slope in zip(losses, (-sigma, sigma - 1), strict=True)}
    return curves([("loss of G", losses), ("its slope", slopes)], "D's logit for a sample")


def networks() -> dict[str, Any]:
    """The default networks' layers, their kernels and parameters, and the sizes of what they are given and give."""
    g, d = gan.Generator(), gan.Discriminator(classes=[f"{i}" for i in range(10)])
    head = gan.count_parameters(d.head)

    def steps(network: nn.Module, forward: Callable[[torch.Tensor], Any], given: torch.Tensor) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []

        def note(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            found.append({"layer": type(layer).__name__, "parameters": gan.count_parameters(layer)})
            found[-1] |= {"from": [*inputs[0].shape[1:]], "to": [*output.shape[1:]]}
            if not isinstance(layer, nn.Linear):
                found[-1] |= {"kernel": layer.kernel_size[0], "stride": layer.stride[0]}

        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                layer.register_forward_hook(note)
        forward(given)
        return found

    layers_g, layers_d = steps(g, g, torch.zeros(2, 100)), steps(d, d.scores_and_logits, torch.zeros(2, 3, 32, 32))
    return {
        "generator": {"layers": layers_g, "parameters": gan.count_parameters(g)},
        "discriminator": {"layers": layers_d, "parameters": gan.count_parameters(d) - head, "head": head},
    }


def spectra(experiment: str) -> Figure:
    """The power of samples over that of training images at each spatial frequency, a map for each run and weights."""
    figure = Figure(figsize=(WIDTH, 2.0), layout="constrained")
    runs = runs_of(experiment)
    panels = figure.subplots(1, 2 * len(runs), sharey=True)
    of_images = np.loadtxt(RESULTS / experiment / "spectrum-of-images.csv", delimiter=",")
    for axes, (run, weights) in zip(panels, product(runs, SPECTRA), strict=True):
        of_samples = np.loadtxt(RESULTS / experiment / f"{run}-{SPECTRA[weights]}.csv", delimiter=",")
        ratio = np.log10(of_samples / of_images)
        half = 0.5 + 0.5 / len(ratio)  # frequencies from -1/2 to just below 1/2, each in the middle of its square
        place = (-half, 1 - half, 1 - half, -half)
        drawn = axes.imshow(ratio, cmap="RdBu_r", vmin=-1, vmax=1, extent=place)
        axes.set(title=f"{run},\n{weights}", xlabel="cycles a pixel", xticks=(-0.5, 0), yticks=(-0.5, 0))
    figure.colorbar(drawn, ax=panels, label="log10 of the ratio", extend="both")
    return figure


def embeddings(experiment: str, run: str) -> Figure:
    """The classes where t-SNE puts their embeddings, and the cosine distances of these."""
    found = facts(experiment)["runs"][run]["embeddings"]
    figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
    places, matrix = figure.subplots(1, 2, width_ratios=(1.2, 1))
    points = np.array([*found["places"].values()])
    for name, place in found["places"].items():
        right, up = ((points - place) / np.ptp(points, 0)).T
        side = -1 if ((right > 0) & (right < 0.3) & (abs(up) < 0.1)).any() else 1  # where no other point is in the way
        places.plot(*place, ".", color=COLOURS[0], markersize=8)
        aligned = {"ha": "left" if side > 0 else "right", "textcoords": "offset points", "fontsize": 7}
        places.annotate(name, place, xytext=(5 * side, 3), **aligned)
    places.set(xticks=[], yticks=[])
    places.margins(0.15)  # for the names
    drawn = matrix.imshow(found["cosine distances"], cmap="viridis")
    matrix.set_xticks(range(found["classes"]), found["places"], rotation=90, fontsize=7)
    matrix.set_yticks(range(found["classes"]), found["places"], fontsize=7)
    figure.colorbar(drawn, ax=matrix, label="cosine distance")
    return figure


def classes_between(experiment: str, run: str) -> Figure:
    """The length of the paths between two classes over their distance; FID, precision and recall by truncation."""
    found = facts(experiment)["runs"][run]
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    pairs_axes, fid_axes, trade_axes = figure.subplots(1, 3)
    pairs = found["paths"]["pairs"]
    pairs_axes.plot([pair["cosine distance"] for pair in pairs], [pair["ppl"] for pair in pairs], ".", color=COLOURS[0])
    pairs_axes.set(title="pairs of classes", xlabel="cosine distance", ylabel="perceptual path length")
    rows = found["truncation"]["figures"]
    labels = [f"{row['truncation']:g}" if row["truncation"] else "none" for row in rows]
    fid_axes.plot(labels, [row["fid"] for row in rows], ".-", color=COLOURS[0], linewidth=1.1)
    fid_axes.set(title="FID", xlabel="truncation")
    for name, colour in zip(("precision", "recall"), COLOURS, strict=False):
        trade_axes.plot(labels, [row[name] for row in rows], ".-", color=colour, linewidth=1.1, label=name)
    trade_axes.set(title="precision and recall", xlabel="truncation")
    trade_axes.legend(frameon=False, fontsize=7)
    for axes in figure.axes:
        axes.grid(alpha=0.25)
    return figure


def strips(experiment: str, rows: int, columns: int) -> dict[str, Image.Image]:
    """The first rows of each run's last samples, a sheet of eight rows, cut out of samples.png."""
    runs = runs_of(experiment)
    with Image.open(RESULTS / experiment / "samples.png") as picture:
        width = (picture.width + GAP) // len(runs)
        tile = (width - GAP - 2) // columns
        top = picture.height - (8 * tile + 2)
        found = {}
        for i, run in enumerate(runs):
            box = (i * width, top, i * width + columns * tile + 2, top + rows * tile + 2)
            strip = picture.crop(box).convert("RGB")
            found[run] = strip.resize((strip.width // 2, strip.height // 2), Image.Resampling.NEAREST)  # sheets are 2:1
        return found


STRIPS = {  # rows and columns of tiles; CycleGAN's are three threes and the gaps between them
    **dict.fromkeys(("mnist-conv", "collapse", "emoji", "emoji-before", "longer"), (2, 8)),
    "cyclegan": (3, 12),
}
SWEEPS = ("recipe", "loss", "batch-size", "optimizers", "rates")
STRIPS |= dict.fromkeys(SWEEPS, (2, 8))
FIGURES: dict[str, Callable[[], Figure]] = {
    "task1-losses": lambda: of_one("task1", "default", {"J(D)": {"D": "d_loss"}, "J(G)": {"G": "g_loss"}}, "step"),
    "task1-scores": lambda: of_one(
        "task1",
        "default",
        {
            "D's mean scores": {"on real images": "d_real", "on generated images": "d_fake"},
            "taken for real": {"training images": "d_accuracy_seen", "test images": "d_accuracy_unseen"},
        },
        more=[fid_panel("task1", "default")],
    ),
    "multitask-losses": lambda: of_runs("multitask", columns=ADVERSARIAL, x="epoch"),
    "multitask-scores": lambda: of_runs("multitask", columns=SCORES, x="epoch"),
    "multitask-head": lambda: of_one(
        "multitask",
        "task2",
        {
            "cross-entropy J(C)": {"training": "class_loss", "test": "val_class_loss"},
            "accuracy": {"training": "accuracy", "test": "val_accuracy"},
        },
    ),
    "multitask-confusion": lambda: confusion("multitask", "task2"),
    "digits": lambda: shares("saved", ["mnist-bce", "mnist-blocks", "mnist-conv"]),
    "mnist-conv-losses": lambda: of_runs("mnist-conv", columns=ADVERSARIAL),
    "emoji-scores": lambda: of_runs("emoji", "emoji-before", columns=SCORES),
    "saturation": saturation,
    "upsampling-spectra": lambda: spectra("upsampling"),
    "biggan-embeddings": lambda: embeddings("biggan", "small"),
    "biggan-between": lambda: classes_between("biggan", "small"),
}
FIGURES |= {f"{name}-losses": partial(of_runs, name, columns=ADVERSARIAL, x="epoch") for name in SWEEPS[1:]}


def draw_all(folder: Path) -> None:
    """Write all figures as SVG, the strips of samples as PNG, and networks.json, into a folder."""
    with matplotlib.rc_context(STYLE):
        for name, figure in FIGURES.items():
            figure().savefig(folder / f"{name}.svg")
    for experiment, (rows, columns) in STRIPS.items():
        for run, strip in strips(experiment, rows, columns).items():
            strip.save(folder / f"{experiment}-{run}.png")
    (folder / "networks.json").write_text(json.dumps(networks()), encoding="utf-8")
