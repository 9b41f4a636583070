"""The one record of an optimizer step: begun by what judges it, completed by the engine and the loop, read by all.

A number that code reads is a field. A number that is only drawn is put into `scalars` under its curve's name, where it
is computed, and appears in TensorBoard: nothing in between has to know of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from yolods.stability.guard import Verdict

if TYPE_CHECKING:
    from yolods.stability.attribution import Culprit
    from yolods.stability.grad_stats import GradStats


# Wide: a field for each thing that is known of a step; it replaced four records that copied each other.
@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One call of the engine's training step; a skipped step is a result like any other. Numbers are on the host.

    It has many fields because it is the only one: what each room found out stands beside the others', and is copied
    from no record into another.
    """

    loss: Mapping[str, float]
    """Mean loss items over micro-batches and replicas by LOSS_NAMES, with their gains, as ultralytics shows them; inf
    or nan where a micro-batch's was."""
    instances: int
    """Labelled boxes in the step, over all replicas."""
    grad_norm: float | None = None
    """Global L2 norm before clipping, of the gradient that the optimizer is given; None where none was measured."""
    norm_after: float | None = None
    """The same after clipping; None where no weight moved, or nothing was measured."""
    loss_scale: float | None = None
    """fp16's loss scale in this step; None outside fp16."""
    next_scale: float | None = None
    """fp16's loss scale in the next step."""
    verdict: Verdict = field(default_factory=Verdict)
    """What became of the step, and why."""
    grad_stats: GradStats | None = None
    """Every parameter's gradient norm; None under stock handling."""
    stop: bool = False
    """Whether any rank was asked to stop."""
    scalars: dict[str, float | None] = field(default_factory=dict)
    """Further curves by their names in TensorBoard; None, inf and nan leave no point. Add to it wherever a value is
    computed."""

    culprits: tuple[Culprit, ...] = ()
    """The engine: where a step that was not applied went bad; empty where that was not looked for, or not found."""
    data_seconds: float = 0.0
    """The engine: time that this rank waited for data."""
    replaced: tuple[str, ...] = ()
    """The engine: files that could not be read and were replaced by other samples."""

    step: int = 0
    """The loop: optimizer steps tried so far, this one included (1 after the first)."""
    epoch: int = 0
    """The loop: epoch, from 0, of the step's first sample."""
    position: int = 0
    """The loop: samples of the whole stream consumed so far over all ranks, this step included."""
    samples: int = 0
    """The loop: samples in this step over all ranks and accumulated micro-batches."""
    imgsz: int = 0
    """The loop: side in pixels that the step's images were scaled to."""

    @property
    def skipped(self) -> bool:
        """Whether no weight moved."""
        return not self.verdict.applied

    def placed(self, *, step: int, epoch: int, position: int, samples: int, imgsz: int, seconds: float) -> StepRecord:
        """The same with its place in the run.

        Args:
            seconds: of the step, waiting for data included.
        """
        scalars = dict(self.scalars)
        if seconds > 0:
            scalars["time/images_per_second"] = samples / seconds
            scalars["time/data_share"] = self.data_seconds / seconds
        return replace(self, step=step, epoch=epoch, position=position, samples=samples, imgsz=imgsz, scalars=scalars)

    def curves(self) -> dict[str, float | None]:
        """All that TensorBoard draws of the step, by the curves' names.

        A skipped step's loss and norm mean nothing, so they are left out.
        """
        curves = {**self.scalars, "optim/loss_scale": self.loss_scale, "optim/skipped_share": float(self.skipped)}
        if self.skipped:
            return curves
        curves |= {f"train/{name}": value for name, value in self.loss.items()}
        curves |= {"optim/grad_norm": self.grad_norm, "optim/grad_norm_after_clipping": self.norm_after}
        if self.grad_norm and self.norm_after is not None:
            curves["optim/clip_factor"] = self.norm_after / self.grad_norm
        return curves
