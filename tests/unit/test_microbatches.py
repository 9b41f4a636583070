"""Micro-batches of a step: taken once, and where a step may run again, once more in the same
order."""

from __future__ import annotations

import pytest

from yolods.engine.microbatches import ReplayableBatches


def batches(count: int):
    return iter([{"number": n, "im_file": (f"{n}.jpg", f"{n}b.jpg")} for n in range(count)])


def numbers(feed: ReplayableBatches, count: int) -> list[int]:
    return [feed.take()["number"] for _ in range(count)]


def test_after_a_rewind_the_same_micro_batches_come_again():
    feed = ReplayableBatches(batches(3), keep=True)
    assert numbers(feed, 2) == [0, 1]
    feed.rewind()
    assert numbers(feed, 2) == [0, 1]


def test_what_is_not_kept_cannot_come_again():
    feed = ReplayableBatches(batches(3), keep=False)
    numbers(feed, 2)
    feed.rewind()
    with pytest.raises(StopIteration):
        feed.take()


def test_a_second_run_notes_no_file_and_no_wait_twice():
    feed = ReplayableBatches(batches(2), keep=True)
    numbers(feed, 2)
    waited, files = feed.waited, list(feed.files)
    feed.rewind()
    numbers(feed, 2)
    assert (feed.waited, feed.files) == (waited, files)
    assert waited > 0
    assert files == [(("0.jpg",), ("0b.jpg",)), (("1.jpg",), ("1b.jpg",))]


def test_of_a_mosaic_all_files_are_noted_and_those_that_could_not_be_read():
    made = {
        "sources": [("a.jpg", "b.jpg"), ("c.jpg",)],
        "im_file": ("a.jpg", "c.jpg"),
        "replaced": ("bad.jpg",),
    }
    feed = ReplayableBatches(iter([made]), keep=False)
    feed.take()
    assert feed.files == [(("a.jpg", "b.jpg"), ("c.jpg",))]
    assert feed.replaced == ["bad.jpg"]
