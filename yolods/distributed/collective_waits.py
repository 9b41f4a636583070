"""Marks the time that a rank waits for others, inside torch's collectives and for every caller.

DeepSpeed reaches other ranks through torch.distributed, as yolods does: from the main thread and,
in the backward pass on a GPU, from the hooks on autograd's threads. Every function of
torch.distributed that involves other ranks, and every wait for a running one, is replaced by a
wrapper that marks it. The watchdog reads the marks (`phases`) and needs to know none of the
callers.

    CPU    the call waits, and the mark lasts as long as the call
    GPU    the call usually returns at once, and the device waits. The host blocks later, anywhere:
           in a read, in a synchronisation, or in a kernel launch while the queue is full. Only the
           device knows whose time that is: one event before the collective and one after it tell
           whether its stream has reached the collective and not completed it.

For a stream other than the main one, this also counts as waiting what overlaps with the rank's own
work. That is safe, because a rank that waits is never blamed; and a straggler under ZeRO-3, whose
ranks wait for each other in every layer, is hard to identify anyway.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import torch.distributed as dist

from yolods.compat import wrap_collectives
from yolods.distributed.phases import PHASES, PhaseTracker

F = TypeVar("F", bound=Callable[..., Any])

COLLECTIVES = (
    *(
        "all_gather",
        "all_gather_coalesced",
        "all_gather_into_tensor",
        "all_gather_object",
        "all_reduce",
    ),
    *(
        "all_reduce_coalesced",
        "all_to_all",
        "all_to_all_single",
        "barrier",
        "batch_isend_irecv",
        "broadcast",
    ),
    *(
        "broadcast_object_list",
        "gather",
        "gather_object",
        "irecv",
        "isend",
        "monitored_barrier",
        "new_group",
        "recv",
    ),
    *(
        "recv_object_list",
        "reduce",
        "reduce_scatter",
        "reduce_scatter_tensor",
        "scatter",
        "scatter_object_list",
    ),
    *("send", "send_object_list"),
)
"""Functions of torch.distributed (2.13) that involve other ranks."""


class Event(Protocol):
    """A position in a device's stream, as torch.cuda.Event."""

    def record(self) -> None:
        """Place it after everything that the current stream has been given so far."""

    def query(self) -> bool:
        """Whether the stream has reached it. Does not wait."""


@dataclass
class _Given:
    """A collective in a stream, between two events."""

    before: Event
    after: Event | None = None
    """None: the host is still in the call, as in the first use of a communicator."""

    @property
    def passed(self) -> bool:
        return self.after is not None and self.after.query()


class Streams:
    """The collectives that a device has been given."""

    def __init__(self, event: Callable[[], Event]) -> None:
        self._event = event
        self._given: deque[_Given] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def around(self) -> Iterator[None]:
        """Record events around a collective, or a wait for one, that the current stream is
        given."""
        given = _Given(self._event())
        given.before.record()
        with self._lock:
            # Forget completed collectives here, so that the queue stays short without a thread for
            # it.
            while self._given and self._given[0].passed:
                self._given.popleft()
            self._given.append(given)
        try:
            yield
        # No second event: on a failed device it would raise and hide this error.
        except BaseException:
            with self._lock:
                self._given.remove(given)
            raise
        after = self._event()
        after.record()
        given.after = after

    def wait(self) -> bool:
        """Whether a stream has reached a collective and not completed it.

        For the watchdog's thread; does not wait.
        """
        with self._lock:
            given = list(self._given)
        try:
            return any(each.before.query() and not each.passed for each in given)
        # The device has failed: the main thread meets the same error and reports it.
        except RuntimeError:
            return False


class Observer(Protocol):
    """Somebody who is told of every call, in the thread that makes it."""

    def before(self, function: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """A function, or `wait` of a work, is about to be called; returns the call's handle."""

    def after(self, call: Any, result: Any) -> None:
        """It has returned."""

    def failed(self, call: Any) -> None:
        """It has raised."""


_observer: Observer | None = None


def observe(observer: Observer | None) -> None:
    """Tell this one of every call from now on, instead of an earlier one; None: nobody."""
    global _observer
    _observer = observer


def observed(function: F) -> F:
    """Tell the observer of a function of yolods' own that calls several of torch.distributed's, or
    waits for them, as of a single call.

    What it calls marks the waiting.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        if (observer := _observer) is None:
            return function(*arguments, **named)
        return _observed(observer, function, arguments, named)

    return cast(F, call)


def mark_collectives(
    event: Callable[[], Event] | None = None, tracker: PhaseTracker = PHASES
) -> None:
    """Mark from now on when this process waits for others. Repeated calls change nothing.

    Call it before DeepSpeed creates its backend, which keeps references to some of the functions.

    Args:
        event: creates an event of the device; None: the rank computes on the CPU.
    """
    # `functools.wraps` sets this attribute: the functions are wrapped already.
    if hasattr(dist.Work.wait, "__wrapped__"):
        return
    streams = None if event is None else Streams(event)
    if streams is not None:
        tracker.ask(streams.wait)
    wrap_collectives(COLLECTIVES, lambda function: _marked(function, tracker, streams))


def _marked(function: F, tracker: PhaseTracker, streams: Streams | None) -> F:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with tracker.waiting() if streams is None else streams.around():
            if (observer := _observer) is None:
                return function(*arguments, **named)
            return _observed(observer, function, arguments, named)

    return call


def _observed(
    observer: Observer,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    named: Mapping[str, Any],
) -> Any:
    call = observer.before(function.__name__, arguments, named)
    try:
        result = function(*arguments, **named)
    except BaseException:
        observer.failed(call)
        raise
    observer.after(call, result)
    return result
