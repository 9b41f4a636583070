"""fp16's loss scale, used in place of DeepSpeed's.

Gradients of fp16 activations fall below 6e-8, the smallest positive fp16 number. Therefore the loss
is multiplied by a scale before the backward pass, and the gradients are divided by it before the
step (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740). The scale stays just below the
largest one that does not overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ScaleRules:
    """How a dynamic scale changes: DeepSpeed's "fp16" block, and our ceiling."""

    initial: float = 2.0**16
    """Scale at the start (`initial_scale_power`)."""
    window: int = 1000
    """Steps without overflow until it doubles (`loss_scale_window`)."""
    hysteresis: int = 2
    """Overflows until it halves (`hysteresis`)."""
    consecutive: bool = False
    """Whether every good step, not only a doubling, restores it (`consecutive_hysteresis`)."""
    floor: float = 1.0
    """Smallest value (`min_loss_scale`)."""
    ceiling: float = 2.0**24
    """Largest value; above it, an fp16 gradient gains no bit that its fp32 master could hold."""
    static: float | None = None
    """A scale that never changes (`loss_scale` > 0)."""


class LossScale:
    """The scale of the current step and of the next one.

    DeepSpeed 0.19.8 changes its scale in the middle of `step` and then unscales with the new value
    (zero/stage_1_and_2.py `step`, zero/stage3.py `step`), so a doubling halves every gradient. This
    scale changes only in `after_step`, which the engine calls after the step. At the floor it stays
    there and reports it (`at_floor`), where DeepSpeed raises.
    """

    def __init__(self, rules: ScaleRules) -> None:
        self.rules = rules
        self.dynamic = rules.static is None
        self.cur_scale = float(rules.static if rules.static is not None else rules.initial)
        self.patience = rules.hysteresis
        """Overflows left until the next halving."""
        self.good_steps = 0
        """Steps since the last overflow."""

    @property
    def loss_scale(self) -> float:
        """The scale, under DeepSpeed's name for it."""
        return self.cur_scale

    @property
    def at_floor(self) -> bool:
        """Whether the scale cannot fall any further."""
        return not self.dynamic or self.cur_scale <= self.rules.floor

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The scaled loss, from which the backward pass starts."""
        return loss * self.cur_scale

    def update_scale(self, overflow: bool) -> None:
        """Do nothing.

        DeepSpeed calls this before it unscales, which is too early; `after_step` changes the scale.
        """

    def after_step(self, overflow: bool) -> None:
        """Update the scale after a step.

        Args:
            overflow: whether too large a scale made the gradients overflow; a bad image does not
                count.
        """
        if not self.dynamic:
            return
        if overflow:
            self.good_steps = 0
            self.patience -= 1
            if self.patience <= 0:
                self.cur_scale = max(self.cur_scale / 2, self.rules.floor)
                # As in DeepSpeed: until the next doubling, every further overflow halves the scale.
                self.patience = 1
            return
        self.good_steps += 1
        if self.rules.consecutive:
            self.patience = self.rules.hysteresis
        # DeepSpeed does not count the first good step: a window of 1000 ends with the 1001st.
        if self.good_steps > 1 and (self.good_steps - 1) % self.rules.window == 0:
            self.patience = self.rules.hysteresis
            # A scale that starts above the ceiling stays there until an overflow lowers it.
            self.cur_scale = max(self.cur_scale, min(self.cur_scale * 2, self.rules.ceiling))

    def state(self) -> dict[str, Any]:
        """The present scale and its counters, for a checkpoint."""
        return {
            "cur_scale": self.cur_scale,
            "patience": self.patience,
            "good_steps": self.good_steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned. A static scale keeps the value of the JSON."""
        if self.dynamic and state:
            self.cur_scale = float(state["cur_scale"])
            self.patience, self.good_steps = int(state["patience"]), int(state["good_steps"])
