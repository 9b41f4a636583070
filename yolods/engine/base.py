"""What every engine does: a model on DeepSpeed takes a step and is evaluated. What it holds is in `state`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolods.distributed.phases import mark
from yolods.distributed.world import Ranks, Share
from yolods.engine.diagnosis import Diagnosis
from yolods.engine.microbatches import ReplayableBatches
from yolods.engine.state import COUNTERS, TrainingState
from yolods.model.bn_statistics import Tallies
from yolods.model.freezing import is_frozen
from yolods.model.inputs import InputFormat
from yolods.model.loss.detection_loss import DetectionLoss
from yolods.optim.ema import ShardedEma
from yolods.optim.lr_schedule import Step
from yolods.optim.optimizers import freeze_statistics, set_rates
from yolods.stability.attribution import Culprit
from yolods.stability.controller import Stability, StockStability
from yolods.stability.guard import Verdict
from yolods.stability.record import StepRecord
from yolods.stats import PipeStats
from yolods.zero.master_weights import Masters

if TYPE_CHECKING:
    from yolods.config.deepspeed.yolods_block import OverflowConfig


# Wide: a field for each part that `build` hands to an engine.
@dataclass(frozen=True)
class Parts:
    """What an engine is put together from."""

    deepspeed: Any
    """The DeepSpeedEngine."""
    loss: DetectionLoss | None
    """None on ranks that do not compute it."""
    masters: Masters
    """Where the fp32 weights are."""
    ema: ShardedEma
    """Their moving average."""
    stability: Stability | StockStability
    """Judges every step's gradients."""
    overflow: OverflowConfig
    """What is done about bad ones."""
    inputs: InputFormat
    """How images reach the model."""
    ranks: Ranks
    """This process among the others."""
    share: Share
    """Its part of the data."""
    frozen: list[str]
    """Prefixes of layers whose statistics stay as they are."""
    shared: bool
    """Whether BatchNorm's statistics of a step span the replicas."""
    strides: tuple[float, ...]
    """Pixels per cell of each level."""
    reg_max: int
    """Bins of the head's distance distribution."""


class Engine(TrainingState):
    """A detector on a DeepSpeed engine. All methods are collectives unless they say otherwise."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(
            parts.deepspeed,
            parts.masters,
            parts.ema,
            parts.stability,
            parts.ranks,
            parts.share,
            snapshot_steps=parts.overflow.snapshot_steps,
        )
        self.inputs, self._loss, self._frozen = parts.inputs, parts.loss, parts.frozen
        self._strides, self._reg_max = parts.strides, parts.reg_max
        self.diagnosis = Diagnosis(self.net, parts.overflow.attribution, parts.ranks, shared=parts.shared)

    def train_step(
        self, step: Step, batches: Iterator[dict[str, Any]], size: int | None = None, *, stop: bool = False
    ) -> StepRecord:
        """Take one optimizer step over `step.batches` micro-batches of this replica.

        Args:
            step: what to accumulate and at which rates.
            batches: the replica's micro-batches, in the order of the stream; not read where `share` says so.
            size: side of the images in pixels, for multi-scale training.
            stop: whether this rank was asked to stop; told to all with the step's numbers.
        """
        set_rates(self.deepspeed.optimizer, step.lr, step.momentum)  # which DeepSpeed's step reads, below
        # Before any forward pass: each moves the running statistics, and a step that is not applied has to undo that.
        self.snapshots.keep_statistics()
        feed = ReplayableBatches(
            batches, keep=self.diagnosis.when == "armed"
        )  # for a second run, which the stream cannot give
        sums = self._accumulate(step, feed, size)
        mark("gradients")
        # Beside the losses, so that all ranks agree to stop by the same all-reduce and in the same step. A fill; a list
        # would be copied, and waited for.
        sums = torch.cat((sums, sums.new_full((1,), float(stop))))
        # Before DeepSpeed's step: only now are gradients reduced and not yet unscaled or clipped, and the step finds
        # the decision in its optimizer.
        can_return = self.snapshots.snapshot is not None
        record = self.stability.before_step(sums, step.batches * self.share.dp_size, can_return=can_return)
        if record.verdict.applied:
            # After the verdict and before the weights move: these are the weights that it has shown to be good.
            self.snapshots.remember()
        mark("the optimizer")
        # For a step that is skipped, too: DeepSpeed frees its gradients there, which would be added to the next ones.
        self.deepspeed.step()
        # After DeepSpeed's step, which unscales by the loss scale that backward used: moved earlier, every gradient of
        # a step in which it doubles would come out halved.
        record = self.stability.after_step(record)
        record.scalars.update(self._rates(step))
        record = replace(record, data_seconds=feed.waited, replaced=tuple(feed.replaced))
        if record.verdict.applied:
            self.ema.update()  # after the masters have moved; a skipped step is no step of the average's warm-up
            return record
        # Before the second run, so that it begins as the first did, and whether there is one or not: nan would stay.
        self.snapshots.restore_statistics()
        # Before a roll-back: the second run has to see the weights with which the step went bad. The loss scale may
        # have fallen by now, so an overflow need not come again.
        culprits = self._explain(record.verdict, step, feed, size)
        if record.verdict.action == "rollback":  # the scale, the stream and the guard's memory of the trouble go on
            assert self.snapshots.snapshot is not None
            self._load_moving(self.snapshots.snapshot)
        return replace(record, culprits=culprits)

    def _rates(self, step: Step) -> dict[str, float | None]:
        """Curves of what the step was taken with. Adam has no momentum that a step sets, and so no curve of it."""
        momentum = step.momentum if "momentum" in self.deepspeed.optimizer.param_groups[0] else None
        return {**{f"lr/pg{place}": rate for place, rate in enumerate(step.lr)}, "optim/momentum": momentum}

    def _accumulate(self, step: Step, feed: ReplayableBatches, size: int | None) -> Tensor:
        """Forward and backward of every micro-batch, up to the point where gradients are reduced and the optimizer's
        step is due.

        Returns:
            (4,) fp32: loss items and boxes, summed over this rank's micro-batches; 0 where none are computed.
        """
        raise NotImplementedError

    def predict(self, images: Tensor | None) -> tuple[Tensor, dict[str, Any]] | None:
        """Evaluate uint8 images (N, 3, H, W) in evaluation mode.

        Returns:
            decoded boxes and scores (N, 4 + nc, A) fp32, and the raw fp32 outputs for a loss; None on ranks that do
            not judge.
        """
        raise NotImplementedError

    def report(self) -> PipeStats | None:
        """What the last step took on each stage, on rank 0 of a pipeline; None elsewhere. A collective."""
        return None

    def training(self) -> None:
        """Put the model into training mode; frozen layers keep their statistics. Local."""
        self.deepspeed.train()
        freeze_statistics(self.net, self._frozen)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within: evaluation mode, with the moving average of weights and of statistics averaged over the replicas."""
        self.average_statistics()
        self.deepspeed.eval()
        with self.ema.exchange():
            yield
        self.training()

    def average_statistics(self) -> None:
        """Make the running statistics, and their moving averages, the mean over the replicas."""
        tensors = [*self.statistics(), *self.ema.mean_buffers]
        self.ranks.average_(tensors, group=self.share.group, count=self.share.dp_size)

    def restate_statistics(self, passes: Iterable[tuple[Tensor | None, int]]) -> None:
        """Take BatchNorm's statistics anew from the model as it is, in evaluation mode; frozen layers keep theirs.

        Args:
            passes: uint8 images (N, 3, H, W), None where `share` says so, and how many of them count; as many passes
                on every rank.
        """
        named = self.net.named_modules()
        norms = [norm for name, norm in named if isinstance(norm, nn.BatchNorm2d) and not is_frozen(name, self._frozen)]
        tallies = Tallies(norms, self.inputs.device)
        with tallies.listening():
            for images, counted in passes:
                self.predict(images)
                tallies.add(counted)
        self.ranks.average_(tallies.sums(), group=self.share.group, count=self.share.dp_size)
        tallies.apply()

    @torch.no_grad()
    def score(self, raw: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """(4,) `DetectionLoss.sums` of raw outputs against a batch's targets. Local; where predictions are judged."""
        assert self._loss is not None
        return self._loss.sums(raw, batch)

    def _lost(self, items: Tensor, boxes: int, sums: Tensor) -> None:
        """Note the loss items of one micro-batch."""
        sums += torch.cat((items, items.new_full((1,), boxes)))
        self.diagnosis.note_loss(items.sum())

    def _explain(self, verdict: Verdict, step: Step, feed: ReplayableBatches, size: int | None) -> tuple[Culprit, ...]:
        """Find out where a step went bad: a collective, by running it a second time where it was not watched."""
        if self.diagnosis.when == "off" or not self.stability.restores:
            return ()
        if self.diagnosis.when == "armed":
            with self.diagnosis.watching():
                self._run_again(step, feed, size)
        return self.diagnosis.conclude(verdict, self.stability.named(verdict.suspects), feed, *self._place())

    def _run_again(self, step: Step, feed: ReplayableBatches, size: int | None) -> None:
        """The passes of a step that was not applied once more, without a trace."""
        counters = {key: getattr(self.deepspeed, key) for key in COUNTERS}
        feed.rewind()
        self._accumulate(step, feed, size)
        self.stability.discard()
        self.deepspeed.step()
        self.snapshots.restore_statistics()
        for key, value in counters.items():
            setattr(self.deepspeed, key, value)

    def _place(self) -> tuple[int, int]:
        """This rank's stage and replica."""
        return 0, self.share.dp_rank
