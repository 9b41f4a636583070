"""The engine's interface: train a detector on DeepSpeed for one step, and evaluate it.

`state.TrainingState` holds what the engine trains and saves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolods.compression.powersgd import PowerSgd
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
from yolods.traffic.meter import open_meter
from yolods.zero.master_weights import Masters

if TYPE_CHECKING:
    from yolods.config.deepspeed.yolods_block import OverflowConfig


# Wide: one field for each part that `build` passes to an engine.
@dataclass(frozen=True)
class Parts:
    """The parts of an engine."""

    deepspeed: Any
    """The DeepSpeedEngine."""
    loss: DetectionLoss | None
    """None on ranks that do not compute the loss."""
    masters: Masters
    """Access to the fp32 master weights."""
    ema: ShardedEma
    """Moving average of the masters."""
    stability: Stability | StockStability
    """Checks every step's gradients."""
    overflow: OverflowConfig
    """How the run responds to bad steps."""
    inputs: InputFormat
    """Data type, device and memory format of the images."""
    ranks: Ranks
    """This process among the others."""
    share: Share
    """This replica's share of the data."""
    frozen: list[str]
    """Prefixes of the layers whose BatchNorm statistics do not change."""
    shared: bool
    """Whether BatchNorm computes its batch statistics over all replicas (`sync_bn`)."""
    strides: tuple[float, ...]
    """Pixels per cell of each level."""
    reg_max: int
    """Bins of the head's distance distribution."""
    compression: PowerSgd | None = None
    """What averages the gradients over the replicas; None: DeepSpeed."""


# Wide: one interface of ZeRO and of pipelines, for steps, evaluations and reports.
class Engine(TrainingState):
    """A detector on a DeepSpeed engine. All methods are collectives unless they say otherwise."""

    stage = 0
    """This rank's stage of a pipeline."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(
            parts.deepspeed,
            parts.masters,
            parts.ema,
            parts.stability,
            parts.ranks,
            parts.share,
            parts.compression,
            snapshot_steps=parts.overflow.snapshot_steps,
        )
        self.traffic = open_meter(parts.ranks)
        self.inputs, self._loss, self._frozen = parts.inputs, parts.loss, parts.frozen
        self._strides, self._reg_max = parts.strides, parts.reg_max
        self.diagnosis = Diagnosis(
            self.net, parts.overflow.attribution, parts.ranks, shared=parts.shared
        )

    def train_step(
        self,
        step: Step,
        batches: Iterator[dict[str, Any]],
        size: int | None = None,
        *,
        stop: bool = False,
    ) -> StepRecord:
        """Take one optimizer step over `step.batches` micro-batches of this replica.

        Args:
            step: the number of micro-batches, the learning rates and the momentum.
            batches: the replica's micro-batches in stream order; read only if `share.first_stage`.
            size: side of the images in pixels, for multi-scale training.
            stop: whether this rank was asked to stop. The all-reduce of the step's numbers passes
                the request to all ranks.
        """
        # Before DeepSpeed's step below, which reads the rates from the optimizer's groups.
        set_rates(self.deepspeed.optimizer, step.lr, step.momentum)
        # Before any forward pass: each one moves BatchNorm's running statistics, and a step that is
        # not applied must restore them.
        self.snapshots.keep_statistics()
        # A second run needs the same batches, and the stream cannot go back.
        feed = ReplayableBatches(batches, keep=self.diagnosis.when == "armed")
        sums = self._accumulate(step, feed, size)
        mark("gradients")
        # Before `before_step`, whose all-reduce takes the request to all ranks.
        sums = _with_request(sums, stop=stop)
        # Before DeepSpeed's step: only here are the gradients already reduced, but not yet unscaled
        # or clipped. DeepSpeed's step reads the decision through its optimizer.
        can_return = self.snapshots.snapshot is not None
        with self.traffic.ours():
            record = self.stability.before_step(
                sums, step.batches * self.share.dp_size, can_return=can_return
            )
        if record.verdict.applied:
            mark("a snapshot")
            # The verdict has shown that these weights are good, and the step will change them.
            self.snapshots.remember()
        mark("the optimizer")
        # After a skip, too: here DeepSpeed frees the gradients, to which the next step would add.
        self.deepspeed.step()
        # After DeepSpeed's step, which must unscale with the loss scale that backward used. Before
        # it, a doubling of the scale would halve this step's gradients.
        record = self.stability.after_step(record)
        record.scalars.update(self._rates(step))
        record = replace(record, data_seconds=feed.waited, replaced=tuple(feed.replaced))
        if record.verdict.applied:
            self._count_in()
            return record
        # Before the second run, so that it starts from the same statistics as the first. Needed
        # without a second run too: a nan in running statistics would stay there.
        self.snapshots.restore_statistics()
        # Before a roll-back: the second run needs the weights with which the step went bad. The
        # loss scale may have fallen since, so an overflow need not recur.
        culprits = self._explain(record.verdict, step, feed, size)
        # A roll-back leaves the loss scale, the data stream and the guard's counters as they are.
        # Otherwise the run would repeat the same step.
        if record.verdict.action == "rollback":
            assert self.snapshots.snapshot is not None
            self._load_moving(self.snapshots.snapshot)
        return replace(record, culprits=culprits)

    def _count_in(self) -> None:
        """Let the average and the compression follow a step that was applied.

        After the masters have moved. A skipped step advances neither the average's warm-up nor the
        compression's memory of what it has not sent.
        """
        mark("the average")
        self.ema.update()
        if self.compression is not None:
            self.compression.commit()

    def _rates(self, step: Step) -> dict[str, float | None]:
        """Curves of the step's learning rates and momentum.

        The schedule sets no momentum for Adam, so Adam has no such curve.
        """
        momentum = step.momentum if "momentum" in self.deepspeed.optimizer.param_groups[0] else None
        return {
            **{f"lr/pg{place}": rate for place, rate in enumerate(step.lr)},
            "optim/momentum": momentum,
        }

    def _accumulate(self, step: Step, feed: ReplayableBatches, size: int | None) -> Tensor:
        """Run forward and backward for every micro-batch.

        On return the gradients are reduced and DeepSpeed's optimizer step is due.

        Returns:
            (4,) fp32: loss items and number of boxes, summed over this rank's micro-batches; 0 on
            ranks that compute no loss.
        """
        raise NotImplementedError

    def predict(self, images: Tensor | None) -> tuple[Tensor, dict[str, Any]] | None:
        """Evaluate uint8 images (N, 3, H, W) in evaluation mode.

        Returns:
            decoded boxes and scores (N, 4 + nc, A) fp32, and the raw fp32 outputs for a loss; None
            on ranks that do not hold the head.
        """
        raise NotImplementedError

    def report(self) -> PipeStats | None:
        """Times and memory per stage in the last step, on rank 0 of a pipeline; None elsewhere.

        A collective.
        """
        return None

    def training(self) -> None:
        """Put the model into training mode; frozen layers keep their statistics. Local."""
        self.deepspeed.train()
        freeze_statistics(self.net, self._frozen)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the model into evaluation mode with the averaged weights and statistics.

        Statistics are averaged over the replicas first. On exit the model is in training mode
        again.
        """
        self.average_statistics()
        self.deepspeed.eval()
        with self.ema.exchange():
            yield
        self.training()

    def average_statistics(self) -> None:
        """Average the running statistics and their moving averages over the replicas."""
        tensors = [*self.statistics(), *self.ema.mean_buffers]
        self.ranks.average_(tensors, group=self.share.group, count=self.share.dp_size)

    def restate_statistics(self, passes: Iterable[tuple[Tensor | None, int]]) -> None:
        """Recompute BatchNorm's statistics for the present weights, in evaluation mode.

        Frozen layers keep their statistics.

        Args:
            passes: uint8 images (N, 3, H, W), or None unless `share.first_stage`, and how many of
                them count. Every rank passes the same number.
        """
        named = self.net.named_modules()
        norms = [
            norm
            for name, norm in named
            if isinstance(norm, nn.BatchNorm2d) and not is_frozen(name, self._frozen)
        ]
        tallies = Tallies(norms, self.inputs.device)
        with tallies.listening():
            for images, counted in passes:
                self.predict(images)
                tallies.add(counted)
        self.ranks.average_(tallies.sums(), group=self.share.group, count=self.share.dp_size)
        tallies.apply()

    @torch.no_grad()
    def score(self, raw: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """Loss of raw outputs against a batch's targets, as `DetectionLoss.sums`: (4,).

        Local; only on ranks that hold the head.
        """
        assert self._loss is not None
        return self._loss.sums(raw, batch)

    def _lost(self, items: Tensor, boxes: int, sums: Tensor) -> None:
        """Add one micro-batch's loss items and boxes to `sums`."""
        sums += torch.cat((items, items.new_full((1,), boxes)))
        self.diagnosis.note_loss(items.sum())

    def _explain(
        self, verdict: Verdict, step: Step, feed: ReplayableBatches, size: int | None
    ) -> tuple[Culprit, ...]:
        """Find where a step went bad. A collective; runs the step again unless it was watched."""
        if self.diagnosis.when == "off" or not self.stability.restores:
            return ()
        if self.diagnosis.when == "armed":
            with self.diagnosis.watching():
                self._run_again(step, feed, size)
        return self.diagnosis.conclude(
            verdict, self.stability.named(verdict.suspects), feed, *self._place()
        )

    def _run_again(self, step: Step, feed: ReplayableBatches, size: int | None) -> None:
        """Repeat the passes of a step that was not applied, and leave no trace of them."""
        # DeepSpeed counts every call of its `step`, but the second run is not a step of the run.
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


def _with_request(sums: Tensor, *, stop: bool) -> Tensor:
    """The step's sums and the request to stop.

    The request travels with the losses, so that all ranks learn of it from the same all-reduce and
    stop after the same step.
    """
    # `new_full` fills on the device; `torch.tensor` would copy from the host and wait for the copy.
    return torch.cat((sums, sums.new_full((1,), float(stop))))
