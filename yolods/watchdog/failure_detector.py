"""Turns the ranks' heartbeats into a verdict: which rank is lost. Pure; the caller gives the time.

A rank can stop in three ways, each with a rule of its own:

    silent    no heartbeat: killed, stopped, host lost    silence_seconds after its last heartbeat
    failed    its last heartbeat says why it leaves       after FAILED_SECONDS, in which the other
                                                          ranks may raise the same exception
    stalled   it sends heartbeats, but its main thread    stall_seconds and STALL_FACTOR x the
              stays in one phase                          longest time of this phase so far: it is
                                                          named; grace_seconds later the run ends

When one rank stops, all ranks stop. Therefore a stall is attributed to a rank that does not wait
for others; among several, to the one with the least progress. While one of these is in a phase that
may be slow, the others are waiting for it, and no rank counts as stalled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yolods.config.deepspeed.yolods_block import WatchdogConfig

STALL_FACTOR = 10.0
"""A phase is late when it takes this many times its longest duration so far."""
FAILED_SECONDS = 3.0
"""Every rank reports an exception that all of them raise. Only if one rank alone has failed do the
others need this message, so it comes late."""
BROKEN_SECONDS = 3.0
"""Sufficient silence once another rank has lost a connection."""
QUIET_SECONDS = 2.5
"""Without a heartbeat for this long, a rank may be silent rather than stalled."""
SLOWER, WINDOWS = 1.3, 3
"""A straggler takes this many times the median of the others, in this many consecutive windows."""


# Wide: one field per item of a rank's report.
@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """A rank's report about itself."""

    rank: int
    host: str
    pid: int
    number: int
    """Increases with every heartbeat."""
    step: int
    """Optimizer steps begun."""
    marks: int
    """Phases entered in this step; of ranks that do the same work, the lowest is furthest
    behind."""
    doing: str
    """Phase of its main thread."""
    seconds: float
    """Time in this phase so far."""
    usual: float | None
    """Longest earlier duration of this phase; None: the phase may be slow."""
    waiting: bool
    """Whether it waits for other ranks."""
    broken: bool = False
    """Whether it has lost a connection to another rank."""
    own: tuple[int, float] | None = None
    """Number of the last measured window of steps, and its seconds per step without waiting."""
    left: str | None = None
    """Reason for leaving; "": it has finished; None: it is running."""

    @property
    def name(self) -> str:
        """Rank, host and process."""
        return f"rank {self.rank} on {self.host} (process {self.pid})"


@dataclass(frozen=True)
class Alarm:
    """A problem with one rank."""

    rank: int
    ends: bool
    """Whether it ends the run; otherwise it is only reported."""
    text: str
    """One line: the rank and host, its phase, and the duration."""


class FailureDetector:
    """Judges the heartbeats of some ranks.

    Times are in seconds, on one clock that stops while this process is suspended.
    """

    def __init__(self, policy: WatchdogConfig) -> None:
        self._policy = policy
        self._heard: dict[int, tuple[Heartbeat, float]] = {}
        self._failed: dict[int, float] = {}
        self._told: set[tuple[int, str]] = set()

    def lost(self, beats: Sequence[Heartbeat], now: float) -> Alarm | None:
        """The alarm if one of these ranks is silent or has failed.

        Args:
            beats: the newest heartbeat of each rank that has sent one.
        """
        for beat in beats:
            if beat.rank not in self._heard or self._heard[beat.rank][0].number != beat.number:
                self._heard[beat.rank] = beat, now
        return self._silent(now) or self._left(now)

    def check(self, beats: Sequence[Heartbeat], now: float) -> Alarm | None:
        """As `lost`, or the alarm for a stalled rank, which needs the heartbeats of all ranks.

        A stall is reported once, and a second time when it ends the run.
        """
        return self.lost(beats, now) or self._stalled(now)

    @property
    def _running(self) -> dict[int, tuple[Heartbeat, float]]:
        return {rank: pair for rank, pair in self._heard.items() if pair[0].left is None}

    def _silent(self, now: float) -> Alarm | None:
        # A lost connection means that some rank is gone: less silence suffices to name it.
        broken = any(beat.broken for beat, _ in self._heard.values())
        limit = (
            min(BROKEN_SECONDS, self._policy.silence_seconds)
            if broken
            else self._policy.silence_seconds
        )
        for rank, (beat, heard) in sorted(self._running.items()):
            if now - heard > limit:
                text = (
                    f"{beat.name} has sent no heartbeat for {now - heard:.0f} s; it was in "
                    f"{beat.doing}"
                )
                return Alarm(rank, True, text)
        return None

    def _left(self, now: float) -> Alarm | None:
        for rank, (beat, _) in sorted(self._heard.items()):
            if beat.left and now - self._failed.setdefault(rank, now) > FAILED_SECONDS:
                return Alarm(rank, True, f"{beat.name} failed in {beat.doing}: {beat.left}")
        return None

    def _stalled(self, now: float) -> Alarm | None:
        policy, running = self._policy, self._running
        if any(now - heard > QUIET_SECONDS for _, heard in running.values()):
            return None  # this rank may be lost, and the others may be waiting for it
        ages = {rank: beat.seconds + now - heard for rank, (beat, heard) in running.items()}
        beats = [beat for beat, _ in running.values()]
        # If all ranks wait, all of them are candidates: the hang is in the communication itself.
        moving = [beat for beat in beats if not beat.waiting]
        if any(
            beat.usual is None and ages[beat.rank] <= policy.slow_seconds
            for beat in moving or beats
        ):
            return None
        late = [beat for beat in moving if ages[beat.rank] > self._limit(beat)]
        if late:
            beat = min(late, key=_far)
            age, others = ages[beat.rank], "; the others wait for it" if len(beats) > 1 else ""
            usual = "" if beat.usual is None else f" ({beat.usual:.1f} s at most until now)"
            text = f"{beat.name} has been in {beat.doing} for {age:.0f} s{usual}{others}"
            return self._once(beat, text, ends=age > self._limit(beat) + policy.grace_seconds)
        if beats and not moving and min(ages.values()) > policy.stall_seconds:
            beat = min(beats, key=_far)
            text = (
                f"every rank waits for the others, {beat.name} since {ages[beat.rank]:.0f} s, in "
                f"{beat.doing}"
            )
            # The rounds of a large reduction pass without a mark, so a long wait may be progress.
            # Only after the grace period is it certain to be a hang.
            usual = max(beat.usual or 0.0 for beat in beats)
            return self._once(
                beat, text, ends=min(ages.values()) > self._patience(usual) + policy.grace_seconds
            )
        return None

    def _limit(self, beat: Heartbeat) -> float:
        return self._policy.slow_seconds if beat.usual is None else self._patience(beat.usual)

    def _patience(self, usual: float) -> float:
        return max(self._policy.stall_seconds, STALL_FACTOR * usual)

    def _once(self, beat: Heartbeat, text: str, *, ends: bool) -> Alarm | None:
        # Without the seconds: a stall that lasts is the same stall.
        key = (beat.rank, f"{beat.step} {beat.doing}")
        if not ends and key in self._told:
            return None
        self._told.add(key)
        return Alarm(beat.rank, ends, text)


def _far(beat: Heartbeat) -> tuple[int, int, int]:
    """Sort key: a rank's progress."""
    return beat.step, beat.marks, beat.rank


class Stragglers:
    """Finds ranks that are slower than the others, by windows of steps."""

    def __init__(self) -> None:
        self._windows: dict[int, deque[float]] = {}
        self._numbers: dict[int, int] = {}
        self._named: int | None = None

    def hear(self, beats: Sequence[Heartbeat]) -> str | None:
        """A line about a straggler when it becomes one, otherwise None."""
        for beat in beats:
            if beat.own is not None and self._numbers.get(beat.rank) != beat.own[0]:
                self._numbers[beat.rank] = beat.own[0]
                self._windows.setdefault(beat.rank, deque(maxlen=WINDOWS)).append(beat.own[1])
        for beat in beats:
            if beat.rank != self._named and (ratio := self._ratio(beat.rank)) >= SLOWER:
                self._named = beat.rank
                own = self._windows[beat.rank][-1]
                return (
                    f"{beat.name} is a straggler: {own:.2f} s per step, {ratio:.1f} x the median "
                    "of the others"
                )
        return None

    def seconds(self) -> dict[int, float]:
        """Seconds per step of each rank in its last window, without waiting."""
        return {rank: windows[-1] for rank, windows in sorted(self._windows.items())}

    def _ratio(self, rank: int) -> float:
        """Smallest ratio to the others' median in the last windows; 0: too few windows so far."""
        mine = self._windows.get(rank, ())
        others = [list(windows) for other, windows in self._windows.items() if other != rank]
        if len(mine) < WINDOWS or not others or any(len(windows) < WINDOWS for windows in others):
            return 0.0
        usual = [median(windows[place] for windows in others) for place in range(WINDOWS)]
        # The smallest ratio, so that a rank counts as slow only if it is slow in every window.
        return min(own / max(each, 1e-9) for own, each in zip(mine, usual, strict=True))
