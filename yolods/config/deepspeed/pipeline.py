"""The "pipeline" block of a DeepSpeed JSON: stages, where the model is cut, and the schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yolods.errors import Faults
from yolods.parsing.rules import (
    either,
    items,
    one_of,
    only_false,
    optional,
    read_block,
    real,
    setting,
    text,
    whole,
)

PARTITIONS = ("balanced", "flops", "activations", "parameters", "uniform")
SCHEDULES = ("1f1b", "zb")
_CUTS = items(
    either(whole(1), text()),
    what='a list of cuts: 13 is before layer 13, "4.1" before the second node of layer 4',
)


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """Everything under "pipeline"."""

    stages: int = setting(1, whole(1))
    """Number of stages; it must divide the world size. World size / stages is the replicas."""
    partition: str | tuple[int | str, ...] = setting("balanced", either(one_of(*PARTITIONS), _CUTS))
    """Where the model is cut: the name of a rule, or the cuts themselves."""
    activation_checkpoint_interval: int = setting(0, whole(0))
    """Nodes per segment that the backward pass recomputes; 0: all activations are kept."""
    memory_gib: float | None = setting(None, optional(real(0, above=True)))
    """Memory limit per stage in GiB; None: 90% of the GPU's memory, unlimited on a CPU."""
    schedule: str = setting("1f1b", one_of(*SCHEDULES))
    """Order of the passes: 1f1b, or zb (zero-bubble), which computes the weights' gradients where
    1f1b would wait."""
    use_reentrant: bool = setting(
        False,
        only_false(
            "false (several tensors cross a cut, which reentrant checkpointing does not support)"
        ),
    )
    """DeepSpeed's key; only false works for a model with skip connections."""


def read_pipeline(
    block: Mapping[str, Any] | None, where: str, faults: Faults
) -> PipelineConfig | None:
    """Read the block; None if there is none.

    Args:
        where: the file's name in messages.
    """
    if block is None:
        return None
    config = read_block(PipelineConfig, block, f'{where}: "pipeline"', faults)
    if isinstance(config.partition, tuple) and len(config.partition) != config.stages - 1:
        faults.add(
            f'{where}: "pipeline".partition has {len(config.partition)} cuts and therefore '
            f"{len(config.partition) + 1} stages, but stages is {config.stages}"
        )
    if config.schedule == "zb" and config.activation_checkpoint_interval:
        faults.add(
            f'{where}: "pipeline".schedule "zb" with activation_checkpoint_interval '
            f"{config.activation_checkpoint_interval} is not supported: zb keeps the layers' "
            "inputs from the backward pass to the weights' part, which are what recomputing is to "
            'free; set the interval to 0, or "schedule": "1f1b"'
        )
    return config


def replicas(config: PipelineConfig | None, world_size: int, where: str, faults: Faults) -> int:
    """Number of data-parallel ranks: world size / stages, or the world size without a pipeline."""
    stages = config.stages if config else 1
    if world_size % stages:
        fitting = ", ".join(
            str(count) for count in range(1, world_size + 1) if world_size % count == 0
        )
        faults.add(
            f'{where}: "pipeline".stages {stages} does not divide {world_size} ranks: {world_size} '
            f"/ {stages} = {world_size / stages:.2f}; {world_size} ranks support {fitting} stages"
        )
    # At least 1, so that the checks after a fault do not divide by 0.
    return max(world_size // stages, 1)


def check_pipeline_zero(
    config: PipelineConfig | None,
    zero_stage: int,
    offload: Mapping[str, bool],
    where: str,
    faults: Faults,
) -> None:
    """Refuse ZeRO settings that cannot be combined with a pipeline."""
    if config is None:
        return
    if zero_stage > 1:
        faults.add(
            f'{where}: "pipeline" with ZeRO stage {zero_stage}: a stage reduces its gradients once '
            'per step, after all micro-batches, and keeps its weights; set "zero_optimization": '
            '{"stage": 1} or 0'
        )
    for target in (name for name, on in offload.items() if on):
        faults.add(
            f'{where}: "pipeline" with "offload_{target}" is not supported: each stage already '
            "holds only its own states"
        )
