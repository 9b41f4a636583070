"""What each rank of `zero_bubble.py` does."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.pipeline_report import OURS, Task
from benchmarks.zero_bubble_report import SCHEDULES, Step
from tests.parity.schedules import schedules_apart
from tests.parity.splits import case_of
from tests.parity.whole import weights_for
from yolods.distributed.world import Ranks
from yolods.engine.pipeline.stage_timer import KINDS, StageTimer

MODEL, SIZE, IMAGES, CUT = "yolov5s", 320, 2, "11"
"""The cut is the most even one of `pipeline.md`."""


def measure_gradients(ranks: Ranks, cases: list[dict[str, Any]], folder: str) -> list[dict]:
    """On a rank: how far the schedules are apart, case by case."""
    found = []
    for case in map(case_of, cases):
        weights = weights_for(ranks, case.model, Path(folder))
        found.append(schedules_apart(ranks, case, weights, Path(folder)))
    return found


class CpuClock(StageTimer):
    """The engine's own clock, with the CPU seconds of every pass."""

    def start(self) -> None:
        """See `StageTimer`."""
        super().start()
        self.cpu: dict[str, list[float]] = {kind: [] for kind in KINDS}

    @contextmanager
    def _span(self, kind: str) -> Iterator[None]:
        began = time.thread_time()
        with super()._span(kind):
            yield
        self.cpu[kind].append(time.thread_time() - began)


def measure_steps(
    ranks: Ranks, counts: list[int], rounds: int, cores: list[int]
) -> list[dict[str, Any]]:
    """On a rank: steps of both schedules in turn, on a core of its own."""
    from benchmarks.pipeline_ranks import Bench
    from yolods.engine.pipeline.split_backward import divide

    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), {cores[ranks.rank]})
    task = Task("", MODEL, SIZE, IMAGES, tuple(counts), rounds, (OURS,), CUT, tuple(cores))
    bench = Bench(task, ranks)
    bench.ours._clock = CpuClock(ranks.device)
    if not bench.ours.mesh.first:  # as `PipelineEngine` does
        divide(bench.ours.net, bench.ours._split)
    found = []
    for count in counts:
        for number in range(-1, rounds):
            for schedule in SCHEDULES[:: 1 if number % 2 else -1]:
                step = _taken(bench, schedule, count, number)
                found += [asdict(step)] if number >= 0 else []
    return found


def _taken(bench: Any, schedule: str, count: int, number: int) -> Step:
    from benchmarks.pipeline_ranks import micro_batch

    engine = bench.ours
    engine._schedule = schedule
    batches = [micro_batch(place, bench.task) for place in range(count)]
    bench.ranks.barrier()
    began, cpu = time.perf_counter(), time.process_time()
    record = engine.train_step(replace(bench.step, batches=count), iter(batches))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    clock = engine._clock
    return Step(
        schedule=schedule,
        micro_batches=count,
        round=number,
        step=seconds,
        cpu=cpu,
        forwards=clock.cpu["forward"],
        backwards=clock.cpu["backward"],
        weights=clock.cpu["weights"],
        loss=sum(record.loss.values()),
        norm=record.grad_norm or 0.0,
    )
