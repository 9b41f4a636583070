"""The verdict on a step: apply it, skip it, go back to the last snapshot, or stop.

Pure: numbers that are the same on every rank go in, and so every rank reaches the same verdict without asking another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from yolods.stability.grad_stats import GradStats
from yolods.stability.trend import LayerTrends, Trend

if TYPE_CHECKING:
    from yolods.config.deepspeed.yolods_block import OverflowConfig

_WEIGHTY = 1e-4
"""Share of the global norm below which a parameter has no weight in it."""

Action = Literal["apply", "skip", "rollback", "stop"]
Cause = Literal["", "overflow", "forward", "backward", "gradient_spike", "loss_spike"]
"""`overflow`: fp16 gradients at a loss scale that can still give way. `forward`: the loss itself is not finite.
`backward`: the loss is finite and gradients are not, with no scale to blame. The spikes are finite."""


@dataclass(frozen=True)
class Verdict:
    """What becomes of a step."""

    action: Action = "apply"
    """What to do."""
    cause: Cause = ""
    """Why, where it is not applied."""
    suspects: tuple[int, ...] = ()
    """Parameters by place, in the model's order: those that are not finite, or stand out."""
    vanished: tuple[int, ...] = ()
    """Parameters whose gradients have stayed next to nothing for the whole window, told once."""
    usual: float = math.nan
    """For a spike: what the norm, or the loss, mostly is."""

    @property
    def applied(self) -> bool:
        """Whether weights move."""
        return self.action == "apply"


class Guard:
    """Watches losses and norms from step to step."""

    def __init__(self, config: OverflowConfig, parameters: int) -> None:
        self._config = config
        self._norm, self._loss, self._layers = Trend(), Trend(), LayerTrends(parameters)
        self._bad_in_row = self._spikes_in_row = 0
        self._rollbacks, self._good_since = 0, 0

    def judge(self, grad_stats: GradStats, *, scale_can_fall: bool, can_return: bool) -> Verdict:
        """The verdict on a step.

        Args:
            scale_can_fall: fp16 with a dynamic loss scale above its floor.
            can_return: there is a snapshot; before the first step that was applied there is none.
        """
        cause, usual = self._cause(grad_stats, scale_can_fall)
        if not cause:
            return Verdict(vanished=self._good(grad_stats))
        suspects = tuple(grad_stats.bad) or self._outstanding(grad_stats)
        if cause == "overflow":  # the scale gives way: nothing is wrong with the run
            return Verdict("skip", cause, suspects)
        self._bad_in_row += 1
        self._spikes_in_row = self._spikes_in_row + 1 if cause == "gradient_spike" else 0
        if self._bad_in_row < self._config.patience:
            return Verdict("skip", cause, suspects, usual=usual)
        return Verdict(self._last_resort(can_return), cause, suspects, usual=usual)

    def _cause(self, grad_stats: GradStats, scale_can_fall: bool) -> tuple[Cause, float]:
        if not math.isfinite(grad_stats.total_loss):
            return "forward", math.nan
        if grad_stats.bad:
            return ("overflow" if scale_can_fall else "backward"), math.nan
        if self._stands_out(self._loss, grad_stats.total_loss, self._config.loss_spike_ratio):
            return "loss_spike", self._loss.usual
        if self._stands_out(self._norm, grad_stats.norm, self._config.spike_ratio):
            return "gradient_spike", self._norm.usual
        return "", math.nan

    def _stands_out(self, trend: Trend, value: float, ratio: float) -> bool:
        return trend.count >= self._config.warmup_steps and trend.excess(value, ratio, self._config.spike_z)

    def _good(self, grad_stats: GradStats) -> tuple[int, ...]:
        self._bad_in_row = self._spikes_in_row = 0
        self._good_since += 1
        # No fewer than it takes to learn what is usual: one good step between two troubles is no recovery.
        if self._good_since >= max(self._config.snapshot_steps, self._config.warmup_steps):
            self._rollbacks = 0
        self._norm.add(grad_stats.norm)
        self._loss.add(grad_stats.total_loss)
        return tuple(self._layers.add(grad_stats.norms, self._config.vanishing, self._config.vanishing_steps))

    def _outstanding(self, grad_stats: GradStats) -> tuple[int, ...]:
        """Of a spike: parameters that stand out more than half as far, in orders of magnitude, as the one that does
        most; one with no weight in the norm is not what made it large."""
        excess = np.where(grad_stats.norms > _WEIGHTY * grad_stats.norm, self._layers.excess(grad_stats.norms), 0.0)
        return tuple(np.flatnonzero(excess >= math.sqrt(max(excess.max(), 1.0))).tolist())

    def _last_resort(self, can_return: bool) -> Action:
        """What follows `patience`. Spikes alone, of gradients that are finite and a loss that is as ever, are the new
        level, and what was usual is learned anew."""
        bad, self._bad_in_row = self._bad_in_row, 0
        if self._spikes_in_row >= bad:
            self._norm, self._spikes_in_row = Trend(), 0
            self._layers = LayerTrends(len(self._layers.mean))
            return "skip"
        if not can_return or self._rollbacks >= self._config.max_rollbacks:
            return "stop"
        self._rollbacks, self._good_since = self._rollbacks + 1, 0
        return "rollback"

    def state(self) -> dict[str, Any]:
        """What it remembers."""
        return {
            "norm": self._norm.state(),
            "loss": self._loss.state(),
            "layers": self._layers.state(),
            "counts": [self._bad_in_row, self._spikes_in_row, self._rollbacks, self._good_since],
        }

    def load(self, state: dict[str, Any], places: Sequence[int | None]) -> None:
        """Take over what `state` gave.

        Args:
            places: where each parameter stood when the state was written; None: nowhere.
        """
        self._norm.load(state["norm"])
        self._loss.load(state["loss"])
        self._layers.load(state["layers"], places)
        self._bad_in_row, self._spikes_in_row, self._rollbacks, self._good_since = state["counts"]
