"""From a step's gradients to its verdict: one pass over them, one collective, one wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from yolods.clipping import ClipFactors, build_policy
from yolods.device.host_copy import sent
from yolods.stability.grad_stats import GradStats
from yolods.stability.guard import Cause, Guard, Verdict
from yolods.stability.record import StepRecord
from yolods.stats import LOSS_NAMES
from yolods.zero.gradients import Decision, Gradients, squares
from yolods.zero.loss_scale import LossScale

if TYPE_CHECKING:
    from yolods.config.deepspeed.yolods_block import YolodsConfig


class Stability:
    """yolods' own overflow handling.

    It measures and decides before DeepSpeed's step, which then applies the decision.
    """

    restores = True
    """Whether a step that is not applied leaves nothing behind."""

    def __init__(
        self,
        gradients: Gradients,
        names: Sequence[str],
        config: YolodsConfig,
        *,
        max_norm: float,
        scale: LossScale | None,
        by_hand: bool,
        replica: int,
        world_size: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            gradients: this rank's gradients.
            names: trained parameters of the whole model, over all stages, in its order.
            max_norm: the JSON's `gradient_clipping`.
            scale: fp16's loss scale, which DeepSpeed's optimizer shares; None if nothing is scaled.
            by_hand: whether `scaled` scales the loss, because DeepSpeed's `backward` does not.
            replica: this rank's replica. Unsharded gradients are counted only on the first one.
            world_size: number of ranks.
            device: device on which this rank computes.
        """
        self._gradients, self._names, self._scale = gradients, tuple(names), scale
        self._by_hand = by_hand
        self._world_size, self._device = world_size, device
        place = {name: i for i, name in enumerate(self._names)}
        # Index of each slice's parameter in the whole model, to which stages and shards add up.
        self._places = torch.tensor(
            [place[name] for name in gradients.names], dtype=torch.int64, device=gradients.device
        )
        # Unsharded gradients are the same on every replica; the all-reduce must add them once.
        self._counts = gradients.sharded or replica == 0
        self._policy = build_policy(config.clipping.policy, dict(config.clipping.given), max_norm)
        self.guard = Guard(config.overflow, len(self._names))

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to pass to `backward`."""
        return self._scale.scale_loss(loss) if self._scale is not None and self._by_hand else loss

    @property
    def gradient_scale(self) -> float:
        """The loss scale that this step's gradients contain until DeepSpeed's step."""
        return self._scale.cur_scale if self._scale is not None else 1.0

    def before_step(self, sums: Tensor, micro_batches: int, *, can_return: bool) -> StepRecord:
        """Measure the gradients and decide about the step, before DeepSpeed's step. A collective.

        Args:
            sums: (5,) fp32: loss items and number of boxes, summed over this rank's micro-batches,
                0 on ranks that compute no loss; and 1 if this rank was asked to stop.
            micro_batches: number of micro-batches in the step, over all replicas.
            can_return: whether there is a snapshot.
        """
        grad_stats, stop = self._read(sums, micro_batches)
        can_fall = self._scale is not None and not self._scale.at_floor
        verdict = self.guard.judge(grad_stats, scale_can_fall=can_fall, can_return=can_return)
        # Policies learn from the norms that they see, so they see only those of applied steps.
        clipped = self._policy.clip(grad_stats) if verdict.applied else ClipFactors(0.0)
        self._gradients.decision = self._decision(grad_stats, verdict, clipped)
        return StepRecord(
            loss=dict(zip(LOSS_NAMES, grad_stats.loss, strict=True)),
            instances=grad_stats.instances,
            grad_norm=grad_stats.norm,
            norm_after=clipped.norm_after(grad_stats) if verdict.applied else None,
            loss_scale=grad_stats.scale if self._scale is not None else None,
            verdict=verdict,
            grad_stats=grad_stats,
            stop=stop,
        )

    def _read(self, sums: Tensor, micro_batches: int) -> tuple[GradStats, bool]:
        """All ranks' numbers together, and whether any rank was asked to stop."""
        told = [sums, self._squares(self._gradients.slices())]
        if self._policy.reads_weights:
            told.append(self._squares(self._gradients.weights()))
        # One message for losses, stop requests and norms; a second all-reduce would add a wait.
        message = torch.cat(told)
        if self._world_size > 1:
            dist.all_reduce(message)
        # The only wait of a step. On a GPU it also waits for the other ranks.
        numbers = message.cpu().double().numpy()
        *items, instances, stop = numbers[: len(sums)]
        # The root comes after the sum over shards: norms do not add up, squares do.
        norms, *weights = np.sqrt(numbers[len(sums) :]).reshape(-1, len(self._names))
        scale = self.gradient_scale
        grad_stats = GradStats(
            names=self._names,
            # The gradients themselves stay scaled until DeepSpeed's step.
            norms=norms / scale,
            weights=weights[0] if weights else None,
            loss=tuple(float(item) / micro_batches for item in items),
            instances=round(instances) if math.isfinite(instances) else 0,
            scale=scale,
        )
        return grad_stats, stop > 0

    def _squares(self, parts: list[Tensor]) -> Tensor:
        if not self._counts:
            return torch.zeros(len(self._names), device=self._device)
        return sent(squares(parts, self._places, len(self._names)), self._device)

    def _decision(self, grad_stats: GradStats, verdict: Verdict, clipped: ClipFactors) -> Decision:
        if not verdict.applied:
            return Decision(skip=True)
        factors = None
        if clipped.factors is not None:
            factors = dict(
                zip(self._names, (clipped.factors / grad_stats.scale).tolist(), strict=True)
            )
        return Decision(
            norm=grad_stats.norm * grad_stats.scale,
            factor=clipped.factor / grad_stats.scale,
            factors=factors,
            limit=clipped.limit,
        )

    def discard(self) -> None:
        """Make DeepSpeed's next step discard its gradients."""
        self._gradients.decision = Decision(skip=True)

    def after_step(self, record: StepRecord) -> StepRecord:
        """Complete the record after DeepSpeed's step, and update the loss scale."""
        overflow = record.verdict.cause == "overflow"
        # Other bad steps, such as a bad image, say nothing about the scale and do not count.
        if self._scale is not None and (record.verdict.applied or overflow):
            self._scale.after_step(overflow)
        return replace(record, next_scale=None if self._scale is None else self._scale.cur_scale)

    def named(self, places: Sequence[int]) -> list[str]:
        """Names of the parameters with these indices."""
        return [self._names[place] for place in places]

    def state(self) -> dict[str, Any]:
        """Everything that the next verdict depends on."""
        return {
            "names": list(self._names),
            "policy": self._policy.state(),
            "guard": self.guard.state(),
            "scale": self._scale.state() if self._scale is not None else {},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; do nothing if a run with stock handling wrote it."""
        if "guard" not in state:
            return
        self._policy.load(state["policy"])
        # Another partition of the model into stages lists its parameters in another order.
        place = {name: i for i, name in enumerate(state["names"])}
        self.guard.load(state["guard"], [place.get(name) for name in self._names])
        if self._scale is not None:
            self._scale.load(state["scale"])


class StockStability:
    """DeepSpeed's own overflow handling, unchanged, for comparison."""

    restores = False

    def __init__(self, engine: Any, world_size: int, *, by_hand: bool) -> None:
        """
        Args:
            by_hand: as for `Stability`.
        """
        self._engine, self._world_size, self._by_hand = engine, world_size, by_hand

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to pass to `backward`."""
        return (
            loss * self._engine.optimizer.loss_scale
            if self._by_hand and self._engine.fp16_enabled()
            else loss
        )

    def before_step(self, sums: Tensor, micro_batches: int, *, can_return: bool) -> StepRecord:
        """Collect the losses and the stop requests; DeepSpeed decides later. A collective."""
        if self._world_size > 1:
            dist.all_reduce(sums)
        *items, instances, stop = sums.tolist()
        engine = self._engine
        return StepRecord(
            loss={name: item / micro_batches for name, item in zip(LOSS_NAMES, items, strict=True)},
            instances=round(instances),
            loss_scale=float(engine.optimizer.loss_scale) if engine.fp16_enabled() else None,
            stop=stop > 0,
        )

    def after_step(self, record: StepRecord) -> StepRecord:
        """Complete the record with what DeepSpeed reports."""
        norm = self._engine.get_global_grad_norm()
        overflow = bool(getattr(self._engine.optimizer, "overflow", False))
        cause: Cause = "overflow" if record.loss_scale is not None else "backward"
        verdict = Verdict("skip", cause) if overflow else Verdict()
        scale = None if record.loss_scale is None else float(self._engine.optimizer.loss_scale)
        return replace(
            record,
            grad_norm=None if norm is None else float(norm),
            verdict=verdict,
            next_scale=scale,
        )

    def discard(self) -> None:
        """Do nothing: no step runs twice under stock handling."""

    def named(self, places: Sequence[int]) -> list[str]:
        """No names, because no parameter is suspected."""
        return []

    def state(self) -> dict[str, Any]:
        """State of DeepSpeed's loss scaler."""
        scaler = (
            getattr(self._engine.optimizer, "loss_scaler", None)
            if self._engine.fp16_enabled()
            else None
        )
        held = vars(scaler) if scaler is not None else {}
        return {
            "stock": {key: value for key, value in held.items() if isinstance(value, int | float)}
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned; do nothing if a run with yolods' handling wrote it."""
        for key, value in state.get("stock", {}).items():
            setattr(self._engine.optimizer.loss_scaler, key, value)
