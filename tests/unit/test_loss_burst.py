"""The loss on meta tensors needs the memory of the real loss on real tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.plan_burst import EACH, random_labels, real_burst
from yolods.model.anchors import anchors_of
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.plan.memory.boxes import BoxCounts, box_counts
from yolods.plan.memory.loss_burst import labels, loss_burst

IMAGES, SIZE = 2, 320


def _head(classes: int) -> torch.nn.Module:
    names = tuple(map(str, range(classes)))
    return Blueprint(architecture(parse_name("yolov5n"), classes, 3), names, 0).head


def _outputs(head: torch.nn.Module) -> dict[str, Any]:
    sides = [int(SIZE // stride) for stride in head.stride.tolist()]
    anchors = sum(side * side for side in sides)
    generator = torch.Generator().manual_seed(0)
    boxes, scores = (
        0.5 * torch.randn(IMAGES, channels, anchors, generator=generator)
        for channels in (4 * head.reg_max, head.nc)
    )
    feats = [torch.empty(IMAGES, 1, side, side) for side in sides]
    return {"boxes": boxes, "scores": scores, "feats": feats}


@pytest.mark.parametrize("exact", [False, True], ids=["gpu", "cpu"])
@pytest.mark.parametrize("classes", [3, 80])
@pytest.mark.parametrize("boxes", [1, 20, 100, 500])
def test_the_burst_is_that_of_the_real_loss(classes: int, boxes: int, exact: bool) -> None:
    head, batch = _head(classes), random_labels(boxes, IMAGES)
    areas = batch["bboxes"][:, 2:].prod(1).numpy()
    counts = box_counts(np.full(IMAGES, boxes), areas, mosaic=0)
    predicted = loss_burst(head, counts, SIZE, IMAGES, torch.float32, on_host=exact)
    measured = real_burst(head, _outputs(head), batch, exact=exact)
    assert predicted == pytest.approx(measured, rel=EACH)


def test_the_loss_of_what_fits_no_host_is_not_computed_here() -> None:
    """A plan for 32 images of 6400 pixels took more memory than the machine had."""
    anchors_of.cache_clear()
    sizes = [
        loss_burst(_head(80), BoxCounts(5.0, 5), 6400, 32, torch.float32, on_host=on_host)
        for on_host in (True, False)
    ]
    assert sizes[0] == sizes[1] > 20 << 30


def test_a_micro_batch_without_boxes_has_a_burst_too() -> None:
    assert loss_burst(_head(3), BoxCounts(0.0, 0), SIZE, IMAGES, torch.float32) > 0


def test_labels_lie_in_their_images_and_in_order() -> None:
    made = labels(BoxCounts(3.0, 5, (0.04, 0.25)), 4)
    assert len(made["cls"]) == 14
    assert made["batch_idx"].tolist() == sorted(made["batch_idx"].tolist())
    centres, sides = made["bboxes"].chunk(2, 1)
    assert (centres - sides / 2 > -1e-6).all() and (centres + sides / 2 < 1 + 1e-6).all()
