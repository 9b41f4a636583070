"""Anchor points in the middle of every cell."""

from __future__ import annotations

import torch

from yolods.model.anchors import anchors_of

CPU = torch.device("cpu")


def test_points_go_level_after_level_and_row_after_row():
    anchors = anchors_of(((2, 3), (1, 1)), (8.0, 16.0), CPU)
    assert anchors.count == 7
    assert anchors.points.tolist() == [
        *([0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5]),
        [0.5, 0.5],
    ]
    assert anchors.strides.view(-1).tolist() == [8.0] * 6 + [16.0]


def test_an_image_is_as_large_as_its_first_level():
    anchors = anchors_of(((2, 3), (1, 2)), (8.0, 16.0), CPU)
    assert (anchors.width, anchors.height) == (24.0, 16.0)
    assert anchors.sides.tolist() == [24.0, 16.0, 24.0, 16.0]


def test_a_level_knows_its_middles_in_pixels_and_where_its_anchors_begin():
    first, second = anchors_of(((2, 3), (1, 2)), (8.0, 16.0), CPU).levels
    assert (first.first, second.first) == (0, 6)
    assert first.columns.tolist() == [4.0, 12.0, 20.0] and first.rows.tolist() == [4.0, 12.0]
    assert second.columns.tolist() == [8.0, 24.0] and second.rows.tolist() == [8.0]


def test_they_are_made_once_for_each_shape():
    assert anchors_of(((4, 4),), (8.0,), CPU) is anchors_of(((4, 4),), (8.0,), CPU)
