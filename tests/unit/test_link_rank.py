"""How a link's numbers follow from the times of messages; which hosts measure at the same time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from yolods.distributed.world import Ranks
from yolods.planner.links import link_rank
from yolods.planner.links.link_rank import (
    MESSAGE_BYTES,
    PAIR_SECONDS,
    REPEATS,
    affordable,
    bandwidth_of,
    rounds_of,
)


@pytest.mark.parametrize("size", range(2, 10))
def test_each_link_of_the_ring_once_and_no_host_twice_at_once(size: int) -> None:
    rounds = rounds_of(size)
    links = [pair for pairs in rounds for pair in pairs]
    assert sorted(map(sorted, links)) == sorted(
        sorted((rank, (rank + 1) % size)) for rank in range(size if size > 2 else 1)
    )
    for pairs in rounds:
        busy = [rank for pair in pairs for rank in pair]
        assert len(busy) == len(set(busy))


def test_one_host_has_no_link() -> None:
    assert rounds_of(1) == []


def test_a_constant_cost_of_messages_does_not_lower_the_bandwidth() -> None:
    """Nor does a token bucket that passes the first bytes at once raise it."""
    for constant in (0.02, -0.01):
        times = [constant + size / 12e6 for size in MESSAGE_BYTES]
        assert bandwidth_of(MESSAGE_BYTES, times) == pytest.approx(12e6)


def test_noise_without_a_slope_leaves_the_largest_message() -> None:
    times = [1.0, 0.9, 0.8, 0.7, 0.5]
    assert bandwidth_of(MESSAGE_BYTES, times) == MESSAGE_BYTES[-1] / 0.5


def test_slow_links_get_fewer_messages_but_at_least_two_sizes() -> None:
    assert affordable(1e-3) == MESSAGE_BYTES
    assert affordable(1000.0) == MESSAGE_BYTES[:2]
    pace = 0.3 / MESSAGE_BYTES[0]
    found = affordable(0.3)
    assert MESSAGE_BYTES[:2] < found < MESSAGE_BYTES
    assert REPEATS * sum(found) * pace <= PAIR_SECONDS


def test_the_first_ranks_of_two_hosts_measure_their_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hosts of two ranks: the link of hosts 0 and 2 is that of ranks 0 and 4."""
    measured: list[Any] = []

    def measure(ranks: Ranks, pair: tuple[int, int]) -> dict[str, object] | None:
        measured.append((ranks.rank, pair))
        return {"latency": 0.1} if ranks.rank == pair[0] else None

    monkeypatch.setattr(link_rank, "measure_pair", measure)
    told = [
        link_rank._link_within(
            Ranks(rank, 6, rank % 2, "host", torch.device("cpu"), local_size=2), [(0, 2)]
        )
        for rank in range(6)
    ]
    assert measured == [(0, (0, 4)), (4, (0, 4))]
    assert told == [{"pair": (0, 2), "latency": 0.1}, *[None] * 5]
