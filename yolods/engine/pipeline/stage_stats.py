"""Combines the stages' measurements of a step and compares idle time with the schedule's bound."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from yolods.engine.pipeline.stage_timer import StageTimes
from yolods.plan.one_f_one_b import Simulation, simulate
from yolods.plan.zero_bubble import division, simulate_split
from yolods.stats import PipeStats, StageStats


@dataclass(frozen=True)
class Gauge:
    """One rank's measurements."""

    stage: int
    """The rank's stage."""
    times: StageTimes
    """Times of its last step."""
    sent: float
    """Bytes sent per step."""
    peak: int
    """Largest number of bytes held so far."""


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this rank in bytes: of its GPU, or on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux reports `ru_maxrss` in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summarise(gauges: Sequence[Gauge], micro_batches: int, schedule: str = "1f1b") -> PipeStats:
    """Statistics per stage of one step.

    Args:
        gauges: at least one per stage.
        micro_batches: number of micro-batches in the step.
        schedule: the order of its passes, "1f1b" or "zb".
    """
    count = 1 + max(gauge.stage for gauge in gauges)
    # All stages begin a step together, after the previous step, and later stages finish earlier.
    # Measured by its own duration each would seem busier than the schedule permits, and the bound
    # is a share of the whole step as well.
    whole = max(max(gauge.times.total for gauge in gauges), 1e-9)
    replicas = [[gauge for gauge in gauges if gauge.stage == stage] for stage in range(count)]
    stages = tuple(_stage(stage, of_stage, whole) for stage, of_stage in enumerate(replicas))
    return PipeStats(
        stages=stages,
        idle=sum(stage.idle for stage in stages) / count,
        bound=_simulated(replicas, micro_batches, schedule).idle_share,
        schedule=schedule,
    )


def _simulated(
    replicas: Sequence[Sequence[Gauge]], micro_batches: int, schedule: str
) -> Simulation:
    """The step that the schedule would take with the stages' mean times."""
    forward, backward, weights = (
        [_mean([getattr(gauge.times, kind) for gauge in each]) for each in replicas]
        for kind in ("forward", "backward", "weights")
    )
    forward = [each / micro_batches for each in forward]
    both = [sum(parts) / micro_batches for parts in zip(backward, weights, strict=True)]
    if schedule == "1f1b":
        return simulate(forward, both, micro_batches)
    # Whole passes were measured together with the inputs' parts of divided ones.
    stages = len(replicas)
    divided = [
        micro_batches - division(stages, stage, micro_batches).first for stage in range(stages)
    ]
    apart = [each / max(count, 1) for each, count in zip(weights, divided, strict=True)]
    inputs = [max(each - part, 0.0) for each, part in zip(both, apart, strict=True)]
    return simulate_split(forward, inputs, apart, micro_batches)


def _stage(stage: int, replicas: Sequence[Gauge], whole: float) -> StageStats:
    forward = [gauge.times.forward for gauge in replicas]
    backward = [gauge.times.backward + gauge.times.weights for gauge in replicas]
    busy = [sum(passes) for passes in zip(forward, backward, strict=True)]
    return StageStats(
        stage=stage,
        forward=_mean(forward),
        backward=_mean(backward),
        idle=_mean([max(1 - each / whole, 0.0) for each in busy]),
        sent=_mean([gauge.sent for gauge in replicas]),
        peak=max(gauge.peak for gauge in replicas),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
