"""What an exchange of gradients holds, from arrivals that can be worked out by hand."""

from __future__ import annotations

import numpy as np

from yolods.plan.layout import Layout
from yolods.plan.memory.partitioning import _UNDER_WAY, exchanging_bytes, moved_elements
from yolods.plan.memory.timeline import Timeline
from yolods.zero import owned_reduction

PASSES = Timeline(
    forward=np.zeros(1, np.int64),
    backward=np.zeros(9, np.int64),
    arrivals=np.array([[1, 10], [3, 10], [5, 10], [7, 10]]),
    ended=8,
)
"""Four gradients, each of which fills a bucket of ten elements."""
TWO = Layout(imgsz=64, replicas=2, zero_stage=2)


def test_as_many_are_under_way_as_in_the_engine() -> None:
    assert _UNDER_WAY == owned_reduction.UNDER_WAY


def test_two_copies_at_a_time() -> None:
    found = exchanging_bytes(PASSES, TWO, 10, 4, gloo=False)
    assert found.tolist() == [0, 0, 40, 40, 80, 80, 80, 80, 80]


def test_without_overlap_each_is_stored_at_once() -> None:
    layout = Layout(imgsz=64, replicas=2, overlapped=False)
    found = exchanging_bytes(PASSES, layout, 10, 4, gloo=False)
    assert found.tolist() == [0, 0, 40, 0, 40, 0, 40, 0, 40]


def test_on_gloo_the_owner_receives_from_all_ranks() -> None:
    """The last rank owns the first two buckets and holds three times their bytes; the first rank
    owns the others. Between them each has one of its own."""
    found = exchanging_bytes(PASSES, TWO, 10, 4, gloo=True)
    assert found.tolist() == [0, 0, 120, 120, 240, 240, 240, 160, 240]


def test_zero_1_on_gloo_keeps_all_under_way() -> None:
    layout = Layout(imgsz=64, replicas=2, zero_stage=1)
    found = exchanging_bytes(PASSES, layout, 10, 4, gloo=True)
    assert found.tolist() == [0, 0, 120, 120, 240, 240, 280, 280, 320]
    on_nccl = exchanging_bytes(PASSES, layout, 10, 4, gloo=False)
    assert on_nccl.max() == 80


def test_16_bits_are_added_up_in_32() -> None:
    found = exchanging_bytes(PASSES, TWO, 10, 2, gloo=True)
    # Two under way, and while one is added up, its sum and a part in fp32.
    assert found.max() == 2 * 60 + 80


def test_a_gradient_larger_than_the_bucket_does_not_move() -> None:
    assert moved_elements(PASSES, 9).max() == 0
    assert moved_elements(PASSES, 10).tolist() == [0, 10, 10, 20, 20, 30, 30, 40, 40]
