"""Times a stage's passes and waits: by the host's clock on a CPU, by events on a GPU.

A host runs ahead of its GPU: it may have queued the whole step before the first pass is done, so
the host's times say nothing about the GPU. On a GPU, events on the stream measure the time. They
are read only when somebody asks for the times, so no step waits for them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")

KINDS = ("forward", "backward", "weights", "waiting", "step")


@dataclass(frozen=True)
class StageTimes:
    """Times of one step on one stage."""

    forward: float
    """Seconds in forward passes."""
    backward: float
    """Seconds in backward passes; in their inputs' parts where they are divided."""
    waiting: float
    """Seconds spent waiting for the neighbouring stages."""
    total: float
    """Seconds from the first instruction to the last."""
    sent: int
    """Bytes sent to the neighbouring stages since the engine was created."""
    weights: float = 0.0
    """Seconds in the weights' parts of divided backward passes."""


class StageTimer:
    """Measures the passes of a step."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = {kind: [] for kind in KINDS}
        self._began: Any = None

    def start(self) -> None:
        """Begin a step."""
        self._spans = {kind: [] for kind in KINDS}
        self._began = self._now()

    def stop(self) -> None:
        """End a step: its last instruction is done, or on a GPU queued."""
        self._spans["step"].append((self._began, self._now()))

    @contextmanager
    def _span(self, kind: str) -> Iterator[None]:
        begin = self._now()
        yield
        self._spans[kind].append((begin, self._now()))

    def forward(self) -> AbstractContextManager[None]:
        """Measure a forward pass."""
        return self._span("forward")

    def backward(self) -> AbstractContextManager[None]:
        """Measure a backward pass, or its inputs' part."""
        return self._span("backward")

    def weights(self) -> AbstractContextManager[None]:
        """Measure the weights' part of a backward pass."""
        return self._span("weights")

    def waiting(self, wait: Callable[[], T]) -> T:
        """Call `wait` and measure it: how long the host waits, or on a GPU the stream."""
        with self._span("waiting"):
            return wait()

    def times(self, sent: int) -> StageTimes:
        """Times of the last step. On a GPU, waits until that step is done."""
        if self._on_gpu and self._spans["step"]:
            # The last event of the step; all others were recorded before it.
            self._spans["step"][-1][1].synchronize()
        forward, backward, weights, waiting, total = (self._seconds(kind) for kind in KINDS)
        return StageTimes(forward, backward, waiting, total, sent, weights)

    def _now(self) -> Any:
        """The present moment: seconds, or an event recorded on the stream."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, kind: str) -> float:
        if not self._on_gpu:
            return sum(end - begin for begin, end in self._spans[kind])
        # CUDA events measure milliseconds.
        return sum(begin.elapsed_time(end) / 1e3 for begin, end in self._spans[kind])
