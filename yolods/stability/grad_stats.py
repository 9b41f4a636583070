"""What one step's gradients looked like: plain numbers on the host, the same on every rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GradStats:
    """One pass over the gradients of all replicas and stages."""

    names: tuple[str, ...]
    """Trained parameters of the whole model, in its order."""
    norms: np.ndarray
    """(parameters,) float64: L2 norm of each one's gradient as the optimizer would be given it, the loss scale taken
    out; inf or nan where an element is."""
    weights: np.ndarray | None
    """(parameters,) float64: L2 norm of each one's fp32 master; None where no policy asked."""
    loss: tuple[float, ...]
    """Mean loss items of the step; inf or nan where a micro-batch's was."""
    instances: int
    """Boxes in the step."""
    scale: float
    """Loss scale that the gradients of this step were computed with."""

    @property
    def norm(self) -> float:
        """Global L2 norm; inf or nan where any gradient is."""
        return float(math.sqrt(np.square(self.norms).sum()))

    @property
    def total_loss(self) -> float:
        """Sum of the loss items."""
        return float(sum(self.loss))

    @property
    def bad(self) -> list[int]:
        """Places of the parameters whose gradients are not finite."""
        return np.flatnonzero(~np.isfinite(self.norms)).tolist()
