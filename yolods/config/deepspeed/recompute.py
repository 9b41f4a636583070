"""The "activation_checkpointing" block of a DeepSpeed JSON: a ZeRO run computes activations twice to keep fewer."""

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
    """Everything under "activation_checkpointing". The block's presence turns recomputing on."""

    number_checkpoints: int | None = setting(None, optional(whole(1)))
    """Segments of the model; only what crosses into each is kept. None: about the square root of its nodes."""
    partition_activations: bool = _off("there is no model-parallel group to divide activations over")
    contiguous_memory_optimization: bool = _off("activations of a detector have many sizes, which no one buffer fits")
    cpu_checkpointing: bool = _off("what crosses into a segment stays on the device; choose fewer checkpoints instead")
    synchronize_checkpoint_boundary: bool = _off("it makes the host wait at every segment, and nothing needs that")
    profile: bool = _off('use "flops_profiler" or "wall_clock_breakdown"')
    use_reentrant: bool = _off("several tensors cross into a segment, which reentrant checkpointing cannot carry")


def read_recompute(
    block: Mapping[str, Any] | None, *, pipelined: bool, where: str, faults: Faults
) -> RecomputeConfig | None:
    """Read the block; None where there is none.

    Args:
        pipelined: the JSON has a "pipeline" block, whose own key divides each stage.
        where: the file's name in messages.
    """
    if block is None:
        return None
    name = f'{where}: "activation_checkpointing"'
    if pipelined:
        faults.add(f'{name} together with "pipeline": use "pipeline".activation_checkpoint_interval, nodes per segment')
        return None
    return read_block(RecomputeConfig, block, name, faults)
