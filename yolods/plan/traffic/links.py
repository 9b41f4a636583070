"""Stand-in: links between ranks."""

from __future__ import annotations

from dataclasses import dataclass

from yolods.plan.traffic.transfers import Transfer, sent_bytes


@dataclass(frozen=True)
class Link:
    """A connection between two ranks."""

    bandwidth: float
    """Bytes per second."""
    latency: float
    """Seconds of a message without content."""
    source: str
    """measured, given or assumed."""


def seconds(transfer: Transfer, link: Link) -> float:
    """Seconds of a transfer over a link that nothing else uses."""
    hops = 1 if transfer.operation == "send" else max(transfer.ranks - 1, 0)
    return sent_bytes(transfer) / link.bandwidth + transfer.calls * hops * link.latency
