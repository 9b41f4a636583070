"""Compares the memory of a run's first steps with what the plan predicts for its layout.

On a GPU both are bytes of tensors: torch's allocator knows the most that it gave out. On a CPU the
allocator keeps no account. The growth of the process's resident memory since before the engine was
built is only a bound: libraries that load meanwhile and malloc have a part of it (with yolov5n at
160 pixels it was 445 MiB, and 83 were predicted for tensors), and the part of a bucket that no
gradient ever fills has none, so the prediction leaves it out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from yolods.config import RunConfig
from yolods.data.index.labels import Labels
from yolods.distributed.world import Ranks
from yolods.model.blueprint import Blueprint
from yolods.plan.layout import layout_of, undescribed
from yolods.plan.memory.boxes import box_counts
from yolods.plan.memory.predict import MemoryModel
from yolods.plan.partition import MIB
from yolods.telemetry import Telemetry

log = logging.getLogger(__name__)
STEPS, FEWEST = 100, 10
"""Steps after which a run is compared, and steps that suffice if its first epoch has no more."""
MEMORY_TOLERANCE = 0.1
"""Relative difference from which on a run is told that they differ."""
BESIDE = 512 * MIB
"""Bytes that libraries and malloc may have on a CPU."""
PREDICTED_CURVE, MEASURED_CURVE = "memory/predicted_mib", "memory/measured_mib"


class MemoryMeter:
    """The most memory that this process has held since the meter was made."""

    def __init__(self, device: torch.device) -> None:
        """`device`: of the rank. Call it before the engine is built."""
        self._device = device
        self._before = 0 if device.type == "cuda" else _resident("VmRSS")

    def restart(self) -> None:
        """Forget the peak so far, but not what there was before."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with suppress(OSError):  # not every container may; then the peak is since the start
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    def peak(self) -> int:
        """Bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return max(_resident("VmHWM") - self._before, 0)


def _resident(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


class MemoryCheck:
    """Compares once, in the first epoch of this start."""

    def __init__(
        self,
        meter: MemoryMeter,
        ranks: Ranks,
        stage: int,
        predict: Callable[[], Sequence[int]],
        telemetry: Telemetry,
    ) -> None:
        """
        Args:
            meter: it begins anew here, so that building the engine does not count.
            stage: this rank's stage of the pipeline; 0 without one.
            predict: on rank 0, returns bytes per rank of each stage; takes about a second, because
                it traces the model. () if the layout is one that the model does not cover.
        """
        self._meter, self._ranks, self._stage = meter, ranks, stage
        self._predict, self._telemetry = predict, telemetry
        self._steps, self._done = 0, False
        meter.restart()

    def step(self, scalars: dict[str, float | None], *, epoch_ends: bool) -> None:
        """Count a step; when it is time, compare, and tell the result. A collective.

        Args:
            scalars: the step's curves; gets both numbers of rank 0.
            epoch_ends: whether the step ended an epoch, after which an evaluation follows.
        """
        self._steps += 1
        if self._done or not (self._steps >= STEPS or epoch_ends):
            return
        self._done = True
        if self._steps < FEWEST:
            return
        found = self._ranks.to_main((self._stage, self._meter.peak()))
        stages = self._predict() if self._ranks.is_main else ()
        if not stages:
            return
        pairs = [(stages[stage], peak) for stage, peak in found]
        scalars |= {PREDICTED_CURVE: pairs[0][0] / MIB, MEASURED_CURVE: pairs[0][1] / MIB}
        line, differs = memory_line(pairs, self._ranks.device.type)
        self._telemetry.event("memory", line, warn=differs)


def memory_line(pairs: Sequence[tuple[int, int]], kind: str) -> tuple[str, bool]:
    """A line about each rank's predicted and measured bytes, and whether they differ too much.

    Args:
        kind: cpu or cuda.
    """
    beside = BESIDE if kind == "cpu" else 0
    beyond = [_beyond(predicted, measured, beside) for predicted, measured in pairs]
    worst = max(range(len(pairs)), key=lambda rank: beyond[rank])
    what = (
        "by which resident memory has grown (libraries included)"
        if beside
        else "the most that torch has allocated"
    )
    shown = [f"rank {rank} {_of_rank(*pairs[rank])}" for rank in sorted({0, worst})]
    line = f"memory in MiB, {what}: {'; '.join(shown)}"
    differs = beyond[worst] > MEMORY_TOLERANCE
    if differs:
        line += (
            f". They differ by more than {MEMORY_TOLERANCE:.0%}"
            + (f" and {beside // MIB} MiB" if beside else "")
            + ": leave as much room in a layout that `yolods plan` shows"
        )
    return line, differs


def _beyond(predicted: int, measured: int, beside: int) -> float:
    """By how much a prediction is off, relative to it, if up to `beside` bytes more are due."""
    return max(predicted - measured, measured - predicted - beside) / max(predicted, 1)


def _of_rank(predicted: int, measured: int) -> str:
    return f"{measured / MIB:.0f}, predicted {predicted / MIB:.0f}"


def predicted_ranks(
    config: RunConfig,
    blueprint: Blueprint,
    labels: Labels,
    optimizer: str,
    cuts: tuple[int, ...],
    device: str,
) -> tuple[int, ...]:
    """Bytes of a rank of each stage; () if the model of memory does not cover the layout.

    A fault of the prediction is one warning: it is only shown, and no reason to end a run.

    Args:
        labels: of the train set.
        optimizer: the run's.
        cuts: of the run's partition; () without a pipeline.
        device: cpu or cuda.
    """
    if undescribed(config):
        return ()
    try:
        return _predicted(config, blueprint, labels, optimizer, cuts, device)
    except Exception as error:
        log.warning("the plan does not know this run's memory: %s", error)
        return ()


def _predicted(
    config: RunConfig,
    blueprint: Blueprint,
    labels: Labels,
    optimizer: str,
    cuts: tuple[int, ...],
    device: str,
) -> tuple[int, ...]:
    layout, box = layout_of(config, cuts), labels.index.columns["box"]
    boxes = box_counts(labels.counts, box[:, 3] * box[:, 4], config.hyper.mosaic)
    model = MemoryModel(blueprint, boxes=boxes, optimizer=optimizer, device=device)
    if device == "cuda":
        return tuple(rank.device - rank.reserve for rank in model.ranks(layout))
    filled = min(layout.bucket(blueprint.parameters), blueprint.parameters)
    ranks = model.ranks(replace(layout, reduce_bucket=filled))
    return tuple(rank.device + rank.host for rank in ranks)
