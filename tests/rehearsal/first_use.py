"""NCCL's rule of the first use, on gloo.

NCCL makes a communicator when its two ranks first send or receive on it. Whoever comes first waits for the other one
there and then, on the host, `isend` and `irecv` not excepted; later ones return at once. On gloo none ever waits, so
that what would hang on GPUs passes on CPUs.

Groups that are made with `backend="gloo"` would be gloo's beside NCCL, too, and are left alone. The rule is for sends
and receives: collectives wait for all ranks on gloo as well.
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
"""Of the meetings; the code under test has others."""


class NeverMet(RuntimeError):
    """A first use of a communicator that the peer did not come to: on NCCL the rank would hang here."""


@contextmanager
def first_use_waits(seconds: float) -> Iterator[list[tuple[int, int]]]:
    """Within: `isend` and `irecv` of torch.distributed keep to the rule, in groups that are made within.

    Args:
        seconds: how long a first use waits before it raises `NeverMet`.

    Yields:
        the meetings so far, as (this rank, peer), of which a communicator has one.
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

    def new_group(self, ranks: list[int] | None = None, *, backend: str | None = None, **others: Any) -> Any:
        group = self._new_group(ranks, backend=backend, **others)
        if backend == "gloo":
            self._on_gloo.add(group)
        return group

    def isend(self, tensor: torch.Tensor, dst: int, *, group: Any = None, tag: int = 0) -> dist.Work | None:
        return self._use(self._isend, tensor, dst, group, tag)

    def irecv(self, tensor: torch.Tensor, src: int, *, group: Any = None, tag: int = 0) -> dist.Work | None:
        return self._use(self._irecv, tensor, src, group, tag)

    def _use(self, call: Callable[..., Any], tensor: torch.Tensor, peer: int, group: Any, tag: int) -> Any:
        if group not in self._on_gloo and (group, peer) not in self._met:
            self._met.add((group, peer))
            self._meet(peer, group)
        return call(tensor, peer, group=group, tag=tag)

    def _meet(self, peer: int, group: Any) -> None:
        """Both tell and both hear, as in making a communicator."""
        told = self._isend(torch.zeros(1), peer, group=group, tag=TAG)
        heard = self._irecv(torch.zeros(1), peer, group=group, tag=TAG)
        try:
            heard.wait(self._limit)
            told.wait(self._limit)
        except RuntimeError as error:
            raise NeverMet(f"rank {dist.get_rank()} waits for rank {peer}, which is elsewhere") from error
        self.meetings.append((dist.get_rank(), peer))
