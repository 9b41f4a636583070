"""Links between ranks, and how long transfers take on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from yolods.plan.layout import Layout
from yolods.plan.traffic.transfers import Transfer, rounds, sent_bytes

KNOWN_BY = ("measured", "given", "assumed")


@dataclass(frozen=True)
class Link:
    """What one rank sends to another on."""

    bandwidth: float
    """Bytes of tensors per second, headers not counted, while both ends send."""
    latency: float
    """Seconds of a message without content, from the call to its receipt."""
    source: str = "assumed"
    """How the numbers are known: one of `KNOWN_BY`."""

    def __post_init__(self) -> None:
        if self.bandwidth <= 0 or self.latency < 0 or self.source not in KNOWN_BY:
            raise ValueError(f"no such link: {self}")


ETHERNET = (1500 - 20 - 32, 1500 + 14)
"""Bytes of data in a full TCP segment (IPv4, timestamps) and bytes of its frame (MTU 1500)."""


def nominal(bits: float, latency: float = 5e-5, source: str = "given") -> Link:
    """The link of a network that is named by its bits per second, such as 1e9.

    The rest of `ETHERNET`'s frames are headers: 1448 of 1514 bytes are data.
    """
    data, frame = ETHERNET
    return Link(bits / 8 * data / frame, latency, source)


def seconds(transfer: Transfer, link: Link, *, flows: int = 1, backend: str = "nccl") -> float:
    """How long a rank's transfer takes if nothing else is done meanwhile.

    The time of a ring (Patarasu and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002): its rounds follow
    each other, so each costs the latency, and every link carries the same bytes.

    Args:
        link: the slowest one that the group's ring uses.
        flows: groups that use this link at the same time, such as the rings of several stages on
            one host; see `crossing`.
        backend: nccl or gloo.
    """
    waits = transfer.calls * rounds(transfer, backend=backend) * link.latency
    return sent_bytes(transfer, backend=backend) * flows / link.bandwidth + waits


def crossing(transfer: Transfer, layout: Layout, slots: int, order: str = "stages") -> int:
    """How many groups like a transfer's send out of the busiest host at the same time.

    0: all groups are within a host, and the transfer uses that host's own link.

    A ring of neighbouring ranks enters and leaves a host once, however many of its ranks are there.

    Args:
        slots: ranks per host; hosts hold consecutive ranks.
        order: what changes fastest with the rank, as in `distributed.mesh`: stages or replicas.
    """
    if transfer.operation == "send":
        shape = "stages"
    else:
        shape = "all" if transfer.ranks == layout.ranks else "replicas"
    return _crossing(shape, layout.stages, layout.replicas, slots, order)


@lru_cache(maxsize=1024)
def _crossing(shape: str, stages: int, replicas: int, slots: int, order: str) -> int:
    ranks = stages * replicas
    leaving = [0] * -(-ranks // slots)
    for rank in range(ranks):
        following = _following(rank, shape, stages, replicas, order)
        if following is not None and following // slots != rank // slots:
            leaving[rank // slots] += 1
    return max(leaving)


def _following(rank: int, shape: str, stages: int, replicas: int, order: str) -> int | None:
    """The rank to which a rank sends in a ring, or over a cut; None: to nobody."""
    if shape == "all":
        return (rank + 1) % (stages * replicas)
    by_stage = order == "stages"
    stage = rank % stages if by_stage else rank // replicas
    replica = rank // stages if by_stage else rank % replicas
    if shape == "replicas":
        replica = (replica + 1) % replicas
    elif stage + 1 == stages:
        return None
    else:
        stage += 1
    return replica * stages + stage if by_stage else stage * replicas + replica
