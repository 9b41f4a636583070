"""What is usual: moving means of logarithms, and what stands out from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

DECAY = 0.98
"""Of the moving mean and variance: they look back about fifty steps."""


class Trend:
    """The logarithm of a positive number over the steps that were applied.

    Norms and losses move by factors, and a single one far out would spoil a plain mean; logarithms take care of both.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.variance = 0, 0.0, 0.0

    def excess(self, value: float, ratio: float, z: float) -> bool:
        """Whether a value is more than `ratio` times the usual one and more than `z` deviations from it."""
        if value <= 0:
            return False
        away = math.log(value) - self.mean
        return away > math.log(ratio) and away > z * math.sqrt(self.variance)

    @property
    def usual(self) -> float:
        """The geometric mean."""
        return math.exp(self.mean)

    def add(self, value: float) -> None:
        """Take in the value of a step that was applied."""
        if value <= 0:
            return
        self.count += 1
        decay = min(DECAY, 1 - 1 / self.count)
        away = math.log(value) - self.mean
        self.variance = decay * (self.variance + (1 - decay) * away**2)
        self.mean += (1 - decay) * away

    def state(self) -> dict[str, float]:
        """What it remembers."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.count = int(state["count"])
        self.mean, self.variance = float(state["mean"]), float(state["variance"])


class LayerTrends:
    """The usual gradient norm of every parameter, and for how long it has been next to nothing."""

    def __init__(self, parameters: int) -> None:
        self.counts = np.zeros(parameters, dtype=np.int64)
        self.mean = np.zeros(parameters)
        self.quiet = np.zeros(parameters, dtype=np.int64)

    def excess(self, norms: np.ndarray) -> np.ndarray:
        """(parameters,) how many times its usual norm each one has; 1 where nothing is known yet."""
        return np.where(self.counts > 0, norms / np.exp(self.mean), 1.0)

    def add(self, norms: np.ndarray, vanishing: float, steps: int) -> list[int]:
        """Take in the norms of a step that was applied.

        A gradient of exactly 0, as the boxes of a stride have while no image holds one of their size, tells nothing of
        what is usual.

        Returns:
            parameters whose norm has now been below `vanishing` for `steps` steps; each is told once, until it
            recovers.
        """
        told = norms > 0
        self.counts += told
        share = np.where(told, 1 - np.minimum(DECAY, 1 - 1 / np.maximum(self.counts, 1)), 0.0)
        self.mean += share * (np.log(np.where(told, norms, 1.0)) - self.mean)
        self.quiet = np.where(norms < vanishing, self.quiet + 1, 0)
        return np.flatnonzero(self.quiet == steps).tolist()

    def state(self) -> dict[str, Any]:
        """What it remembers."""
        return {"counts": self.counts.tolist(), "mean": self.mean.tolist(), "quiet": self.quiet.tolist()}

    def load(self, state: dict[str, Any], places: Sequence[int | None]) -> None:
        """Take over what `state` gave; `places` as for `Guard.load`. Of another model, nothing."""
        if None in places:
            return
        order = list(places)
        self.counts = np.array(state["counts"], dtype=np.int64)[order]
        self.mean = np.array(state["mean"])[order]
        self.quiet = np.array(state["quiet"], dtype=np.int64)[order]
