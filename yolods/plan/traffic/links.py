"""Links between ranks, and how long transfers take on them."""

from __future__ import annotations

from dataclasses import dataclass

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
    copying: float = 0.0
    """CPU seconds of a rank per byte that it sends and receives; 0: its CPU has no part in it, or
    computes nothing itself."""

    def __post_init__(self) -> None:
        numbers = self.bandwidth > 0 and self.latency >= 0 and self.copying >= 0
        if not numbers or self.source not in KNOWN_BY:
            raise ValueError(f"no such link: {self}")


ETHERNET = (1500 - 20 - 32, 1500 + 14)
"""Bytes of data in a full TCP segment (IPv4, timestamps) and bytes of its frame (MTU 1500)."""


def nominal(bits: float, latency: float = 5e-5, source: str = "given") -> Link:
    """The link of a network that is named by its bits per second, such as 1e9.

    The rest of `ETHERNET`'s frames are headers: 1448 of 1514 bytes are data.
    """
    data, frame = ETHERNET
    return Link(bits / 8 * data / frame, latency, source)


GLOO_GATHER = 1.5
"""How much longer an all-gather of two ranks takes on gloo than its bytes: gloo sends a rank's part
as two messages (gloo/allgather.cc), and while a long message is sent over a connection, hardly
anything comes back over it. Measured: 5 MB each way at 100 Mbit/s in 0.62 to 0.66 s instead of
0.42 s (torch 2.13). An all-reduce has short messages, as yolods' own exchange."""


def seconds(transfer: Transfer, link: Link, *, backend: str = "nccl") -> float:
    """How long a rank's transfer takes if nothing else is done meanwhile.

    The time of a ring (Patarasu and Yuan 2009, doi:10.1016/j.jpdc.2008.09.002): its rounds follow
    each other, so each costs the latency, and every link carries the same bytes.

    Args:
        link: the slowest one that the group's ring uses; `routes` divides one that several groups
            use at the same time.
        backend: nccl or gloo.
    """
    waits = transfer.calls * rounds(transfer, backend=backend) * link.latency
    halting = (backend, transfer.operation, transfer.ranks) == ("gloo", "all_gather", 2)
    moved = sent_bytes(transfer, backend=backend) * (GLOO_GATHER if halting else 1)
    return max(moved / link.bandwidth, copying_seconds(transfer, link, backend=backend)) + waits


def copying_seconds(transfer: Transfer, link: Link, *, backend: str = "nccl") -> float:
    """CPU seconds of a rank's transfer: it receives as many bytes as it sends."""
    if not link.copying:  # most plans ask often
        return 0.0
    return sent_bytes(transfer, backend=backend) * link.copying
