"""The only record of an optimizer step.

The stability controller creates it, the engine and the training loop complete it, and everybody
reads it. A number that code reads is a field. A number that is only drawn goes into `scalars` under
its curve's name where it is computed; TensorBoard then shows it without any other change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from yolods.stability.guard import Verdict

if TYPE_CHECKING:
    from yolods.stability.attribution import Culprit
    from yolods.stability.grad_stats import GradStats


# Wide: one field for each fact about a step; it replaced four records that copied each other.
@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One call of the engine's training step, skipped or not. Numbers are on the host.

    It has many fields because there is no other record to copy them from or to.
    """

    loss: Mapping[str, float]
    """Mean loss items over micro-batches and replicas, by LOSS_NAMES.

    They include their gains, as ultralytics shows them; inf or nan if those of a micro-batch are.
    """
    instances: int
    """Labelled boxes in the step, over all replicas."""
    grad_norm: float | None = None
    """Global L2 norm of the optimizer's gradient before clipping; None if it was not measured."""
    norm_after: float | None = None
    """The same after clipping; None if no weight moved or it was not measured."""
    loss_scale: float | None = None
    """fp16's loss scale in this step; None outside fp16."""
    next_scale: float | None = None
    """fp16's loss scale in the next step."""
    verdict: Verdict = field(default_factory=Verdict)
    """What happened to the step, and why."""
    grad_stats: GradStats | None = None
    """Every parameter's gradient norm; None under stock handling."""
    stop: bool = False
    """Whether any rank was asked to stop."""
    scalars: dict[str, float | None] = field(default_factory=dict)
    """Further curves by their TensorBoard names.

    None, inf and nan draw no point. Add one where its value is computed.
    """

    culprits: tuple[Culprit, ...] = ()
    """Set by the engine: where a step that was not applied went bad; empty if unknown."""
    data_seconds: float = 0.0
    """Set by the engine: seconds that this rank waited for data."""
    replaced: tuple[str, ...] = ()
    """Set by the engine: identities of images that could not be read and were replaced by
    others."""

    step: int = 0
    """Set by the loop: optimizer steps so far, including this one (1 after the first)."""
    epoch: int = 0
    """Set by the loop: epoch, from 0, of the step's first sample."""
    position: int = 0
    """Set by the loop: samples of the stream so far over all ranks, including this step."""
    samples: int = 0
    """Set by the loop: samples in this step over all ranks and micro-batches."""
    imgsz: int = 0
    """Set by the loop: side in pixels to which the step's images were scaled."""

    @property
    def skipped(self) -> bool:
        """Whether no weight moved."""
        return not self.verdict.applied

    def placed(
        self, *, step: int, epoch: int, position: int, samples: int, imgsz: int, seconds: float
    ) -> StepRecord:
        """A copy with the step's position in the run.

        Args:
            seconds: duration of the step, including waits for data.
        """
        scalars = dict(self.scalars)
        if seconds > 0:
            scalars["time/images_per_second"] = samples / seconds
            scalars["time/data_share"] = self.data_seconds / seconds
        return replace(
            self,
            step=step,
            epoch=epoch,
            position=position,
            samples=samples,
            imgsz=imgsz,
            scalars=scalars,
        )

    def curves(self) -> dict[str, float | None]:
        """Everything that TensorBoard draws of the step, by curve name.

        Loss and norm of a skipped step mean nothing, so they are omitted.
        """
        curves = {
            **self.scalars,
            "optim/loss_scale": self.loss_scale,
            "optim/skipped_share": float(self.skipped),
        }
        if self.skipped:
            return curves
        curves |= {f"train/{name}": value for name, value in self.loss.items()}
        curves |= {
            "optim/grad_norm": self.grad_norm,
            "optim/grad_norm_after_clipping": self.norm_after,
        }
        if self.grad_norm and self.norm_after is not None:
            curves["optim/clip_factor"] = self.norm_after / self.grad_norm
        return curves
