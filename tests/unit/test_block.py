"""Rows of an index out of checks: arrays of one length each, and a digest without names."""

from __future__ import annotations

import numpy as np

from yolods.data.index.block import block_of, digest_of, place_number, stat_of
from yolods.data.verify import CheckedPair, Problem

BOXES = np.array([[0, 0.5, 0.5, 0.2, 0.2], [1, 0.4, 0.4, 0.1, 0.1]], np.float32)
SHAPE = (480, 640)


def test_every_image_has_its_rows():
    polygons = [np.zeros((3, 2), np.float32), np.ones((4, 2), np.float32)]
    pairs = [
        CheckedPair("a.jpg", SHAPE, BOXES, polygons, [2, 5], id="a"),
        CheckedPair("b.jpg", None, problems=[Problem("b.jpg", None, "gone")], id="b"),
        CheckedPair("c.jpg", SHAPE, BOXES[:1], id="c", lines_skipped=3),
    ]
    block = block_of(pairs, [(1, 2, 3, 4), (-1, -1, -1, -1), (5, 6, -1, -1)], [7, 8, 9])
    assert block.ids == ["a", "b", "c"] and block.shape.tolist() == [[*SHAPE], [0, 0], [*SHAPE]]
    assert block.boxes.tolist() == [2, 0, 1] and block.points.tolist() == [3, 4, 0]
    assert np.array_equal(block.box, np.concatenate([BOXES, BOXES[:1]]))
    assert np.array_equal(block.point, np.concatenate(polygons))
    assert block.line.tolist() == [2, 5, 1], "lines are counted where the check has none"
    assert block.lines_skipped.tolist() == [0, 0, 3]
    assert block.problems == [(1, Problem("b.jpg", None, "gone"))]
    assert block.place.tolist() == [7, 8, 9]


def test_a_digest_tells_size_shape_and_boxes_apart_and_nothing_else():
    digest = digest_of(10, SHAPE, BOXES)
    assert digest == digest_of(10, np.array(SHAPE, np.int32), BOXES.copy())
    others = [
        digest_of(11, SHAPE, BOXES),
        digest_of(10, SHAPE[::-1], BOXES),
        digest_of(10, SHAPE, BOXES[::-1]),
        digest_of(10, SHAPE, BOXES[:1]),
        digest_of(10, None, BOXES),
    ]
    assert len({digest, *others}) == 6 and len(digest) == 16


def test_places_and_states_of_files(tmp_path):
    assert place_number("a", "b") != place_number("ab", "") and place_number("a") < 2**64
    assert stat_of(str(tmp_path / "gone")) == (-1, -1)
    file = tmp_path / "there"
    file.write_bytes(b"12345")
    assert stat_of(str(file)) == (5, file.stat().st_mtime_ns)
