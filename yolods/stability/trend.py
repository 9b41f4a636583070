"""Usual values as moving means of logarithms, and what stands out from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

DECAY = 0.98
"""Decay of the moving mean and variance, which look back about fifty steps."""


class Trend:
    """The logarithm of a positive number over the applied steps.

    Norms and losses change by factors, and one extreme value would spoil a plain mean. Logarithms
    solve both problems.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def excess(self, value: float, ratio: float, z: float) -> bool:
        """Whether a value is over `ratio` times the usual and over `z` deviations above it."""
        if value <= 0:
            return False
        away = math.log(value) - self.mean
        return away > math.log(ratio) and away > z * math.sqrt(self.variance)

    @property
    def usual(self) -> float:
        """The geometric mean."""
        return math.exp(self.mean)

    def add(self, value: float) -> None:
        """Add the value of an applied step."""
        if value <= 0:
            return
        self.count += 1
        # The first fifty steps count equally, so that the initial 0 has no weight.
        decay = min(DECAY, 1 - 1 / self.count)
        away = math.log(value) - self.mean
        self.variance = decay * (self.variance + (1 - decay) * away**2)
        self.mean += (1 - decay) * away

    def state(self) -> dict[str, float]:
        """Everything that the trend remembers."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.count = int(state["count"])
        self.mean, self.variance = float(state["mean"]), float(state["variance"])


class LayerTrends:
    """The usual gradient norm of every parameter, and for how long it has been close to zero."""

    def __init__(self, parameters: int) -> None:
        self.counts = np.zeros(parameters, dtype=np.int64)
        self.mean = np.zeros(parameters)
        self.quiet = np.zeros(parameters, dtype=np.int64)

    def excess(self, norms: np.ndarray) -> np.ndarray:
        """Ratio of each norm to its usual value: (parameters,); 1 where nothing is known yet."""
        return np.where(self.counts > 0, norms / np.exp(self.mean), 1.0)

    def add(self, norms: np.ndarray, vanishing: float, steps: int) -> list[int]:
        """Add the norms of an applied step.

        A gradient of exactly 0 says nothing about the usual norm. The boxes of a stride have such
        gradients while no image contains an object of their size.

        Returns:
            parameters whose norm has now been below `vanishing` for `steps` steps; each is reported
            once, until it recovers.
        """
        told = norms > 0
        self.counts += told
        share = np.where(told, 1 - np.minimum(DECAY, 1 - 1 / np.maximum(self.counts, 1)), 0.0)
        self.mean += share * (np.log(np.where(told, norms, 1.0)) - self.mean)
        self.quiet = np.where(norms < vanishing, self.quiet + 1, 0)
        return np.flatnonzero(self.quiet == steps).tolist()

    def state(self) -> dict[str, Any]:
        """Everything that the trends remember."""
        return {
            "counts": self.counts.tolist(),
            "mean": self.mean.tolist(),
            "quiet": self.quiet.tolist(),
        }

    def load(self, state: dict[str, Any], places: Sequence[int | None]) -> None:
        """Restore what `state` returned; `places` as for `Guard.load`.

        Ignores the state of another model.
        """
        if None in places:
            return
        order = list(places)
        self.counts = np.array(state["counts"], dtype=np.int64)[order]
        self.mean = np.array(state["mean"])[order]
        self.quiet = np.array(state["quiet"], dtype=np.int64)[order]
