"""Which link the traffic of a layout takes: within a host, or between hosts and shared there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from yolods.plan.traffic.links import Link


@dataclass(frozen=True)
class Network:
    """The links between ranks; hosts hold consecutive ranks."""

    within: Link
    """Between two ranks of a host."""
    between: Link
    """Between two hosts; the ranks of a host share it."""
    slots: int
    """Ranks per host."""


@dataclass(frozen=True)
class Routes:
    """The links of one layout, with a shared link's bandwidth divided among its users."""

    replicas: Link
    """Of the replicas of a stage to each other."""
    boundaries: tuple[Link, ...]
    """Over each of the stages - 1 cuts."""


@lru_cache(maxsize=4096)
def routes(network: Network, stages: int, replicas: int) -> tuple[Routes, ...]:
    """The routes under the orders of the mesh (`distributed.mesh`): stages or replicas side by
    side. A run takes the order that sends less between hosts."""
    if stages * replicas <= network.slots:
        return (Routes(network.within, (network.within,) * (stages - 1)),)
    if stages == 1:
        return (Routes(network.between, ()),)
    return (
        _stages_abreast(network, stages, replicas),
        _replicas_abreast(network, stages, replicas),
    )


def _stages_abreast(network: Network, stages: int, replicas: int) -> Routes:
    """Rank = replica x stages + stage: every host has neighbours of every group of replicas."""
    slots = network.slots
    # A cut leaves the host where the next rank is the first of a host, in some replica.
    crossing = [
        any((replica * stages + cut + 1) % slots == 0 for replica in range(min(replicas, slots)))
        for cut in range(stages - 1)
    ]
    group = _shared(network.between, min(stages, slots)) if replicas > 1 else network.within
    return Routes(group, tuple(network.between if each else network.within for each in crossing))


def _replicas_abreast(network: Network, stages: int, replicas: int) -> Routes:
    """Rank = stage x replicas + replica: a group of replicas is on as few hosts as possible."""
    slots = network.slots
    spread = any(
        stage * replicas // slots != (stage * replicas + replicas - 1) // slots
        for stage in range(stages)
    )
    crossing = [
        sum(
            (cut * replicas + replica) // slots != ((cut + 1) * replicas + replica) // slots
            for replica in range(replicas)
        )
        for cut in range(stages - 1)
    ]
    group = network.between if spread else network.within
    links = (
        _shared(network.between, min(each, slots)) if each else network.within for each in crossing
    )
    return Routes(group, tuple(links))


def _shared(link: Link, users: int) -> Link:
    return replace(link, bandwidth=link.bandwidth / users)
