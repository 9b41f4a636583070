"""What a training step and an epoch report about themselves: plain numbers, already on the host, for anyone to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LOSS_NAMES = ("box_loss", "cls_loss", "dfl_loss")
METRIC_NAMES = ("metrics/precision(B)", "metrics/recall(B)", "metrics/mAP50(B)", "metrics/mAP50-95(B)")


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """One call of the engine's training step; a skipped step is a result like any other."""

    step: int
    """Optimizer steps tried so far, this one included (1 after the first)."""
    epoch: int
    """Epoch, from 0, of the step's first sample."""
    position: int
    """Samples of the whole stream consumed so far over all ranks, this step included."""
    samples: int
    """Samples in this step over all ranks and accumulated micro-batches."""
    loss: Mapping[str, float]
    """Mean loss items by LOSS_NAMES, with their gains, as ultralytics shows them."""
    grad_norm: float | None
    """Global L2 norm of the gradients before clipping, or None where it was not measured."""
    lr: Mapping[str, float]
    """Learning rate by parameter group: `pg0`, `pg1`, ..."""
    momentum: float | None
    """Momentum of SGD or RMSprop; None where the optimizer has none that is warmed up (Adam's betas stay)."""
    loss_scale: float | None
    """fp16 loss scale, or None outside fp16."""
    skipped: bool
    """True where no weight moved; a `StabilityEvent` says why."""
    norm_after: float | None = None
    """The same after clipping, or None where no weight moved or nothing was measured."""
    layer_norms: Sequence[float] | None = None
    """Gradient norm of every parameter, or None where it was not measured."""
    seconds: float
    """Wall seconds of the step, waiting for data included."""
    data_seconds: float
    """The part of `seconds` spent waiting for data."""
    instances: int
    """Labelled boxes in this rank's last micro-batch."""
    imgsz: int
    """Width in pixels of this rank's last micro-batch."""


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
