"""Combines the stages' measurements of a step and compares idle time with the schedule's bound."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from yolods.engine.pipeline.stage_timer import StageTimes
from yolods.plan.one_f_one_b import simulate
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


def summarise(gauges: Sequence[Gauge], micro_batches: int) -> PipeStats:
    """Statistics per stage of one step.

    Args:
        gauges: at least one per stage.
        micro_batches: number of micro-batches in the step.
    """
    count = 1 + max(gauge.stage for gauge in gauges)
    # All stages begin a step together, after the previous step, and later stages finish earlier.
    # Measured by its own duration each would seem busier than the schedule permits, and the bound
    # is a share of the whole step as well.
    whole = max(max(gauge.times.total for gauge in gauges), 1e-9)
    stages = tuple(
        _stage(stage, [gauge for gauge in gauges if gauge.stage == stage], whole)
        for stage in range(count)
    )
    schedule = simulate(
        [stage.forward / micro_batches for stage in stages],
        [stage.backward / micro_batches for stage in stages],
        micro_batches,
    )
    return PipeStats(
        stages=stages, idle=sum(stage.idle for stage in stages) / count, bound=schedule.idle_share
    )


def _stage(stage: int, replicas: Sequence[Gauge], whole: float) -> StageStats:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    busy = [gauge.times.forward + gauge.times.backward for gauge in replicas]
    return StageStats(
        stage=stage,
        forward=mean([gauge.times.forward for gauge in replicas]),
        backward=mean([gauge.times.backward for gauge in replicas]),
        idle=mean([max(1 - each / whole, 0.0) for each in busy]),
        sent=mean([gauge.sent for gauge in replicas]),
        peak=max(gauge.peak for gauge in replicas),
    )
