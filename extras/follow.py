"""The part of the page of `explore` that shows a run's folder, and follows a run that goes on."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd

MOST_ROWS = 1000  # of a curve
LOSSES = {"g_loss": "J(G), the generator's loss", "d_loss": "J(D), the discriminator's"}
ACCURACIES = ("d_accuracy_seen", "d_accuracy_unseen", "accuracy", "val_accuracy")
SHOWN = ("samples", "weights", "plots")  # the folders of a run whose files the page may show
FOLLOW = 5  # seconds between two looks at a run that goes on


def is_run(path: Path) -> bool:
    """Whether a path is a run's folder."""
    return (path / "epochs.csv").is_file()


def table(path: Path) -> pd.DataFrame:
    """A table of a run, of which the last line may be half written."""
    try:
        rows = pd.read_csv(path, on_bad_lines="skip")
    except (OSError, ValueError):
        return pd.DataFrame()
    for name in rows.columns.drop("warning", errors="ignore"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce")
    return rows.dropna(subset="step") if "step" in rows else pd.DataFrame()


def thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """At most MOST_ROWS rows, evenly over all."""
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_ROWS)).astype(int))]


def series_of(folder: Path) -> dict[str, str]:
    """The pictures of a run that come again and again: a heading, and where they lie."""
    of_weights = {re.sub(r"_(epoch|iteration)_\d+$", "", path.stem) for path in folder.glob("weights/*.png")}
    found = {"Samples of the same noise": "samples/*.png"}
    found |= {f"Samples, {each.name}": f"samples/{each.name}/*.png" for each in folder.glob("samples/*/")}
    names = sorted(of_weights, key=lambda name: (name != "generator", name))
    return found | {f"Weights of {name}": f"weights/{name}_*.png" for name in names}


def run_panel(folder: Path, series: dict[str, str]) -> None:
    """What a run's folder holds; it follows a run that goes on."""

    def pictures(of: str) -> list[Path]:
        return sorted(folder.glob(of), key=lambda path: int(re.search(r"\d*$", path.stem)[0] or 0))

    def curve(rows: pd.DataFrame, name: str) -> pd.DataFrame:
        return thinned(rows)[["step", name]] if name in rows else pd.DataFrame({"step": [], name: []})

    def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
        names = [name for name in ACCURACIES if name in rows and rows[name].notna().any()]
        none = pd.DataFrame({"step": [], "of": [], "share": []})
        return thinned(rows).melt("step", names, "of", "share").dropna() if names else none

    def state(rows: pd.DataFrame) -> str:
        if not folder.is_dir():
            return "The folder is gone."
        if not len(rows) or not {"epoch", "images_per_s", "warning"} <= {*rows}:
            return "There is no row in epochs.csv that can be read: the run has only begun, or the file is damaged."
        last, fids = rows.iloc[-1], rows["fid"].dropna() if "fid" in rows else ()
        facts = [f"epoch {last['epoch']:.0f}, step {last['step']:,.0f}", f"{last['images_per_s']:,.0f} images/s"]
        facts += [f"FID {fids.iloc[-1]:.2f}"] if len(fids) else []
        warned = rows[rows["warning"].notna()]
        warnings = [f"- epoch {epoch}: {what}" for epoch, what in zip(warned["epoch"], warned["warning"], strict=True)]
        return "\n".join([", ".join(facts), *(["", "Warnings:", *warnings] if warnings else [])])

    def matrix() -> dict[str, Any]:
        path = folder / "plots" / "confusion_matrix.png"
        return {"value": str(path) if path.exists() else None, "visible": path.exists()}

    def stamp() -> list[int]:
        """What tells whether anything is new."""
        others = (folder / name for name in ("log.csv", "epochs.csv", "plots/confusion_matrix.png"))
        times = [path.stat().st_mtime_ns if path.exists() else 0 for path in others]
        return [*(len(pictures(of)) for of in series.values()), *times]

    def look(known: list[int], *numbers: float) -> list[Any]:
        """All of the page anew; a slider that was at its last picture goes on to the newest."""
        if known == (new := stamp()) and folder.is_dir():
            return [gr.skip()] * len(everything)
        found, epochs, log = [*map(pictures, series.values())], table(folder / "epochs.csv"), table(folder / "log.csv")
        shown = [state(epochs), new]
        for paths, of_slider, number in zip(found, known, numbers, strict=False):
            number = len(paths) if number >= of_slider else min(int(number), len(paths))
            shown += [gr.update(maximum=max(2, len(paths)), value=max(1, number), label=title(paths, number))]
            shown += [picked(paths, number)]
        return [*shown, *(curve(log, name) for name in LOSSES), accuracies(epochs), gr.update(**matrix())]

    epochs, log = table(folder / "epochs.csv"), table(folder / "log.csv")
    told, known = gr.Markdown(state(epochs), elem_id="state"), gr.State(stamp())
    sliders, images = [], []
    for i, (heading, of) in enumerate(series.items()):
        gr.Markdown(f"## {heading}")
        paths = pictures(of)
        last, name = len(paths), f"pictures-{i}"
        of_number = dict(label=title(paths, last), interactive=True, elem_id=f"{name}-number")
        sliders += [gr.Slider(1, max(2, last), max(1, last), step=1, **of_number)]
        images += [gr.Image(picked(paths, last), format="png", interactive=False, show_label=False, elem_id=name)]
    gr.Markdown("## Losses")
    of_steps = dict(x="step", x_label_angle=45, tooltip="all", height=260)  # level, the numbers of late steps overlap
    plots = [
        gr.LinePlot(curve(log, name), y=name, title=heading, elem_id=name, **of_steps)
        for name, heading in LOSSES.items()
    ]
    # A plot is as wide as its title: one of this length would leave a phone nothing to show.
    gr.Markdown("## Accuracy\nD on real images that it has seen and on others; a head on training and test images")
    plots += [gr.LinePlot(accuracies(epochs), y="share", color="of", elem_id="accuracy", **of_steps)]
    plots += [gr.Image(**matrix(), label="Confusion", format="png", interactive=False, elem_id="confusion")]
    everything = [told, known, *(part for pair in zip(sliders, images, strict=True) for part in pair), *plots]
    gr.Timer(FOLLOW).tick(look, [known, *sliders], everything, show_progress="hidden")
    for slider, image, of in zip(sliders, images, series.values(), strict=True):

        def pick(number: float, of: str = of) -> tuple[str | None, dict[str, Any]]:
            paths = pictures(of)
            return picked(paths, number), gr.update(label=title(paths, number))

        slider.input(pick, slider, [image, slider], show_progress="hidden", trigger_mode="always_last")


def picked(paths: Sequence[Path], number: float) -> str | None:
    """The picture of a number, from 1; the last, if there are fewer."""
    return str(paths[min(int(number), len(paths)) - 1]) if paths else None


def title(paths: Sequence[Path], number: float) -> str:
    """What a slider over pictures is called: "epoch_0010"."""
    return Path(picked(paths, number) or "none yet").stem
