"""What a run shows and leaves behind: one method a moment of the run; other ranks hold a writer that does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from yolods.stats import EpochStats, PipeStats, StabilityEvent
from yolods.telemetry.plots import Batch, Prediction

if TYPE_CHECKING:
    from ultralytics.utils.metrics import DetMetrics

    from yolods.stability.record import StepRecord


# Wide: a method for each moment of a run that somebody may want to hear of.
class Telemetry:
    """The moments of a run. Here each does nothing: this is the interface, and what ranks that do not write use.

    No method raises for a reason of its own (a full disk, a plot that fails): that is one warning. None synchronises
    with the device, except those that are given tensors.
    """

    def start(
        self,
        config: Mapping[str, Any],
        model_summary: str,
        notes: Sequence[str] = (),
        hyper: Mapping[str, Any] | None = None,
    ) -> None:
        """Before the first step: the resolved configuration, the model as markdown (`model_table`), lines to show.

        `hyper` is what TensorBoard's HParams tab compares runs by; without it, all of `config`.
        """

    def labels(self, labels: Sequence[Mapping[str, Any]]) -> None:
        """The training set's labels, as YOLODataset.labels holds them: `cls` (n, 1), `bboxes` (n, 4) xywh in [0, 1]."""

    def wants_train_images(self, k: int) -> bool:
        """Whether train_images(batch, k) would draw; asking spares a caller from holding on to a batch."""
        return False

    def train_images(self, batch: Batch, k: int) -> None:
        """Micro-batch `k` of the run (from 0), augmented. Drawn for the first three, and three from mosaic's end on."""

    def epoch_begin(self, epoch: int) -> None:
        """Epoch `epoch` (from 0) starts, or goes on after a resume."""

    def step(self, record: StepRecord) -> None:
        """A training step has ended."""

    def val_begin(self, batches: int, what: str = "validation") -> None:
        """An evaluation of `batches` batches on this rank starts, or another pass of as many, under its name."""

    def val_progress(self, batches: int = 1) -> None:
        """`batches` more have been evaluated."""

    def val_images(self, batch: Batch, predictions: Sequence[Prediction], k: int) -> None:
        """Validation batch `k` (from 0) with its predictions. Drawn for the first three; later calls overwrite."""

    def val_end(self, metrics: DetMetrics, images: int, *, final: bool = False) -> None:
        """The evaluation of `images` images is over and `metrics` processed; `final` shows every class."""

    def evaluated(self, values: Mapping[str, float]) -> None:
        """What an evaluation of its own, of no epoch, came to: metrics and losses by the names of their curves."""

    def stability(self, event: StabilityEvent) -> None:
        """A step was not applied, or gradients have vanished."""

    def pipeline(self, stats: PipeStats) -> None:
        """What the stages of a pipeline took in the last step of the epoch that is about to end."""

    def ranks(self, seconds: Mapping[int, float]) -> None:
        """Seconds a step that each rank last took without waiting for the others; empty: not known yet."""

    def epoch_end(self, stats: EpochStats) -> None:
        """An epoch is over, its evaluation included."""

    def event(self, kind: str, text: str, *, warn: bool = False) -> None:
        """Something worth a line: `kind` is one word (`resume`, `overflow`, `early_stop`), `text` the line."""

    def finish(self, metrics: Mapping[str, float] | None, seconds: float) -> None:
        """The run ended as it should: final metrics of best.pt by METRIC_NAMES, wall seconds of the run."""

    def close(self) -> None:
        """The run is over, however it ended; may be called twice."""

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class NullTelemetry(Telemetry):
    """For the ranks that write nothing."""
