"""The verdict on a step: apply it, skip it, return to the last snapshot, or stop.

Pure. The inputs are the same on every rank, so every rank reaches the same verdict without
communication.
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
"""Below this share of the global norm, a parameter contributes nothing to it."""

Action = Literal["apply", "skip", "rollback", "stop"]
Cause = Literal["", "overflow", "forward", "backward", "gradient_spike", "loss_spike"]
"""Why a step is not applied.

`overflow`: fp16 gradients overflowed, and the loss scale can still fall. `forward`: the loss itself
is not finite. `backward`: the loss is finite but gradients are not, and no loss scale explains it.
`gradient_spike`, `loss_spike`: finite numbers far above the usual ones.
"""


@dataclass(frozen=True)
class Verdict:
    """What happens to a step."""

    action: Action = "apply"
    """What to do."""
    cause: Cause = ""
    """The reason, if the step is not applied."""
    suspects: tuple[int, ...] = ()
    """Indices of parameters, in the model's order, that are not finite or stand out."""
    vanished: tuple[int, ...] = ()
    """Parameters whose gradients were close to zero for the whole window; reported once."""
    usual: float = math.nan
    """For a spike: the usual norm, or the usual loss."""

    @property
    def applied(self) -> bool:
        """Whether the weights move."""
        return self.action == "apply"


class Guard:
    """Follows losses and norms from step to step."""

    def __init__(self, config: OverflowConfig, parameters: int) -> None:
        self._config = config
        self._norm, self._loss, self._layers = Trend(), Trend(), LayerTrends(parameters)
        self._bad_in_row = self._spikes_in_row = 0
        self._rollbacks, self._good_since = 0, 0

    def judge(self, grad_stats: GradStats, *, scale_can_fall: bool, can_return: bool) -> Verdict:
        """The verdict on a step.

        Args:
            scale_can_fall: whether fp16 uses a dynamic loss scale that is above its floor.
            can_return: whether there is a snapshot; before the first applied step there is none.
        """
        cause, usual = self._cause(grad_stats, scale_can_fall)
        if not cause:
            return Verdict(vanished=self._good(grad_stats))
        # Only finite gradients need a comparison with their usual norms.
        suspects = tuple(grad_stats.bad) or self._outstanding(grad_stats)
        # Normal in fp16: the loss scale falls, so this counts as no bad step.
        if cause == "overflow":
            return Verdict("skip", cause, suspects)
        self._bad_in_row += 1
        self._spikes_in_row = self._spikes_in_row + 1 if cause == "gradient_spike" else 0
        # A single bad step is only skipped; a series of them needs more.
        if self._bad_in_row < self._config.patience:
            return Verdict("skip", cause, suspects, usual=usual)
        return Verdict(self._last_resort(can_return), cause, suspects, usual=usual)

    def _cause(self, grad_stats: GradStats, scale_can_fall: bool) -> tuple[Cause, float]:
        # The loss first: if it is not finite, the gradients are not either.
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
        return trend.count >= self._config.warmup_steps and trend.excess(
            value, ratio, self._config.spike_z
        )

    def _good(self, grad_stats: GradStats) -> tuple[int, ...]:
        self._bad_in_row = self._spikes_in_row = 0
        self._good_since += 1
        # At least as many steps as it takes to learn what is usual: a single good step between two
        # bad series is no recovery.
        if self._good_since >= max(self._config.snapshot_steps, self._config.warmup_steps):
            self._rollbacks = 0
        self._norm.add(grad_stats.norm)
        self._loss.add(grad_stats.total_loss)
        return tuple(
            self._layers.add(grad_stats.norms, self._config.vanishing, self._config.vanishing_steps)
        )

    def _outstanding(self, grad_stats: GradStats) -> tuple[int, ...]:
        """For a spike: the parameters that stand out most.

        These exceed their usual norm by at least half as many orders of magnitude as the one that
        does so most. A parameter without weight in the global norm cannot have made it large.
        """
        excess = np.where(
            grad_stats.norms > _WEIGHTY * grad_stats.norm,
            self._layers.excess(grad_stats.norms),
            0.0,
        )
        return tuple(np.flatnonzero(excess >= math.sqrt(max(excess.max(), 1.0))).tolist())

    def _last_resort(self, can_return: bool) -> Action:
        """The action after `patience` bad steps.

        If all of them were gradient spikes, with finite gradients and a usual loss, their norm is
        the new usual one: the guard learns it again from the start.
        """
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
        """Everything that the guard remembers."""
        return {
            "norm": self._norm.state(),
            "loss": self._loss.state(),
            "layers": self._layers.state(),
            "counts": [self._bad_in_row, self._spikes_in_row, self._rollbacks, self._good_since],
        }

    def load(self, state: dict[str, Any], places: Sequence[int | None]) -> None:
        """Restore what `state` returned.

        Args:
            places: each parameter's index when the state was written; None if it had none.
        """
        self._norm.load(state["norm"])
        self._loss.load(state["loss"])
        self._layers.load(state["layers"], places)
        self._bad_in_row, self._spikes_in_row, self._rollbacks, self._good_since = state["counts"]
