"""Pictures of a run besides the assignment's: TensorBoard, progress.gif, FIDs over time, the confusion matrix."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

import rollnumber_04 as gan
from rollnumber_04 import Run, Snapshot, say

TAGS = {"diversity": "samples/diversity", "fid": "samples/fid"}  # of what an interval measures, in TensorBoard
MOST_FRAMES = 100  # of progress.gif


class Board:
    """A run's numbers and pictures in TensorBoard; what it cannot show costs no training."""

    def __init__(self, run: Run):
        self.run, self.begun, self.writer = run, run.step, None
        # The writer has a thread; when a disk is full its error is raised again where the writer is used.
        threading.excepthook = lambda a: None if issubclass(a.exc_type, OSError) else threading.__excepthook__(a)

    def show(self, kind: str, *arguments: Any, **settings: Any) -> None:
        """Call TensorBoard's writer, made when there is something to write: its import would delay the first step."""
        if self.writer is False:
            return
        try:
            if self.writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(self.run.out / "tensorboard"), purge_step=self.begun + 1)
            getattr(self.writer, kind)(*arguments, **settings)
        except OSError:  # a full disk, by which training ends, too
            raise
        except Exception as error:  # of the library or one that it needs, missing or of another version
            self.writer = False
            what = f"nothing more is written for TensorBoard, which does not work here ({gan.complaint(error)})"
            say(f"note: {what}"[:300])

    def add_numbers(self, kind: str, row: dict[str, Any]) -> None:
        """Show a row of log.csv ("train") or what is new in one of epochs.csv ("validation")."""
        model = self.run.gan
        names = (*model.columns(model.config), "images_per_s")
        if kind == "validation":
            names = model.interval_columns(model.config)
        for name in names:
            if row[name] != "":
                short = name.removeprefix("val_")
                self.show("add_scalar", TAGS.get(name, f"{kind}/{short}"), row[name], row["step"])

    def add_picture(self, name: str, picture: Image.Image) -> None:
        """Show a picture."""
        self.show("add_image", name, np.atleast_3d(np.asarray(picture)), self.run.step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        if self.writer:
            self.writer.close()


def pictures(run: Run, snapshot: Snapshot, board: Board | None) -> list[Callable[[], Any]]:
    """What this file draws at an interval's end, each to be called."""
    config, is_last, due = run.gan.config, run.step == run.total, []
    if any(row["fid"] != "" for row in run.epochs if "fid" in row):
        due.append(partial(plot_fid, run))
    if snapshot.confusion is not None and is_last:
        due.append(partial(plot_confusion, run, snapshot.confusion, board))
    if board and (is_last or run.number % config.intervals[0] == 0):
        due += [partial(board.add_picture, f"samples/{name}", picture) for name, picture in snapshot.sheets.items()]
    if is_last:
        samples = run.out / "samples"
        due += [partial(save_gif, run, samples / name if i else samples) for i, name in enumerate(snapshot.sheets)]
    return due


def save_gif(run: Run, folder: Any) -> None:
    """`progress.gif` of a folder's sheets so far, evenly thinned to at most MOST_FRAMES."""
    paths = gan.numbered_files(folder, run.gan.config.unit, ".png", run.number)
    paths = [
        paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(MOST_FRAMES, len(paths))).round().astype(int))
    ]
    frames = []
    for path in paths:
        try:
            frames.append(Image.open(path).convert("RGB").quantize(128))
        except OSError as error:  # Pillow's for damage, such as a power cut leaves
            say(f"note: {path} is left out of progress.gif ({gan.complaint(error)})")
    first, *others = frames
    milliseconds = [150] * len(others) + [2000]
    stream = io.BytesIO()
    first.save(stream, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0)
    gan.write_whole(folder / "progress.gif", stream.getvalue())


def plot_fid(run: Run) -> None:
    """`plots/fid.png`: the Fréchet distance of the samples to the training images over iterations."""
    rows = [row for row in run.epochs if row["fid"] != ""]
    steps, values = [row["step"] for row in rows], [row["fid"] for row in rows]
    title = f"FID of {run.gan.config.evaluate_samples:,} samples against as many training images at most"
    with gan.plot(run.out / "plots" / "fid.png", title=title, xlabel="iteration", ylabel="FID") as axes:
        axes.plot(steps, values, color=gan.BLUE, marker=".", label=f"{values[-1]:.4g} last")
        best = min(range(len(values)), key=values.__getitem__)
        axes.plot(steps[best], values[best], "o", color=gan.ORANGE, label=f"{values[best]:.4g} best")


@gan.own_style()
def plot_confusion(run: Run, confusion: np.ndarray, board: Board | None) -> None:
    """`plots/confusion_matrix.png`, a row per true class."""
    from matplotlib.figure import Figure

    classes = run.gan.classes
    side = min(5 + 0.3 * len(classes), 30)
    figure = Figure(figsize=(side, side), dpi=100, layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:
        for (row, column), count in np.ndenumerate(confusion):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, count, ha="center", va="center", color=color, fontsize=8)
    if len(classes) <= 100:
        names = [name if len(name) <= 24 else name[:23] + "…" for name in classes]
        axes.set_xticks(range(len(classes)), names, rotation=90, parse_math=False)  # a $ in a name is a $
        axes.set_yticks(range(len(classes)), names, parse_math=False)
    accuracy = confusion.trace() / confusion.sum()
    axes.set(title=f"{confusion.sum():,} validation images, {accuracy:.1%} right", xlabel="predicted", ylabel="true")
    path = run.out / "plots" / "confusion_matrix.png"
    gan.save_picture(figure.savefig, path)
    if board:
        with Image.open(path) as picture:
            board.add_picture("validation/confusion_matrix", picture.convert("RGB"))
