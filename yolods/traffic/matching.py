"""Which calls of other ranks a call needs before it can end, by the order of the calls alone.

All ranks of a group make its collectives in one order, and messages of one tag arrive in the order
in which they were sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Call(Protocol):
    """A call of torch.distributed, whatever else is known of it."""

    @property
    def group(self) -> str:
        """Name of the group, the same on all its ranks; "": not known."""

    @property
    def peer(self) -> int | None:
        """The other rank of a send or receive."""

    @property
    def sent(self) -> float:
        """Bytes that the rank sends; 0: a call with a peer receives."""

    @property
    def tag(self) -> int:
        """That of a send or receive."""


CallPlace = tuple[int, int]
"""A rank, and the index of one of its calls."""


def needed_calls(ranks: Sequence[Sequence[Call]]) -> list[list[tuple[CallPlace, ...]]]:
    """For each call of each rank the calls that it needs: of a collective those of all its ranks,
    its own among them; of a receive the send.

    A send needs none. Nor does a call of which nobody knows what it belongs to, because the ranks
    differ in how many there are of its kind.

    Args:
        ranks: the calls of all ranks, in their order.
    """
    found: list[list[tuple[CallPlace, ...]]] = [[() for _ in calls] for calls in ranks]
    collectives: dict[str, list[list[CallPlace]]] = {}
    sends: dict[tuple[str, int, int, int], list[CallPlace]] = {}
    receives: dict[tuple[str, int, int, int], list[CallPlace]] = {}
    for rank, calls in enumerate(ranks):
        own: dict[str, list[CallPlace]] = {}
        for place, call in enumerate(calls):
            here = rank, place
            if call.peer is None:
                own.setdefault(call.group, []).append(here)
            elif call.sent:
                sends.setdefault((call.group, rank, call.peer, call.tag), []).append(here)
            else:
                receives.setdefault((call.group, call.peer, rank, call.tag), []).append(here)
        for group, places in own.items():
            collectives.setdefault(group, []).append(places)
    for group, members in collectives.items():
        if group and len({len(places) for places in members}) == 1:
            for together in zip(*members, strict=True):
                for rank, place in together:
                    found[rank][place] = together
    for channel, places in receives.items():
        sources = sends.get(channel, [])
        if len(sources) == len(places):
            for (rank, place), source in zip(places, sources, strict=True):
                found[rank][place] = (source,)
    return found
