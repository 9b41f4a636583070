"""Box geometry with the same operations as ultralytics' loss, for bit-equal gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EPS = 1e-7
"""Prevents division by zero (utils/metrics.py:115)."""


def corners(distances: Tensor, points: Tensor) -> Tensor:
    """Corners (.., 4) of boxes that extend `distances` (.., 4) from `points` (.., 2).

    Corners are left, top, right and bottom.
    """
    before, after = distances.chunk(2, -1)
    return torch.cat((points - before, points + after), -1)


def distances(boxes: Tensor, points: Tensor) -> Tensor:
    """The inverse of `corners`."""
    before, after = boxes.chunk(2, -1)
    return torch.cat((points - before, after - points), -1)


def ciou(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Complete intersection over union: IoU - (rho^2 / c^2 + alpha v).

    Source: Zheng et al., 1911.08287, equations 8 to 11.

    No gradient flows through the trade-off alpha. `EPS` is added to heights but not to widths, as
    in ultralytics 8.4.190 utils/metrics.py:108.

    Args:
        one: left, top, right and bottom, four tensors of one shape.
        other: the same of the other box. Exchanging the two changes only the last bit.
    """
    (left, top, right, bottom), (x1, y1, x2, y2) = one, other
    wide, high = right - left, bottom - top + EPS
    width, height = x2 - x1, y2 - y1 + EPS
    common_width = (right.minimum(x2) - left.maximum(x1)).clamp_(0)
    common = common_width * (bottom.minimum(y2) - top.maximum(y1)).clamp_(0)
    union = wide * high + width * height - common + EPS
    iou = common / union
    around_width, around_height = (
        right.maximum(x2) - left.minimum(x1),
        bottom.maximum(y2) - top.minimum(y1),
    )
    around = around_width.pow(2) + around_height.pow(2) + EPS
    apart = ((x1 + x2 - left - right).pow(2) + (y1 + y2 - top - bottom).pow(2)) / 4
    shape = (4 / math.pi**2) * ((width / height).atan() - (wide / high).atan()).pow(2)
    with torch.no_grad():
        alpha = shape / (1 - iou + shape + EPS)
    return iou - (apart / around + shape * alpha)
