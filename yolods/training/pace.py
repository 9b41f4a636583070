"""The wall time of a run and its speed in images per second."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Wall time of a run over all its starts, and images per second in the current epoch."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """
        Args:
            seconds: wall time of the run before this start.
            clock: monotonic seconds, from any origin.
        """
        self._clock = clock
        self._began = clock() - seconds
        self._epoch_began, self._samples = clock(), 0

    @property
    def seconds(self) -> float:
        """Wall time of the run so far."""
        return self._clock() - self._began

    def count(self, samples: int) -> None:
        """Count a step over `samples` images."""
        self._samples += samples

    def rate(self) -> float:
        """Images per second of this epoch's training."""
        return self._samples / (self._clock() - self._epoch_began)

    def begin_epoch(self) -> None:
        """Reset the rate; call it after evaluation and saving, which must not count as training."""
        self._epoch_began, self._samples = self._clock(), 0
