"""Export of a sharded checkpoint to one plain .pt, in a single process and without an engine."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor

from yolods.checkpoint.read import Checkpoint
from yolods.checkpoint.verify import NAME, faults_of, search, single_process
from yolods.errors import UserError
from yolods.model.architecture.build import build
from yolods.model.weights import write_pt

log = logging.getLogger(__name__)


def export(source: Path, target: Path, *, live: bool, fp32: bool) -> str:
    """Write a checkpoint's weights as a .pt that `YOLO()` loads.

    Args:
        source: a run's folder, its `checkpoints/`, or one checkpoint in it.
        target: the file to write; its name must end in .pt.
        live: export the trained weights instead of their moving average.
        fp32: write fp32; otherwise fp16, as ultralytics does.

    Returns:
        a line for the user about what was written.

    Raises:
        UserError: the target is no .pt or cannot be written, or there is no intact checkpoint.
    """
    if target.suffix != ".pt":
        raise UserError(f"--to {target}: ultralytics loads files that end in .pt")
    checkpoint = Checkpoint(find_checkpoint(source))
    record = checkpoint.model
    # Not from the run's own files, which may be gone: the checkpoint itself describes the model.
    net = build(record["architecture"], tuple(record["names"]))
    facts = {"train_args": record["train_args"]}
    try:
        write_pt(target, net, merge_shards(checkpoint, live=live), facts, half=not fp32)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--to {target}: cannot write: {error}") from None
    which = "trained weights" if live else "moving average"
    return f"{target}: {which} of {checkpoint.folder}, after step {checkpoint.progress['step']}"


def find_checkpoint(source: Path) -> Path:
    """The checkpoint at a path, or the newest intact one in it; damaged ones are logged.

    Raises:
        UserError: there is none, or the named one is damaged.
    """
    remedy = "name a run's folder, its checkpoints/, or one checkpoint in it"
    if not source.exists():
        raise UserError(f"{source}: no such folder; {remedy}")
    # A run may be named like a checkpoint, but then it has a folder `checkpoints`.
    if NAME.fullmatch(source.resolve().name) and not (source / "checkpoints").is_dir():
        if faults := faults_of(source, single_process()):
            what = (
                f"{source}: this checkpoint is damaged; use {source.parent} to export the newest "
                "intact one"
            )
            raise UserError("\n".join([what, *faults]))
        return source
    skipped: list[str] = []
    for folder in (source, source / "checkpoints"):
        found = search(folder, single_process())
        skipped += found.skipped
        if found.folder:
            for line in skipped:
                log.warning("%s", line)
            return found.folder
    raise UserError("\n".join([f"{source}: no intact checkpoint in it; {remedy}", *skipped]))


def merge_shards(checkpoint: Checkpoint, *, live: bool) -> dict[str, Tensor]:
    """Every floating tensor of the model, fp32: the trained weights, or their moving average."""
    weights = checkpoint.masters() if live else checkpoint.average()
    return checkpoint.frozen() | weights | checkpoint.statistics(average=not live)
