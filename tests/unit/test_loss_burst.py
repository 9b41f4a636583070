"""The loss on meta tensors needs the memory of the real loss on real tensors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.loss_memory import LiveBytes
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.loss.detection_loss import DetectionLoss
from yolods.plan.memory.boxes import BoxCounts, box_counts
from yolods.plan.memory.loss_burst import labels, loss_burst

IMAGES, SIZE = 2, 320


def _head(classes: int) -> torch.nn.Module:
    names = tuple(map(str, range(classes)))
    return Blueprint(architecture(parse_name("yolov5n"), classes, 3), names, 0).head


def _random_labels(boxes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(boxes)
    total = IMAGES * boxes
    sides = 0.02 + 0.4 * torch.rand(total, 2, generator=generator) ** 2
    centres = sides / 2 + (1 - sides) * torch.rand(total, 2, generator=generator)
    return {
        "batch_idx": torch.arange(IMAGES).repeat_interleave(boxes).float(),
        "cls": torch.zeros(total, 1),
        "bboxes": torch.cat((centres, sides), 1),
    }


def _real_peak(head: torch.nn.Module, batch: dict[str, Tensor], *, exact: bool) -> int:
    """Bytes that the loss's operations allocate at most, forward and backward."""
    gains = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    loss = DetectionLoss(head, torch.device("cpu"), gains, exact=exact)
    sides = [int(SIZE // stride) for stride in head.stride.tolist()]
    anchors = sum(side * side for side in sides)
    generator = torch.Generator().manual_seed(0)
    boxes, scores = (
        torch.randn(IMAGES, channels, anchors, generator=generator).requires_grad_()
        for channels in (4 * head.reg_max, head.nc)
    )
    feats = [torch.empty(IMAGES, 1, side, side) for side in sides]
    with LiveBytes() as live:
        total, _ = loss({"boxes": boxes, "scores": scores, "feats": feats}, batch, IMAGES)
        total.backward()
    return live.peak


@pytest.mark.parametrize("classes", [3, 80])
@pytest.mark.parametrize("boxes", [1, 20, 100, 500])
def test_the_burst_is_that_of_the_real_loss(classes: int, boxes: int) -> None:
    head, batch = _head(classes), _random_labels(boxes)
    areas = batch["bboxes"][:, 2:].prod(1).numpy()
    counts = box_counts(np.full(IMAGES, boxes), areas, mosaic=0)
    predicted = loss_burst(head, counts, SIZE, IMAGES, torch.float32)
    assert predicted == pytest.approx(_real_peak(head, batch, exact=False), rel=0.05)


def test_a_cpu_keeps_only_the_slots_that_were_found() -> None:
    head, batch = _head(3), _random_labels(100)
    areas = batch["bboxes"][:, 2:].prod(1).numpy()
    counts = box_counts(np.full(IMAGES, 100), areas, mosaic=0)
    predicted = loss_burst(head, counts, SIZE, IMAGES, torch.float32, on_host=True)
    assert predicted == pytest.approx(_real_peak(head, batch, exact=True), rel=0.05)


def test_a_micro_batch_without_boxes_has_a_burst_too() -> None:
    assert loss_burst(_head(3), BoxCounts(0.0, 0), SIZE, IMAGES, torch.float32) > 0


def test_labels_lie_in_their_images_and_in_order() -> None:
    made = labels(BoxCounts(3.0, 5, (0.04, 0.25)), 4)
    assert len(made["cls"]) == 14
    assert made["batch_idx"].tolist() == sorted(made["batch_idx"].tolist())
    centres, sides = made["bboxes"].chunk(2, 1)
    assert (centres - sides / 2 > -1e-6).all() and (centres + sides / 2 < 1 + 1e-6).all()
