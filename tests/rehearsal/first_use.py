"""NCCL's blocking first use of a communicator, simulated on gloo.

NCCL creates a communicator when its two ranks first send or receive on it. The first rank then
blocks on the host until the other one arrives, even in `isend` and `irecv`; later calls return
immediately. On gloo no call blocks, so that a program that hangs on GPUs passes on CPUs.

Groups created with `backend="gloo"` use gloo beside NCCL as well and are not changed. The rule
applies to sends and receives only: collectives wait for all ranks on gloo as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

TAG = 999
"""Message tag of the meetings; the code under test uses other tags."""


class NeverMet(RuntimeError):
    """The peer did not reach a communicator's first use; with NCCL the rank would hang here."""


@contextmanager
def first_use_waits(seconds: float) -> Iterator[list[tuple[int, int]]]:
    """Make `isend` and `irecv` of torch.distributed block at first use, in groups created in this
    context.

    Args:
        seconds: how long a first use waits before it raises `NeverMet`.

    Yields:
        the meetings so far, as (this rank, peer), one per communicator.
    """
    rule = _Rule(seconds)
    with ExitStack() as stack:
        for name in ("new_group", "isend", "irecv"):
            stack.enter_context(mock.patch.object(dist, name, getattr(rule, name)))
        yield rule.meetings


class _Rule:
    def __init__(self, seconds: float) -> None:
        self._limit = timedelta(seconds=seconds)
        self._new_group, self._isend, self._irecv = dist.new_group, dist.isend, dist.irecv
        self._on_gloo: set[Any] = set()
        self._met: set[tuple[Any, int]] = set()
        self.meetings: list[tuple[int, int]] = []

    def new_group(
        self, ranks: list[int] | None = None, *, backend: str | None = None, **others: Any
    ) -> Any:
        group = self._new_group(ranks, backend=backend, **others)
        if backend == "gloo":
            self._on_gloo.add(group)
        return group

    def isend(
        self, tensor: torch.Tensor, dst: int, *, group: Any = None, tag: int = 0
    ) -> dist.Work | None:
        return self._use(self._isend, tensor, dst, group, tag)

    def irecv(
        self, tensor: torch.Tensor, src: int, *, group: Any = None, tag: int = 0
    ) -> dist.Work | None:
        return self._use(self._irecv, tensor, src, group, tag)

    def _use(
        self, call: Callable[..., Any], tensor: torch.Tensor, peer: int, group: Any, tag: int
    ) -> Any:
        if group not in self._on_gloo and (group, peer) not in self._met:
            self._met.add((group, peer))
            self._meet(peer, group)
        return call(tensor, peer, group=group, tag=tag)

    def _meet(self, peer: int, group: Any) -> None:
        """Send and receive on both sides, as NCCL does to create a communicator."""
        told = self._isend(torch.zeros(1), peer, group=group, tag=TAG)
        heard = self._irecv(torch.zeros(1), peer, group=group, tag=TAG)
        try:
            heard.wait(self._limit)
            told.wait(self._limit)
        except RuntimeError as error:
            raise NeverMet(
                f"rank {dist.get_rank()} waits for rank {peer}, which is elsewhere"
            ) from error
        self.meetings.append((dist.get_rank(), peer))
