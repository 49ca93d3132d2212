"""What is kept of a run: its small facts, its table, its samples."""

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

import rollnumber_04 as gan
from benchmarks import machine
from report import GAP, SEED

TAIL = 10  # epochs at a run's end whose mean is its result: single epochs swing
TITLE = 22  # pixels above a sheet of samples, for its title


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of a run's table, less its column of words and columns without a value; NaN where one is missing."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    names = [name for name in (rows[0] if rows else ()) if name != "warning" and any(row[name] for row in rows)]
    return [{name: float(row[name] or "nan") for name in names} for row in rows]


def write_thinned(path: Path, rows: Sequence[dict[str, float]], most: int = 100) -> None:
    """Write a csv of at most `most` evenly spaced rows, five digits each, the last row among them."""
    picked = np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int))
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(rows[0])
        for row in (rows[i] for i in picked):
            table.writerow("" if np.isnan(x) else f"{x:.5g}" if x % 1 else int(x) for x in row.values())


def of_run(out: Path, config: gan.Config, given: Sequence[str]) -> dict[str, Any]:
    """A run's result: means over its last epochs, its best validation epoch, its seed, machine, versions and time.

    Raises UserError if it was not made with these options. What the data or the machine has settled is not compared,
    nor a batch size that is not in the words of the command line that were `given`.
    """
    options = json.loads((out / "options.json").read_text(encoding="utf-8"))
    asked = {name: value for name, value in gan.to_dict(config).items() if value not in (None, "auto")}
    if "--batch-size" not in given:
        del asked["batch_size"]
    if changed := [name for name, value in asked.items() if options.get(name, value) != value]:
        what = f"was not made with the options of experiments.toml: {', '.join(changed)}"
        raise gan.UserError(f"{what}; remove it to run again", out)
    epochs = read_rows(out / "epochs.csv")
    names = [name for name in epochs[0] if name not in ("epoch", "step", "images_per_s", "seconds")]
    row, rows = "epoch", "epochs"
    if config.iterations:
        row, rows = (f"{word} of {config.intervals[0]} iterations" for word in ("row", "rows"))
    tail = epochs[-TAIL:]
    result: dict[str, Any] = {
        f"{name}, mean of the last {TAIL} {rows}": float(np.nanmean([each[name] for each in tail])) for name in names
    }
    result |= {f"{name}, last {row}": epochs[-1][name] for name in names}
    if "val_accuracy" in epochs[0]:
        for name, pick in (("val_accuracy", max), ("val_class_loss", min)):
            best = pick(epochs, key=lambda each: each[name])
            result[f"{name}, best"] = {"epoch": int(best["epoch"]), "value": best[name]}
    result["training_seconds"] = sum(each["seconds"] for each in epochs)
    result["images_per_s, median"] = float(np.median([each["images_per_s"] for each in epochs]))
    result |= {name: options[name] for name in ("seed", "data_fingerprint", "device_name", "precision", "versions")}
    return result | where_and_when((out / "epochs.csv").stat().st_mtime)


def where_and_when(seconds: float | None = None) -> dict[str, str]:
    """This machine, and today's date, or the date of a time in `seconds` since 1970."""
    return {"machine": machine(), "date": time.strftime("%Y-%m-%d", time.gmtime(seconds))}


def sheets_below(title: str, folder: Path, numbers: Sequence[int]) -> np.ndarray:
    """A run's sheets of samples of some epochs or iterations, one above the other; of all but the last a quarter."""
    parts = []
    for number in numbers:
        path = next(path for path in folder.glob("*_*.png") if int(path.stem.split("_")[1]) == number)
        with Image.open(path) as picture:
            sheet = picture.convert("RGB")
        height = sheet.height if number == numbers[-1] else (sheet.height + 2) // 4
        part = Image.new("RGB", (sheet.width, TITLE + height), "white")
        ImageDraw.Draw(part).text((2, 5), f"{title}, {path.stem.split('_')[0]} {number}", fill="black")
        part.paste(sheet.crop((0, 0, sheet.width, height)), (0, TITLE))
        parts.append(np.asarray(part))
    return np.concatenate(parts)


def side_by_side(folders: dict[str, Path], numbers: Sequence[int]) -> Image.Image:
    """The runs' `sheets_below` beside each other."""
    columns = [sheets_below(title, folder, numbers) for title, folder in folders.items()]
    gap = np.full((len(columns[0]), GAP, 3), 255, np.uint8)
    return Image.fromarray(np.concatenate([part for column in columns for part in (gap, column)][1:], 1))


def example_sheet(data: Path, rows: int) -> Image.Image:
    """Training images of a set, a column for each class, or ten columns without classes."""
    images = gan.load_images(data)
    columns = len(images.classes) or 10
    if images.classes:
        of_class = [(images.labels == label).nonzero().flatten()[:rows] for label in range(columns)]
        index = torch.stack(of_class, 1).flatten()
    else:
        index = torch.linspace(0, len(images.pixels) - 1, rows * columns).long()
    pixels = images.pixels[index].numpy()
    return gan.sheet(pixels[..., 0] if pixels.shape[3] == 1 else pixels, columns)


def keep_files(outs: dict[str, Path], experiment: dict[str, Any], results: Path) -> None:
    """Keep tables of runs, thinned; of the first of several seeds confusion matrix, what is asked for, and samples."""
    for run, out in outs.items():
        write_thinned(results / f"{run}.csv", read_rows(out / "epochs.csv"))
    firsts = {run: out for run, out in outs.items() if SEED not in run}
    for run, out in firsts.items():
        for pattern in ("confusion_matrix.csv", *experiment.get("keep", ())):
            for path in out.glob(pattern):
                (results / f"{run}-{path.name}").write_bytes(path.read_bytes())
    kinds = {path.parent.relative_to(out) for out in firsts.values() for path in out.glob("samples/**/*.png")}
    for kind in kinds:  # samples/, or samples/y_to_x/ as well
        picture = side_by_side({run: out / kind for run, out in firsts.items()}, experiment["sheets"])
        picture.save(results / f"{'-'.join(kind.parts)}.png", optimize=True)
