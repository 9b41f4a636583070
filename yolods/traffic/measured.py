"""Calls of one step, and the numbers that follow from them once their moments have passed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch.distributed as dist

from yolods.traffic.carried import TRAFFIC_KINDS, Carried
from yolods.traffic.replay import TimedCall


class Moments(Protocol):
    """`HostMoments` or `DeviceMoments`."""

    def now(self) -> Any:
        """The present moment."""

    def at_end_of(self, work: dist.Work, note: Callable[[Any], None]) -> None:
        """Note the moment at which an asynchronous collective is done."""

    def passed(self, moment: Any) -> bool:
        """Whether it has come."""

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two moments that have passed."""


@dataclass(slots=True, eq=False)
class MeteredCall:
    """A call, and the waits for what it has started."""

    carried: Carried
    held: list[tuple[Any, Any]] = field(default_factory=list)
    """From when to when the rank stood still in it: in the call, or in a wait for its work."""
    done: Any = None
    """The moment at which an asynchronous collective was done; None: it is not known."""
    later: bool = False
    """Whether it has returned a work to wait for."""

    def ended(self, moment: Any) -> None:
        """Note that moment."""
        self.done = moment


@dataclass
class StepTraffic:
    """What one rank has sent and waited for in one step."""

    step: int
    """Number of the step since the meter began."""
    seconds: float
    """The whole step's."""
    sent: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TRAFFIC_KINDS, 0.0))
    """Bytes by kind."""
    calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(TRAFFIC_KINDS, 0))
    """Calls by kind, without the receives, which send nothing."""
    in_calls: dict[str, float] = field(default_factory=lambda: dict.fromkeys(TRAFFIC_KINDS, 0.0))
    """Seconds in collectives by kind, whether or not the rank stood still meanwhile; see `read`."""
    still: float = 0.0
    """Seconds in which the rank stood still in them."""
    peers: dict[int, float] = field(default_factory=dict)
    """Bytes by the rank to which a stage has sent them."""
    timed: list[TimedCall] = field(default_factory=list)
    """Its calls, in their order."""

    @property
    def hidden(self) -> float:
        """Seconds in collectives in which the rank went on with work of its own."""
        return max(sum(self.in_calls.values()) - self.still, 0.0)


def count(step: StepTraffic, call: Carried) -> None:
    """Count a call's bytes, which are known before its seconds."""
    step.sent[call.kind] += call.sent
    if call.sent or call.peer is None:
        step.calls[call.kind] += 1
    if call.sent and call.peer is not None:
        step.peers[call.peer] = step.peers.get(call.peer, 0.0) + call.sent


def can_be_read(calls: Sequence[MeteredCall], moments: Moments) -> bool:
    """Whether all moments of these calls have passed."""
    ends = [call.held[-1][1] for call in calls if call.held]
    ends += [call.done for call in calls if call.done is not None]
    return all(map(moments.passed, ends))


def read(step: StepTraffic, calls: Sequence[MeteredCall], moments: Moments) -> None:
    """Add the seconds of calls that `can_be_read`.

    A second in which several are under way counts once, for the one that began first: buckets of
    gradients that are sent together would otherwise take longer than the step.
    """
    calls = [call for call in calls if call.held]
    if not calls:
        return
    zero = calls[0].held[0][0]  # a device only tells how long after one moment another one was
    spans: list[tuple[float, float, str]] = []
    for call in calls:
        what = call.carried
        held = tuple(
            (moments.seconds(zero, begin), moments.seconds(zero, end)) for begin, end in call.held
        )
        spans += [(*span, what.kind) for span in held]
        # Of a send or receive nobody knows when the data began to move, so only waits count.
        if call.done is not None:
            done = max(moments.seconds(zero, call.done), held[0][0])
            spans.append((held[0][0], done, what.kind))
        step.still += sum(end - begin for begin, end in held)
        step.timed.append(TimedCall(what.group, what.peer, what.sent, what.tag, call.later, held))
    for kind, seconds in _under_way(spans):
        step.in_calls[kind] += seconds


def _under_way(spans: Sequence[tuple[float, float, str]]) -> list[tuple[str, float]]:
    """Kind of each span, and its seconds that belong to no span that began earlier.

    Args:
        spans: beginning, end and kind; at least one.
    """
    timed = sorted(spans)
    found, until = [], timed[0][0]
    for begin, end, kind in timed:
        found.append((kind, max(end - max(begin, until), 0.0)))
        until = max(until, end)
    return found
