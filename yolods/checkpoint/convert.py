"""From a run's sharded checkpoint to one plain .pt, in a single process and without building an engine."""

from __future__ import annotations

import io
import json
import math
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolods.checkpoint.store import MODEL, PROGRESS, newest_in
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
    folder = find_checkpoint(source)
    model = json.loads((folder / MODEL).read_text(encoding="utf-8"))
    progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    net = build(model["architecture"], tuple(model["names"]))
    weights = {**net.state_dict(), **merge(folder, model, progress["layout"], live=live)}
    try:
        write_pt(target, net, weights, {"train_args": model["train_args"]}, half=not fp32)
    except (OSError, RuntimeError) as error:
        raise UserError(f"--to {target}: cannot be written: {error}") from None
    which = "trained weights" if live else "moving average"
    return f"{target}: {which} of {folder}, after step {progress['step']}"


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


def merge(folder: Path, model: dict[str, Any], layout: dict[str, Any], *, live: bool) -> dict[str, Tensor]:
    """Trainable parameters (fp32) and running statistics of a checkpoint, whole.

    The moving average is put together from every rank's shards; the live weights are read by DeepSpeed's own
    converter, or from its module file where nothing is partitioned.
    """
    files = [folder / f"rank{rank}.pt" for rank in range(layout["ranks"])]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"{folder}: {', '.join(missing)} of {layout['ranks']} ranks missing; copy every host's files here"
        )
    # Written by the run itself; RNG states in it are not tensors.
    states = [torch.load(file, map_location="cpu", weights_only=False) for file in files]
    statistics = [state["statistics"] if live else state["ema"]["buffers"] for state in states]
    merged = {
        name: torch.stack([each[place].float() for each in statistics]).mean(0)
        for place, name in enumerate(model["statistics"])
    }
    if live:
        return merged | _live(folder, layout["zero_stage"])
    return merged | join_shards([state["ema"]["shards"] for state in states], model["groups"], layout["zero_stage"])


def join_shards(ranks: list[list[Tensor]], groups: list[list[Any]], zero_stage: int) -> dict[str, Tensor]:
    """Put master shards together.

    Args:
        ranks: shards of every rank, as `Masters.shards()` orders them.
        groups: (name, shape) of every parameter, by group.
        zero_stage: 0: a tensor a parameter, alike on all ranks; 1 and 2: rank r holds the r-th piece of each flat
            group; 3: rank r holds the r-th piece of each parameter, one after the other.
    """
    if zero_stage == 0:
        named = [name for group in groups for name, _ in group]
        return dict(zip(named, ranks[0], strict=True))
    if zero_stage == 3:
        return _join_parameters([torch.cat([shard.flatten() for shard in shards]) for shards in ranks], groups)
    whole: dict[str, Tensor] = {}
    for place, group in enumerate(groups):
        flat = torch.cat([shards[place] for shards in ranks])
        start = 0
        for name, shape in group:
            count = math.prod(shape)
            whole[name] = flat[start : start + count].view(shape).clone()
            start += count
    return whole


def _join_parameters(flats: list[Tensor], groups: list[list[Any]]) -> dict[str, Tensor]:
    whole: dict[str, Tensor] = {}
    start = 0
    for group in groups:
        for name, shape in group:
            count = math.prod(shape)
            piece = math.ceil(count / len(flats))
            whole[name] = torch.cat([flat[start : start + piece] for flat in flats])[:count].view(shape).clone()
            start += piece
    return whole


def _live(folder: Path, zero_stage: int) -> dict[str, Tensor]:
    if zero_stage == 0:
        state = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        return {name: tensor.float() for name, tensor in state["module"].items() if "running_" not in name}
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints, and draws bars
        state = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
    return {name: tensor.clone() for name, tensor in state.items() if "running_" not in name}
