"""The interface of telemetry: one method per event of a run. Only rank 0 writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from yolods.stats import CommunicationStats, EpochStats, PipeStats, StabilityEvent
from yolods.telemetry.plots import Batch, Prediction

if TYPE_CHECKING:
    import numpy as np
    from ultralytics.utils.metrics import DetMetrics

    from yolods.stability.record import StepRecord


# Wide: a method per event of a run.
class Telemetry:
    """The events of a run; every method of this class does nothing.

    No method raises because of a fault of its own, such as a full disk or a failed plot; it logs
    one warning. No method synchronises with the device, except those that receive tensors.
    """

    def start(
        self,
        config: Mapping[str, Any],
        model_summary: str,
        notes: Sequence[str] = (),
        hyper: Mapping[str, Any] | None = None,
        planned: Sequence[float] = (),
    ) -> None:
        """The run is about to take its first step.

        Args:
            config: the resolved configuration.
            model_summary: the model as markdown; see `model_table`.
            notes: lines to show.
            hyper: values by which TensorBoard's HParams tab compares runs; None: all of `config`.
            planned: bytes of memory of a rank of each stage by the plan; (): unknown.
        """

    def labels(self, boxes: np.ndarray) -> None:
        """The train set's boxes (n, 5): class, normalised centre x, centre y, width, height."""

    def wants_train_images(self, k: int) -> bool:
        """Whether train_images(batch, k) would draw, so that callers need not pass every batch."""
        return False

    def train_images(self, batch: Batch, k: int) -> None:
        """Draw micro-batch `k` (from 0) if it is one of the first three, or after mosaic ends."""

    def epoch_begin(self, epoch: int) -> None:
        """Epoch `epoch` (from 0) starts, or continues after a resume."""

    def step(self, record: StepRecord) -> None:
        """A training step is finished."""

    def val_begin(self, batches: int, what: str = "validation") -> None:
        """An evaluation, or the pass named `what`, of `batches` batches on this rank starts."""

    def val_progress(self, batches: int = 1) -> None:
        """`batches` more batches are evaluated."""

    def val_images(self, batch: Batch, predictions: Sequence[Prediction], k: int) -> None:
        """Draw validation batch `k` (from 0) with predictions if it is one of the first three."""

    def val_end(self, metrics: DetMetrics, images: int, *, final: bool = False) -> None:
        """The evaluation of `images` images is finished; `final` shows all classes."""

    def evaluated(self, values: Mapping[str, float]) -> None:
        """The result of an evaluation outside training: values by the names of their curves."""

    def stability(self, event: StabilityEvent) -> None:
        """A step was not applied, or gradients vanished."""

    def pipeline(self, stats: PipeStats) -> None:
        """The times and memory of a pipeline's stages in the last step of an epoch."""

    def communication(self, stats: CommunicationStats) -> None:
        """What the ranks sent in the steps of an epoch."""

    def ranks(self, seconds: Mapping[int, float]) -> None:
        """Seconds per step of each rank, without waiting for others; empty if not known yet."""

    def memory(self, peaks: Mapping[int, float]) -> None:
        """Peak memory of each rank so far, in bytes.

        Of a GPU it is what torch has allocated on the device, of a CPU that of the whole process.
        """

    def epoch_end(self, stats: EpochStats) -> None:
        """An epoch is finished, its evaluation included."""

    def event(self, kind: str, text: str, *, warn: bool = False) -> None:
        """Another event: `kind` is one word, such as `early_stop`, and `text` the log line."""

    def finish(self, metrics: Mapping[str, float] | None, seconds: float) -> None:
        """The run finished: metrics of best.pt by METRIC_NAMES, and its wall time in seconds."""

    def close(self) -> None:
        """The run ended in any way; may be called twice."""

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class NullTelemetry(Telemetry):
    """The telemetry of ranks that write nothing."""
