"""An index is what was written: rows, counts, polygons and faults, over several blocks."""

from __future__ import annotations

import numpy as np
import pytest

from yolods.data.index.block import block_of
from yolods.data.index.columns import ColumnType
from yolods.data.index.table import Index, IndexWriter
from yolods.data.verify import CheckedPair, Problem

FAULT = Problem("b.jpg", None, "damaged")


def pairs() -> list[CheckedPair]:
    """Images with 2, no and 1 box; the second is damaged, the last has a polygon for its box."""
    boxes = np.array([[3, 0.5, 0.5, 0.2, 0.2], [1, 0.4, 0.4, 0.1, 0.1]], np.float32)
    polygon = np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.1]], np.float32)
    return [
        CheckedPair("a.jpg", (4, 5), boxes, id="a", lines_skipped=1),
        CheckedPair("b.jpg", None, problems=[FAULT], id="b", lines_skipped=7),
        CheckedPair("c.jpg", (6, 7), boxes[:1], [polygon], id="c"),
        CheckedPair("d.jpg", (8, 9), id="d"),
    ]


@pytest.fixture
def index(tmp_path) -> Index:
    with IndexWriter(tmp_path / "x", {"shard": ColumnType("<i4")}) as writer:
        for place, pair in enumerate(pairs()):
            block = block_of([pair], [(place, 0, 0, 0)], [place])
            block.further["shard"] = np.array([place * 10], np.int32)
            writer.add(block)
        writer.counts.further["key"] = "value"
    return Index(tmp_path / "x")


def test_rows_and_counts(index):
    counts = index.counts
    assert (counts.images, counts.kept, counts.boxes, counts.backgrounds) == (4, 3, 3, 1)
    assert (counts.most_boxes, counts.lines_skipped, counts.without_polygon) == (2, 1, 2)
    assert (counts.lowest_class, counts.highest_class, counts.problems) == (0, 3, 1)
    assert counts.further == {"key": "value"}
    assert list(index.ids) == ["a", "b", "c", "d"] and index.kept_rows().tolist() == [0, 2, 3]
    assert [index.boxes_of(row) for row in range(4)] == [(0, 2), (2, 2), (2, 3), (3, 3)]
    assert [len(each) for each in index.polygons_of(0, 3)] == [0, 0, 3]
    assert index.polygons_of(3, 3) == []
    assert index.problems() == [(1, FAULT)]
    assert index.columns["shard"].tolist() == [0, 10, 20, 30]


def test_what_was_not_finished_is_no_index(tmp_path):
    with pytest.raises(ZeroDivisionError), IndexWriter(tmp_path / "x") as writer:
        writer.add(block_of(pairs()[:1], [(0, 0, 0, 0)], [0]))
        raise ZeroDivisionError
    with pytest.raises(OSError):
        Index(tmp_path / "x")


def test_an_index_without_a_fault_is_a_range(tmp_path):
    with IndexWriter(tmp_path / "x") as writer:
        writer.add(block_of(pairs()[::2], [(0, 0, 0, 0)] * 2, [0, 1]))
    assert Index(tmp_path / "x").kept_rows() == range(2)
