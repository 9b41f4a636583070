"""The memory that the plan predicts for the ranks of a run."""

from __future__ import annotations

from yolods.config import RunConfig
from yolods.model.blueprint import Blueprint
from yolods.plan.layout import layout_of
from yolods.plan.memory.boxes import BoxCounts
from yolods.plan.memory.predict import MemoryModel


def planned_bytes(
    config: RunConfig, blueprint: Blueprint, boxes: BoxCounts, optimizer: str
) -> tuple[int, ...]:
    """Bytes of a rank's tensors when its GPU holds most, for each stage; () for a pipeline, whose
    stages have a table of their own.

    Without what the allocator holds beyond tensors, because that is not in torch's peak either.

    Args:
        boxes: boxes per training sample.
        optimizer: a key of `OPTIMIZERS`.
    """
    if config.deepspeed.pipeline is not None:
        return ()
    model = MemoryModel(blueprint, boxes=boxes, optimizer=optimizer)
    return tuple(rank.device - rank.reserve for rank in model.ranks(layout_of(config)))
