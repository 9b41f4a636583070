"""Export of a sharded checkpoint to one plain .pt, in a single process and without an engine."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from yolods.checkpoint.pt_file import write_pt
from yolods.checkpoint.read import Checkpoint
from yolods.checkpoint.tensor_file import as_tensor
from yolods.checkpoint.verify import NAME, faults_of, search, single_process
from yolods.errors import UserError
from yolods.model.graph.graph import meta_model

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
    net = meta_model(record["architecture"])
    net.names = dict(enumerate(record["names"]))
    facts = {"train_args": record["train_args"]}
    weights = chain(merge_shards(checkpoint, live=live), _counts(net))
    try:
        write_pt(target, net, weights, facts, half=not fp32)
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


def merge_shards(checkpoint: Checkpoint, *, live: bool) -> Iterator[tuple[str, Tensor]]:
    """Every floating tensor of the model, fp32, one at a time: the trained weights, or their moving
    average."""
    weights = checkpoint.masters() if live else checkpoint.average()
    statistics = checkpoint.statistics(average=not live)
    for name, value in checkpoint.frozen().items():
        if name not in weights:
            yield name, as_tensor(value)
    for name in weights:
        yield name, weights[name]
    yield from statistics.items()


def _counts(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """BatchNorm's counters of batches, which begin anew in an exported model."""
    for name, tensor in net.state_dict().items():
        if not tensor.is_floating_point():
            yield name, torch.zeros(tensor.shape, dtype=tensor.dtype)
