"""What a batch's labels say about its anchors, worked out on the host, where labels are, and sent in one copy.

ultralytics pads boxes to the most of any image and tests each against every anchor on the device, where it has to wait
for the counts (ultralytics 8.4.190 utils/loss.py:412, utils/tal.py:227). Here only pairs of a box and an anchor inside
it exist, and the host knows how many.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolods.device.packed_copy import send
from yolods.model.anchors import Anchors, Level

INSIDE = 1e-9
"""Pixels that an anchor has to be away from a box's border (utils/tal.py:328)."""


@dataclass(frozen=True, eq=False)
class Targets:
    """T boxes of a batch, image after image, and the P pairs of a box and an anchor that may be given to it.

    Pairs are in the order of their boxes, and of one box in the order of anchors. An image's anchors are its *slots*:
    slot = image x A + anchor, over the batch.
    """

    bounds: tuple[int, ...]
    """(T + 1) on the host: pairs before each box, and P."""
    box: Tensor
    """(P,) int64."""
    cell: Tensor
    """(P,) int64 box x A + anchor: rises from pair to pair."""
    shift: Tensor
    """(T,) int64: slot - cell of a box's pairs."""
    labels: Tensor
    """(T,) int64 classes."""
    corners: Tensor
    """(4, T) fp32 left, top, right, bottom in pixels."""

    @property
    def pairs(self) -> int:
        """P."""
        return self.bounds[-1]

    def most(self, each: int) -> int:
        """Pairs that are left at most where a box keeps no more than `each`."""
        return sum(min(end - start, each) for start, end in zip(self.bounds, self.bounds[1:], strict=False))


def targets_of(
    batch: dict[str, Tensor], anchors: Anchors, smallest: float, classes: int, device: torch.device
) -> Targets:
    """Labels as the loss wants them.

    Args:
        batch: on the host: `batch_idx` (T,) rising, `cls` (T, 1), `bboxes` (T, 4) normalised xywh.
        anchors: of the images.
        smallest: pixels that a shorter side of a box is stretched to before anchors are looked for inside it.
        classes: that the head knows.
        device: where predictions are.

    Raises:
        ValueError: the labels are not on the host, or have a class that the head does not know.
    """
    if not batch["bboxes"].is_cpu:
        raise ValueError("labels are read on the host, and these are on a device: fetching them would wait for it")
    images, labels = batch["batch_idx"].view(-1).long(), batch["cls"].view(-1).long()
    if (labels >= classes).any():  # its place among the scores would be another anchor's
        raise ValueError(f"a label has class {int(labels.max())}, and the head knows {classes}, from 0 on")
    corners = _corners(batch["bboxes"].view(-1, 4).float(), anchors)
    seen = corners.sum(1) > 0  # ultralytics tells padding by its zeros, and drops what lies left of and above the image
    box, anchor, counts = _pairs(_stretched(corners, smallest), seen, anchors)
    numbers = torch.arange(len(images))
    shift = (images - numbers) * anchors.count
    bounds = (0, *counts.cumsum(0).tolist())
    sent = (box, box * anchors.count + anchor, shift, labels.clamp(min=0), corners.t().contiguous())
    return Targets(bounds, *send(sent, device))


def _corners(boxes: Tensor, anchors: Anchors) -> Tensor:
    """(T, 4) left, top, right, bottom in pixels of normalised boxes (utils/loss.py:431, utils/ops.py:264)."""
    pixels = boxes * torch.tensor((anchors.width, anchors.height) * 2)
    middle, half = pixels[:, :2], pixels[:, 2:] / 2
    return torch.cat((middle - half, middle + half), 1)


def _stretched(corners: Tensor, smallest: float) -> Tensor:
    """Boxes with sides of at least `smallest` pixels around the same middle (utils/tal.py:346)."""
    start, end = corners[:, :2], corners[:, 2:]
    middle, sides = (start + end) / 2, end - start
    half = sides.clamp(min=smallest) / 2
    return torch.cat((middle - half, middle + half), 1)


def _pairs(boxes: Tensor, seen: Tensor, anchors: Anchors) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes and the anchors in them: (P,) box, (P,) anchor, both int64, and (T,) how many pairs each box has.

    The anchors in a box are a rectangle of cells on each level: so many rows, each a run of neighbouring anchors.
    """
    windows = [_window(boxes, level) for level in anchors.levels]
    corner, width, height = (torch.stack(each, 1) for each in zip(*windows, strict=True))  # (T, levels)
    height = height * (width > 0) * seen.view(-1, 1)
    across = torch.tensor([len(level.columns) for level in anchors.levels]).expand_as(corner)
    heights = height.view(-1)
    rows = torch.arange(int(heights.sum())) - _before(heights).repeat_interleave(heights)
    starts = corner.reshape(-1).repeat_interleave(heights) + rows * across.reshape(-1).repeat_interleave(heights)
    runs = width.reshape(-1).repeat_interleave(heights)
    pairs = torch.arange(int(runs.sum()))
    counts = (width * height).sum(1)
    box = torch.arange(len(boxes)).repeat_interleave(counts)
    return box, pairs + (starts - _before(runs)).repeat_interleave(runs), counts


def _window(boxes: Tensor, level: Level) -> tuple[Tensor, Tensor, Tensor]:
    """The cells of a level whose middles are inside each box: (T,) first anchor, columns, rows."""
    left, width = _span(boxes[:, 0::2], level.columns)
    top, height = _span(boxes[:, 1::2], level.rows)
    return level.first + top * len(level.columns) + left, width, height


def _span(ends: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the rising `places` are between a box's `ends` (T, 2): (T,) the first, and how many."""
    first = (places - ends[:, :1] <= INSIDE).sum(1)
    last = (ends[:, 1:] - places > INSIDE).sum(1)
    return first, (last - first).clamp(min=0)


def _before(counts: Tensor) -> Tensor:
    """What all earlier ones add up to."""
    return counts.cumsum(0) - counts
