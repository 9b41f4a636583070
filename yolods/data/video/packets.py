"""What a container says about its frames before they are decoded, and what decoding left out.

A container stores one packet per frame, in the order of decoding, with the time at which the frame
is shown. These times are the measure for everything that is decoded: a frame without a picture, a
gap, or an end that was cut off shows in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SAME_TIME = 1e-5
"""Seconds: two times that lie closer are those of one frame."""

STEADY_SHARE = 0.9
"""Share of equal intervals from which on a video has a constant rate."""

GAP = 1.5
"""Intervals: a longer pause in a video of constant rate is a gap."""


@dataclass(frozen=True)
class Packets:
    """The packets of a container's first video stream."""

    times: np.ndarray
    """(n,) float64, seconds at which frames are shown, in the order of storage; NaN: unknown."""
    declared: float = 0.0
    """Seconds that the header declares, which may include a longer sound; 0: unknown."""
    unreadable: tuple[int, ...] = ()
    """Packets that cannot be read, by the number of readable ones before each."""
    broken_off: bool = False
    """Whether the file is shorter than its container says."""

    @cached_property
    def shown(self) -> np.ndarray:
        """(n,) The times in the order in which the frames are shown."""
        return np.sort(self.times)

    @property
    def cut(self) -> bool:
        """Whether the end is missing."""
        return self.broken_off or self._gap_at_end

    @property
    def certain(self) -> int:
        """Number of frames, in the order shown, that come before any frame that was cut off.

        Frames are stored before others that are shown earlier. Where a file was cut off, the last
        `_reordered` frames may therefore have lost some of their predecessors, and their numbers
        with them. Where it broke off, the last packet may be incomplete.
        """
        lost = self._reordered * self.cut + self.broken_off
        return max(len(self.times) - lost, 0)

    @property
    def falls_short(self) -> bool:
        """Whether the packets end well before the time that the header declares."""
        end = self.shown[-1] + self._interval if len(self.times) else 0.0
        return bool(self.declared - end > max(0.5, 3 * self._interval))

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Pauses between certain frames of a video of constant rate: (start, end) in seconds."""
        shown = self.shown[: self.certain]
        if not self._steady:
            return []
        return [(shown[k], shown[k + 1]) for k in np.flatnonzero(self._is_gap(np.diff(shown)))]

    def before(self, first: float) -> int:
        """Number of packets that are shown before the time of the first picture, in seconds."""
        return int(np.searchsorted(self.shown, first - SAME_TIME))

    @cached_property
    def _interval(self) -> float:
        """The median seconds between two frames; 0 for fewer than two."""
        return float(np.median(np.diff(self.shown))) if len(self.times) > 1 else 0.0

    @cached_property
    def _steady(self) -> bool:
        if len(self.times) < 3 or not np.isfinite(self.shown[-1]):
            return False
        apart = np.abs(np.diff(self.shown) - self._interval)
        # Matroska rounds times to milliseconds.
        return bool((apart <= max(0.1 * self._interval, 0.0015)).mean() >= STEADY_SHARE)

    @cached_property
    def _reordered(self) -> int:
        """By how many places at most a frame is shown earlier than it is stored."""
        if not np.isfinite(self.times).all():
            return 0
        place = np.empty(len(self.times), int)
        place[np.argsort(self.times, kind="stable")] = np.arange(len(self.times))
        return int(max(np.arange(len(place)) - place, default=0))

    @cached_property
    def _gap_at_end(self) -> bool:
        """Whether frames are missing among the last ones, whose successors were shown earlier."""
        last = np.diff(self.shown)[-self._reordered :] if self._reordered else np.empty(0)
        return self._steady and bool(self._is_gap(last).any())

    def _is_gap(self, intervals: np.ndarray) -> np.ndarray:
        return intervals > GAP * self._interval


@dataclass(frozen=True)
class Missing:
    """The packets that gave no picture."""

    before: int = 0
    """Number of packets before the first picture."""
    between: tuple[int, ...] = ()
    """Numbers of missing frames between pictures; frame 0 is the first picture."""
    after: int = 0
    """Number of packets after the last picture."""


def missing(packets: Packets, decoded: Sequence[float]) -> Missing | None:
    """Compare the certain packets with what was decoded from them.

    Args:
        packets: of the file.
        decoded: times of the decoded frames in seconds, in their order; at least one.

    Returns:
        What is missing; None: something is, but the times do not say what.
    """
    expected, times = packets.shown[: packets.certain], np.asarray(decoded, float)
    if len(times) >= len(expected):
        return Missing()
    if not np.isfinite(expected).all():
        return None
    places = np.searchsorted(expected, times - SAME_TIME)
    known = (places < len(expected)) & (np.diff(places, prepend=-1) > 0)
    if not known.all() or not (np.abs(expected[places] - times) <= SAME_TIME).all():
        return None
    first, last = int(places[0]), int(places[-1])
    gone = np.setdiff1d(np.arange(first, last), places) - first
    return Missing(first, tuple(gone.tolist()), len(expected) - 1 - last)
