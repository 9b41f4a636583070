"""Decodes raw head outputs to boxes, in fp32 under every precision and without the head's weights.

The head's own decoding uses the activations' dtype (bf16 resolves a 1280-pixel coordinate to 4
pixels) and reads a frozen convolution that ZeRO-3 keeps partitioned. Here the same sum over bins is
written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from yolods.model.anchors import anchors_of


def decode(predictions: dict[str, Any], strides: Sequence[float], reg_max: int) -> Tensor:
    """Boxes and scores of every anchor point.

    Args:
        predictions: fp32 `boxes` (N, 4 x reg_max, A), `scores` (N, nc, A) logits, `feats` list of
            (N, C, H, W).
        strides: pixels per cell of each level; numbers, because reading a tensor would wait for the
            device.
        reg_max: bins of the distance distribution.

    Returns:
        (N, 4 + nc, A) fp32: centre x, centre y, width, height in pixels, then class probabilities.
    """
    from ultralytics.utils.tal import dist2bbox

    shapes = tuple((level.shape[2], level.shape[3]) for level in predictions["feats"])
    anchors = anchors_of(shapes, tuple(strides), predictions["boxes"].device)
    n, _, count = predictions["boxes"].shape
    bins = torch.arange(reg_max, dtype=torch.float32, device=predictions["boxes"].device)
    distribution = predictions["boxes"].view(n, 4, reg_max, count).softmax(2)
    distances = torch.einsum("nkra,r->nka", distribution, bins)
    boxes = (
        dist2bbox(distances, anchors.points.t().unsqueeze(0), xywh=True, dim=1)
        * anchors.strides.t()
    )
    return torch.cat((boxes, predictions["scores"].sigmoid()), 1)
