"""How long transfers take on a link, and how many groups share it."""

from __future__ import annotations

import itertools

import pytest

from yolods.distributed.mesh import coordinates
from yolods.plan.layout import Layout
from yolods.plan.traffic.links import Link, crossing, nominal, seconds
from yolods.plan.traffic.transfers import Transfer

LINK = Link(1e6, 0.01, "given")


def test_a_ring_pays_the_latency_of_every_round_and_the_bytes_once() -> None:
    reduced = Transfer("reduce", "all_reduce", 4_000_000, 2, 4)
    assert seconds(reduced, LINK) == pytest.approx(6.0 + 2 * 6 * 0.01)
    gathered = Transfer("gather", "all_gather", 4_000_000, 2, 4)
    assert seconds(gathered, LINK) == pytest.approx(3.0 + 2 * 3 * 0.01)
    sent = Transfer("boundary", "send", 4_000_000, 5, 2)
    assert seconds(sent, LINK) == pytest.approx(4.0 + 5 * 0.01)


def test_groups_that_share_a_link_divide_its_bandwidth_but_not_its_latency() -> None:
    sent = Transfer("boundary", "send", 1_000_000, 5, 2)
    assert seconds(sent, LINK, flows=3) == pytest.approx(3.0 + 5 * 0.01)


def test_headers_take_their_part_of_a_nominal_link() -> None:
    """1500 bytes of a frame hold 1448 of data (RFC 1122 with the timestamps of RFC 7323)."""
    link = nominal(100e6)
    assert link.bandwidth == pytest.approx(11.955e6, rel=1e-3) and link.source == "given"


@pytest.mark.parametrize("numbers", [(0.0, 0.1, "given"), (1.0, -0.1, "given"), (1.0, 0.1, "x")])
def test_an_impossible_link_is_refused(numbers: tuple[float, float, str]) -> None:
    with pytest.raises(ValueError, match="no such link"):
        Link(*numbers)


def by_hand(shape: str, layout: Layout, slots: int, order: str) -> int:
    """Groups that send out of the busiest host, from the ranks' coordinates."""
    places = [
        coordinates(rank, layout.stages, layout.replicas, order)  # type: ignore[arg-type]
        for rank in range(layout.ranks)
    ]
    leaving = dict.fromkeys(range(layout.ranks // slots), 0)
    for (a, here), (b, there) in itertools.permutations(enumerate(places), 2):
        if shape == "replicas":
            follows = there.stage == here.stage and (
                there.replica == (here.replica + 1) % layout.replicas
            )
        else:
            follows = there.replica == here.replica and there.stage == here.stage + 1
        leaving[a // slots] += follows and a // slots != b // slots
    return max(leaving.values())


@pytest.mark.parametrize("order", ["stages", "replicas"])
@pytest.mark.parametrize(("stages", "replicas", "slots"), [(2, 4, 4), (4, 2, 4), (2, 2, 1)])
def test_groups_that_leave_a_host(stages: int, replicas: int, slots: int, order: str) -> None:
    layout = Layout(imgsz=64, replicas=replicas, cuts=tuple(range(1, stages)))
    ring = Transfer("reduce", "all_reduce", 1, 1, replicas)
    assert crossing(ring, layout, slots, order) == by_hand("replicas", layout, slots, order)
    sent = Transfer("boundary", "send", 1, 1, 2)
    assert crossing(sent, layout, slots, order) == by_hand("stages", layout, slots, order)


def test_a_ring_over_all_ranks_leaves_each_host_once() -> None:
    layout = Layout(imgsz=64, replicas=8)
    numbers = Transfer("ours", "all_reduce", 1, 1, 8)
    assert crossing(numbers, layout, 4) == 1
    assert crossing(numbers, layout, 8) == 0
