"""Geometry of boxes, as ultralytics' loss has it, operation by operation: gradients then have its bits too."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EPS = 1e-7
"""Against division by zero (utils/metrics.py:115)."""


def corners(distances: Tensor, points: Tensor) -> Tensor:
    """Left, top, right, bottom (.., 4) of boxes that reach (.., 4) so far from their anchor points (.., 2)."""
    before, after = distances.chunk(2, -1)
    return torch.cat((points - before, points + after), -1)


def distances(boxes: Tensor, points: Tensor) -> Tensor:
    """The inverse of `corners`."""
    before, after = boxes.chunk(2, -1)
    return torch.cat((points - before, after - points), -1)


def ciou(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Complete intersection over union (Zheng et al., 1911.08287, equations 8 to 11): IoU - (rho^2 / c^2 + alpha v).

    The trade-off alpha takes no gradient. Heights are widened by `EPS` and widths are not, as in ultralytics 8.4.190
    utils/metrics.py:108.

    Args:
        one: left, top, right and bottom, four tensors of one shape.
        other: likewise. Exchanged, they give the same but for the last bit.
    """
    (left, top, right, bottom), (x1, y1, x2, y2) = one, other
    wide, high = right - left, bottom - top + EPS
    width, height = x2 - x1, y2 - y1 + EPS
    common_width = (right.minimum(x2) - left.maximum(x1)).clamp_(0)
    common = common_width * (bottom.minimum(y2) - top.maximum(y1)).clamp_(0)
    union = wide * high + width * height - common + EPS
    iou = common / union
    around_width, around_height = right.maximum(x2) - left.minimum(x1), bottom.maximum(y2) - top.minimum(y1)
    around = around_width.pow(2) + around_height.pow(2) + EPS
    apart = ((x1 + x2 - left - right).pow(2) + (y1 + y2 - top - bottom).pow(2)) / 4
    shape = (4 / math.pi**2) * ((width / height).atan() - (wide / high).atan()).pow(2)
    with torch.no_grad():
        alpha = shape / (1 - iou + shape + EPS)
    return iou - (apart / around + shape * alpha)
