"""Where this process stands: which step, in what, and for how long; what the watchdog reads while the rank works.

The main thread marks each phase as it enters it, which costs about a microsecond, and its watchdog's thread reads the
newest mark. Time is counted by that thread in ticks, not by the clock: a machine that slept, or a run that was
suspended by Ctrl-Z, has not been slow.

A phase is late when it lasts far longer than it ever did (`watchdog.failure_detector`). One that was never seen before
has nothing to be compared with, and one that declares itself (`slowly`) may take its time: compiling, scanning a data
set, drawing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LEARNED = 2
"""Times that a phase is entered before it can be late: the first holds compilations and allocations."""


@dataclass(frozen=True)
class Mark:
    """What the main thread is in."""

    step: int
    """Optimizer steps begun."""
    phase: str
    """`data`, `forward`, `backward` ..."""
    number: int | None
    """Of the micro-batch or batch."""
    times: int
    """How often this phase has been entered by now."""
    count: int
    """How many marks there have been in this step."""
    slow: bool
    """Whether it has declared that it takes its time."""

    def __str__(self) -> str:
        number = "" if self.number is None else f" {self.number}"
        return f"step {self.step}, {self.phase}{number}" if self.step else f"{self.phase}{number}"


@dataclass(frozen=True)
class Standing:
    """A mark and its age, as the watchdog's thread sees them."""

    mark: Mark
    seconds: float
    """Since when it has been in it."""
    usual: float | None
    """The longest that this phase has taken; None: it is new, or has declared itself slow."""


class PhaseTracker:
    """The newest mark of a process, and how long phases take."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._slow = 1
        self._waits, self._lock = 0, threading.Lock()
        self._device: Callable[[], bool] | None = None
        self._mark = Mark(0, "the start", None, 1, 0, True)
        self._seen: Mark | None = None
        self._seconds = 0.0
        self._longest: dict[str, float] = {}

    def mark(self, phase: str, number: int | None = None, *, step: int | None = None) -> None:
        """Say what begins. For the main thread."""
        times = self._times[phase] = self._times.get(phase, 0) + 1
        before = self._mark
        step = before.step if step is None else step
        count = before.count + 1 if step == before.step else 0
        self._mark = Mark(step, phase, number, times, count, self._slow > 0)

    @contextmanager
    def slowly(self, phase: str) -> Iterator[None]:
        """Within: something that may take minutes, whatever is marked inside it."""
        before = self._mark
        self._slow += 1
        self.mark(phase)
        try:
            yield
        finally:
            self._slow -= 1
            self.mark(before.phase, before.number)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within: the main thread, or one that works for it, waits for other ranks; the time is not its own."""
        with self._lock:
            self._waits += 1
        try:
            yield
        finally:
            with self._lock:
                self._waits -= 1

    def ask(self, device: Callable[[], bool]) -> None:
        """Ask a device, too: whether it waits for those of other ranks, while the host waits for it or is ahead.

        Args:
            device: called from the watchdog's thread; must not wait.
        """
        self._device = device

    @property
    def waits(self) -> bool:
        """Whether this rank waits for others. For the watchdog's thread."""
        return self._waits > 0 or (self._device is not None and self._device())

    def started(self) -> None:
        """From now on phases are compared with what they took before: until then everything is new."""
        self._slow = 0

    @property
    def now(self) -> Mark:
        """The newest mark."""
        return self._mark

    def tick(self, seconds: float) -> Standing:
        """Count time on. For the watchdog's thread, several times a second.

        Args:
            seconds: since the last call, as far as the process was running.
        """
        mark = self._mark
        if mark is not self._seen:
            self._learn()
            self._seen, self._seconds = mark, 0.0
        self._seconds += seconds
        known = mark.times > LEARNED and not mark.slow
        return Standing(mark, self._seconds, self._longest.get(mark.phase, 0.0) if known else None)

    def _learn(self) -> None:
        seen = self._seen
        if seen is not None and seen.times > 1 and not seen.slow:
            self._longest[seen.phase] = max(self._longest.get(seen.phase, 0.0), self._seconds)


PHASES = PhaseTracker()
"""This process's own: it has one main thread, which is in one place."""

mark, slowly, waiting = PHASES.mark, PHASES.slowly, PHASES.waiting
