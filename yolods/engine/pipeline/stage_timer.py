"""How long a stage computes and waits in a step, all by one clock: the host's on a CPU, the device's own on a GPU.

A host runs ahead of its GPU: it may have given it the whole step before the first pass is done, and what the host
measures says nothing of what the device does. There events on the stream are the clock. They are read when somebody
asks for the times, and cost no step a wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")

KINDS = ("forward", "backward", "waiting", "step")


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


class StageTimer:
    """Adds up a step's passes."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spans: dict[str, list[tuple[Any, Any]]] = {kind: [] for kind in KINDS}
        self._began: Any = None

    def start(self) -> None:
        """A step begins."""
        self._spans = {kind: [] for kind in KINDS}
        self._began = self._now()

    def stop(self) -> None:
        """Its last instruction is done, or on a GPU has been given to the stream."""
        self._spans["step"].append((self._began, self._now()))

    @contextmanager
    def _span(self, kind: str) -> Iterator[None]:
        begin = self._now()
        yield
        self._spans[kind].append((begin, self._now()))

    def forward(self) -> AbstractContextManager[None]:
        """Around a forward pass."""
        return self._span("forward")

    def backward(self) -> AbstractContextManager[None]:
        """Around a backward pass."""
        return self._span("backward")

    def waiting(self, wait: Callable[[], T]) -> T:
        """Call `wait`, and count its time: the host's, or that for which it makes the stream wait."""
        with self._span("waiting"):
            return wait()

    def times(self, sent: int) -> StageTimes:
        """The last step's times; on a GPU this waits for it to end."""
        if self._on_gpu and self._spans["step"]:
            self._spans["step"][-1][1].synchronize()
        forward, backward, waiting, total = (self._seconds(kind) for kind in KINDS)
        return StageTimes(forward, backward, waiting, total, sent)

    def _now(self) -> Any:
        """This moment: seconds, or an event that the stream will pass."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, kind: str) -> float:
        if not self._on_gpu:
            return sum(end - begin for begin, end in self._spans[kind])
        return sum(begin.elapsed_time(end) / 1e3 for begin, end in self._spans[kind])
