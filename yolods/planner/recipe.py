"""A layout as the DeepSpeed JSON that trains it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.config.deepspeed.config import MAX_NORM
from yolods.errors import Faults, UserError
from yolods.model.blueprint import Blueprint
from yolods.model.check import check_fit
from yolods.model.graph.graph import Graph
from yolods.parsing.command_line import FlagParser
from yolods.plan.layout import Layout, layout_of
from yolods.plan.stage_plan import check_stages, counted

LOSS_SCALE = {
    "enabled": True,
    "loss_scale": 0,
    "initial_scale_power": 16,
    "loss_scale_window": 1000,
    "hysteresis": 2,
    "min_loss_scale": 1,
}
"""The loss scale of the JSONs in ds_configs/."""


def recipe_of(layout: Layout, graph: Graph, *, batch_keys: bool = True) -> dict[str, Any]:
    """The JSON of a layout.

    Args:
        graph: the model's nodes, whose names are the cuts.
        batch_keys: whether the JSON sets the batch; else --batch-size does.
    """
    batch: tuple[Any, Any, Any] = ("auto", "auto", "auto")
    if batch_keys:
        batch = (layout.images, layout.micro_batch, layout.accumulation)
    found: dict[str, Any] = {
        "train_batch_size": batch[0],
        "train_micro_batch_size_per_gpu": batch[1],
        "gradient_accumulation_steps": batch[2],
        "gradient_clipping": MAX_NORM,
    }
    if layout.precision != "fp32":
        found[layout.precision] = LOSS_SCALE if layout.precision == "fp16" else {"enabled": True}
    if layout.autocast:
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[layout.autocast]
        found["torch_autocast"] = {"enabled": True, "dtype": dtype}
    found["zero_optimization"] = _zero(layout)
    if layout.stages > 1:
        found["pipeline"] = _pipeline(layout, graph)
    elif layout.recompute:
        count = {"number_checkpoints": layout.recompute} if layout.recompute > 0 else {}
        found["activation_checkpointing"] = count
    return found


def _zero(layout: Layout) -> dict[str, Any]:
    block: dict[str, Any] = {"stage": layout.zero_stage}
    if layout.reduce_bucket is not None:
        block["reduce_bucket_size"] = layout.reduce_bucket
    if layout.offload_optimizer:
        block["offload_optimizer"] = {"device": "cpu"}
    if layout.offload_param:
        block["offload_param"] = {"device": "cpu"}
    return block


def _pipeline(layout: Layout, graph: Graph) -> dict[str, Any]:
    block: dict[str, Any] = {
        "stages": layout.stages,
        "partition": [graph.nodes[cut].name for cut in layout.cuts],
    }
    if layout.recompute:
        block["activation_checkpoint_interval"] = layout.recompute
    if layout.schedule != "1f1b":
        block["schedule"] = layout.schedule
    return block


def check_recipe(
    path: Path, layout: Layout, blueprint: Blueprint, words: Sequence[str], device: str
) -> RunConfig:
    """Read a written JSON as `train` would, and compare the result with the layout.

    Args:
        path: the JSON.
        layout: what it has to describe.
        blueprint: the model.
        words: the flags of `train` besides --deepspeed_config.
        device: cpu or cuda.

    Raises:
        UserError: `train` would refuse it.
        RuntimeError: it describes another layout, which is a fault of yolods.
    """
    parser = FlagParser(prog="yolods train", description="")
    add_train_arguments(parser)
    args = parser.read([*words, "--deepspeed_config", str(path)])
    config = build_run_config(args, world_size=layout.ranks, device=device)
    faults = Faults()
    check_fit(blueprint, config, faults)
    faults.raise_if_any()
    if layout.stages > 1:
        check_stages(counted(blueprint, config), config)
    described = layout_of(config, layout.cuts)
    if _trained(described) != _trained(layout):
        raise RuntimeError(f"{path} describes {described}, not {layout}")
    return config


def _trained(layout: Layout) -> tuple[Any, ...]:
    """What of a layout a JSON decides."""
    return (
        *(layout.imgsz, layout.micro_batch, layout.accumulation, layout.replicas),
        *(layout.precision, layout.autocast, layout.zero_stage, layout.cuts, layout.recompute),
        *(layout.offload_optimizer, layout.offload_param, layout.schedule, layout.reduce_bucket),
    )


def refuse_existing(path: Path, flag: str, *, exist_ok: bool) -> None:
    """Refuse a file that would be replaced unasked, and a path that cannot be written.

    Raises:
        UserError: the path exists or is no regular file, or nothing can be written to its folder.
    """
    if path.is_dir():
        raise UserError(f"{flag} {path}: this is a folder; name a file in it")
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {path}: this is a device or a pipe, not a file; name a file")
    if path.exists() and not exist_ok:
        raise UserError(
            f"{flag} {path}: this file exists; name another, or replace it with --exist-ok"
        )
    if not path.parent.is_dir():
        raise UserError(f"{flag} {path}: there is no folder {path.parent}; create it first")
    try:
        # Creating a file is the only proof: some file systems refuse even root.
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(
            f"{flag} {path}: no file can be written to {path.parent} ({error.strerror}); choose "
            "another folder"
        ) from error
