"""A run's progress between two optimizer steps: a frozen record and pure functions to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from yolods.stats import LOSS_NAMES

if TYPE_CHECKING:
    from yolods.stability.record import StepRecord


# Wide: a field per line of progress.json.
@dataclass(frozen=True)
class Progress:
    """Everything about a run that is not a tensor.

    The fields are the keys of progress.json: renaming one would break older checkpoints.
    """

    run: str = ""
    """The run's identity."""
    position: int = 0
    """Samples of the stream consumed so far, over all ranks."""
    step: int = 0
    """Optimizer steps, skipped ones included."""
    micro_batches: int = 0
    """Micro-batches consumed per replica."""
    epochs_done: int = 0
    """Epochs evaluated and written to results.csv."""
    loss_sums: tuple[float, ...] = ()
    """Loss items summed over the steps of the current epoch, weighted by their micro-batches."""
    loss_weight: int = 0
    """Micro-batches in `loss_sums`."""
    lr: tuple[float, ...] = ()
    """Learning rates of the last step, by parameter group."""
    best_fitness: float | None = None
    """Fitness of weights/best.pt."""
    best_epoch: int = 0
    """Epoch (from 0) from which patience counts: the first that was as good as best.pt."""
    seconds: float = 0.0
    """Wall time of the run so far, over all its starts."""
    skipped: int = 0
    """Number of steps that were not applied."""
    replaced: int = 0
    """Samples replaced because their file could not be read."""
    rollbacks: int = 0
    """Number of returns to a snapshot."""
    image_faults: tuple[tuple[str, int], ...] = ()
    """Identities of images that were not finite (old checkpoints: their files), with counts."""
    epoch_ends: tuple[tuple[int, int], ...] = ()
    """Epochs done (from 0), with the position of each at its end; old checkpoints have none."""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Progress:
        """Read progress.json; its lists become tuples."""
        lists = {key: tuple(record.get(key, ())) for key in ("loss_sums", "lr")}
        pairs = {
            key: tuple((one, other) for one, other in record.get(key, ()))
            for key in ("image_faults", "epoch_ends")
        }
        return cls(**{**record, **lists, **pairs})

    def after_step(
        self,
        record: StepRecord,
        *,
        samples: int,
        batches: int,
        lr: tuple[float, ...],
        seconds: float,
    ) -> Progress:
        """The progress after one more step.

        Args:
            record: the step's record.
            samples: number of samples in the step, over all ranks.
            batches: micro-batches per replica in the step.
            lr: the step's learning rates, by parameter group.
            seconds: wall time of the run so far, over all its starts.
        """
        sums = self.loss_sums or (0.0,) * len(LOSS_NAMES)
        # The loss of a skipped step may be inf or nan, so the epoch's mean omits it.
        weight = 0 if record.skipped else batches
        if weight:
            # `record.loss` is the mean over the step's micro-batches; steps differ in their number.
            sums = tuple(
                total + weight * item
                for total, item in zip(sums, record.loss.values(), strict=True)
            )
        return replace(
            self,
            position=self.position + samples,
            step=self.step + 1,
            micro_batches=self.micro_batches + batches,
            loss_sums=sums,
            loss_weight=self.loss_weight + weight,
            lr=lr,
            seconds=seconds,
            skipped=self.skipped + record.skipped,
            rollbacks=self.rollbacks + (record.verdict.action == "rollback"),
            replaced=self.replaced + len(record.replaced),
        )

    @property
    def mean_loss(self) -> dict[str, float]:
        """Mean loss items of the current epoch, by LOSS_NAMES; nan before its first step."""
        sums = self.loss_sums or (math.nan,) * len(LOSS_NAMES)
        means = [total / max(self.loss_weight, 1) for total in sums]
        return dict(zip(LOSS_NAMES, means, strict=True))

    def is_best(self, fitness: float) -> bool:
        """Whether this fitness is the highest so far; while the best is 0, every one is."""
        return not self.best_fitness or fitness > self.best_fitness

    def is_as_good(self, fitness: float) -> bool:
        """Whether the epoch becomes best.pt: the last of equally good ones, as in ultralytics."""
        return self.is_best(fitness) or fitness == self.best_fitness

    def after_evaluation(self, fitness: float) -> Progress:
        """The progress after epoch `epochs_done` (from 0) was evaluated."""
        if not self.is_best(fitness):
            return self
        return replace(self, best_fitness=fitness, best_epoch=self.epochs_done)

    def after_epoch(self, behind: int = 0) -> Progress:
        """The progress after one more epoch.

        A step that is larger than the train set ends several epochs, and its losses belong to each
        of them. The sums are reset after the last one, so that a resume in between still has them.

        Args:
            behind: number of epochs whose samples the run has seen.
        """
        done = self.epochs_done + 1
        ends = (*self.epoch_ends, (self.epochs_done, self.position))
        after = replace(self, epochs_done=done, epoch_ends=ends)
        return after if done < behind else replace(after, loss_sums=(), loss_weight=0)

    def among(self, images: int, before: int | None) -> Progress:
        """The progress on a train set of another size: completed epochs count, the current one
        starts over.

        Args:
            images: number of images now.
            before: number of images at the checkpoint; None if unknown.
        """
        behind = max(self.position // before if before else 0, self.epochs_done)
        placed = replace(self, position=behind * images, epoch_ends=())
        if behind > self.epochs_done:  # the sums belong to an epoch not yet evaluated
            return placed
        return replace(placed, loss_sums=(), loss_weight=0)

    def fits(self, images: int, step: int) -> bool:
        """Whether the position lies in the current epoch, or in the step that ended it.

        Args:
            images: number of images in the train set.
            step: images per optimizer step.
        """
        return 0 <= self.position - self.epochs_done * images < images + step
