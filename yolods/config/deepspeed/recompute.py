"""The "activation_checkpointing" block of a DeepSpeed JSON: recomputation in a ZeRO run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolods.errors import Faults
from yolods.parsing.rules import only_false, optional, read_block, setting, whole


def _off(reason: str) -> Any:
    return setting(False, only_false(f"false: {reason}"))


@dataclass(frozen=True, kw_only=True)
class RecomputeConfig:
    """Everything under "activation_checkpointing". The block's presence turns recomputation on."""

    number_checkpoints: int | None = setting(None, optional(whole(1)))
    """Segments of the model; only the tensors that enter a segment are kept. None: about the square
    root of the number of nodes."""
    partition_activations: bool = _off(
        "there is no model-parallel group to divide activations among"
    )
    contiguous_memory_optimization: bool = _off(
        "activations of a detector differ in size and do not fit one buffer"
    )
    cpu_checkpointing: bool = _off(
        "tensors that enter a segment stay on the device; choose fewer checkpoints instead"
    )
    synchronize_checkpoint_boundary: bool = _off("it only makes the host wait at every segment")
    profile: bool = _off('use "flops_profiler" or "wall_clock_breakdown"')
    use_reentrant: bool = _off(
        "several tensors enter a segment, which reentrant checkpointing does not support"
    )


def read_recompute(
    block: Mapping[str, Any] | None, *, pipelined: bool, where: str, faults: Faults
) -> RecomputeConfig | None:
    """Read the block; None if there is none.

    Args:
        pipelined: whether the JSON has a "pipeline" block, which has a key of its own for
            recomputation.
        where: the file's name in messages.
    """
    if block is None:
        return None
    name = f'{where}: "activation_checkpointing"'
    if pipelined:
        faults.add(
            f'{name} together with "pipeline": use "pipeline".activation_checkpoint_interval, '
            "nodes per segment"
        )
        return None
    return read_block(RecomputeConfig, block, name, faults)
