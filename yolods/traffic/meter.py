"""Counts what this rank sends in each step, and how long it stands still for it.

It sees every call of torch.distributed, whoever makes it (`distributed.collective_waits`). An
asynchronous collective is done when its future says so: on a CPU the clock is read then, on a GPU
an event is recorded behind it on a stream of its own. Nobody waits for either.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch.distributed as dist

from yolods.distributed.collective_waits import observe
from yolods.distributed.world import Ranks
from yolods.stats import CommunicationStats
from yolods.traffic.carried import FORMS, Carried, carried_by
from yolods.traffic.epoch import EpochTraffic, combine
from yolods.traffic.measured import (
    MeteredCall,
    Moments,
    StepTraffic,
    can_be_read,
    count,
    read,
)
from yolods.traffic.moments import moments_of
from yolods.traffic.theory import Need

_OURS, _UNKNOWN = Carried("ours", "", 0.0), Carried("gather", "", 0.0)


class NoMeter:
    """The meter of a single process, which measures and says nothing."""

    need: Need | None = None
    """What theory asks of the layout."""

    def ours(self) -> AbstractContextManager[None]:
        """Within, whatever is called is yolods' own, and neither DeepSpeed's nor a boundary's."""
        return nullcontext()

    def begin(self) -> None:
        """A step begins."""

    def end(self, seconds: float) -> dict[str, float | None]:
        """A step has ended; its curves by name. On a GPU the seconds are of an earlier step.

        Args:
            seconds: duration of the step.
        """
        return {}

    def keep(self, calls: list[MeteredCall] | None) -> None:
        """Append every call to `calls` as well, also between steps; None: no longer."""

    def report(self, ranks: Ranks) -> CommunicationStats | None:
        """All ranks' numbers since the last report, on rank 0 of several. A collective."""
        return None


class Meter(NoMeter):
    """This rank's meter; one thread at a time takes steps, any may call torch.distributed."""

    def __init__(self, backend: str, moments: Moments) -> None:
        """
        Args:
            backend: nccl or gloo; they reduce by other algorithms.
            moments: by which time is measured.
        """
        self._backend, self._moments = backend, moments
        self._thread = threading.local()
        self._own = False
        self._step: StepTraffic | None = None
        self._number = 0
        self._calls: list[MeteredCall] = []
        self._kept: list[MeteredCall] | None = None
        self._pending: dict[int, MeteredCall] = {}
        self._unread: deque[tuple[StepTraffic, list[MeteredCall], Any]] = deque()
        self._epoch = EpochTraffic()

    @contextmanager
    def ours(self) -> Iterator[None]:
        """See `NoMeter.ours`."""
        self._own = True
        try:
            yield
        finally:
            self._own = False

    def begin(self) -> None:
        """See `NoMeter.begin`."""
        observe(self)
        self._number += 1
        self._calls, self._pending = [], {}
        self._step = StepTraffic(self._number, 0.0)

    def end(self, seconds: float) -> dict[str, float | None]:
        """See `NoMeter.end`."""
        step, self._step = self._step, None
        assert step is not None
        step.seconds = seconds
        self._unread.append((step, self._calls, self._moments.now()))
        while self._unread and self._is_over(*self._unread[0][1:]):
            over, calls, _ = self._unread.popleft()
            read(over, calls, self._moments)
            self._epoch.add(over)
        return curves(step, self._epoch.newest)

    def _is_over(self, calls: list[MeteredCall], end: Any) -> bool:
        return self._moments.passed(end) and can_be_read(calls, self._moments)

    def keep(self, calls: list[MeteredCall] | None) -> None:
        """See `NoMeter.keep`."""
        self._kept = calls

    def report(self, ranks: Ranks) -> CommunicationStats | None:
        """See `NoMeter.report`."""
        shares = ranks.to_main(self._epoch.take())
        return combine(shares, self.need) if ranks.is_main else None

    def before(
        self, function: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> MeteredCall | None:
        """A function of torch.distributed, or a wait for its work, is about to be called."""
        # Functions call each other; the outermost counts.
        if getattr(self._thread, "inside", False):
            return None
        if function == "wait":
            call = self._pending.pop(id(arguments[0]), None)
            # The work of several calls that torch joined into one.
            if call is None and self._step is not None:
                call = MeteredCall(_OURS if self._own else _UNKNOWN)
                self._calls.append(call)
        else:
            call = self._called(function, arguments, named)
        if call is not None:
            if self._kept is not None and not call.held:
                self._kept.append(call)
            self._thread.inside = True
            call.held.append((self._moments.now(), None))
        return call

    def _called(
        self, function: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> MeteredCall | None:
        found = carried_by(function, arguments, named, self._backend) if function in FORMS else None
        if found is None:
            return None
        if self._step is None:
            self._epoch.between += found.sent
            return None if self._kept is None else MeteredCall(found)
        if self._own:
            found = replace(found, kind="ours", peer=None)
        count(self._step, found)
        call = MeteredCall(found)
        self._calls.append(call)
        return call

    def after(self, call: MeteredCall | None, result: Any) -> None:
        """The call has returned."""
        if call is None:
            return
        self._thread.inside = False
        call.held[-1] = (call.held[-1][0], self._moments.now())
        call.later |= isinstance(result, dist.Work)
        # torch returns a placeholder without a future for a call that it will join with others.
        if isinstance(result, dist.Work) and result.get_future is not None:
            self._pending[id(result)] = call
            # gloo has no future for a send or receive.
            if call.carried.peer is None:
                self._moments.at_end_of(result, call.ended)

    def failed(self, call: MeteredCall | None) -> None:
        """The call has raised: the run ends, or somebody handles it; its time means nothing."""
        if call is not None:
            self._thread.inside = False
            call.held.pop()


def open_meter(ranks: Ranks) -> NoMeter:
    """The meter of this rank."""
    if ranks.size == 1:
        return NoMeter()
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    return Meter(backend, moments_of(ranks.device))


def curves(step: StepTraffic, timed: StepTraffic | None) -> dict[str, float | None]:
    """A step's curves by name.

    Args:
        step: its bytes and calls.
        timed: the newest step whose seconds have been read; on a CPU the same.
    """
    prefix = "communication"
    found: dict[str, float | None] = {
        f"{prefix}/sent_mb": sum(step.sent.values()) / 1e6,
        f"{prefix}/calls": float(sum(step.calls.values())),
    }
    for kind in (kind for kind, calls in step.calls.items() if calls):
        found[f"{prefix}/sent_mb_{kind}"] = step.sent[kind] / 1e6
        found[f"{prefix}/calls_{kind}"] = float(step.calls[kind])
    if timed is None or timed.seconds <= 0:
        return found
    whole = sum(timed.in_calls.values())
    found[f"{prefix}/seconds"] = whole
    found[f"{prefix}/still_share"] = timed.still / timed.seconds
    if whole:
        found[f"{prefix}/hidden_share"] = timed.hidden / whole
    for kind in (kind for kind, calls in timed.calls.items() if calls):
        found[f"{prefix}/seconds_{kind}"] = timed.in_calls[kind]
    return found
