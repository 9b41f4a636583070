"""Moments in a rank's work: of the host's clock on a CPU, of the device's stream on a GPU.

A host runs ahead of its GPU. There a moment is an event that the stream has been given, and the
time between two of them is read after both have passed, so that nobody waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist


class TimedEvent(Protocol):
    """As torch.cuda.Event with `enable_timing`."""

    def record(self) -> None:
        """Place it after everything that the current stream has been given so far."""

    def query(self) -> bool:
        """Whether the stream has reached it. Does not wait."""

    def elapsed_time(self, later: TimedEvent) -> float:
        """Milliseconds to a later one; both must have passed."""


class HostMoments:
    """Seconds of the host's clock: a call that waits for other ranks lasts as long as that."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.now: Callable[[], Any] = clock

    def at_end_of(self, work: dist.Work, note: Callable[[Any], None]) -> None:
        """Note the moment at which an asynchronous collective is done, in whichever thread."""
        work.get_future().add_done_callback(lambda _: note(self.now()))

    def passed(self, moment: Any) -> bool:
        """Always: a moment is taken when it has come."""
        return True

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two moments."""
        return end - begin


class DeviceMoments:
    """Events on a device's streams."""

    def __init__(
        self, event: Callable[[], TimedEvent], aside: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """
        Args:
            event: creates one.
            aside: within, a stream is current on which nobody computes.
        """
        self._event, self._aside = event, aside

    def now(self) -> TimedEvent:
        """The place that the current stream has been given work to."""
        event = self._event()
        event.record()
        return event

    def at_end_of(self, work: dist.Work, note: Callable[[Any], None]) -> None:
        """Note an event behind an asynchronous collective. Only the stream aside waits for it.

        `Work.wait` would do the same, but it also releases the tensors that the collective reads.
        """
        with self._aside():
            work.get_future().wait()
            note(self.now())

    def passed(self, moment: TimedEvent) -> bool:
        """Whether the device has reached it; does not wait."""
        return moment.query()

    def seconds(self, begin: TimedEvent, end: TimedEvent) -> float:
        """Between two moments that have passed."""
        return begin.elapsed_time(end) / 1e3


def moments_of(device: torch.device) -> HostMoments | DeviceMoments:
    """What measures the work of a rank that computes on this device."""
    if device.type != "cuda":
        return HostMoments()
    # Of the other priority than those on which DeepSpeed reduces, which come from the same few.
    aside = torch.cuda.Stream(priority=-1)
    event = partial(torch.cuda.Event, enable_timing=True)
    return DeviceMoments(event, partial(torch.cuda.stream, aside))
