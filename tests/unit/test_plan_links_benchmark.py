"""The arithmetic of benchmarks/plan_links.py: bytes with headers, the choice, the record."""

from __future__ import annotations

import pytest

from benchmarks.plan_links import verdict
from benchmarks.plan_links_model import (
    LAYOUTS,
    Task,
    messages,
    rank_correlation,
    wire_bytes,
)
from yolods.plan.traffic.transfers import Transfer

TASK = Task("yolov5n", 64, 2, 3, 1, ("",), "eth0", "")


def packets(size: int) -> int:
    return -(-size // 1448)


def test_messages_of_gloo() -> None:
    """As counted on a loopback interface of two gloo ranks with torch 2.13, whose packets have no
    limit to speak of: 4 and 10 messages of a rank for an all-reduce of 960 bytes and of 9.6 MB, 2
    for an all-gather of either."""
    assert messages(Transfer("", "all_reduce", 960, 1, 2)) == (4, 240.0)
    assert messages(Transfer("", "all_reduce", 9_600_000, 1, 2)) == (10, 960_000.0)
    for size in (960, 9_600_000):
        assert messages(Transfer("", "all_gather", 2 * size, 1, 2)) == (2, size / 2)
    assert messages(Transfer("", "all_reduce", 960, 1, 3))[0] == 8
    assert messages(Transfer("", "send", 960, 3, 2)) == (1, 320.0)


def test_headers_of_packets_and_of_messages() -> None:
    sent = Transfer("boundary", "send", 2 * 100_000, 2, 2)
    data = 100_000 + 48
    assert wire_bytes(sent) == 2 * (data + 66 * packets(data) + 48 + 66)
    gathered = Transfer("gather", "all_gather", 4000, 1, 2)
    assert wire_bytes(gathered) == 2 * (1000 + 48 + 66 + 2 * (48 + 66))


def test_large_transfers_cost_a_frame_per_segment() -> None:
    reduced = Transfer("reduce", "all_reduce", 10_000_000, 1, 2)
    assert wire_bytes(reduced) == pytest.approx(10_000_000 * 1514 / 1448, rel=1e-3)


def test_every_layout_takes_the_same_images() -> None:
    images = set()
    for case in LAYOUTS:
        layout = case.layout(TASK, (5,) if case.stages > 1 else ())
        content = case.content(TASK.micro, TASK.accumulation)
        assert content["gradient_accumulation_steps"] == layout.accumulation
        assert layout.ranks == 2
        images.add(layout.images)
    assert images == {12}


def test_spearman() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    # Two neighbours of five exchanged: 1 - 6 * 2 / (5 * 24).
    assert rank_correlation([1, 2, 3, 4, 5], [1, 3, 2, 4, 5]) == pytest.approx(0.9)
    # Two that are equal have places 1.5 and 1.5: sqrt(4.5 / 5).
    assert rank_correlation([1, 1, 3, 4], [1, 2, 3, 4]) == pytest.approx(0.9**0.5)


def test_the_verdict_judges_the_choice_and_the_order() -> None:
    assert "met" in verdict([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    wrong = verdict([2.0, 1.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert "ZeRO-0 is chosen: 100.0% slower" in wrong and "missed" in wrong


def test_of_equally_fast_layouts_the_simplest_is_chosen() -> None:
    assert "ZeRO-0 is chosen" in verdict([1.0, 2.0, 3.0, 4.0, 5.0], [1.01, 2.0, 3.0, 4.0, 1.0])
