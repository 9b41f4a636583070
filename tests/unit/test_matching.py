"""Which calls belong together, by their order."""

from __future__ import annotations

from yolods.traffic.matching import needed_calls
from yolods.traffic.replay import TimedCall


def collective(group: str = "all") -> TimedCall:
    return TimedCall(group, None, 8.0, 0, False, ((0.0, 1.0),))


def send(peer: int, tag: int = 0) -> TimedCall:
    return TimedCall("two", peer, 8.0, tag, True, ((0.0, 0.0),))


def receive(peer: int, tag: int = 0) -> TimedCall:
    return TimedCall("two", peer, 0.0, tag, True, ((0.0, 0.0), (1.0, 2.0)))


def test_a_collective_needs_all_ranks_of_its_group() -> None:
    found = needed_calls(
        [
            [collective(), collective("pair"), collective()],
            [collective(), collective()],
            [collective("pair"), collective(), collective()],
        ]
    )
    first, second = ((0, 0), (1, 0), (2, 1)), ((0, 2), (1, 1), (2, 2))
    pair = ((0, 1), (2, 0))
    assert found == [[first, pair, second], [first, second], [pair, first, second]]


def test_a_receive_needs_the_send_of_its_tag() -> None:
    """They are posted in another order than sent, and each rank sends as well."""
    found = needed_calls(
        [
            [send(1, tag=1), send(1, tag=3), receive(1, tag=2), send(1, tag=1)],
            [receive(0, tag=1), receive(0, tag=1), receive(0, tag=3), send(0, tag=2)],
        ]
    )
    assert found == [[(), (), ((1, 3),), ()], [((0, 0),), ((0, 3),), ((0, 1),), ()]]


def test_what_cannot_be_matched_needs_nothing() -> None:
    unequal = needed_calls([[collective(), collective()], [collective()]])
    assert unequal == [[(), ()], [()]]
    assert needed_calls([[collective("")], [collective("")]]) == [[()], [()]]
    assert needed_calls([[send(1)], [receive(0), receive(0)]]) == [[()], [(), ()]]
