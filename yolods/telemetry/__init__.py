"""What a run shows and leaves behind: one method a moment of the run; other ranks hold a writer that does nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from yolods.stats import EpochStats, PipeStats, StabilityEvent
from yolods.telemetry.board import Board, model_table
from yolods.telemetry.console import Console
from yolods.telemetry.events import STABILITY_FILE, EventFile
from yolods.telemetry.log import FILE_ONLY, Log, open_log, quiet_dependencies
from yolods.telemetry.plots import Batch, Painter, Prediction, harmless
from yolods.telemetry.results import ResultsTable

if TYPE_CHECKING:
    from ultralytics.utils.metrics import DetMetrics

    from yolods.stability.record import StepRecord

__all__ = [
    "STABILITY_FILE",
    "Batch",
    "Log",
    "NullTelemetry",
    "Prediction",
    "RunTelemetry",
    "Telemetry",
    "model_table",
    "open_log",
    "quiet_dependencies",
]

_log = logging.getLogger("yolods.telemetry")

_FINAL_PICTURES = (
    "results.png",
    "confusion_matrix.png",
    "confusion_matrix_normalized.png",
    "BoxPR_curve.png",
    "BoxF1_curve.png",
    "BoxP_curve.png",
    "BoxR_curve.png",
)
_VAL_BATCHES_SHOWN = 3


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

    def judged(self, values: Mapping[str, float]) -> None:
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


class RunTelemetry(Telemetry):
    """For rank 0: the screen, train.log, results.csv, TensorBoard and the pictures of one run folder."""

    def __init__(
        self,
        run_dir: Path,
        *,
        names: Mapping[int, str],
        epochs: int,
        images_per_epoch: int,
        batch_size: int,
        steps_per_epoch: int | None = None,
        close_mosaic_batch: int | None = None,
        start_epoch: int = 0,
        start_step: int = 0,
        plots: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        """Open what the run writes in `run_dir`, which is made where it is missing.

        `batch_size` is the images of one forward pass over all ranks (the bar's unit), `steps_per_epoch` the optimizer
        steps where accumulation makes them fewer, `close_mosaic_batch` the number of the first micro-batch without
        mosaic. A resumed run gives the epoch (from 0) and the number of steps it starts from; later rows and curve
        points are dropped. Raises OSError where `run_dir` cannot be made.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self._epochs = epochs
        self._drawn = {0, 1, 2}
        if close_mosaic_batch is not None:
            self._drawn |= {close_mosaic_batch + i for i in range(3)}
        self._step = start_step
        self._closed = False
        self._pipe: PipeStats | None = None
        self._first_step = True
        self._console = Console(epochs=epochs, images_per_epoch=images_per_epoch, batch_size=batch_size, stream=stream)
        self._results: ResultsTable | None = None
        self._board: Board | None = None
        self._events = EventFile(run_dir / STABILITY_FILE)
        earlier: list[Mapping[str, Any]] = []
        with harmless(STABILITY_FILE):
            earlier = self._events.keep(start_step)
        with harmless("results.csv"):
            self._results = ResultsTable(run_dir / "results.csv", start_epoch)
        steps = steps_per_epoch or max(images_per_epoch // batch_size, 1)
        with harmless("TensorBoard's event file"):
            self._board = Board(run_dir, steps_per_epoch=steps, start_step=start_step, events=earlier)
        self._painter = Painter(run_dir, names, self._show_picture) if plots else None

    def start(
        self,
        config: Mapping[str, Any],
        model_summary: str,
        notes: Sequence[str] = (),
        hyper: Mapping[str, Any] | None = None,
    ) -> None:
        quiet_dependencies()  # by now all of them are imported
        for note in notes:
            self._console.say(note)
        compared = config if hyper is None else hyper
        self._on_board("the configuration", lambda board: board.start(config, model_summary, compared))
        self._console.say(f"Logging results to {self.run_dir}")
        self._console.say(f"TensorBoard: {tensorboard()} --logdir {self.run_dir}")
        self._console.say(f"Starting training for {self._epochs} epochs...")

    def labels(self, labels: Sequence[Mapping[str, Any]]) -> None:
        if self._painter:
            self._painter.labels(labels)
            self._show_picture("train/labels", self.run_dir / "labels.jpg", self._step)

    def wants_train_images(self, k: int) -> bool:
        return self._painter is not None and k in self._drawn

    def train_images(self, batch: Batch, k: int) -> None:
        if self._painter and self.wants_train_images(k):
            self._painter.train_images(batch, k, self._step)

    def epoch_begin(self, epoch: int) -> None:
        self._console.epoch_begin(epoch)

    def step(self, record: StepRecord) -> None:
        if self._first_step:
            # What two layouts, or a run and its resumption, are compared by; TensorBoard has every later step.
            self._first_step = False
            losses = ", ".join(f"{name} {value:.8g}" for name, value in record.loss.items())
            _log.info("step %d: %s, grad_norm %s", record.step, losses, record.grad_norm, extra={FILE_ONLY: True})
        self._step = record.step
        self._console.step(record)
        self._on_board("the curves", lambda board: board.step(record))

    def val_begin(self, batches: int, what: str = "validation") -> None:
        self._console.val_begin(batches, what)

    def val_progress(self, batches: int = 1) -> None:
        self._console.val_progress(batches)

    def val_images(self, batch: Batch, predictions: Sequence[Prediction], k: int) -> None:
        if self._painter and k < _VAL_BATCHES_SHOWN:
            self._painter.val_images(batch, predictions, k, self._step)

    def val_end(self, metrics: DetMetrics, images: int, *, final: bool = False) -> None:
        self._console.val_end(class_rows(metrics, images), final=final)
        self._on_board("a PR curve", lambda board: board.pr_curves(metrics, final=final))

    def judged(self, values: Mapping[str, float]) -> None:
        self._on_board("the metrics", lambda board: board.judged(values))

    def stability(self, event: StabilityEvent) -> None:
        from yolods.stability.event import sentence  # here, for it imports torch, which the launcher does without

        if event.cause == "unassigned":  # a fact about the data, and no trouble
            self._console.say(f"step {event.step}: {sentence(event)}")
        elif event.action != "stop":  # which the error says that ends the run
            _log.warning("step %d: %s", event.step, sentence(event))
        with harmless(f"the event of step {event.step} in {STABILITY_FILE}"):
            self._events.append(event)
        self._on_board("an event", lambda board: board.stability(event))

    def pipeline(self, stats: PipeStats) -> None:
        self._pipe = stats
        self._on_board("the pipeline's curves", lambda board: board.pipeline(stats))

    def ranks(self, seconds: Mapping[int, float]) -> None:
        if len(seconds) > 1:
            self._on_board("the ranks' curves", lambda board: board.ranks(seconds))

    def epoch_end(self, stats: EpochStats) -> None:
        self._console.epoch_end(stats)
        if self._pipe is not None:
            self._console.say(pipe_line(self._pipe))
        if self._results:
            with harmless(f"the row of epoch {stats.epoch + 1} in results.csv"):
                self._results.append(stats)
        self._on_board("the curves", lambda board: board.epoch_end(stats))

    def event(self, kind: str, text: str, *, warn: bool = False) -> None:
        if warn:
            _log.warning(text)
        else:
            self._console.say(text)
        self._on_board("an event", lambda board: board.text(f"events/{kind}", text))

    def finish(self, metrics: Mapping[str, float] | None, seconds: float) -> None:
        self._console.close()
        if self._painter:
            self._painter.results()
            self._painter.join()
            for name in _FINAL_PICTURES:
                self._show_picture(f"plots/{Path(name).stem}", self.run_dir / name, self._step)
        self._on_board("the final metrics", lambda board: board.finish(metrics or {}))
        for line in self._last_words(metrics, seconds):
            self._console.say(line)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._console.close()
        if self._painter:
            self._painter.close()
        self._on_board("its last points", lambda board: board.close())
        self._board = None

    def _show_picture(self, tag: str, file: Path, step: int) -> None:
        """Called by the painter's thread, too: the event file's writer has a queue before it."""
        board = self._board
        if board is not None and file.is_file():
            with harmless(f"{file.name} in TensorBoard"):
                board.picture(tag, file, step)

    def _on_board(self, what: str, write: Callable[[Board], None]) -> None:
        """Let the board write. A full disk would fail at every step, so the first failure ends it."""
        if self._board is None:
            return
        try:
            write(self._board)
        except Exception as error:
            self._board = None
            _log.warning("TensorBoard: %s could not be written, so curves end here: %s", what, error)

    def _last_words(self, metrics: Mapping[str, float] | None, seconds: float) -> list[str]:
        """What came out and where to look."""
        lines = [f"\nTraining took {seconds / 3600:.3f} hours."]
        if metrics:
            score, strict = metrics["metrics/mAP50(B)"], metrics["metrics/mAP50-95(B)"]
            lines.append(f"Best model: mAP50 {score:.3f}, mAP50-95 {strict:.3f}")
        best = self.run_dir / "weights" / "best.pt"
        if best.is_file():
            lines.append(f"  model      {best}, which ultralytics.YOLO() loads")
        lines.append(f"  curves     {tensorboard()} --logdir {self.run_dir}")
        for word, name in (("numbers", "results.csv"), ("pictures", "results.png"), ("log", "train.log")):
            if (self.run_dir / name).is_file():
                lines.append(f"  {word:<10} {self.run_dir / name}")
        return lines


def tensorboard() -> str:
    """TensorBoard's command as a shell finds it from here: the one beside this Python, whose folder is on few PATHs."""
    command = Path(sys.executable).with_name("tensorboard")
    if not command.is_file():
        return "tensorboard"
    return str(command.relative_to(Path.cwd()) if command.is_relative_to(Path.cwd()) else command)


def pipe_line(stats: PipeStats) -> str:
    """A pipeline's epoch in one line: ms a step, idle share and its bound, MiB sent and held by stage."""
    busy = " ".join(f"{1e3 * (stage.forward + stage.backward):.0f}" for stage in stats.stages)
    sent = " ".join(f"{stage.sent / 2**20:.1f}" for stage in stats.stages)
    peak = " ".join(f"{stage.peak / 2**20:.0f}" for stage in stats.stages)
    return (
        f"{'':>11}stages: busy {busy} ms a step, idle {stats.idle:.0%} (1F1B leaves {stats.bound:.0%}), "
        f"sent {sent} MiB, peak {peak} MiB"
    )


def class_rows(metrics: DetMetrics, images: int) -> list[tuple[str, int, int, list[float]]]:
    """Rows of ultralytics' table, `all` first: name, images, instances, (P, R, mAP50, mAP50-95)."""
    rows = [("all", images, int(metrics.nt_per_class.sum()), list(metrics.mean_results()))]
    for row, index in enumerate(metrics.ap_class_index):
        counts = int(metrics.nt_per_image[index]), int(metrics.nt_per_class[index])
        rows.append((metrics.names[index], *counts, list(metrics.class_result(row))))
    return rows
