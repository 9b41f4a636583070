"""Prepares a batch's labels for the loss on the host, where they are, and sends them in one copy.

ultralytics pads boxes to the largest number in any image and tests each box against every anchor on
the device, where it must wait for the counts (ultralytics 8.4.190 utils/loss.py:412,
utils/tal.py:227). Here only pairs of a box and an anchor inside it exist, and the host knows their
number.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolods.device.packed_copy import send
from yolods.model.anchors import Anchors, Level

INSIDE = 1e-9
"""Pixels by which an anchor must be inside a box's border (utils/tal.py:328)."""


@dataclass(frozen=True, eq=False)
class Targets:
    """T boxes of a batch, image by image, and P pairs of a box and an anchor for it.

    Pairs are in the order of their boxes, and for one box in the order of anchors. An image's
    anchors are its *slots*: slot = image x A + anchor, over the batch.
    """

    bounds: tuple[int, ...]
    """(T + 1) on the host: the number of pairs before each box, and P."""
    box: Tensor
    """(P,) int64 index of the box."""
    cell: Tensor
    """(P,) int64 box x A + anchor: ascending."""
    shift: Tensor
    """(T,) int64: slot - cell of a box's pairs."""
    labels: Tensor
    """(T,) int64 classes."""
    corners: Tensor
    """(4, T) fp32 left, top, right, bottom in pixels."""

    @property
    def pairs(self) -> int:
        """Number of pairs, P."""
        return self.bounds[-1]

    def most(self, each: int) -> int:
        """Largest number of pairs that remain if each box keeps at most `each`."""
        return sum(
            min(end - start, each) for start, end in zip(self.bounds, self.bounds[1:], strict=False)
        )


def targets_of(
    batch: dict[str, Tensor], anchors: Anchors, smallest: float, classes: int, device: torch.device
) -> Targets:
    """Prepare labels for the loss.

    Args:
        batch: on the host: `batch_idx` (T,) ascending, `cls` (T, 1), `bboxes` (T, 4) normalised
            xywh.
        anchors: anchors of the images.
        smallest: pixels to which shorter sides of a box are extended before the search for anchors
            inside it.
        classes: number of the head's classes.
        device: device of the predictions.

    Raises:
        ValueError: the labels are not on the host, or have a class beyond those of the head.
    """
    if not batch["bboxes"].is_cpu:
        raise ValueError(
            "labels must be on the host: fetching these from a device would wait for it"
        )
    images, labels = batch["batch_idx"].view(-1).long(), batch["cls"].view(-1).long()
    # Such a label's place among the scores would belong to another anchor.
    if (labels >= classes).any():
        raise ValueError(
            f"a label has class {int(labels.max())}, but the head has {classes}, from 0 on"
        )
    corners = _corners(batch["bboxes"].view(-1, 4).float(), anchors)
    # ultralytics recognises padding by zeros, and so also drops boxes left of and above the image.
    seen = corners.sum(1) > 0
    box, anchor, counts = _pairs(_stretched(corners, smallest), seen, anchors)
    numbers = torch.arange(len(images))
    # slot = image x A + anchor and cell = box x A + anchor: the difference is constant per box.
    shift = (images - numbers) * anchors.count
    bounds = (0, *counts.cumsum(0).tolist())
    sent = (box, box * anchors.count + anchor, shift, labels.clamp(min=0), corners.t().contiguous())
    return Targets(bounds, *send(sent, device))


def _corners(boxes: Tensor, anchors: Anchors) -> Tensor:
    """Corners of normalised boxes: (T, 4) left, top, right, bottom in pixels.

    Source: utils/loss.py:431, utils/ops.py:264.
    """
    pixels = boxes * torch.tensor((anchors.width, anchors.height) * 2)
    middle, half = pixels[:, :2], pixels[:, 2:] / 2
    return torch.cat((middle - half, middle + half), 1)


def _stretched(corners: Tensor, smallest: float) -> Tensor:
    """Boxes with sides of at least `smallest` pixels around the same centre (utils/tal.py:346)."""
    start, end = corners[:, :2], corners[:, 2:]
    middle, sides = (start + end) / 2, end - start
    half = sides.clamp(min=smallest) / 2
    return torch.cat((middle - half, middle + half), 1)


def _pairs(boxes: Tensor, seen: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of boxes and anchors: (P,) box, (P,) anchor, both int64, and (T,) pairs per box.

    On each level, the anchors in a box are a rectangle of cells: several rows, each a run of
    consecutive anchors.
    """
    windows = [_window(boxes, level) for level in anchors.levels]
    # Each is (T, levels).
    corner, width, height = (torch.stack(each, 1) for each in zip(*windows, strict=True))
    # A window without columns has no rows either, and a dropped box has none at all.
    height = height * (width > 0) * seen.view(-1, 1)
    across = torch.tensor([len(level.columns) for level in anchors.levels]).expand_as(corner)
    heights = height.view(-1)
    rows = torch.arange(int(heights.sum())) - _before(heights).repeat_interleave(heights)
    starts = corner.reshape(-1).repeat_interleave(heights) + rows * across.reshape(
        -1
    ).repeat_interleave(heights)
    runs = width.reshape(-1).repeat_interleave(heights)
    pairs = torch.arange(int(runs.sum()))
    counts = (width * height).sum(1)
    box = torch.arange(len(boxes)).repeat_interleave(counts)
    return box, pairs + (starts - _before(runs)).repeat_interleave(runs), counts


def _window(boxes: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
    """The cells of a level whose centres are inside each box: (T,) first anchor, columns, rows."""
    left, width = _span(boxes[:, 0::2], level.columns)
    top, height = _span(boxes[:, 1::2], level.rows)
    return level.first + top * len(level.columns) + left, width, height


def _span(ends: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Which ascending `places` are between a box's `ends` (T, 2): (T,) the first, and how many."""
    first = (places - ends[:, :1] <= INSIDE).sum(1)
    last = (ends[:, 1:] - places > INSIDE).sum(1)
    return first, (last - first).clamp(min=0)


def _before(counts: Tensor) -> Tensor:
    """The sum of all earlier counts."""
    return counts.cumsum(0) - counts
