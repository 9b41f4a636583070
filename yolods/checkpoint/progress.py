"""Where a run stands between two optimizer steps: a frozen record, and pure functions from one to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from yolods.stats import LOSS_NAMES

if TYPE_CHECKING:
    from yolods.stability.record import StepRecord


# Wide: a field for each line of progress.json.
@dataclass(frozen=True)
class Progress:
    """Everything about a run that is not a tensor. Its fields are those of a checkpoint's progress.json, hence so many:
    none can be renamed, or older checkpoints would not load."""

    run: str = ""
    """The run's identity."""
    position: int = 0
    """Samples of the stream consumed."""
    step: int = 0
    """Optimizer steps tried."""
    micro_batches: int = 0
    """Micro-batches a replica has consumed."""
    epochs_done: int = 0
    """Epochs evaluated and written to results.csv."""
    loss_sums: tuple[float, ...] = ()
    """Loss items summed over the steps of the unfinished epoch, weighted with their micro-batches."""
    loss_weight: int = 0
    """Micro-batches in `loss_sums`."""
    lr: tuple[float, ...] = ()
    """Learning rates of the last step, by parameter group."""
    best_fitness: float | None = None
    """Fitness of weights/best.pt."""
    best_epoch: int = 0
    """Epoch (from 0) from which patience counts: the first that was as good as weights/best.pt is."""
    seconds: float = 0.0
    """Wall time of the run so far, over all its starts."""
    skipped: int = 0
    """Steps that were not applied."""
    replaced: int = 0
    """Samples replaced because their file could not be read."""
    rollbacks: int = 0
    """Times that the run went back to a snapshot."""
    image_faults: tuple[tuple[str, int], ...] = ()
    """Identities of images (once, their files) found not to be finite, and how often; see `overflow.quarantine`."""

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Progress:
        """Read progress.json back: JSON knows lists only."""
        faults = tuple((file, count) for file, count in record.get("image_faults", ()))
        lists = {key: tuple(record.get(key, ())) for key in ("loss_sums", "lr")}
        return cls(**{**record, **lists, "image_faults": faults})

    def after_step(
        self, record: StepRecord, *, samples: int, batches: int, lr: tuple[float, ...], seconds: float
    ) -> Progress:
        """Where the run stands after one more step.

        Args:
            record: of the step. The loss of a skipped one may be inf or nan, and is left out of the epoch's.
            samples: in the step, over all ranks.
            batches: micro-batches per replica in the step.
            lr: the step's learning rates, by parameter group.
            seconds: wall time of the run so far.
        """
        sums, counted = self.loss_sums or (0.0,) * len(LOSS_NAMES), 0 if record.skipped else batches
        if counted:
            sums = tuple(total + counted * item for total, item in zip(sums, record.loss.values(), strict=True))
        return replace(
            self,
            position=self.position + samples,
            step=self.step + 1,
            micro_batches=self.micro_batches + batches,
            loss_sums=sums,
            loss_weight=self.loss_weight + counted,
            lr=lr,
            seconds=seconds,
            skipped=self.skipped + record.skipped,
            rollbacks=self.rollbacks + (record.verdict.action == "rollback"),
            replaced=self.replaced + len(record.replaced),
        )

    @property
    def mean_loss(self) -> dict[str, float]:
        """Of the unfinished epoch, by LOSS_NAMES."""
        means = [total / max(self.loss_weight, 1) for total in self.loss_sums]
        return dict(zip(LOSS_NAMES, means, strict=True))

    def is_best(self, fitness: float) -> bool:
        """Whether an epoch is better than all before it. As long as none is better than 0, each is."""
        return not self.best_fitness or fitness > self.best_fitness

    def is_as_good(self, fitness: float) -> bool:
        """Whether an epoch is to be best.pt: of those that are equally good it is the last, as in ultralytics."""
        return self.is_best(fitness) or fitness == self.best_fitness

    def after_evaluation(self, fitness: float) -> Progress:
        """Where the run stands once the epoch that comes after `epochs_done` has been judged."""
        if not self.is_best(fitness):
            return self
        return replace(self, best_fitness=fitness, best_epoch=self.epochs_done)

    def after_epoch(self) -> Progress:
        """Where the run stands once one more epoch is done; the next one's losses begin anew."""
        return replace(self, epochs_done=self.epochs_done + 1, loss_sums=(), loss_weight=0)

    def among(self, images: int, before: int | None) -> Progress:
        """The same place in a run whose train set has another number of images, and had `before` (None: nobody knows):
        epochs behind count, and the one under way begins anew."""
        behind = max(self.position // before if before else 0, self.epochs_done)
        if behind > self.epochs_done:  # what is summed up is of an epoch that is still to be evaluated
            return replace(self, position=behind * images)
        return replace(self, position=behind * images, loss_sums=(), loss_weight=0)

    def fits(self, images: int, step: int) -> bool:
        """Whether the position is in the epoch that it should be in, of a set of so many images: within it, or in the
        step of so many images that has ended it."""
        return 0 <= self.position - self.epochs_done * images < images + step
