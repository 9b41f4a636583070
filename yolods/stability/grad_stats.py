"""Statistics of one step's gradients: plain numbers on the host, the same on every rank."""

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
    """(parameters,) float64: L2 norm of each parameter's gradient, without the loss scale.

    inf or nan if an element of the gradient is.
    """
    weights: np.ndarray | None
    """(parameters,) float64: L2 norm of each fp32 master; None unless a policy reads it."""
    loss: tuple[float, ...]
    """Mean loss items of the step; inf or nan if those of a micro-batch are."""
    instances: int
    """Number of boxes in the step."""
    scale: float
    """Loss scale of this step's backward passes."""

    @property
    def norm(self) -> float:
        """Global L2 norm; inf or nan if any gradient is."""
        return float(math.sqrt(np.square(self.norms).sum()))

    @property
    def total_loss(self) -> float:
        """Sum of the loss items."""
        return float(sum(self.loss))

    @property
    def bad(self) -> list[int]:
        """Indices of the parameters whose gradients are not finite."""
        return np.flatnonzero(~np.isfinite(self.norms)).tolist()
