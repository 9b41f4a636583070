"""ZeRO 0 to 3 behind `train_step`: forward, loss, backward and update of one optimizer step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yolods.cluster.ranks import Ranks
from yolods.engine.ema import ShardedEma
from yolods.engine.masters import Masters, full_parameter, full_shape
from yolods.engine.optim import freeze_statistics, set_rates
from yolods.engine.schedule import Step
from yolods.model.decode import decode
from yolods.model.inputs import InputFormat
from yolods.model.loss import DetectionLoss, as_float
from yolods.stats import LOSS_NAMES


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did; numbers are means over micro-batches and ranks."""

    loss: dict[str, float]
    """box_loss, cls_loss, dfl_loss as ultralytics reports them."""
    grad_norm: float | None
    """Global norm before clipping, of the gradient that the optimizer is given; None where none was measured."""
    loss_scale: float | None
    """fp16 only."""
    skipped: bool
    """The gradients overflowed and no weight moved."""
    instances: int
    """Boxes in the step, over all ranks."""
    data_seconds: float
    """Time this rank waited for data."""
    replaced: tuple[str, ...]
    """Files that could not be read and were replaced by other samples."""


class ZeroEngine:
    """A detector on a DeepSpeed engine. All methods are collectives unless they say otherwise."""

    def __init__(
        self,
        deepspeed_engine: Any,
        *,
        loss: DetectionLoss,
        masters: Masters,
        ema: ShardedEma,
        inputs: InputFormat,
        ranks: Ranks,
        groups: list[list[nn.Parameter]],
        frozen: list[str],
    ) -> None:
        """
        Args:
            groups: trainable parameters by optimizer group, in the optimizer's order.
            frozen: prefixes of layers whose statistics stay as they are.
        """
        self._groups = groups
        self.deepspeed = deepspeed_engine
        self.masters, self.ema, self.inputs, self.ranks = masters, ema, inputs, ranks
        self._loss, self._frozen = loss, frozen
        head = self.net.model[-1]
        self._strides, self._reg_max = head.stride.to(ranks.device), head.reg_max

    @property
    def net(self) -> nn.Module:
        """The model inside; under ZeRO-3 its parameters are partitioned."""
        return self.deepspeed.module

    def statistics(self) -> list[Tensor]:
        """Running statistics of the live model: floating buffers, in a fixed order. Local."""
        return [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]

    def train_step(self, step: Step, batches: Iterator[dict[str, Any]], size: int | None = None) -> StepResult:
        """Take one optimizer step over `step.batches` micro-batches of this rank.

        Args:
            step: what to accumulate and at which rates.
            batches: this rank's micro-batches, in the order of the stream.
            size: longer side of the images in pixels, for multi-scale training.
        """
        engine = self.deepspeed
        set_rates(engine.optimizer, step.lr, step.momentum)
        kept = [buffer.clone() for buffer in self.statistics()] if engine.fp16_enabled() else None
        sums = torch.zeros(len(LOSS_NAMES) + 1, device=self.inputs.device)
        waited, replaced = 0.0, []
        for index in range(step.batches):
            started = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - started
            replaced += batch.get("replaced", ())
            engine.set_gradient_accumulation_boundary(index == step.batches - 1)
            sums += self._accumulate(batch, size, step.batches)
            engine.step()
        return self._result(sums, step, kept, waited, tuple(replaced))

    def _accumulate(self, batch: dict[str, Any], size: int | None, micro_batches: int) -> Tensor:
        """Forward and backward of one micro-batch; returns (3 loss items, instances), detached."""
        device = self.inputs.device
        targets = {key: batch[key].to(device, non_blocking=True) for key in ("batch_idx", "cls", "bboxes")}
        predictions = self.deepspeed(self.inputs.images(batch["img"], size))
        images = len(batch["img"]) * micro_batches * self.ranks.size
        loss, items = self._loss(predictions, targets, images)
        # The accumulation of a step may change during warm-up, which DeepSpeed's own division does not follow.
        self.deepspeed.backward(loss / micro_batches, scale_wrt_gas=False)
        return torch.cat((items, items.new_tensor([len(targets["cls"])])))

    def _result(
        self, sums: Tensor, step: Step, kept: list[Tensor] | None, waited: float, replaced: tuple[str, ...]
    ) -> StepResult:
        engine = self.deepspeed
        skipped = bool(getattr(engine.optimizer, "overflow", False))
        if not skipped:
            self.ema.update()
        elif kept is not None:
            # The forward passes of a skipped step have moved the running statistics, perhaps to inf, for good.
            for buffer, value in zip(self.statistics(), kept, strict=True):
                buffer.copy_(value)
        self.ranks.average_([sums])
        *items, instances = sums.tolist()
        norm = engine.get_global_grad_norm()
        return StepResult(
            loss={name: value / step.batches for name, value in zip(LOSS_NAMES, items, strict=True)},
            grad_norm=None if norm is None else float(norm),
            loss_scale=float(engine.optimizer.loss_scale) if engine.fp16_enabled() else None,
            skipped=skipped,
            instances=round(instances * self.ranks.size),
            data_seconds=waited,
            replaced=replaced,
        )

    def training(self) -> None:
        """Put the model into training mode; frozen layers keep their statistics. Local."""
        self.deepspeed.train()
        freeze_statistics(self.net, self._frozen)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within: evaluation mode, with the moving average of weights and of statistics averaged over the ranks."""
        self.average_statistics()
        self.deepspeed.eval()
        with self.ema.exchange():
            yield
        self.training()

    def average_statistics(self) -> None:
        """Make the running statistics, and their moving averages, the mean over the ranks."""
        self.ranks.average_([*self.statistics(), *self.ema.mean_buffers])

    @torch.no_grad()
    def predict(self, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Evaluate uint8 images (N, 3, H, W) in evaluation mode.

        Returns:
            decoded boxes and scores (N, 4 + nc, A) fp32, and the raw fp32 outputs for a loss.
        """
        _, raw = self.deepspeed(self.inputs.images(images))
        raw = as_float(raw)
        return decode(raw, self._strides, self._reg_max), raw

    @torch.no_grad()
    def score(self, raw: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """(3,) loss items of raw outputs against a batch's targets. Local."""
        targets = {key: batch[key].to(self.inputs.device) for key in ("batch_idx", "cls", "bboxes")}
        return self._loss(raw, targets, 1)[1]

    def describe(self) -> dict[str, Any]:
        """What the shards are made of, so that they can be put together without this engine. Local.

        `groups`: a list of (name, shape) for each parameter group, in the order in which masters hold them;
        `statistics`: names of the floating buffers.
        """
        names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        return {
            "groups": [[(names[id(p)], list(full_shape(p))) for p in group] for group in self._groups],
            "statistics": [name for name, buffer in self.net.named_buffers() if buffer.is_floating_point()],
        }

    @torch.no_grad()
    def full_weights(self) -> dict[str, Tensor] | None:
        """The whole model's state_dict in fp32 on the CPU, on rank 0; None elsewhere.

        Gathered one parameter after the other, so no GPU ever holds more than one of them whole.
        """
        state: dict[str, Tensor] = {}
        for name, parameter in self.net.named_parameters():
            value = full_parameter(parameter)
            if self.ranks.is_main:
                state[name] = value.cpu()
        for name, buffer in self.net.named_buffers():
            state[name] = buffer.detach().cpu().clone()
        return state if self.ranks.is_main else None
