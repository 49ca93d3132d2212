"""What is wrong with a training, by the rows of its epochs.csv: has D won, has G collapsed, does D learn by heart?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rollnumber_04 import Config, Loss

LASTING, COLLAPSED = 1000, 0.25  # steps for which a trouble has lasted; the least diversity
BY_HEART = 0.15  # by how much D is right on more of its training images than of others


def warnings(rows: Sequence[dict[str, Any]], loss: Loss, config: Config) -> list[str]:
    """The sentences that rows of epochs.csv give cause for."""
    advice = ["--translation"] * (not config.translation)
    return [*d_has_won(rows, loss, advice), *g_has_collapsed(rows), *d_learns_by_heart(rows, advice)]


def lasting(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The rows of the last LASTING steps, three at least; none while the run has not been that long."""
    recent = [row for row in rows if row["step"] > rows[-1]["step"] - LASTING]
    recent = rows[-max(3, len(recent)) :]
    return recent if len(recent) >= 3 and recent[0]["step"] >= LASTING else []


def d_has_won(rows: Sequence[dict[str, Any]], loss: Loss, advice: Sequence[str] = (), least: float = 0.0) -> list[str]:
    """A warning if D has won: J(D) has long been under a tenth of what undecided scores give, and J(G) over twice.

    `advice` is what may help besides other rates; `least` is the least that J(D) can be.
    """
    scores, recent = torch.full((1,), loss.undecided), lasting(rows)
    d_undecided, g_undecided = loss.of_d(scores, scores), loss.of_g(scores)
    won = recent and all(r["d_loss"] - least < d_undecided / 10 and r["g_loss"] > 2 * g_undecided for r in recent)
    advice = [*advice, "a lower --lr-d or a higher --lr-g"]
    return [f"D has won and teaches G little: try {', '.join(advice)}"] if won else []


def g_has_collapsed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A warning if the samples' diversity has long been under COLLAPSED."""
    recent = lasting(rows)
    alike = recent and all(row["diversity"] != "" and row["diversity"] < COLLAPSED for row in recent)
    return ["the samples hardly differ, G has collapsed: try a lower --lr-g or a higher --lr-d"] if alike else []


def d_learns_by_heart(rows: Sequence[dict[str, Any]], advice: Sequence[str] = ()) -> list[str]:
    """A warning if D has long been right on far more of its training images than of images that it has not seen."""
    recent = [(row.get("d_accuracy_seen", ""), row.get("d_accuracy_unseen", "")) for row in lasting(rows)]
    by_heart = recent and all("" not in pair and pair[0] - pair[1] > BY_HEART for pair in recent)
    advice = " or ".join([*advice, "more images"])
    return [f"D knows its training images by heart, see d_accuracy_unseen: try {advice}"] if by_heart else []
