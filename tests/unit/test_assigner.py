"""Which anchor answers for which box, on grids that can be followed by hand. Against ultralytics'
own: test_detection_loss.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from yolods.model.anchors import Anchors, anchors_of
from yolods.model.loss import assigner
from yolods.model.loss.assigner import Assignment, assign
from yolods.model.loss.targets import Targets, targets_of

CPU = torch.device("cpu")
TOPK = 10  # ultralytics' own
SIDE = 8
"""Cells, and pixels a cell."""


def anchors() -> Anchors:
    return anchors_of(((SIDE, SIDE),), (8.0,), CPU)


def targets(*boxes: tuple[int, int, tuple[float, float, float, float]]) -> Targets:
    """Boxes of (image, class, left-top-right-bottom in cells)."""
    corners = torch.tensor([box for _, _, box in boxes]).view(-1, 4) / SIDE
    middle, sides = (corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]
    batch = {
        "batch_idx": torch.tensor([float(image) for image, _, _ in boxes]),
        "cls": torch.tensor([[float(each)] for _, each, _ in boxes]).view(-1, 1),
        "bboxes": torch.cat((middle, sides), 1),
    }
    return targets_of(batch, anchors(), 8.0, 2, CPU)


def guesses(images: int, box: tuple[float, float, float, float]) -> Tensor:
    """(4, slots): every anchor guesses this box, in cells."""
    return (torch.tensor(box) * 8).view(4, 1).repeat(1, images * SIDE * SIDE)


def assigned(scores: Tensor, boxes: Tensor, wanted: Targets) -> Assignment:
    return assign(scores, boxes, anchors(), wanted, exact=True)


ONE = (2.0, 2.0, 4.0, 4.0)
CELLS = [row * SIDE + column for row in (2, 3) for column in (2, 3)]


def test_anchors_inside_a_box_answer_for_it_and_no_others():
    scores = torch.full((SIDE * SIDE, 2), 0.5)
    found = assigned(scores, guesses(1, ONE), targets((0, 1, ONE)))
    assert found.slot.tolist() == CELLS and found.real.all() and (found.box == 0).all()
    torch.testing.assert_close(found.weight, torch.ones(4), rtol=0, atol=1e-6)


def test_of_many_the_highest_answer_and_the_best_one_s_weight_is_its_overlap():
    box = (0.0, 0.0, 8.0, 8.0)
    scores = torch.full((SIDE * SIDE, 2), 0.01)
    best = torch.arange(20, 20 + TOPK)
    scores[best, 1] = torch.linspace(0.25, 1.0, TOPK)
    scores[40, 0] = 1.0  # of another class
    half = (0.0, 0.0, 8.0, 4.0)
    found = assigned(scores, guesses(1, half), targets((0, 1, box)))
    assert found.slot.tolist() == best.tolist()
    overlap = found.weight[-1].item()
    assert 0.3 < overlap < 0.5, "complete IoU of a half, less its penalties"
    torch.testing.assert_close(
        found.weight, overlap * torch.linspace(0.25, 1.0, TOPK).sqrt(), rtol=1e-5, atol=0
    )


def test_an_anchor_that_two_boxes_want_goes_to_the_one_it_overlaps_most():
    scores = torch.full((SIDE * SIDE, 2), 0.5)
    other = (2.0, 2.0, 4.0, 6.0)
    for order in ((ONE, other), (other, ONE)):
        found = assigned(scores, guesses(1, ONE), targets(*((0, 0, box) for box in order)))
        mine = {
            slot: box for slot, box in zip(found.slot.tolist(), found.box.tolist(), strict=True)
        }
        assert {slot for slot, box in mine.items() if order[box] is ONE} == set(CELLS)
        assert len(mine) == 8


def test_images_do_not_answer_for_each_other_s_boxes():
    scores = torch.full((2 * SIDE * SIDE, 2), 0.5)
    found = assigned(scores, guesses(2, ONE), targets((0, 0, ONE), (1, 1, ONE)))
    assert found.slot.tolist() == [*CELLS, *(SIDE * SIDE + cell for cell in CELLS)]
    assert found.box.tolist() == [0] * 4 + [1] * 4


def test_without_asking_how_many_slots_others_fill_up_the_room_and_weigh_nothing():
    scores, boxes = torch.full((SIDE * SIDE, 2), 0.5), guesses(1, ONE)
    wanted = targets((0, 0, ONE), (0, 0, (2.0, 2.0, 4.0, 3.0)))
    exact = assigned(scores, boxes, wanted)
    found = assign(scores, boxes, anchors(), wanted, exact=False)
    count = len(exact.slot)
    assert len(found.slot) == wanted.most(TOPK) == 6 and count == 4
    assert found.real.tolist() == [True] * count + [False] * 2
    assert len(set(found.slot.tolist())) == 6, "all different"
    assert torch.equal(found.slot[:count], exact.slot) and torch.equal(
        found.weight[:count], exact.weight
    )
    assert (found.weight[count:] == 0).all()


def test_a_batch_without_boxes_gives_nothing():
    found = assigned(torch.rand(SIDE * SIDE, 2), guesses(1, ONE), targets())
    assert len(found.slot) == len(found.weight) == 0


@pytest.mark.parametrize(("name", "size"), [("PAIRS", 64), ("CELLS", 64)])
def test_pieces_come_to_the_same_as_the_whole(monkeypatch, name: str, size: int):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2 * SIDE * SIDE, 2, generator=generator)
    corners = torch.rand(2, 2 * SIDE * SIDE, generator=generator) * 4
    boxes = torch.cat((corners, corners + 3)) * 8
    places = [
        0.2 * place for place in range(20)
    ]  # more boxes than a piece holds, whatever its size
    wanted = targets(*((image, image, (x, 1.0, x + 4.0, 7.0)) for image in (0, 1) for x in places))
    whole = assigned(scores, boxes, wanted)
    monkeypatch.setattr(assigner, name, size)
    pieces = assigned(scores, boxes, wanted)
    assert torch.equal(whole.slot, pieces.slot) and torch.equal(whole.box, pieces.box)
    torch.testing.assert_close(whole.weight, pieces.weight)
