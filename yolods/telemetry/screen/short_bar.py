"""Progress in few columns: a text, the number of units that are done, and a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from yolods.system.humanize import clock_text

REDRAWN_EVERY = 0.1
"""Seconds between two redraws."""


class ShortBar:
    """A line that is drawn again in place. It has the attributes and methods of ultralytics' bar
    that `Console` uses, and none of its own bar, for which a narrow terminal has no room."""

    def __init__(
        self,
        text: str,
        total: int,
        file: TextIO,
        *,
        columns: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            text: what stands before the numbers; `desc` changes it.
            total: number of units.
            columns: the terminal's width, within which the line stays.
        """
        self.desc, self.total, self.n = text, total, 0
        self._file, self._columns, self._clock = file, columns, clock
        self._began, self._drawn = clock(), -REDRAWN_EVERY
        self._draw()

    def update(self, count: int) -> None:
        """Count more units."""
        self.n += count
        if self.n >= self.total or self._clock() - self._drawn >= REDRAWN_EVERY:
            self._draw()

    def close(self) -> None:
        """Draw the last state, and end the line."""
        self._draw()
        self._write("\n")

    def _draw(self) -> None:
        """Draw the line: the estimated time left, or at the end the time that it took."""
        self._drawn = self._clock()
        passed = self._drawn - self._began
        told = f" {clock_text(passed)}"
        if self.n < self.total:
            left = passed / self.n * (self.total - self.n) if self.n else 0.0
            told = f" <{clock_text(left)}" if self.n else ""
        line = f"{self.desc} {self.n}/{self.total}{told}"
        if len(line) >= self._columns:
            line = line[: int(self._columns) - 1]
        self._write(f"\r\033[K{line}")

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # a screen that is gone must not end a run
            self._file.write(text)
            self._file.flush()
