"""What every engine is: a model on DeepSpeed that takes a step, and can be evaluated, described and saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolods.cluster.pulse import mark
from yolods.cluster.ranks import Ranks, Share
from yolods.engine.diagnosis import Diagnosis
from yolods.engine.ema import ShardedEma
from yolods.engine.feed import Feed
from yolods.engine.masters import Masters, frozen_weights, full_shape, set_parameter
from yolods.engine.optim import freeze_statistics, set_rates
from yolods.engine.precise import Tallies
from yolods.engine.recovery import Recovery
from yolods.engine.schedule import Step
from yolods.engine.shards import cut, misfits
from yolods.errors import UserError
from yolods.hostcopy import fill, host_copy
from yolods.model.freezing import is_frozen
from yolods.model.inputs import InputFormat
from yolods.model.loss import DetectionLoss
from yolods.stability.attribution import Culprit
from yolods.stability.guard import Verdict
from yolods.stability.reading import Reading
from yolods.stability.step import Outcome, Stability, StockStability
from yolods.stats import LOSS_NAMES, PipeStats

if TYPE_CHECKING:
    from yolods.config.own import OverflowConfig

COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
"""DeepSpeed's own counts, which its timers and logs go by."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did; numbers are means over micro-batches and replicas."""

    loss: dict[str, float]
    """box_loss, cls_loss, dfl_loss as ultralytics reports them."""
    grad_norm: float | None
    """Global norm before clipping, of the gradient that the optimizer is given; None where none was measured."""
    norm_after: float | None
    """After clipping; None where no weight moved, or nothing was measured."""
    loss_scale: float | None
    """fp16 only: in this step."""
    next_scale: float | None
    """And after it."""
    skipped: bool
    """No weight moved."""
    verdict: Verdict
    """Why."""
    culprits: tuple[Culprit, ...]
    """Where a step that was not applied went bad; empty where that was not looked for, or nothing was found."""
    reading: Reading | None
    """Every parameter's gradient norm; None under stock handling."""
    instances: int
    """Boxes in the step, over all replicas."""
    data_seconds: float
    """Time this rank waited for data."""
    replaced: tuple[str, ...]
    """Images that could not be read and were replaced by other samples, by their identities."""
    stop: bool
    """Whether any rank was asked to stop."""


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


class Engine:
    """A detector on a DeepSpeed engine. All methods are collectives unless they say otherwise."""

    def __init__(self, parts: Parts) -> None:
        self.deepspeed, self.masters, self.ema = parts.deepspeed, parts.masters, parts.ema
        self.stability = parts.stability
        self.inputs, self.ranks, self.share = parts.inputs, parts.ranks, parts.share
        self._loss, self._frozen = parts.loss, parts.frozen
        self._strides, self._reg_max = parts.strides, parts.reg_max
        overflow, restores = parts.overflow, parts.stability.restores
        self.recovery = Recovery(self.statistics, self._moving, every=overflow.snapshot_steps, restores=restores)
        self.diagnosis = Diagnosis(self.net, overflow.attribution, parts.ranks, shared=parts.shared)

    @property
    def net(self) -> nn.Module:
        """The model inside, or this rank's stage of it; under ZeRO-3 its parameters are partitioned."""
        return self.deepspeed.module

    @property
    def warms_momentum(self) -> bool:
        """Whether the optimizer has a momentum that a step sets; Adam's betas stay as they are."""
        return "momentum" in self.deepspeed.optimizer.param_groups[0]

    def train_step(
        self, step: Step, batches: Iterator[dict[str, Any]], size: int | None = None, *, stop: bool = False
    ) -> StepResult:
        """Take one optimizer step over `step.batches` micro-batches of this replica.

        Args:
            step: what to accumulate and at which rates.
            batches: the replica's micro-batches, in the order of the stream; not read where `share` says so.
            size: side of the images in pixels, for multi-scale training.
            stop: whether this rank was asked to stop; told to all with the step's numbers.
        """
        set_rates(self.deepspeed.optimizer, step.lr, step.momentum)
        self.recovery.keep_statistics()
        feed = Feed(batches, keep=self.diagnosis.when == "armed")
        sums = self._accumulate(step, feed, size)
        mark("gradients")
        sums = torch.cat((sums, sums.new_full((1,), float(stop))))  # a fill; a list would be copied, and waited for
        can_return = self.recovery.snapshot is not None
        outcome = self.stability.judge(sums, step.batches * self.share.count, can_return=can_return)
        if outcome.verdict.applied:
            self.recovery.remember()
        mark("the optimizer")
        self.deepspeed.step()
        outcome = self.stability.settle(outcome)
        if outcome.verdict.applied:
            self.ema.update()
            return self._result(outcome, feed, ())
        self.recovery.restore_statistics()
        found = self._explain(outcome.verdict, step, feed, size)
        if outcome.verdict.action == "rollback":  # the scale, the stream and the guard's memory of the trouble go on
            assert self.recovery.snapshot is not None
            self._load_moving(self.recovery.snapshot)
        return self._result(outcome, feed, found)

    def _accumulate(self, step: Step, feed: Feed, size: int | None) -> Tensor:
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

    def statistics(self) -> list[Tensor]:
        """Running statistics of the live model: floating buffers, in a fixed order. Local."""
        return [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]

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
        self.ranks.average_(tensors, group=self.share.group, count=self.share.count)

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
        self.ranks.average_(tallies.sums(), group=self.share.group, count=self.share.count)
        tallies.settle()

    @torch.no_grad()
    def score(self, raw: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """(4,) `DetectionLoss.sums` of raw outputs against a batch's targets. Local; where predictions are judged."""
        assert self._loss is not None
        return self._loss.sums(raw, batch)

    def describe(self) -> dict[str, Any]:
        """What this rank's shards are made of, so that they can be put together without this engine. Local.

        `groups`: for each shard a list of (name, shape), in the order in which they lie in it; `statistics`: names of
        the floating buffers.
        """
        names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        return {
            "groups": [[(names[id(p)], list(full_shape(p))) for p in group] for group in self.masters.members()],
            "statistics": [name for name, buffer in self.net.named_buffers() if buffer.is_floating_point()],
        }

    def layout(self) -> dict[str, Any]:
        """How the model is cut over all ranks: the kind of shards, every stage's, and every rank's place."""
        return {
            "kind": self.masters.kind,
            "stages": [self.describe()],
            "places": [[0, rank] for rank in range(self.ranks.size)],
        }

    def _moving(self) -> dict[str, Any]:
        """What a step changes on this rank. Local."""
        return {
            "masters": self.masters.shards(),
            "optimizer": self.masters.states(),
            "ema": self.ema.state_dict(),
            "statistics": self.statistics(),
            "counts": dict(self._counts()),
        }

    def state(self) -> dict[str, Any]:
        """Everything of this rank that a resume needs: its shards and its own. A collective (frozen weights)."""
        return {
            **self._moving(),
            "frozen": self._frozen_weights(),
            "stability": self.stability.state(),
            **self.recovery.state(),
            "counters": {key: getattr(self.deepspeed, key) for key in COUNTERS},
        }

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave, or what was cut to this rank's shards. A collective.

        Raises:
            UserError: what is frozen here is not what was frozen there.
        """
        frozen = [(name, full_shape(p)) for name, p in self.net.named_parameters() if not p.requires_grad]
        if state["frozen"] and (wrong := misfits([frozen], state["frozen"])):  # some ranks hand over none
            raise UserError(f"the state is of another model, or of other frozen layers: {wrong[0]}")
        for name, parameter in self.net.named_parameters():
            if not parameter.requires_grad and name in state["frozen"]:
                set_parameter(parameter, state["frozen"][name])
        self._load_moving(state)
        self.stability.load(state["stability"])
        for key, value in state["counters"].items():
            setattr(self.deepspeed, key, value)
        self.recovery.load(state)

    @torch.no_grad()
    def _load_moving(self, state: dict[str, Any]) -> None:
        shards = self.masters.shards()
        fill(shards, [saved.view_as(shard) for saved, shard in zip(state["masters"], shards, strict=True)])
        self.masters.load_states([_shaped(each, shard) for each, shard in zip(state["optimizer"], shards, strict=True)])
        fill(self.statistics(), state["statistics"])
        counts = dict(self._counts())
        fill(counts.values(), [state["counts"][name] for name in counts])
        self.ema.load_state_dict(state["ema"])
        self.masters.publish()

    @torch.no_grad()
    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Take over a whole model's weights and running statistics, for evaluation: optimizer and average stay.

        Args:
            weights: a state_dict; on every rank.
        """
        mine, shards = self.describe(), self.masters.shards()
        sizes = [shard.numel() for shard in shards]
        pieces = cut(self.masters.kind, mine["groups"], weights, sizes, self.share.index, self.share.count)
        fill(shards, [piece.view_as(shard) for piece, shard in zip(pieces, shards, strict=True)])
        fill(self.statistics(), [weights[name] for name in mine["statistics"]])
        for name, parameter in self.net.named_parameters():
            if not parameter.requires_grad:
                set_parameter(parameter, weights[name])
        self.masters.publish()

    def _counts(self) -> Iterator[tuple[str, Tensor]]:
        """BatchNorm's counters of batches, which nothing reads here but every .pt holds. Local."""
        return ((name, buffer) for name, buffer in self.net.named_buffers() if not buffer.is_floating_point())

    def _frozen_weights(self) -> dict[str, Tensor]:
        """Parameters without masters, fp32 on the CPU, on the ranks that hand over their stage's weights."""
        frozen = {name: each for name, each in self.net.named_parameters() if not each.requires_grad}
        return frozen_weights(frozen, keep=self._hands_over())

    @torch.no_grad()
    def full_weights(self) -> dict[str, Tensor] | None:
        """The whole model's state_dict in fp32 on the CPU, on rank 0; None elsewhere.

        Masters are gathered a bounded piece after the other, so no GPU ever holds a whole model besides its own.
        """
        names = {id(parameter): name for name, parameter in self.net.named_parameters()}
        state = self._frozen_weights()
        state |= {names[id(each)]: value for each, value in self.masters.whole(keep=self._hands_over())}
        if self._hands_over():
            state |= host_copy(dict(self.net.named_buffers()))
        return self._collect(state)

    def _hands_over(self) -> bool:
        """Whether this rank's copy of its weights is the one that is saved."""
        return self.ranks.is_main

    def _collect(self, state: dict[str, Tensor]) -> dict[str, Tensor] | None:
        return state if self.ranks.is_main else None

    def _lost(self, items: Tensor, boxes: int, sums: Tensor) -> None:
        """Note the loss items of one micro-batch."""
        sums += torch.cat((items, items.new_full((1,), boxes)))
        self.diagnosis.note_loss(items.sum())

    def _explain(self, verdict: Verdict, step: Step, feed: Feed, size: int | None) -> tuple[Culprit, ...]:
        """Find out where a step went bad: a collective, by running it a second time where it was not watched."""
        if self.diagnosis.when == "off" or not self.stability.restores:
            return ()
        if self.diagnosis.when == "armed":
            with self.diagnosis.watching():
                self._run_again(step, feed, size)
        return self.diagnosis.conclude(verdict, self.stability.named(verdict.suspects), feed, *self._place())

    def _run_again(self, step: Step, feed: Feed, size: int | None) -> None:
        """The passes of a step that was not applied once more, without a trace."""
        counters = {key: getattr(self.deepspeed, key) for key in COUNTERS}
        feed.rewind()
        self._accumulate(step, feed, size)
        self.stability.discard()
        self.deepspeed.step()
        self.recovery.restore_statistics()
        for key, value in counters.items():
            setattr(self.deepspeed, key, value)

    def _place(self) -> tuple[int, int]:
        """This rank's stage and replica."""
        return 0, self.share.index

    def _result(self, outcome: Outcome, feed: Feed, found: tuple[Culprit, ...]) -> StepResult:
        return StepResult(
            loss=dict(zip(LOSS_NAMES, outcome.loss, strict=True)),
            grad_norm=outcome.norm,
            norm_after=outcome.norm_after,
            loss_scale=outcome.scale,
            next_scale=outcome.next_scale,
            skipped=not outcome.verdict.applied,
            verdict=outcome.verdict,
            culprits=found,
            reading=outcome.reading,
            instances=outcome.instances,
            data_seconds=feed.waited,
            replaced=tuple(feed.replaced),
            stop=outcome.stop,
        )


def _shaped(state: dict[str, Any], shard: Tensor) -> dict[str, Any]:
    """Moments in the shape of their shard; numbers as they are."""
    return {
        key: value.view_as(shard) if isinstance(value, Tensor) and value.numel() == shard.numel() > 1 else value
        for key, value in state.items()
    }
