"""Reads from a DeepSpeed JSON how gradients are reduced over the replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReductionConfig:
    """When and where to the gradients of a step are sent."""

    owned: bool
    """ZeRO-1 and 2: whether only the rank that updates a part receives it. False where the JSON
    asks for DeepSpeed's own way, by "use_multi_rank_bucket_allreduce" or "reduce_scatter"."""
    overlapped: bool
    """Whether the reduction begins within the backward pass ("overlap_comm", on by default)."""
    once: str
    """ZeRO-2, if `owned`: whether a step's micro-batches send their gradients together: "step",
    "micro_batch", or "auto", by the memory that whole gradients take."""


def read_reduction(
    zero: Mapping[str, Any],
    stage: int,
    once: str = "auto",
    *,
    pipelined: bool,
    compressed: bool = False,
) -> ReductionConfig:
    """The reduction that a JSON describes.

    Args:
        zero: the sound keys of "zero_optimization".
        stage: of ZeRO.
        once: the value of "yolods".accumulation.reduce.
        pipelined: whether the model is split; a stage reduces once, after its last backward pass.
        compressed: whether compression reduces gradients in place of anything described here, once,
            after the last backward pass.
    """
    theirs = (
        zero.get("use_multi_rank_bucket_allreduce") is not None
        or zero.get("reduce_scatter") is False
    )
    return ReductionConfig(
        owned=stage in (1, 2) and not theirs and not compressed,
        overlapped=zero.get("overlap_comm") is not False and not pipelined and not compressed,
        once=once,
    )
