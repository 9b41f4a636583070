"""Which anchors lie in which box, against looking at every anchor for every box."""

from __future__ import annotations

import pytest
import torch

from yolods.model.anchors import anchors_of
from yolods.model.loss.targets import INSIDE, Targets, targets_of

CPU = torch.device("cpu")
ANCHORS = anchors_of(((4, 6), (2, 3)), (8.0, 16.0), CPU)  # 48 x 32 pixels


def targets(
    boxes: list[list[float]], images: list[int], smallest: float = 0.0, classes: int = 3
) -> Targets:
    batch = {
        "batch_idx": torch.tensor(images, dtype=torch.float32),
        "cls": torch.arange(len(boxes)).view(-1, 1) % 3.0,
        "bboxes": torch.tensor(boxes).view(-1, 4),
    }
    return targets_of(batch, ANCHORS, smallest, classes, CPU)


def by_looking(corners: torch.Tensor) -> list[tuple[int, int]]:
    """(box, anchor) pairs."""
    middles = ANCHORS.points * ANCHORS.strides
    found = []
    for number, (left, top, right, bottom) in enumerate(corners.t().tolist()):
        for anchor, (x, y) in enumerate(middles.tolist()):
            if min(x - left, y - top, right - x, bottom - y) > INSIDE:
                found.append((number, anchor))
    return found


def pairs(found: Targets) -> list[tuple[int, int]]:
    return [
        (box, cell - box * ANCHORS.count)
        for box, cell in zip(found.box.tolist(), found.cell.tolist(), strict=True)
    ]


def test_pairs_are_those_of_every_anchor_that_is_inside():
    torch.manual_seed(0)
    boxes = (torch.rand(20, 4) * torch.tensor([1.0, 1.0, 0.6, 0.6])).tolist()
    found = targets(boxes, sorted(range(20), key=lambda n: n % 3 > 1))
    assert pairs(found) == by_looking(found.corners)
    assert found.pairs == len(found.box) > 50


def test_corners_are_in_pixels():
    found = targets([[0.5, 0.5, 0.5, 0.25]], [0])
    assert found.corners.view(-1).tolist() == [12.0, 12.0, 36.0, 20.0]


def test_a_box_smaller_than_a_cell_is_stretched_to_reach_an_anchor():
    tiny = [[0.25, 0.25, 0.01, 0.01]]  # around (12, 8): between the anchors
    assert targets(tiny, [0]).pairs == 0
    assert targets(tiny, [0], smallest=16.0).pairs > 0


def test_a_slot_is_an_anchor_of_a_boxs_image():
    found = targets([[0.5, 0.5, 1.0, 1.0]] * 2, [0, 3])
    slots = found.cell + found.shift.index_select(0, found.box)
    assert slots[: ANCHORS.count].tolist() == list(range(ANCHORS.count))
    assert slots[ANCHORS.count :].tolist() == list(range(3 * ANCHORS.count, 4 * ANCHORS.count))


def test_no_more_pairs_are_left_than_each_box_keeps():
    found = targets([[0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.01, 0.01]], [0, 0])
    assert found.bounds == (0, ANCHORS.count, ANCHORS.count)
    assert found.most(10) == 10 and found.most(1000) == ANCHORS.count


def test_no_box_at_all():
    found = targets([], [])
    assert found.pairs == 0 and found.corners.shape == (4, 0)


def test_a_class_that_the_head_does_not_know_is_refused():
    with pytest.raises(ValueError, match="a label has class 2, but the head has 2"):
        targets([[0.5, 0.5, 1.0, 1.0]] * 3, [0, 0, 0], classes=2)


def test_labels_on_a_device_are_refused():
    batch = {
        "bboxes": torch.empty(1, 4, device="meta"),
        "batch_idx": torch.zeros(1),
        "cls": torch.zeros(1, 1),
    }
    with pytest.raises(ValueError, match="labels must be on the host"):
        targets_of(batch, ANCHORS, 0.0, 3, CPU)
