"""ZeRO 0 to 3: every rank runs the whole model on its own share of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from yolods.engine.base import Engine
from yolods.engine.microbatches import ReplayableBatches
from yolods.model.decode import decode
from yolods.model.loss.detection_loss import as_float
from yolods.optim.lr_schedule import Step
from yolods.stats import LOSS_NAMES


class ZeroEngine(Engine):
    """A whole detector on each rank; DeepSpeed partitions what it trains."""

    def _accumulate(self, step: Step, feed: ReplayableBatches, size: int | None) -> Tensor:
        """See `Engine._accumulate`."""
        assert self._loss is not None
        engine = self.deepspeed
        sums = torch.zeros(len(LOSS_NAMES) + 1, device=self.inputs.device)
        for index in range(step.batches):
            batch = feed.take()
            engine.set_gradient_accumulation_boundary(index == step.batches - 1)
            self.diagnosis.at("forward", index)
            predictions = engine(self.inputs.images(batch["img"], size))
            images = len(batch["img"]) * self.share.dp_size
            loss, items = self._loss(predictions, batch, images)
            self._lost(items, len(batch["cls"]), sums)
            self.diagnosis.at("backward", index)
            # Micro-batches add up, as in ultralytics, so DeepSpeed must not divide by their number.
            engine.backward(self.stability.scaled(loss), scale_wrt_gas=False)
            if index < step.batches - 1:
                engine.step()
        return sums

    def report(self) -> None:
        """See `Engine.report`.

        Writes what "comms_logger" has counted to the log, and resets the counters.
        """
        from deepspeed import comm

        if comm.comm.comms_logger.enabled:
            comm.log_summary()
            comm.reset_log()

    @torch.no_grad()
    def predict(self, images: Tensor | None) -> tuple[Tensor, dict[str, Any]]:
        """See `Engine.predict`."""
        assert images is not None
        _, raw = self.deepspeed(self.inputs.images(images))
        raw = as_float(raw)
        return decode(raw, self._strides, self._reg_max), raw
