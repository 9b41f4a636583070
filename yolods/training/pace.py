"""How long a run has taken and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """Wall time of a run over all its starts, and training images per second in the epoch under way."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """
        Args:
            seconds: that the run had taken before this start.
            clock: seconds from anywhere on.
        """
        self._clock = clock
        self._began = clock() - seconds
        self._epoch_began, self._samples = clock(), 0

    @property
    def seconds(self) -> float:
        """Of the run so far."""
        return self._clock() - self._began

    def count(self, samples: int) -> None:
        """A step over so many images has been taken."""
        self._samples += samples

    def rate(self) -> float:
        """Images per second since the epoch began."""
        return self._samples / (self._clock() - self._epoch_began)

    def begin_epoch(self) -> None:
        """Count anew: evaluation and saving are over."""
        self._epoch_began, self._samples = self._clock(), 0
