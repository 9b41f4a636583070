"""Waiting for other ranks is marked where it happens: in torch's collectives, whoever calls them and from which thread.

DeepSpeed reaches other ranks through torch.distributed as we do: from the main thread, and in the hooks of a backward
pass on a GPU from autograd's. Every function there that involves others, and every wait for one that is under way, is
replaced by itself with a mark around it. The watchdog reads the marks (`phases`), and knows no place in anyone's code.

    CPU    the call waits, and the mark is on as long
    GPU    the call returns at once, mostly, and the device waits. The host is held up later and anywhere: in a read, in
           a synchronisation, or launching a kernel while the queue is full. Whose time that is the device knows: an
           event before the collective and one behind it tell whether its stream has come to it and not through it.

Of a stream beside the main one this counts what overlaps with the rank's own work as waiting, too: who waits for others
is never blamed, and a straggler under ZeRO-3, whose ranks wait for each other in every layer, is hard to tell anyway.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch.distributed as dist

from yolods.compat import wrap_collectives
from yolods.distributed.phases import PHASES, PhaseTracker

F = TypeVar("F", bound=Callable[..., Any])

COLLECTIVES = (
    *("all_gather", "all_gather_coalesced", "all_gather_into_tensor", "all_gather_object", "all_reduce"),
    *("all_reduce_coalesced", "all_to_all", "all_to_all_single", "barrier", "batch_isend_irecv", "broadcast"),
    *("broadcast_object_list", "gather", "gather_object", "irecv", "isend", "monitored_barrier", "new_group", "recv"),
    *("recv_object_list", "reduce", "reduce_scatter", "reduce_scatter_tensor", "scatter", "scatter_object_list"),
    *("send", "send_object_list"),
)
"""Functions of torch.distributed (2.13) in which ranks meet."""


class Event(Protocol):
    """A place in a device's stream, as torch.cuda.Event."""

    def record(self) -> None:
        """Put it behind all that the current stream has been given so far."""

    def query(self) -> bool:
        """Whether the stream has come to it. Waits for nothing."""


@dataclass
class _Given:
    """A collective in a stream."""

    before: Event
    behind: Event | None = None
    """None: the host is still in the call, as when it meets other ranks for the first time."""

    @property
    def passed(self) -> bool:
        return self.behind is not None and self.behind.query()


class Streams:
    """Collectives that a device has been given."""

    def __init__(self, event: Callable[[], Event]) -> None:
        self._event = event
        self._given: deque[_Given] = deque()
        self._lock = threading.Lock()

    @contextmanager
    def around(self) -> Iterator[None]:
        """Within: the current stream is given a collective, or is made to wait for one."""
        given = _Given(self._event())
        given.before.record()
        with self._lock:
            while self._given and self._given[0].passed:
                self._given.popleft()
            self._given.append(given)
        try:
            yield
        except BaseException:  # whose word counts; a device that has failed would only say something else
            with self._lock:
                self._given.remove(given)
            raise
        behind = self._event()
        behind.record()
        given.behind = behind

    def wait(self) -> bool:
        """Whether a stream has come to a collective and is not through it. For the watchdog's thread; never waits."""
        with self._lock:
            given = list(self._given)
        try:
            return any(each.before.query() and not each.passed for each in given)
        except RuntimeError:  # the device has failed: the main thread meets that, too, and says so
            return False


def mark_collectives(event: Callable[[], Event] | None = None, tracker: PhaseTracker = PHASES) -> None:
    """From now on, this process says when it waits for others. Before DeepSpeed's backend, which keeps some functions;
    once more changes nothing.

    Args:
        event: makes one in a stream of the device; None: the rank computes on the CPU.
    """
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
            return function(*arguments, **named)

    return call
