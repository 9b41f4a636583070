"""fp16's loss scale, in the place where DeepSpeed looks for its own.

Gradients of fp16 activations fall below 6e-8, where fp16 ends, so the loss is multiplied before the backward pass and
the gradients are divided before the step (Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740). The scale rides
just below the largest one that does not overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ScaleRules:
    """How a dynamic scale moves; DeepSpeed's "fp16" block, and a ceiling of ours."""

    initial: float = 2.0**16
    """Where it starts (`initial_scale_power`)."""
    window: int = 1000
    """Steps without overflow before it doubles (`loss_scale_window`)."""
    hysteresis: int = 2
    """Overflows before it halves (`hysteresis`)."""
    consecutive: bool = False
    """Whether a good step restores the hysteresis at once, not only a doubling (`consecutive_hysteresis`)."""
    floor: float = 1.0
    """Least value (`min_loss_scale`)."""
    ceiling: float = 2.0**24
    """Largest value: beyond it no fp16 gradient would gain a bit that its fp32 master could hold."""
    static: float | None = None
    """A scale that never moves (`loss_scale` > 0)."""


class LossScale:
    """The scale of the step that is under way, and of the next one.

    DeepSpeed 0.19.8 moves its scale in the middle of `step` and then unscales with the new value (zero/stage_1_and_2.py
    `step`, zero/stage3.py `step`): on a doubling every gradient comes out halved. This one stands still until
    `after_step`, which the engine calls when the step is over. At the floor it stays there, and says so, instead of
    raising.
    """

    def __init__(self, rules: ScaleRules) -> None:
        self.rules = rules
        self.dynamic = rules.static is None
        self.cur_scale = float(rules.static if rules.static is not None else rules.initial)
        self.patience = rules.hysteresis
        """Overflows that are left before the next halving."""
        self.good_steps = 0
        """Steps since the last overflow."""

    @property
    def loss_scale(self) -> float:
        """DeepSpeed's name for it."""
        return self.cur_scale

    @property
    def at_floor(self) -> bool:
        """Whether it cannot give way any more."""
        return not self.dynamic or self.cur_scale <= self.rules.floor

    def scale_loss(self, loss: Tensor) -> Tensor:
        """The loss as the backward pass starts from it."""
        return loss * self.cur_scale

    def update_scale(self, overflow: bool) -> None:
        """DeepSpeed calls this before it unscales, which is too early: see `after_step`."""

    def after_step(self, overflow: bool) -> None:
        """Move on after a step.

        Args:
            overflow: a larger scale than the gradients can bear was the cause; a bad image is none.
        """
        if not self.dynamic:
            return
        if overflow:
            self.good_steps = 0
            self.patience -= 1
            if self.patience <= 0:
                self.cur_scale = max(self.cur_scale / 2, self.rules.floor)
                # As in DeepSpeed: until the next doubling every further overflow halves it.
                self.patience = 1
            return
        self.good_steps += 1
        if self.rules.consecutive:
            self.patience = self.rules.hysteresis
        # DeepSpeed does not count the first good step: a window of 1000 ends with the 1001st.
        if self.good_steps > 1 and (self.good_steps - 1) % self.rules.window == 0:
            self.patience = self.rules.hysteresis
            # A scale that was set above the ceiling to begin with stays, and gives way to overflows alone.
            self.cur_scale = max(self.cur_scale, min(self.cur_scale * 2, self.rules.ceiling))

    def state(self) -> dict[str, Any]:
        """Where it stands."""
        return {"cur_scale": self.cur_scale, "patience": self.patience, "good_steps": self.good_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave. A static scale stays what the JSON says."""
        if self.dynamic and state:
            self.cur_scale = float(state["cur_scale"])
            self.patience, self.good_steps = int(state["patience"]), int(state["good_steps"])
