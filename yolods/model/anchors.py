"""Anchor points: one in the middle of every cell of every level, computed once per image shape."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from yolods.device.packed_copy import send


@dataclass(frozen=True, eq=False)
class Level:
    """One level's grid of cells."""

    first: int
    """Number of anchors in all levels before this one."""
    columns: Tensor
    """(W,) fp32 on the host: x of the cells' centres in pixels."""
    rows: Tensor
    """(H,) fp32 on the host: y of the cells' centres in pixels."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """The A anchors of an image, level by level and row by row.

    Tensors are fp32, on the model's device.
    """

    count: int
    """Number of anchors, A."""
    width: float
    """Width of the image in pixels."""
    height: float
    """Height of the image in pixels."""
    levels: tuple[Level, ...]
    """The levels' grids; on the host."""
    points: Tensor
    """(A, 2) x and y in cells."""
    strides: Tensor
    """(A, 1) pixels per cell."""
    sides: Tensor
    """(4,) width, height, width, height of the image in pixels."""


@lru_cache(maxsize=64)
def anchors_of(
    shapes: tuple[tuple[int, int], ...], strides: tuple[float, ...], device: torch.device
) -> Anchors:
    """Anchors of levels with these shapes.

    Args:
        shapes: (H, W) of each level.
        strides: pixels per cell of each level.
        device: device of the predictions.
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
    return Anchors(
        first,
        columns,
        rows,
        tuple(levels),
        *send((torch.cat(points), torch.cat(pixels), sides), device),
    )
