"""How long a stage computes and waits in a step: wall time on a CPU, device events on a GPU, read after the step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class StageTimes:
    """One step on one stage."""

    forward: float
    """Seconds in forward passes."""
    backward: float
    """Seconds in backward passes."""
    waiting: float
    """Seconds waiting for the neighbours."""
    total: float
    """Seconds from the first instruction to the last."""
    sent: int
    """Bytes sent to the neighbours since the engine was made."""


class StageClock:
    """Adds up a step's passes."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: dict[str, list] = {"forward": [], "backward": []}
        self._waiting = self._began = self._ended = 0.0

    def start(self) -> None:
        """A step begins."""
        self._spans = {"forward": [], "backward": []}
        self._waiting, self._began = 0.0, time.perf_counter()

    def stop(self) -> None:
        """Its last instruction is done."""
        self._ended = time.perf_counter()

    @contextmanager
    def _span(self, kind: str) -> Iterator[None]:
        begin = self._now()
        yield
        self._spans[kind].append((begin, self._now()))

    def forward(self) -> Iterator[None]:
        """Around a forward pass."""
        return self._span("forward")

    def backward(self) -> Iterator[None]:
        """Around a backward pass."""
        return self._span("backward")

    def waiting(self, wait: Callable[[], T]) -> T:
        """Call `wait`, and count its time."""
        began = time.perf_counter()
        result = wait()
        self._waiting += time.perf_counter() - began
        return result

    def times(self, sent: int) -> StageTimes:
        """The last step's times; on a GPU this waits for it to end."""
        return StageTimes(
            self._seconds("forward"), self._seconds("backward"), self._waiting, self._ended - self._began, sent
        )

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, kind: str) -> float:
        if not self._on_gpu:
            return sum(end - begin for begin, end in self._spans[kind])
        torch.cuda.synchronize()
        return sum(begin.elapsed_time(end) / 1e3 for begin, end in self._spans[kind])
