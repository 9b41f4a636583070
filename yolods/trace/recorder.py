"""Notes a rank's phases and collectives for a few steps; it waits for nobody while they run.

On a CPU a moment is the clock's. On a GPU it is an event on the stream: its time is read when the
traced steps are over, and the device is waited for only before and after them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from yolods.distributed.phases import PHASES, Mark, PhaseTracker
from yolods.trace.record import CallRecord, Part, parts_between
from yolods.traffic.measured import MeteredCall, Moments
from yolods.traffic.meter import NoMeter


class Recorder:
    """Records between `start` and `stop`."""

    def __init__(
        self,
        moments: Moments,
        meter: NoMeter,
        *,
        settle: Callable[[], object] = lambda: None,
        tracker: PhaseTracker = PHASES,
    ) -> None:
        """
        Args:
            moments: by which time is measured.
            meter: knows the calls of torch.distributed.
            settle: waits until the device has done all its work.
            tracker: knows the phases.
        """
        self._moments, self._meter, self._settle = moments, meter, settle
        self._tracker = tracker
        self._marks: list[tuple[Any, Mark]] = []
        self._calls: list[MeteredCall] = []
        self._origin: Any = None
        self._began = 0.0
        self._end: Any = None

    def start(self) -> None:
        """Record from now on; the next mark begins the first part."""
        # Both at one moment, which connects the device's time with the host's clock.
        self._origin = self._moments.now()
        self._settle()
        self._began = time.perf_counter()
        self._meter.keep(self._calls)
        self._tracker.hear(self._note)

    def stop(self) -> None:
        """Record nothing any more; the last part ends here. Without a start it does nothing."""
        if self._origin is not None and self._end is None:
            self._end = self._moments.now()
            self._meter.keep(None)
            self._tracker.hear(None)

    def read(self) -> tuple[tuple[Part, ...], tuple[CallRecord, ...]]:
        """Parts and calls after `stop`, in seconds of this host's `time.perf_counter`."""
        self._settle()
        marks = [(self._seconds(moment), mark) for moment, mark in self._marks]
        # A call in which a rank's connection broke has no time.
        calls = [self._call(call) for call in self._calls if call.held and call.held[-1][1]]
        return parts_between(marks, self._seconds(self._end)), tuple(calls)

    def _note(self, mark: Mark) -> None:
        self._marks.append((self._moments.now(), mark))

    def _seconds(self, moment: Any) -> float:
        return self._began + self._moments.seconds(self._origin, moment)

    def _call(self, call: MeteredCall) -> CallRecord:
        held = tuple((self._seconds(begin), self._seconds(end)) for begin, end in call.held)
        # Of a send or receive nobody knows when its data moved, so it ends with its last wait.
        end = held[-1][1] if call.done is None else max(self._seconds(call.done), held[0][1])
        what = call.carried
        return CallRecord(
            *(what.kind, what.group, what.sent, what.peer),
            *(held[0][0], max(end, held[-1][1]), held),
            tag=what.tag,
        )
