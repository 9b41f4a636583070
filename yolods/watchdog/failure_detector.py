"""Who has stopped: what ranks say of themselves, second by second, turned into a verdict. Pure; the clock is given.

Three ways of stopping, of which each has its own rule:

    silent    no beat: killed, stopped, its host gone       silence_seconds after its last beat
    failed    its last beat says why it left                FAILED_SECONDS, in which the others may learn it themselves
    stalled   it beats, but its main thread does not move   stall_seconds and STALL_FACTOR x what that phase ever took:
                                                            it is named; grace_seconds later the run ends

All ranks stand still when one does, so a stall is laid on a rank that does not wait for others, of these on the one
that has come least far. While one is in a phase that may take its time, the others are waiting for it and stalled is
nobody.
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
"""A phase is late from this many times its longest so far on."""
FAILED_SECONDS = 3.0
"""What fails on every rank alike is said by each; only where a rank alone has failed do the others have to be told."""
BROKEN_SECONDS = 3.0
"""Silence that is enough where another rank has lost a connection."""
QUIET_SECONDS = 2.5
"""Without a beat for so long, a rank may be silent rather than stalled."""
SLOWER, WINDOWS = 1.3, 3
"""A straggler takes this many times the median of the others, in so many windows in a row."""


# Wide: a field for each thing that a rank says of itself.
@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What a rank says of itself."""

    rank: int
    host: str
    pid: int
    number: int
    """Grows with every beat."""
    step: int
    """Optimizer steps begun."""
    marks: int
    """Phases entered in this step: of ranks that do the same, the one with the fewest has come least far."""
    doing: str
    """Where its main thread is."""
    seconds: float
    """And since when."""
    usual: float | None
    """The longest that it was there before; None: it may take its time."""
    waiting: bool
    """Whether it waits for other ranks."""
    broken: bool = False
    """Whether it has lost a connection to another rank."""
    own: tuple[int, float] | None = None
    """Number of the window of steps that was measured last, and its seconds a step without waiting."""
    left: str | None = None
    """Why it leaves; "": it has finished."""

    @property
    def name(self) -> str:
        """Rank, host and process."""
        return f"rank {self.rank} on {self.host} (process {self.pid})"


@dataclass(frozen=True)
class Alarm:
    """Something is wrong with a rank."""

    rank: int
    ends: bool
    """Whether the run ends of it; otherwise it is only said."""
    text: str
    """One line: which rank and host, what it did, since when."""


class FailureDetector:
    """Judges what is heard of some ranks. Times are seconds of one clock that stands still while this process does."""

    def __init__(self, policy: WatchdogConfig) -> None:
        self._policy = policy
        self._heard: dict[int, tuple[Heartbeat, float]] = {}
        self._failed: dict[int, float] = {}
        self._told: set[tuple[int, str]] = set()

    def lost(self, beats: Sequence[Heartbeat], now: float) -> Alarm | None:
        """Whether one of these ranks is silent, or failed.

        Args:
            beats: the newest of each rank, as far as there is one.
        """
        for beat in beats:
            if beat.rank not in self._heard or self._heard[beat.rank][0].number != beat.number:
                self._heard[beat.rank] = beat, now
        return self._silent(now) or self._left(now)

    def check(self, beats: Sequence[Heartbeat], now: float) -> Alarm | None:
        """The same, and whether one is stalled, for which all ranks have to be heard; a stall is said once, and once
        more when the run ends of it."""
        return self.lost(beats, now) or self._stalled(now)

    @property
    def _running(self) -> dict[int, tuple[Heartbeat, float]]:
        return {rank: pair for rank, pair in self._heard.items() if pair[0].left is None}

    def _silent(self, now: float) -> Alarm | None:
        broken = any(beat.broken for beat, _ in self._heard.values())
        limit = min(BROKEN_SECONDS, self._policy.silence_seconds) if broken else self._policy.silence_seconds
        for rank, (beat, heard) in sorted(self._running.items()):
            if now - heard > limit:
                text = f"{beat.name} has given no sign of life for {now - heard:.0f} s; it was in {beat.doing}"
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
            return None  # that one may be lost, and the others be waiting for it
        ages = {rank: beat.seconds + now - heard for rank, (beat, heard) in running.items()}
        beats = [beat for beat, _ in running.values()]
        moving = [beat for beat in beats if not beat.waiting]
        if any(beat.usual is None and ages[beat.rank] <= policy.slow_seconds for beat in moving or beats):
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
            text = f"every rank waits for the others, {beat.name} since {ages[beat.rank]:.0f} s, in {beat.doing}"
            # Rounds of a large reduction pass without a mark: only the end of the grace is sure to be none of them.
            usual = max(beat.usual or 0.0 for beat in beats)
            return self._once(beat, text, ends=min(ages.values()) > self._patience(usual) + policy.grace_seconds)
        return None

    def _limit(self, beat: Heartbeat) -> float:
        return self._policy.slow_seconds if beat.usual is None else self._patience(beat.usual)

    def _patience(self, usual: float) -> float:
        return max(self._policy.stall_seconds, STALL_FACTOR * usual)

    def _once(self, beat: Heartbeat, text: str, *, ends: bool) -> Alarm | None:
        key = (beat.rank, f"{beat.step} {beat.doing}")
        if not ends and key in self._told:
            return None
        self._told.add(key)
        return Alarm(beat.rank, ends, text)


def _far(beat: Heartbeat) -> tuple[int, int, int]:
    """Orders ranks by how far they have come."""
    return beat.step, beat.marks, beat.rank


class Stragglers:
    """Which rank is slower than the others, window of steps after window of steps."""

    def __init__(self) -> None:
        self._windows: dict[int, deque[float]] = {}
        self._numbers: dict[int, int] = {}
        self._named: int | None = None

    def hear(self, beats: Sequence[Heartbeat]) -> str | None:
        """A line about a straggler, the first time that it is one."""
        for beat in beats:
            if beat.own is not None and self._numbers.get(beat.rank) != beat.own[0]:
                self._numbers[beat.rank] = beat.own[0]
                self._windows.setdefault(beat.rank, deque(maxlen=WINDOWS)).append(beat.own[1])
        for beat in beats:
            if beat.rank != self._named and (ratio := self._ratio(beat.rank)) >= SLOWER:
                self._named = beat.rank
                own = self._windows[beat.rank][-1]
                return f"{beat.name} is a straggler: {own:.2f} s a step of its own, {ratio:.1f} x what the others take"
        return None

    def seconds(self) -> dict[int, float]:
        """Seconds a step that each rank last took for itself."""
        return {rank: windows[-1] for rank, windows in sorted(self._windows.items())}

    def _ratio(self, rank: int) -> float:
        """How many times the others' median it takes, at the least in the last windows; 0: too early to say."""
        mine = self._windows.get(rank, ())
        others = [list(windows) for other, windows in self._windows.items() if other != rank]
        if len(mine) < WINDOWS or not others or any(len(windows) < WINDOWS for windows in others):
            return 0.0
        usual = [median(windows[place] for windows in others) for place in range(WINDOWS)]
        return min(own / max(each, 1e-9) for own, each in zip(mine, usual, strict=True))
