"""What a pipeline's stages report of a step, put together: busy and idle time against the schedule's bound."""

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
    """What one rank has measured."""

    stage: int
    """Its stage."""
    times: StageTimes
    """Of its last step."""
    sent: float
    """Bytes it sent in a step."""
    peak: int
    """Most bytes it has held."""


def peak_bytes(device: torch.device) -> int:
    """The most that this rank has held so far: of the device, or on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summarise(gauges: Sequence[Gauge], micro_batches: int) -> PipeStats:
    """All ranks' readings of one step, by stage.

    Args:
        gauges: at least one for every stage.
        micro_batches: of the step.
    """
    count = 1 + max(gauge.stage for gauge in gauges)
    # All stages begin a step together, after the step before it, and the later ones are done earlier: by its own span
    # each would seem busier than the schedule permits. The bound is a share of the whole step as well.
    whole = max(max(gauge.times.total for gauge in gauges), 1e-9)
    stages = tuple(_stage(stage, [gauge for gauge in gauges if gauge.stage == stage], whole) for stage in range(count))
    schedule = simulate(
        [stage.forward / micro_batches for stage in stages],
        [stage.backward / micro_batches for stage in stages],
        micro_batches,
    )
    return PipeStats(stages=stages, idle=sum(stage.idle for stage in stages) / count, bound=schedule.idle_share)


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
