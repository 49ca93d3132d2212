"""Whether checkpoints and models are what they say: a file may come from anywhere, and may say anything."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import rollnumber_04 as gan
from rollnumber_04 import GAN, PROGRESS, Config, Run, UserError

OF_FID = {("n_fake", int), ("n_real", int), ("network", str), ("weights", str)}  # of its conditions
MAY_BE_MISSING = ("fid", "diversity", "d_accuracy_seen", "d_accuracy_unseen")  # of what an interval measures

UNSAID = {  # what models from before the labs had files of their own say of the assignment's networks
    "arch": ["dcgan"], "upsample": ["deconv"], "kernel": [4], "norm": ["batch"], "negative_slope": [0.0, 0.2],
    "latent": ["normal"], "init": ["normal"], "dropout": [0.0], "classes": [[]],
    "bias": [False], "conditional": [False], "spectral_norm": [False],
}  # fmt: skip


def check_parts(saved: dict[str, Any], path: Path) -> None:
    """Raise UserError unless a checkpoint has all its parts, of the right types."""
    kinds = {"kind": str, "channels": int, "classes": list, **dict.fromkeys(("ranks", "log", "epochs"), list)}
    kinds |= dict.fromkeys(("options", "architecture", "model", "optimizers", "progress"), dict)
    progress = saved.get("progress") if type(saved.get("progress")) is dict else {}
    for part, of_part in ((saved, kinds), (progress, PROGRESS)):
        for name, kind in of_part.items():
            is_count = of_part is PROGRESS
            if type(part.get(name)) is not kind or (is_count and not 0 <= part[name] < 2**62):
                raise UserError(f"not a whole checkpoint: its {name} is wrong", path)


def check_checkpoint(saved: dict[str, Any], path: Path, kind: type[GAN], config: Config) -> None:
    """Raise UserError unless a checkpoint holds a run of its own options, before anything of its size is built."""
    try:
        with torch.device("meta"):  # shapes without memory
            model = kind(config, saved["channels"], saved["classes"])
    except Exception as error:  # of whatever its options make impossible
        raise UserError(f"its options are wrong ({gan.complaint(error)})"[:300], path) from None
    wrong = mismatch(saved["model"], dict(model.state_dict()), "model")
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
    return mismatch(found, expected, "optimizer's state")


def is_table(rows: Any, columns: Sequence[str], last: int) -> bool:
    """Whether something is a list of rows with numbers (a text for a warning), their steps growing up to `last`.

    What cannot always be measured may be missing.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) and tuple(row) == tuple(columns) for row in rows):
        return False
    for row in rows:
        for name, value in row.items():
            is_missing = name in MAY_BE_MISSING and value == ""
            is_number = isinstance(value, int | float) and abs(value) < 2**62
            if not (isinstance(value, str) if name == "warning" else is_missing or is_number):
                return False
    steps = [0, *(row["step"] for row in rows), last + 1]
    return all(before < after for before, after in itertools.pairwise(steps))


def check_rank(own: Any, expected: dict[str, Any], path: Path) -> None:
    """Raise UserError unless what a process has saved of its own is made as it should be, but for another device's."""
    random = own.get("random") if isinstance(own, dict) else None
    device = random.get("device") if isinstance(random, dict) else None
    if isinstance(device, str) and device != expected["random"]["device"]:
        own = own | {"random": expected["random"]}
    if wrong := mismatch(own, expected, "ranks"):
        raise UserError(wrong, path)


def checked_arguments(
    network: type[nn.Module], given: dict[str, Any], weights: dict[str, Any], name: str, path: str | Path
) -> dict[str, Any]:
    """The constructor's arguments that a model's file gives, if its weights are those of such a network.

    Arguments of earlier versions that say nothing are left out. Raises UserError before anything of its size is built.
    """
    known = {key: value for key, value in given.items() if value not in UNSAID.get(key, ())}
    try:  # the file may say anything: shapes first, without memory
        if "classes" in known:
            if type(known["classes"]) is not list or not "".join(known["classes"]).isprintable():
                raise ValueError("names that are none")
            known["classes"] = [*map(gan.class_name, known["classes"])]
        with torch.device("meta"):
            expected = dict(network(**known).state_dict())
    except Exception:
        raise UserError(f"its {name} is not one that is made here: {str(known)[:200]}", path) from None
    if wrong := mismatch(weights, expected, name):
        raise UserError(f"{wrong}: it is no model of this program, or damaged", path)
    return known


def mismatch(found: Any, expected: Any, name: str) -> str:
    """Where `found` is not made as `expected`, of the same keys, types and shapes and of finite numbers; or ""."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return f"its {name} holds other parts than it should"
        return next((said for key in expected if (said := mismatch(found[key], expected[key], f"{name}.{key}"))), "")
    if isinstance(expected, Tensor):
        if not isinstance(found, Tensor) or (found.shape, found.dtype) != (expected.shape, expected.dtype):
            return f"its {name} has not the shape that it should"
        if found.layout is not torch.strided or found.is_meta or found.untyped_storage().nbytes() < found.nbytes:
            return f"its {name} holds fewer numbers than it claims"
        return "" if found.isfinite().all() else f"its {name} holds numbers that are not finite"
    return "" if type(found) is type(expected) else f"its {name} is wrong"


def check_comparable(run: Run, saved: dict[str, Any], path: Path) -> None:
    """Raise UserError where the data or the FIDs are no longer what a checkpoint's numbers are of."""
    is_same = saved["options"].get("data_fingerprint") == run.facts["data_fingerprint"]
    if is_same and saved["progress"]["seen"] > len(run.images.pixels):
        raise UserError("has seen more images of its epoch than there are", path)
    before, now = saved["options"].get("fid"), run.facts["fid"]
    before = before if isinstance(before, dict) else {}
    was, becomes = ([fid.get(name) for name in ("n_fake", "n_real", "weights", "network")] for fid in (before, now))
    if before and now and was != becomes:
        of = "{} samples, {} images, weights {}, {}".format(*was)
        what = f"the FIDs of {path} are of others, {of}, and cannot be compared; --evaluate-every 0 turns them off"
        about = "--evaluate-every" if was[0] == becomes[0] else gan.flag_of("evaluate_samples", becomes[0])
        raise UserError(what[:400], about)


def check_file(flag: str, path: Path, *endings: str) -> None:
    """Raise UserError unless a path can be that of a new file with one of these endings."""
    if path.suffix.lower() not in endings:
        several = f"must end in {' or '.join(endings)}"
        raise UserError(several if len(endings) > 1 else f"must name a {endings[0]} file", f"{flag} {path}")
    if path.is_dir():
        raise UserError("is a folder", f"{flag} {path}")
    gan.check_writable(flag, path.parent)
