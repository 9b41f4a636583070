"""ZeRO 0 to 3 behind `train_step`: every rank holds the whole model's layers and its own share of the data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from yolods.engine.base import Engine, StepResult, targets_of
from yolods.engine.optim import set_rates
from yolods.engine.schedule import Step
from yolods.model.decode import decode
from yolods.model.loss import as_float
from yolods.stats import LOSS_NAMES


class ZeroEngine(Engine):
    """A whole detector on each rank; parameters, gradients and states are partitioned by DeepSpeed."""

    def train_step(self, step: Step, batches: Iterator[dict[str, Any]], size: int | None = None) -> StepResult:
        """See `Engine.train_step`."""
        engine = self.deepspeed
        set_rates(engine.optimizer, step.lr, step.momentum)
        kept = self._keep_statistics()
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
        return self._finish(sums, step, kept, waited, replaced)

    def _accumulate(self, batch: dict[str, Any], size: int | None, micro_batches: int) -> Tensor:
        """Forward and backward of one micro-batch; returns (3 loss items, boxes), detached."""
        assert self._loss is not None
        predictions = self.deepspeed(self.inputs.images(batch["img"], size))
        images = len(batch["img"]) * micro_batches * self.share.count
        loss, items = self._loss(predictions, targets_of(batch, self.inputs.device), images)
        # The accumulation of a step may change during warm-up, which DeepSpeed's own division does not follow.
        self.deepspeed.backward(loss / micro_batches, scale_wrt_gas=False)
        return torch.cat((items, items.new_tensor([len(batch["cls"])])))

    @torch.no_grad()
    def predict(self, images: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """See `Engine.predict`."""
        assert images is not None
        _, raw = self.deepspeed(self.inputs.images(images))
        raw = as_float(raw)
        return decode(raw, self._strides, self._reg_max), raw
