"""Geometry of boxes on cases that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from yolods.model.loss.boxes import ciou, corners, distances


def box(*sides: float) -> list[torch.Tensor]:
    return [torch.tensor(side) for side in sides]


def test_corners_and_distances_undo_each_other():
    points = torch.tensor([[2.0, 3.0], [0.5, 0.5]])
    reach = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.5, 1.0, 0.25]])
    assert corners(reach, points)[0].tolist() == [1.0, 1.0, 5.0, 7.0]
    assert torch.equal(distances(corners(reach, points), points), reach)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0, 0, 4, 4), 1.0),
        # IoU 1/3; centres 2 apart, the box around both 6 x 4.
        ((2, 0, 6, 4), 1 / 3 - 4 / 52),
        # Apart: IoU 0; centres 8 apart, the box around both 12 x 4.
        ((8, 0, 12, 4), -64 / 160),
    ],
)
def test_of_boxes_of_one_shape_it_is_overlap_less_distance(other, expected):
    assert ciou(box(0.0, 0, 4, 4), box(*map(float, other))).item() == pytest.approx(
        expected, abs=1e-6
    )


def test_of_boxes_of_one_middle_it_is_overlap_less_difference_in_shape():
    shape = 4 / math.pi**2 * (math.atan(2) - math.atan(1 / 2)) ** 2
    overlap = 4 / 12
    expected = overlap - shape * shape / (1 - overlap + shape)
    assert ciou(box(1.0, 0, 3, 4), box(0.0, 1, 4, 3)).item() == pytest.approx(expected, abs=1e-6)


def test_boxes_that_lie_apart_are_still_drawn_together():
    right = torch.tensor(12.0, requires_grad=True)
    one = [torch.tensor(0.0), torch.tensor(0.0), torch.tensor(4.0), torch.tensor(4.0)]
    other = [torch.tensor(8.0, requires_grad=True), torch.tensor(0.0), right, torch.tensor(4.0)]
    ciou(one, other).backward()
    assert other[0].grad.item() < 0  # further to the left would be better


def test_boxes_of_no_size_have_a_number():
    point, whole = box(1.0, 1, 1, 1), box(0.0, 0, 4, 4)
    assert torch.isfinite(ciou(point, whole)) and torch.isfinite(ciou(whole, point))
