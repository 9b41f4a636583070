"""The replayed allocator follows the rules of CUDA's caching allocator."""

from __future__ import annotations

import numpy as np
import pytest

from yolods.plan.memory.segments import Segments, reserved_share
from yolods.plan.memory.trace import Trace

MIB = 2**20


@pytest.mark.parametrize(
    ("size", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (9 * MIB, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (11 * MIB, 12 * MIB),
    ],
)
def test_the_segment_of_a_first_block(size: int, reserved: int) -> None:
    segments = Segments()
    segments.allocate(size)
    assert segments.reserved == reserved


def test_blocks_share_a_segment_until_it_is_full() -> None:
    segments = Segments()
    for _ in range(4096):  # 2 MiB in pieces of 512 bytes
        segments.allocate(100)
    assert segments.reserved == 2 * MIB
    segments.allocate(100)
    assert segments.reserved == 4 * MIB


def test_released_neighbours_become_one_block_again() -> None:
    segments = Segments()
    blocks = [segments.allocate(5 * MIB) for _ in range(4)]
    for place in (1, 3, 0, 2):
        segments.release(blocks[place], 5 * MIB)
    segments.allocate(9 * MIB)
    segments.allocate(9 * MIB)
    assert segments.reserved == 20 * MIB


def test_a_gap_that_is_too_small_costs_another_segment() -> None:
    segments = Segments()
    blocks = [segments.allocate(5 * MIB) for _ in range(4)]
    segments.release(blocks[0], 5 * MIB)
    segments.release(blocks[2], 5 * MIB)
    segments.allocate(8 * MIB)
    assert segments.reserved == 40 * MIB


def test_the_share_of_a_series() -> None:
    trace = Trace(
        fixed=np.array([0, 3 * MIB]),
        each=np.array([8 * MIB, 0]),
        for_several=np.array([False, False]),
        born=np.array([0, 1]),
        dead=np.array([2, 3]),
        turn=2,
        ended=3,
        length=4,
        arrivals=np.zeros((0, 2), int),
        forward=(),
        backward=(),
    )
    assert reserved_share(trace, images=2) == pytest.approx((16 + 20) / (16 + 3))
