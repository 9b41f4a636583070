"""What an epoch, a pipeline and a step that went bad report about themselves: plain numbers, already on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOSS_NAMES = ("box_loss", "cls_loss", "dfl_loss")
METRIC_NAMES = ("metrics/precision(B)", "metrics/recall(B)", "metrics/mAP50(B)", "metrics/mAP50-95(B)")


@dataclass(frozen=True, kw_only=True)
class StabilityEvent:
    """A step that was not applied, or parameters whose gradients have vanished."""

    step: int
    """Optimizer steps tried so far, this one included."""
    epoch: int
    """Epoch, from 0."""
    position: int
    """Samples of the stream consumed so far, its own included."""
    action: str
    """`skip`, `rollback`, `stop`, or `report` where the step was applied."""
    cause: str
    """`overflow`, `forward`, `backward`, `gradient_spike`, `loss_spike`, `vanishing`, or `unassigned`: the same of the
    head's boxes, to which no object has been assigned."""
    loss: float
    """Sum of the loss items; may be inf or nan."""
    grad_norm: float | None
    """Global norm; may be inf or nan."""
    usual: float | None
    """Of a spike: what the norm, or the loss, mostly is."""
    loss_scale: float | None
    """fp16's scale in this step."""
    parameters: tuple[str, ...]
    """Those whose gradients were not finite, stood out, or vanished."""
    culprits: tuple[Mapping[str, Any], ...]
    """Where it began: phase, name, layer, kind, rank, host, stage, replica, micro_batch, files, single_images."""
    remedy: str
    """What was done, in words."""


@dataclass(frozen=True, kw_only=True)
class EpochStats:
    """One epoch, after its evaluation where it had one."""

    epoch: int
    """Epoch from 0."""
    seconds: float
    """Wall seconds of training so far, those before a resume included."""
    train_loss: Mapping[str, float]
    """Mean loss items of the epoch by LOSS_NAMES."""
    val_loss: Mapping[str, float] | None
    """The same on the validation set, or None where the epoch was not evaluated."""
    metrics: Mapping[str, float] | None
    """Values by METRIC_NAMES, or None where the epoch was not evaluated."""
    fitness: float | None
    """ultralytics' fitness of `metrics`, or None where the epoch was not evaluated."""
    lr: Mapping[str, float]
    """Learning rate at the end of the epoch by `lr/pg0`, `lr/pg1`, ..."""
    images_per_second: float
    """Training images a second over all ranks in this epoch, evaluation left out."""
    is_best: bool
    """True where this epoch's fitness is the best so far."""


@dataclass(frozen=True, kw_only=True)
class StageStats:
    """One stage of a pipeline in the last step of an epoch, as the mean over its replicas."""

    stage: int
    """Which."""
    forward: float
    """Seconds in forward passes."""
    backward: float
    """Seconds in backward passes."""
    idle: float
    """Share of the step that it waited, in 0..1."""
    sent: float
    """Bytes sent to its neighbours a step, activations and gradients."""
    peak: float
    """Most bytes that it has held: of the device on a GPU, of the process on a CPU."""


@dataclass(frozen=True, kw_only=True)
class PipeStats:
    """A pipeline's last step of an epoch."""

    stages: tuple[StageStats, ...]
    """Every stage."""
    idle: float
    """Share of all stages' time that was spent waiting."""
    bound: float
    """The share that 1F1B leaves at these stage times even if sending took no time."""
