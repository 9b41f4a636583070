"""What an optimizer step consists of, as a pure function of the number of samples seen.

The unit is the batch: B images, one forward pass over all data-parallel ranks. A step takes one or more whole batches
(gradient accumulation) from the endless sample stream, so every step is full, on every rank, and an epoch is simply
each n samples of the stream. Formulas are ultralytics' (engine/trainer.py, `_do_train`), batch index for batch index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GROUPS = ("weight", "bn", "bias")
"""Parameter groups in ultralytics' order (lr/pg0, lr/pg1, lr/pg2): decayed weights, BatchNorm weights, biases."""


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    first_batch: int
    """Index of its first batch in the stream."""
    batches: int
    """How many batches are accumulated: micro-batches a rank."""
    epoch: int
    """Epoch (from 0) of the last batch; decides the learning rate."""
    lr: tuple[float, float, float]
    """Learning rate of each of `GROUPS`."""
    momentum: float
    """Momentum, where the optimizer has one that is warmed up."""

    @property
    def end_batch(self) -> int:
        """Index of the batch after the last."""
        return self.first_batch + self.batches


@dataclass(frozen=True)
class Schedule:
    """Warm-up and decay over a run, keyword-only in spirit: build it with names."""

    samples: int
    """Images of the train set."""
    batch: int
    """Images a batch, over all ranks."""
    epochs: int
    """Epochs to train."""
    accumulation: int
    """Batches a step after warm-up."""
    ramp: bool
    """Whether warm-up raises the accumulation from 1, as ultralytics does."""
    lr0: float
    """Learning rate after warm-up."""
    lrf: float
    """Last learning rate as a fraction of lr0."""
    cos_lr: bool
    """Cosine decay instead of linear."""
    momentum: float
    """Momentum after warm-up."""
    warmup_epochs: float
    """Length of the warm-up."""
    warmup_momentum: float
    """Momentum at the start."""
    warmup_bias_lr: float
    """Learning rate of biases at the start; weights start from 0."""

    @property
    def total_samples(self) -> int:
        """Samples after which the run has seen all its epochs."""
        return self.samples * self.epochs

    @property
    def warmup_batches(self) -> int:
        """Batches of warm-up; at least the last epoch is left out of it.

        An epoch has samples / batch of them, which need not be whole: ultralytics' last one is short instead.
        """
        epochs = min(self.warmup_epochs, max(self.epochs - 1, 0))
        return round(epochs * self.samples / self.batch) if epochs > 0 else 0

    def epoch_of(self, batch: int) -> int:
        """Epoch in which a batch begins."""
        return batch * self.batch // self.samples

    def epoch_at(self, position: int) -> int:
        """Epoch (from 0) of the next sample after so many; the last one at the end of the run."""
        return min(position // self.samples, self.epochs - 1)

    def epochs_behind(self, position: int) -> int:
        """Epochs whose samples have all been seen after so many samples."""
        return min(position // self.samples, self.epochs)

    def decay(self, epoch: int) -> float:
        """Factor on lr0 in an epoch: ultralytics' `one_cycle` cosine, or a straight line from 1 to lrf."""
        if self.cos_lr:
            return max((1 - math.cos(epoch * math.pi / self.epochs)) / 2, 0) * (self.lrf - 1) + 1
        return max(1 - epoch / self.epochs, 0) * (1.0 - self.lrf) + self.lrf

    def step_at(self, position: int) -> Step:
        """The step that starts after `position` samples have been seen.

        A run that goes on with larger batches than it had may stand within one, which then counts as begun.
        """
        first = position // self.batch
        last = first
        while last - first + 1 < self._accumulation_at(last):
            last += 1
        epoch = self.epoch_of(last)
        return Step(first, last - first + 1, epoch, self._lr_at(last, epoch), self._momentum_at(last))

    def _in_warmup(self, batch: int) -> bool:
        return 0 < self.warmup_batches >= batch

    def _between(self, batch: int, start: float, end: float) -> float:
        return start + (end - start) * batch / self.warmup_batches

    def _accumulation_at(self, batch: int) -> int:
        if not (self.ramp and self._in_warmup(batch)):
            return self.accumulation
        return max(1, round(self._between(batch, 1, self.accumulation)))

    def _lr_at(self, batch: int, epoch: int) -> tuple[float, float, float]:
        target = self.lr0 * self.decay(epoch)
        if not self._in_warmup(batch):
            return target, target, target
        weight = self._between(batch, 0.0, target)
        return weight, weight, self._between(batch, self.warmup_bias_lr, target)

    def _momentum_at(self, batch: int) -> float:
        return self._between(batch, self.warmup_momentum, self.momentum) if self._in_warmup(batch) else self.momentum
