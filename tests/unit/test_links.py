"""How long transfers take on a link."""

from __future__ import annotations

import pytest

from yolods.plan.traffic.links import GLOO_GATHER, Link, copying_seconds, nominal, seconds
from yolods.plan.traffic.transfers import Transfer

LINK = Link(1e6, 0.01, "given")


def test_a_ring_pays_the_latency_of_every_round_and_the_bytes_once() -> None:
    reduced = Transfer("reduce", "all_reduce", 4_000_000, 2, 4)
    assert seconds(reduced, LINK) == pytest.approx(6.0 + 2 * 6 * 0.01)
    gathered = Transfer("gather", "all_gather", 4_000_000, 2, 4)
    assert seconds(gathered, LINK) == pytest.approx(3.0 + 2 * 3 * 0.01)
    sent = Transfer("boundary", "send", 4_000_000, 5, 2)
    assert seconds(sent, LINK) == pytest.approx(4.0 + 5 * 0.01)


def test_headers_take_their_part_of_a_nominal_link() -> None:
    """1500 bytes of a frame hold 1448 of data (RFC 1122 with the timestamps of RFC 7323)."""
    link = nominal(100e6)
    assert link.bandwidth == pytest.approx(11.955e6, rel=1e-3) and link.source == "given"


@pytest.mark.parametrize("numbers", [(0.0, 0.1, "given"), (1.0, -0.1, "given"), (1.0, 0.1, "x")])
def test_an_impossible_link_is_refused(numbers: tuple[float, float, str]) -> None:
    with pytest.raises(ValueError, match="no such link"):
        Link(*numbers)


def test_an_all_gather_of_two_ranks_halts_on_gloo() -> None:
    link = Link(1e6, 0.0)
    gather = Transfer("gather", "all_gather", 2_000_000, 1, 2)
    assert seconds(gather, link) == 1.0
    assert seconds(gather, link, backend="gloo") == GLOO_GATHER
    of_four = Transfer("gather", "all_gather", 4_000_000, 1, 4)
    assert seconds(of_four, link, backend="gloo") == 3.0


def test_a_transfer_takes_no_less_than_its_copying() -> None:
    """As where a CPU copies more slowly than the link carries."""
    slow = Link(1e6, 0.0, copying=3e-6)
    gather = Transfer("gather", "all_gather", 4_000_000, 1, 4)
    assert copying_seconds(gather, slow) == seconds(gather, slow) == pytest.approx(9.0)
    assert seconds(gather, Link(1e6, 0.0, copying=1e-7)) == pytest.approx(3.0)
