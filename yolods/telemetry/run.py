"""Telemetry of rank 0: the screen, the logs and the files of a run."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from yolods.stats import (
    CommunicationStats,
    EpochStats,
    LoaderStats,
    PipeStats,
    StabilityEvent,
)
from yolods.telemetry.console import Console
from yolods.telemetry.events import STABILITY_FILE, EventFile
from yolods.telemetry.interface import Telemetry
from yolods.telemetry.log import FILE_ONLY, quiet_dependencies
from yolods.telemetry.plots import Batch, Painter, Prediction, harmless
from yolods.telemetry.results import ResultsTable
from yolods.telemetry.sinks.hub import Sinks
from yolods.telemetry.tensorboard import TensorBoardWriter

if TYPE_CHECKING:
    import numpy as np
    from ultralytics.utils.metrics import DetMetrics

    from yolods.stability.record import StepRecord

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


# Wide: a method per event of a run, as in `Telemetry`.
class RunTelemetry(Telemetry):
    """Rank 0's screen, train.log, results.csv, TensorBoard and pictures of one run folder."""

    _judged: DetMetrics | None = None
    """The latest evaluation, until it is known whether it is an epoch's."""

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
        epoch_ends: Mapping[int, int] | None = None,
        plots: bool = True,
        stream: TextIO | None = None,
        sinks: Sinks | None = None,
    ) -> None:
        """Open the files of the run, and remove rows and curve points after `start_step`.

        Args:
            run_dir: the run's folder; created if it is missing.
            names: class names by id.
            epochs: number of epochs.
            images_per_epoch: number of training images.
            batch_size: images per forward pass over all ranks, the unit of the bar.
            steps_per_epoch: optimizer steps per epoch; None: one per forward pass.
            close_mosaic_batch: number of the first micro-batch without mosaic; None: there is none.
            start_epoch: epoch (from 0) that a resumed run starts from.
            start_step: number of steps that a resumed run starts from.
            epoch_ends: images seen at the end of epochs (from 0) before `start_epoch`, if known.
            plots: draw pictures.
            stream: the screen; None: sys.stdout.
            sinks: the run's loggers; None: there are none.

        Raises:
            OSError: `run_dir` cannot be created.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir, self._epochs, self._sinks = run_dir, epochs, sinks or Sinks()
        self._drawn, self._start_epoch = _drawn_batches(close_mosaic_batch), start_epoch
        self._step, self._closed, self._first_step = start_step, False, True
        self._pipe: PipeStats | None = None
        self._sent: CommunicationStats | None = None
        self._console = Console(
            epochs=epochs, images_per_epoch=images_per_epoch, batch_size=batch_size, stream=stream
        )
        self._results: ResultsTable | None = None
        self._board: TensorBoardWriter | None = None
        self._events = EventFile(run_dir / STABILITY_FILE)
        # Each file by itself: without one of them, the others are still written.
        with harmless("results.csv"):
            self._results = ResultsTable(run_dir / "results.csv", start_epoch)
        with harmless("TensorBoard's event file"):
            self._board = TensorBoardWriter(
                run_dir,
                steps_per_epoch=steps_per_epoch or max(images_per_epoch // batch_size, 1),
                images_per_epoch=images_per_epoch,
                start_step=start_step,
                events=self._kept_events(start_step),
                history=self._results.earlier if self._results else None,
                epoch_ends=epoch_ends,
            )
            self._board.also = self._sinks.scalars
        self._painter = Painter(run_dir, names, self._show_picture) if plots else None

    def _kept_events(self, start_step: int) -> Sequence[Mapping[str, Any]]:
        """Earlier events of stability.jsonl, from which later ones are removed."""
        with harmless(STABILITY_FILE):
            return self._events.keep(start_step)
        return ()

    def start(
        self,
        config: Mapping[str, Any],
        model_summary: str,
        notes: Sequence[str] = (),
        hyper: Mapping[str, Any] | None = None,
        planned: Sequence[float] = (),
    ) -> None:
        quiet_dependencies()  # again: all of them are imported by now
        for note in notes:
            self._console.say(note)
        compared = config if hyper is None else hyper
        self._on_board(
            "the configuration",
            lambda board: board.start(config, model_summary, compared, notes, planned),
        )
        self._sinks.start(config, self._epochs, self._step, self._start_epoch)
        if self._step:
            resumed = f"resumed after step {self._step}"
            self._on_board("an event", lambda board: board.text("events/resume", resumed))
        self._console.say(f"Logging results to {self.run_dir}")
        self._console.say(f"TensorBoard: {tensorboard(self.run_dir)}")
        self._console.say(f"Starting training for {self._epochs} epochs...")

    def labels(self, boxes: np.ndarray) -> None:
        if self._painter:
            self._painter.labels(boxes)
            self._show_picture("train/labels", self.run_dir / "labels.jpg", self._step)

    def wants_train_images(self, k: int) -> bool:
        return self._painter is not None and k in self._drawn

    def train_images(self, batch: Batch, k: int) -> None:
        if self._painter and self.wants_train_images(k):
            self._painter.train_images(batch, k, self._step)

    def epoch_begin(self, epoch: int) -> None:
        self._console.epoch_begin(epoch)
        self._sinks.epoch_begin(epoch)

    def step(self, record: StepRecord) -> None:
        if self._first_step:
            # Full precision, to compare two layouts, or a run with its resume; TensorBoard has the
            # later steps.
            self._first_step = False
            losses = ", ".join(f"{name} {value:.8g}" for name, value in record.loss.items())
            _log.info(
                "step %d: %s, grad_norm %s",
                record.step,
                losses,
                record.grad_norm,
                extra={FILE_ONLY: True},
            )
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
        # An epoch's are drawn at its end: weights that are only compared, as for best.pt after the
        # last epoch, would have curves at the same step.
        self._judged = None if final else metrics
        if final:
            self._on_board("a PR curve", lambda board: board.pr_curves(metrics, final=True))

    def evaluated(self, values: Mapping[str, float]) -> None:
        self._on_board("the metrics", lambda board: board.evaluated(values))

    def stability(self, event: StabilityEvent) -> None:
        # Imported here because it imports torch, which the launcher avoids.
        from yolods.stability.event import sentence

        if event.cause == "unassigned":  # a fact about the data, not a problem
            self._console.say(f"step {event.step}: {sentence(event)}")
        elif event.action != "stop":  # the error that ends the run reports it
            _log.warning("step %d: %s", event.step, sentence(event))
        with harmless(f"the event of step {event.step} in {STABILITY_FILE}"):
            self._events.append(event)
        self._on_board("an event", lambda board: board.stability(event))

    def pipeline(self, stats: PipeStats) -> None:
        self._pipe = stats
        self._on_board("the pipeline's curves", lambda board: board.pipeline(stats))

    def communication(self, stats: CommunicationStats) -> None:
        self._sent = stats
        self._on_board("the communication's curves", lambda board: board.communication(stats))

    def ranks(self, seconds: Mapping[int, float]) -> None:
        if len(seconds) > 1:
            self._on_board("the ranks' curves", lambda board: board.ranks(seconds))

    def memory(self, peaks: Mapping[int, float]) -> None:
        self._on_board("the memory", lambda board: board.memory(peaks))

    def epoch_end(self, stats: EpochStats) -> None:
        self._console.epoch_end(stats)
        if self._pipe is not None:
            self._console.say(pipe_line(self._pipe))
        if self._sent is not None:
            self._console.say(communication_line(self._sent))
        if stats.loader is not None:
            self._console.say(loader_line(stats.loader))
        if self._results:
            with harmless(f"the row of epoch {stats.epoch + 1} in results.csv"):
                self._results.append(stats)
        judged, self._judged = self._judged, None
        if judged is not None:
            self._on_board("a PR curve", lambda board: board.pr_curves(judged, final=False))
        self._on_board("the curves", lambda board: board.epoch_end(stats))
        self._sinks.epoch_end(stats, self._step)

    def event(self, kind: str, text: str, *, warn: bool = False) -> None:
        if kind == "stop":
            # Now, because a bar that is closed later would be drawn once more below these lines.
            self._console.close()
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
        best = self.run_dir / "weights" / "best.pt"
        self._sinks.finish(metrics, best if best.is_file() else None, seconds)
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
        self._sinks.close()

    def _show_picture(self, tag: str, file: Path, step: int) -> None:
        """Add a picture to TensorBoard and the loggers; thread-safe, because both have queues."""
        board = self._board
        if board is not None and file.is_file():
            with harmless(f"{file.name} in TensorBoard"):
                board.picture(tag, file, step)
        if file.is_file():
            self._sinks.picture(tag, file, step)

    def _on_board(self, what: str, write: Callable[[TensorBoardWriter], None]) -> None:
        """Write to TensorBoard. The first failure ends it: a full disk would fail at every step."""
        if self._board is None:
            return
        try:
            write(self._board)
        except Exception as error:
            self._board = None
            _log.warning(
                "TensorBoard: %s could not be written, so curves end here: %s", what, error
            )

    def _last_words(self, metrics: Mapping[str, float] | None, seconds: float) -> list[str]:
        """The last lines of a run: its results and their files."""
        lines = [f"\nTraining took {seconds / 3600:.3f} hours."]
        if metrics:
            score, strict = metrics["metrics/mAP50(B)"], metrics["metrics/mAP50-95(B)"]
            lines.append(f"Best model: mAP50 {score:.3f}, mAP50-95 {strict:.3f}")
        best = self.run_dir / "weights" / "best.pt"
        if best.is_file():
            lines.append(f"  model      {best}, which ultralytics.YOLO() loads")
        lines.append(f"  curves     {tensorboard(self.run_dir)}")
        for word, name in (
            ("numbers", "results.csv"),
            ("pictures", "results.png"),
            ("log", "train.log"),
        ):
            if (self.run_dir / name).is_file():
                lines.append(f"  {word:<10} {self.run_dir / name}")
        return lines


def tensorboard(folder: Path) -> str:
    """TensorBoard's command for a shell, with its path beside this Python: few PATHs have it."""
    command, here = Path(sys.executable).with_name("tensorboard"), Path.cwd()
    name = str(command.relative_to(here) if command.is_relative_to(here) else command)
    return shlex.join([name if command.is_file() else command.name, "--logdir", str(folder)])


def pipe_line(stats: PipeStats) -> str:
    """A pipeline's line: ms per step, idle share and bound, MiB sent and peak by stage."""
    busy = " ".join(f"{1e3 * (stage.forward + stage.backward):.0f}" for stage in stats.stages)
    sent = " ".join(f"{stage.sent / 2**20:.1f}" for stage in stats.stages)
    peak = " ".join(f"{stage.peak / 2**20:.0f}" for stage in stats.stages)
    schedule = {"1f1b": "1F1B", "zb": "zero-bubble"}[stats.schedule]
    return (
        f"{'':>11}stages: busy {busy} ms per step, idle {stats.idle:.0%} ({schedule} bound "
        f"{stats.bound:.0%}), sent {sent} MiB, peak {peak} MiB"
    )


def communication_line(stats: CommunicationStats) -> str:
    """The line about what the ranks sent: means per step and rank, beside what theory asks for."""
    asked = f" ({stats.layout} = {_mb(stats.needed)})" if stats.needed is not None else ""
    still = f"{stats.held:.0%} held, {stats.waiting:.0%} waiting"
    if not stats.told_apart:
        still = f"{stats.held:.0%} held or waiting, which could not be told apart"
    return (
        f"{'':>11}communication: {_mb(stats.sent)} and {stats.calls:.0f} calls per step and rank"
        f"{asked}, {stats.seconds:.2f} s of {stats.step_seconds:.2f} s, "
        f"{stats.hidden:.0%} hidden, {still}"
    )


def _mb(count: float) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e6:.3f} MB"


def loader_line(stats: LoaderStats) -> str:
    """The loader's line: the samples that it could make, how much is decoding, and the wait."""
    return (
        f"{'':>11}loader: {stats.images_per_second:.0f} images/s, {stats.decode_share:.0%} of it "
        f"decoding; waited {stats.wait_share:.0%} of the epoch"
    )


def class_rows(metrics: DetMetrics, images: int) -> list[tuple[str, int, int, list[float]]]:
    """Rows of ultralytics' table, `all` first: (name, images, instances, (P, R, mAPs))."""
    rows = [("all", images, int(metrics.nt_per_class.sum()), list(metrics.mean_results()))]
    for row, index in enumerate(metrics.ap_class_index):
        counts = int(metrics.nt_per_image[index]), int(metrics.nt_per_class[index])
        rows.append((metrics.names[index], *counts, list(metrics.class_result(row))))
    return rows


def _drawn_batches(close_mosaic_batch: int | None) -> set[int]:
    """Numbers of the micro-batches that are drawn: the first three, and three without mosaic."""
    starts = (0,) if close_mosaic_batch is None else (0, close_mosaic_batch)
    return {start + place for start in starts for place in range(3)}
