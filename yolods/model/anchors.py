"""Where a detector looks: one anchor point in the middle of every cell of every level, made once for each shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from yolods.device.packed_copy import send


@dataclass(frozen=True, eq=False)
class Level:
    """One grid of cells."""

    first: int
    """Anchors before this level's."""
    columns: Tensor
    """(W,) fp32 on the host: pixels of the cells' middles along x."""
    rows: Tensor
    """(H,) fp32 on the host: along y."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """The A anchors of an image: level after level, row after row. Tensors are fp32 and lie where the model does."""

    count: int
    """A."""
    width: float
    """Pixels of the image."""
    height: float
    """Pixels of the image."""
    levels: tuple[Level, ...]
    """On the host."""
    points: Tensor
    """(A, 2) x and y in cells."""
    strides: Tensor
    """(A, 1) pixels a cell."""
    sides: Tensor
    """(4,) width, height, width, height of the image in pixels."""


@lru_cache(maxsize=64)
def anchors_of(shapes: tuple[tuple[int, int], ...], strides: tuple[float, ...], device: torch.device) -> Anchors:
    """Anchors of levels with these shapes.

    Args:
        shapes: (H, W) of each level.
        strides: pixels a cell of each level.
        device: where predictions are.
    """
    levels, points, pixels, first = [], [], [], 0
    for (height, width), stride in zip(shapes, strides, strict=True):
        x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
        levels.append(Level(first, x * stride, y * stride))
        points.append(torch.stack((x.repeat(height), y.repeat_interleave(width)), 1))
        pixels.append(torch.full((height * width, 1), stride))
        first += height * width
    rows, columns = (side * strides[0] for side in shapes[0])
    sides = torch.tensor((columns, rows, columns, rows))
    return Anchors(first, columns, rows, tuple(levels), *send((torch.cat(points), torch.cat(pixels), sides), device))
