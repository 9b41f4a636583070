"""Records of an epoch, a pipeline and a skipped step: plain numbers, already on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOSS_NAMES = ("box_loss", "cls_loss", "dfl_loss")
METRIC_NAMES = (
    "metrics/precision(B)",
    "metrics/recall(B)",
    "metrics/mAP50(B)",
    "metrics/mAP50-95(B)",
)


@dataclass(frozen=True, kw_only=True)
class StabilityEvent:
    """A step that was not applied, or parameters whose gradients vanished."""

    step: int
    """Optimizer steps so far, skipped ones and this one included."""
    epoch: int
    """Epoch, from 0."""
    position: int
    """Samples of the stream consumed so far, this step's included."""
    action: str
    """`skip`, `rollback`, `stop`, or `report` if the step was applied."""
    cause: str
    """`overflow`, `forward`, `backward`, `gradient_spike`, `loss_spike`, `vanishing`, or
    `unassigned`: the box branch of a head has vanishing gradients because no object was assigned to
    it."""
    loss: float
    """Sum of the loss items; may be inf or nan."""
    grad_norm: float | None
    """Global gradient norm; may be inf or nan."""
    usual: float | None
    """For a spike: the usual gradient norm or loss."""
    loss_scale: float | None
    """fp16's loss scale in this step."""
    parameters: tuple[str, ...]
    """Names of those whose gradients were not finite, were outliers, or vanished."""
    culprits: tuple[Mapping[str, Any], ...]
    """Where it began.

    Keys: phase, name, layer, kind, rank, host, stage, replica, micro_batch, files, single_images.
    """
    remedy: str
    """What yolods did, as text for the log."""


@dataclass(frozen=True, kw_only=True)
class LoaderStats:
    """How fast the loaders of all ranks made an epoch's training samples."""

    images_per_second: float
    """Samples per second that all loader processes together make while they are busy."""
    decode_share: float
    """Share of that time for reading and decoding images, in [0, 1]."""
    wait_share: float
    """Share of the training time in which ranks waited for samples, in [0, 1]; a rank without
    loader processes makes them itself, which counts."""


# Wide: a field for each fact about an epoch.
@dataclass(frozen=True, kw_only=True)
class EpochStats:
    """One epoch, after its evaluation if there was one."""

    epoch: int
    """Epoch, from 0."""
    position: int
    """Samples of the stream consumed so far; the epoch's last step may reach into the next one."""
    seconds: float
    """Wall time of the run in seconds so far, over all its starts."""
    train_loss: Mapping[str, float]
    """Mean loss items of the epoch by LOSS_NAMES."""
    val_loss: Mapping[str, float] | None
    """The same on the validation set; None if the epoch was not evaluated."""
    metrics: Mapping[str, float] | None
    """Values by METRIC_NAMES; None if the epoch was not evaluated."""
    fitness: float | None
    """ultralytics' fitness of `metrics`; None if the epoch was not evaluated."""
    lr: Mapping[str, float]
    """Learning rate at the end of the epoch by `lr/pg0`, `lr/pg1`, ..."""
    images_per_second: float
    """Training images per second over all ranks in this epoch, without evaluation."""
    is_best: bool
    """Whether this epoch's fitness is the best so far."""
    loader: LoaderStats | None = None
    """How fast samples were made; None if none were read."""
    best_fitness: float | None = None
    """The best fitness so far; None if no epoch was evaluated."""
    best_epoch: int | None = None
    """Its epoch, from 0."""


@dataclass(frozen=True, kw_only=True)
class StageStats:
    """One stage of a pipeline in the last step of an epoch, as the mean over its replicas."""

    stage: int
    """The stage, from 0."""
    forward: float
    """Seconds in forward passes."""
    backward: float
    """Seconds in backward passes, with both of their parts."""
    idle: float
    """Share of the step spent waiting, in [0, 1]."""
    sent: float
    """Bytes per step sent to its neighbours: activations and gradients."""
    peak: float
    """Peak memory in bytes: of the device on a GPU, of the process on a CPU."""


@dataclass(frozen=True, kw_only=True)
class PipeStats:
    """A pipeline's last step of an epoch."""

    stages: tuple[StageStats, ...]
    """All stages, in order."""
    idle: float
    """Share of all stages' time spent waiting, in [0, 1]."""
    bound: float
    """The idle share of the schedule with these stage times, if sending took no time."""
    schedule: str = "1f1b"
    """The order of the stages' passes: "1f1b" or "zb"."""


@dataclass(frozen=True, kw_only=True)
class RankCommunication:
    """One rank's communication in an epoch, per step."""

    rank: int
    """The rank."""
    sent: Mapping[str, float]
    """Bytes that it sent, by kind: reduce, gather, boundary, ours."""
    calls: Mapping[str, float]
    """Calls by kind."""
    held: float
    """Share of its steps in which it stood still because of the links, in [0, 1]."""
    waiting: float
    """Share of its steps in which it would have stood still if the links took no time, because
    others were at work, in [0, 1]."""
    boundaries: Mapping[int, float]
    """Bytes that a pipeline's stage sent, by the rank that received them."""
    between: float
    """Bytes that it sent outside of steps, in the whole epoch."""


@dataclass(frozen=True, kw_only=True)
class CommunicationStats:
    """What the ranks sent in an epoch, as means per step and rank."""

    ranks: tuple[RankCommunication, ...]
    """Every rank, in order."""
    seconds: float
    """Seconds in collectives."""
    step_seconds: float
    """Seconds of a step."""
    hidden: float
    """Share of the seconds in collectives in which a rank went on with its own work, in [0, 1]."""
    needed: float | None
    """Bytes per step and rank that theory asks of the layout; None if unknown."""
    layout: str
    """Name of the layout, with the formula of these bytes."""
    told_apart: bool = True
    """False: no step's calls could be compared, and `held` contains what was waiting."""

    @property
    def sent(self) -> float:
        """Bytes per step and rank."""
        return sum(sum(rank.sent.values()) for rank in self.ranks) / len(self.ranks)

    @property
    def calls(self) -> float:
        """Calls per step and rank."""
        return sum(sum(rank.calls.values()) for rank in self.ranks) / len(self.ranks)

    @property
    def held(self) -> float:
        """Share of the step that the links held, in [0, 1], as the mean over the ranks."""
        return sum(rank.held for rank in self.ranks) / len(self.ranks)

    @property
    def waiting(self) -> float:
        """Share of the step spent waiting for others, in [0, 1], as the mean over the ranks."""
        return sum(rank.waiting for rank in self.ranks) / len(self.ranks)
