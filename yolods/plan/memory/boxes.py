"""How many boxes a training sample has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BoxCounts:
    """Boxes per training sample."""

    mean: float
    """On average."""
    most: int
    """In the sample with most."""
