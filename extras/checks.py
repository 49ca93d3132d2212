"""Whether a checkpoint's file is what it says: it may come from anywhere, and may say anything."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import rollnumber_04 as gan
from rollnumber_04 import GAN, Config, UserError

OF_FID = {("n_fake", int), ("n_real", int), ("network", str), ("weights", str)}  # of its conditions


def check_checkpoint(saved: dict[str, Any], path: Path, kind: type[GAN], config: Config) -> None:
    """Raise UserError unless a checkpoint holds a run of its own options, before anything of its size is built."""
    try:
        with torch.device("meta"):  # shapes without memory
            model = kind(config, saved["channels"], saved["classes"])
    except Exception as error:  # of whatever its options make impossible
        raise UserError(f"its options are wrong ({gan.complaint(error)})"[:300], path) from None
    wrong = gan.mismatch(saved["model"], dict(model.state_dict()), "model")
    for name, (members, _) in model.optimized().items():
        weights = [weight for member in members for weight in getattr(model, member).parameters()]
        wrong = wrong or optimizer_mismatch(saved["optimizers"].get(name), weights, config)
    last, columns = saved["progress"]["step"], kind.columns(config)
    of_interval = (*columns, *kind.interval_columns(config), "images_per_s", "seconds", "warning")
    if not wrong and not (
        is_table(saved["log"], ("step", "epoch", *columns, "images_per_s"), last)
        and is_table(saved["epochs"], ("epoch", "step", *of_interval), last)
    ):
        wrong = "its history is not that of a run with these options"
    before = 0 if wrong or not saved["epochs"] else saved["epochs"][-1]["step"]
    if not wrong and last - before > saved["progress"]["waiting"] and not any(r["step"] > before for r in saved["log"]):
        wrong = f"its history lacks the steps since step {before:,}"
    fid = saved["options"].get("fid", {})
    kinds = {name: type(value) for name, value in fid.items()} if isinstance(fid, dict) else {None: None}
    if not wrong and kinds and not (kinds.items() >= OF_FID and {*map(type, kinds), *kinds.values()} <= {int, str}):
        wrong = "its fid is wrong"
    if wrong:
        raise UserError(wrong, path)


def optimizer_mismatch(found: Any, weights: Sequence[nn.Parameter], config: Config) -> str:
    """What is wrong with an optimizer's state for some weights: it has some for each, of its shape, or for none."""
    example = nn.Parameter(torch.zeros(2))  # optimizers make their state in their first step
    example.grad = torch.zeros(2)
    optimizer = gan.make_optimizer([example], 1e-3, config)
    optimizer.step()
    (kinds,) = optimizer.state_dict()["state"].values() or ({},)
    if found == {}:
        return ""
    expected = {
        i: {key: torch.empty_like(weight if value.ndim else value, device="meta") for key, value in kinds.items()}
        for i, weight in enumerate(weights)
    }
    return gan.mismatch(found, expected, "optimizer's state")


def is_table(rows: Any, columns: Sequence[str], last: int) -> bool:
    """Whether something is a list of rows with numbers (a text for a warning), their steps growing up to `last`.

    What could not be measured, an FID or the diversity, may be missing.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) and tuple(row) == tuple(columns) for row in rows):
        return False
    for row in rows:
        for name, value in row.items():
            is_missing = name in ("fid", "diversity") and value == ""
            is_number = isinstance(value, int | float) and abs(value) < 2**62
            if not (isinstance(value, str) if name == "warning" else is_missing or is_number):
                return False
    steps = [0, *(row["step"] for row in rows), last + 1]
    return all(before < after for before, after in itertools.pairwise(steps))
