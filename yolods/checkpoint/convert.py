"""From a run's sharded checkpoint to one plain .pt, in a single process and without building an engine."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from yolods.checkpoint.read import PROGRESS, Checkpoint, newest_in
from yolods.errors import UserError
from yolods.model.build import build
from yolods.model.weights import write_pt


def export(source: Path, target: Path, *, live: bool, fp32: bool) -> str:
    """Write a checkpoint's weights as a .pt that `YOLO()` loads.

    Args:
        source: a run's folder, its `checkpoints/`, or one checkpoint in it.
        live: the weights that were being trained, instead of their moving average.
        fp32: keep 32 bits instead of ultralytics' 16.

    Returns:
        a line that says what was written.

    Raises:
        UserError: no whole checkpoint there, or the target cannot be written.
    """
    if target.suffix != ".pt":
        raise UserError(f"--to {target}: ultralytics loads files that end in .pt")
    checkpoint = Checkpoint(find_checkpoint(source))
    model = checkpoint.model
    net = build(model["architecture"], tuple(model["names"]))
    try:
        write_pt(target, net, merge(checkpoint, live=live), {"train_args": model["train_args"]}, half=not fp32)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--to {target}: cannot be written: {error}") from None
    which = "trained weights" if live else "moving average"
    return f"{target}: {which} of {checkpoint.folder}, after step {checkpoint.progress['step']}"


def find_checkpoint(source: Path) -> Path:
    """The checkpoint that a path names.

    Raises:
        UserError: there is none.
    """
    if (source / PROGRESS).is_file():
        return source
    for folder in (source, source / "checkpoints"):
        if found := newest_in(folder):
            return found
    what = "no such folder" if not source.exists() else "no whole checkpoint in it"
    raise UserError(f"{source}: {what}; give a run's folder, its checkpoints/, or one checkpoint in it")


def merge(checkpoint: Checkpoint, *, live: bool) -> dict[str, Tensor]:
    """Every floating tensor of the model, fp32: the trained weights, or their moving average."""
    weights = checkpoint.masters() if live else checkpoint.average()
    return checkpoint.frozen() | weights | checkpoint.statistics(average=not live)
