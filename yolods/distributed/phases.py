"""Tracks what this process is doing: the step, the phase and the time in it, for the watchdog.

The main thread marks each phase when it enters it, which costs about a microsecond; the watchdog's
thread reads the newest mark, and a trace hears of every one. The thread counts time in ticks
instead of reading the clock: a machine that slept, or a run that was suspended with Ctrl-Z, has not
been slow.

A phase is late when it lasts far longer than ever before (`watchdog.failure_detector`). A new phase
has no earlier time to compare with, and a phase inside `slowly` may take its time: compilation, the
scan of a data set, drawing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

LEARNED = 2
"""Entries of a phase before it can be late: the first one includes compilations and allocations."""


@dataclass(frozen=True)
class Mark:
    """A phase of the main thread."""

    step: int
    """Optimizer steps begun."""
    phase: str
    """`data`, `forward`, `backward` ..."""
    number: int | None
    """Index of the micro-batch or batch."""
    times: int
    """How often this phase has been entered so far."""
    count: int
    """Number of marks in this step so far."""
    slow: bool
    """Whether it has declared that it may take its time."""

    def __str__(self) -> str:
        number = "" if self.number is None else f" {self.number}"
        return f"step {self.step}, {self.phase}{number}" if self.step else f"{self.phase}{number}"


@dataclass(frozen=True)
class Standing:
    """A mark and its age, as the watchdog's thread sees them."""

    mark: Mark
    seconds: float
    """Time in this phase so far."""
    usual: float | None
    """Longest duration of this phase so far; None: it is new, or has declared itself slow."""


class PhaseTracker:
    """The newest mark of a process, and the durations of its phases."""

    def __init__(self) -> None:
        self._times: dict[str, int] = {}
        self._slow = 1
        # A counter instead of a flag, because waits nest and several threads may wait.
        self._waits, self._lock = 0, threading.Lock()
        self._device: Callable[[], bool] | None = None
        self._listener: Callable[[Mark], object] | None = None
        self._mark = Mark(0, "the start", None, 1, 0, True)
        self._seen: Mark | None = None
        self._seconds = 0.0
        self._longest: dict[str, float] = {}

    def mark(self, phase: str, number: int | None = None, *, step: int | None = None) -> None:
        """Enter a phase. For the main thread."""
        times = self._times[phase] = self._times.get(phase, 0) + 1
        before = self._mark
        step = before.step if step is None else step
        count = before.count + 1 if step == before.step else 0
        # A new object in one assignment: the watchdog's thread reads it without a lock.
        self._mark = Mark(step, phase, number, times, count, self._slow > 0)
        if self._listener is not None:
            self._listener(self._mark)

    def hear(self, listener: Callable[[Mark], object] | None) -> None:
        """Call `listener` with every new mark from now on, in the main thread; None: nobody."""
        self._listener = listener

    @contextmanager
    def slowly(self, phase: str) -> Iterator[None]:
        """Mark a phase that may take minutes, including whatever is marked within."""
        before = self._mark
        self._slow += 1
        self.mark(phase)
        try:
            yield
        finally:
            self._slow -= 1
            # The outer phase is entered again, so that the slow part does not count towards its
            # time.
            self.mark(before.phase, before.number)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark that the main thread, or one that works for it, waits for other ranks."""
        with self._lock:
            self._waits += 1
        try:
            yield
        finally:
            with self._lock:
                self._waits -= 1

    def ask(self, device: Callable[[], bool]) -> None:
        """Also count the time in which the device waits for those of other ranks.

        Meanwhile the host may wait for the device, or run ahead of it.

        Args:
            device: whether it waits now; called from the watchdog's thread; must not block.
        """
        self._device = device

    @property
    def waits(self) -> bool:
        """Whether this rank waits for others. For the watchdog's thread."""
        return self._waits > 0 or (self._device is not None and self._device())

    def started(self) -> None:
        """End the start, in which every phase counts as slow; from now on durations are
        compared."""
        self._slow = 0

    @property
    def now(self) -> Mark:
        """The newest mark."""
        return self._mark

    def tick(self, seconds: float) -> Standing:
        """Advance the time in the present phase. For the watchdog's thread, several times a second.

        Args:
            seconds: time that has passed since the last call, without a suspension of the process.

        Returns:
            the newest mark, with its age and the time to compare it with.
        """
        mark = self._mark
        # Compared by identity: the same phase entered again is a new mark.
        if mark is not self._seen:
            self._learn()
            self._seen, self._seconds = mark, 0.0
        self._seconds += seconds
        can_be_late = mark.times > LEARNED and not mark.slow
        usual = self._longest.get(mark.phase, 0.0) if can_be_late else None
        return Standing(mark, self._seconds, usual)

    def _learn(self) -> None:
        seen = self._seen
        # The first entry includes compilations, and would hide a later stall.
        if seen is not None and seen.times > 1 and not seen.slow:
            self._longest[seen.phase] = max(self._longest.get(seen.phase, 0.0), self._seconds)


PHASES = PhaseTracker()
"""The tracker of this process. One suffices: a process has one main thread."""

mark, slowly, waiting = PHASES.mark, PHASES.slowly, PHASES.waiting
