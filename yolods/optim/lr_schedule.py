"""The contents of an optimizer step, as a pure function of the number of samples seen.

The unit is the batch: B images, one forward pass over all data-parallel ranks. A step takes one or
more whole batches (gradient accumulation) from the endless sample stream. Therefore every step is
full on every rank, and an epoch is just n samples of the stream. The formulas are ultralytics'
(engine/trainer.py, `_do_train`), with the same batch indices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

GROUPS = ("weight", "bn", "bias")
"""Parameter groups in ultralytics' order (lr/pg0, lr/pg1, lr/pg2): decayed, BatchNorm, biases."""


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    first_batch: int
    """Index of its first batch in the stream."""
    batches: int
    """Number of accumulated batches: micro-batches per rank."""
    epoch: int
    """Epoch (from 0) of the last batch; determines the learning rate."""
    lr: tuple[float, float, float]
    """Learning rate of each of `GROUPS`."""
    momentum: float
    """Momentum, for optimizers whose momentum is warmed up."""

    @property
    def end_batch(self) -> int:
        """Index of the batch after the last one."""
        return self.first_batch + self.batches


@dataclass(frozen=True)
class Schedule:
    """Warm-up and decay over a run. Construct it with keyword arguments."""

    samples: int
    """Images of the train set."""
    batch: int
    """Images per batch, over all ranks."""
    epochs: int
    """Epochs to train."""
    accumulation: int
    """Batches per step after warm-up."""
    ramp: bool
    """Whether warm-up raises the accumulation from 1, as ultralytics does."""
    lr0: float
    """Learning rate after warm-up."""
    lrf: float
    """Last learning rate as a fraction of lr0."""
    cos_lr: bool
    """Whether the decay is a cosine instead of linear."""
    momentum: float
    """Momentum after warm-up."""
    warmup_epochs: float
    """Length of the warm-up in epochs."""
    warmup_momentum: float
    """Momentum at the start."""
    warmup_bias_lr: float
    """Learning rate of biases at the start; weights start at 0."""

    @property
    def total_samples(self) -> int:
        """Samples in all epochs of the run."""
        return self.samples * self.epochs

    @property
    def warmup_batches(self) -> int:
        """Number of warm-up batches. Warm-up ends at the latest before the last epoch.

        An epoch has samples / batch of them, which need not be an integer: the last batch of an
        epoch may reach into the next one, whereas ultralytics' last batch is short.
        """
        epochs = min(self.warmup_epochs, max(self.epochs - 1, 0))
        return round(epochs * self.samples / self.batch) if epochs > 0 else 0

    def epoch_of(self, batch: int) -> int:
        """Epoch in which a batch begins."""
        return batch * self.batch // self.samples

    def epoch_at(self, position: int) -> int:
        """Epoch (from 0) of the sample at `position`; the last epoch at the end of the run."""
        return min(position // self.samples, self.epochs - 1)

    def epochs_behind(self, position: int) -> int:
        """Number of complete epochs after `position` samples."""
        return min(position // self.samples, self.epochs)

    def decay(self, epoch: int) -> float:
        """Factor on lr0 in an epoch: ultralytics' `one_cycle` cosine, or linear from 1 to lrf."""
        if self.cos_lr:
            return max((1 - math.cos(epoch * math.pi / self.epochs)) / 2, 0) * (self.lrf - 1) + 1
        return max(1 - epoch / self.epochs, 0) * (1.0 - self.lrf) + self.lrf

    def step_at(self, position: int) -> Step:
        """The step that starts after `position` samples.

        A run that resumes with larger batches may be in the middle of one, which then counts as
        begun.
        """
        first = position // self.batch
        last = first
        # Ultralytics steps when the accumulation of the current batch is reached, and that grows
        # during warm-up. So the length of a step depends on its last batch.
        while last - first + 1 < self._accumulation_at(last):
            last += 1
        epoch = self.epoch_of(last)
        return Step(
            first, last - first + 1, epoch, self._lr_at(last, epoch), self._momentum_at(last)
        )

    def _in_warmup(self, batch: int) -> bool:
        # Includes the batch after the last one of warm-up, as ultralytics does (`ni <= nw`).
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
        return (
            self._between(batch, self.warmup_momentum, self.momentum)
            if self._in_warmup(batch)
            else self.momentum
        )
