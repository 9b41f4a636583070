"""How long the ranks would stand still in a step if its operations took no time.

A rank stands still for two reasons: its data is on the way, or another rank is still at work. At
the boundary of a pipeline's stage both are one wait, and a message that is late on one stage makes
others wait for that stage later. So one wait alone does not show its reason. But two things are
known: how long a rank works between its calls, and which calls need which (`matching`). The step is
replayed from these alone: an operation completes as soon as the last call that it needs is made.
The waits that remain are those that no faster link would save: unequal work, and the idle time of a
pipeline's schedule. The rest of the time that a rank stood still is due to the links.

Only durations of each rank's own clock are used, and one moment that all ranks share: the end of
the step's last collective of all ranks, which all of them leave at about the same time. It tells
how much later one rank began the step than another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from yolods.traffic.matching import CallPlace, needed_calls


class TimedCall(NamedTuple):
    """A call of a step whose moments have passed, in seconds since any moment of that rank."""

    group: str
    """Name of the group, the same on all its ranks; "": not known."""
    peer: int | None
    """The other rank of a send or receive."""
    sent: float
    """Bytes that this rank sends."""
    tag: int
    """That of a send or receive."""
    later: bool
    """Whether the call returned at once, and the rank waited for its work later."""
    held: tuple[tuple[float, float], ...]
    """From when to when the rank stood still: in the call, and in waits for its work."""


class _Event(NamedTuple):
    """Something that happens on a rank."""

    begin: float
    """Seconds."""
    end: float
    """Seconds, until which the rank stood still."""
    call: int
    """Index of the call."""
    begins: bool
    """Whether the call is made here."""
    completes: bool
    """Whether the rank goes on only when the operation is complete."""


class _Replayed:
    """A rank on its way through the step."""

    def __init__(self, calls: Sequence[TimedCall], start: float) -> None:
        """
        Args:
            start: seconds by which its clock is behind one that all ranks share.
        """
        events = (event for place, call in enumerate(calls) for event in _of(place, call))
        # A device's clock may tell no difference: then in the order of the calls.
        self.events = sorted(events, key=lambda event: (event.begin, event.end))
        self.next = 0
        self.real = self.events[0].begin if self.events else 0.0
        """Where it is, by its own clock."""
        self.now = self.real + start
        """Where it would be, by the shared one."""
        self.waited = 0.0

    @property
    def event(self) -> _Event | None:
        return self.events[self.next] if self.next < len(self.events) else None

    def arrive(self, event: _Event) -> None:
        """Work until the event."""
        work = max(event.begin - self.real, 0.0)
        self.real, self.now = self.real + work, self.now + work

    def leave(self, event: _Event, ready: float) -> None:
        """Go on when `ready` has come."""
        self.waited += max(ready - self.now, 0.0)
        self.now = max(self.now, ready)
        self.real = max(self.real, event.end)
        self.next += 1


def _of(place: int, call: TimedCall) -> list[_Event]:
    return [
        _Event(*span, place, begins=number == 0, completes=number > 0 or not call.later)
        for number, span in enumerate(call.held)
    ]


def replayed_waits(ranks: Sequence[Sequence[TimedCall]]) -> list[float] | None:
    """Seconds that each rank would stand still if operations took no time.

    Args:
        ranks: each rank's calls of one step, in the order in which it made them.

    Returns:
        None: a rank waits for a call that is never made, so that these are not a whole step's.
    """
    needs = needed_calls(ranks)
    starts = _starts(ranks, needs)
    replayed = [_Replayed(*each) for each in zip(ranks, starts, strict=True)]
    made: dict[CallPlace, float] = {}
    moved = True
    # Each rank goes as far as it can, until none gets any further.
    while moved:
        moved = False
        for rank, own in enumerate(replayed):
            while (event := own.event) is not None:
                own.arrive(event)
                if event.begins:
                    made[rank, event.call] = own.now
                needed = needs[rank][event.call] if event.completes else ()
                if not all(place in made for place in needed):
                    break
                own.leave(event, max((made[place] for place in needed), default=own.now))
                moved = True
    if any(own.event is not None for own in replayed):
        return None
    return [own.waited for own in replayed]


def _starts(
    ranks: Sequence[Sequence[TimedCall]], needs: Sequence[Sequence[tuple[CallPlace, ...]]]
) -> list[float]:
    """Seconds from each rank's clock to one that all share."""
    for together in reversed(needs[0]):
        calls = [ranks[rank][place] for rank, place in together]
        if len(calls) == len(ranks) and not any(call.later for call in calls):
            return [-call.held[-1][1] for call in calls]
    return [0.0] * len(ranks)
