"""The screen of rank 0: ultralytics' header, bar and line per epoch, or plain lines."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from yolods.stats import LOSS_NAMES, METRIC_NAMES, EpochStats
from yolods.system.humanize import age_text
from yolods.telemetry.log import CLEAR_LINE, FILE_ONLY
from yolods.telemetry.screen.rows import NARROW, ULTRALYTICS, WIDE, Rows, columns_of
from yolods.telemetry.screen.short_bar import ShortBar

if TYPE_CHECKING:
    from yolods.stability.record import StepRecord

_log = logging.getLogger("yolods.console")

_HEADER_EVERY = 20
"""Epochs between two headers without a terminal."""


def gpu_memory() -> str:
    """GiB of GPU memory that torch has reserved, in ultralytics' format `4.21G`; `0G` on a CPU."""
    import torch

    reserved = (
        torch.cuda.memory_reserved()
        if torch.cuda.is_available() and torch.cuda.is_initialized()
        else 0
    )
    return f"{reserved / 2**30:.3g}G"


class RunningLoss:
    """Mean loss items of the epoch so far, weighted by samples, without skipped steps."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(LOSS_NAMES, 0.0)
        self._samples = 0

    def add(self, record: StepRecord) -> None:
        """Add one step."""
        if record.skipped:
            return
        self._samples += record.samples
        for name in LOSS_NAMES:
            self._sums[name] += record.loss[name] * record.samples

    def mean(self) -> dict[str, float]:
        """The mean by LOSS_NAMES; nan before the first step that counts."""
        return {
            name: total / self._samples if self._samples else math.nan
            for name, total in self._sums.items()
        }


# Wide: a method per event of a run that is shown, and the state of one screen.
class Console:
    """Writes lines to a stream and to train.log, and on a terminal ultralytics' progress bar; on a
    narrow one shorter rows, so that none of their numbers is cut.

    Without a terminal (a file, a job scheduler) there is one line per epoch, and in a long epoch
    another one every `heartbeat` seconds.
    """

    def __init__(
        self,
        *,
        epochs: int,
        images_per_epoch: int,
        batch_size: int,
        stream: TextIO | None = None,
        heartbeat: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.epochs = epochs
        self.images_per_epoch = images_per_epoch
        self.batch_size = batch_size
        self.batches = max(math.ceil(images_per_epoch / batch_size), 1)
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._heartbeat, self._clock = heartbeat, clock
        self._bar: Any = None
        self._rows = ULTRALYTICS
        self._epoch = 0
        self._loss = RunningLoss()
        self._last: StepRecord | None = None
        self._last_line = self._epoch_start = self._began = clock()
        self._first_batch: int | None = None
        self._begun_at: float | None = None
        self._val_done = self._val_batches = 0
        self._epochs_since_header = _HEADER_EVERY

    def say(self, text: str) -> None:
        """Show lines of text immediately, and log them."""
        self._write(text)
        self._record(text)

    def epoch_begin(self, epoch: int) -> None:
        """Show the header, and on a terminal an empty bar."""
        self._close_bar()
        self._epoch, self._loss, self._last, self._first_batch = epoch, RunningLoss(), None, None
        self._last_line = self._epoch_start = self._clock()
        if self._begun_at is None:
            self._began = self._clock()
        full_header = ULTRALYTICS.train_header + ("%11s" * 5) % (
            "Box(P",
            "R",
            "mAP50",
            "mAP50-95)",
            "images/s",
        )
        if self._epochs_since_header >= _HEADER_EVERY:
            self._epochs_since_header = 0
            self._record(full_header)
            if not self._terminal:
                self._write(full_header)
        self._epochs_since_header += 1
        if self._terminal:
            self._fit()
            self._write(f"\n{self._rows.train_header}")
            text = f"{self._of_epochs:>{self._rows.train_widths[0]}}"
            self._bar = self._new_bar(text, self.batches)

    def step(self, record: StepRecord) -> None:
        """Move the bar to the step's position; without a bar, show a line now and then."""
        self._loss.add(record)
        self._last = record
        if self._begun_at is None:
            self._begun_at = (record.position - record.samples) / self.images_per_epoch
        done = min(
            math.ceil((record.position - self._epoch * self.images_per_epoch) / self.batch_size),
            self.batches,
        )
        # After a resume within an epoch, the time per batch must not count earlier batches.
        if self._first_batch is None:
            self._first_batch = max(done - max(math.ceil(record.samples / self.batch_size), 1), 0)
        if self._bar is not None:
            self._bar.desc = self._train_cells(self._rows)
            self._bar.update(max(done - self._bar.n, 0))
        elif self._clock() - self._last_line >= self._heartbeat:
            self._last_line = self._clock()
            self.say(self._alive(done))

    def epoch_end(self, stats: EpochStats) -> None:
        """Log the epoch's line (training, metrics, rate), and show it if there is no terminal; a
        terminal, which has just shown its numbers, gets the rest of it."""
        self._close_bar()
        metrics = stats.metrics or {}
        cells = "".join(f"{_number(metrics.get(name, math.nan)):>11}" for name in METRIC_NAMES)
        rate = f"{stats.images_per_second:11.1f}"
        best = "  best" if stats.is_best else ""
        row = self._train_cells(ULTRALYTICS, stats.train_loss)
        left = self._left(stats.epoch + 1)
        self._record(f"{row}{cells}{rate}{best}")
        if self._terminal:
            told = (_best(stats), f"{stats.images_per_second:.1f} images/s", left)
            self._write(f"{'':>11}{'; '.join(filter(None, told))}")
        else:
            self._write(f"{row}{cells}{rate}{best}{left and f'  {left}'}")

    def val_begin(self, batches: int, what: str = "validation") -> None:
        """Start a bar of `batches` with the validation header or the name of another pass."""
        self._close_bar()
        if self._terminal:
            self._fit()
            self._bar = self._new_bar(
                self._rows.val_header if what == "validation" else f"{what:>22}", batches
            )
        self._last_line = self._clock()
        self._val_what, self._val_done, self._val_batches = what, 0, batches

    def val_progress(self, batches: int = 1) -> None:
        """Move the validation bar by `batches`."""
        self._val_done += batches
        if self._bar is not None:
            self._bar.update(batches)
        elif self._clock() - self._last_line >= self._heartbeat:
            self._last_line = self._clock()
            self.say(f"{self._val_what:>11} batch {self._val_done}/{self._val_batches}")

    def val_end(
        self, rows: Sequence[tuple[str, int, int, Sequence[float]]], *, final: bool
    ) -> None:
        """Show the rows (class, images, instances, (P, R, mAP50, mAP50-95)) of an evaluation.

        If it is not `final`, a terminal shows only row 0, and without a terminal the epoch's line
        already contains its numbers.
        """
        had_header = self._bar is not None
        self._close_bar()
        table = self._rows if self._terminal else ULTRALYTICS
        lines = [table.val(*row) for row in rows]
        if final:
            for line in lines if had_header else [table.val_header, *lines]:
                self.say(line)
        elif self._terminal and lines:
            self._write(lines[0])

    def close(self) -> None:
        """Close an open bar, so that the next text starts on its own line."""
        self._close_bar()

    def _fit(self) -> None:
        """Choose the rows for the terminal's present width."""
        self._rows = ULTRALYTICS if columns_of(self._stream) >= WIDE else NARROW

    @property
    def _of_epochs(self) -> str:
        return f"{self._epoch + 1}/{self.epochs}"

    def _train_cells(self, rows: Rows, loss: Mapping[str, float] | None = None) -> str:
        """ultralytics' seven columns: epoch, memory, three losses, instances and image size."""
        mean = self._loss.mean() if loss is None else loss
        losses = [mean[name] for name in LOSS_NAMES]
        # A run that was stopped after an epoch's last step goes on with its evaluation.
        batch = (self._last.instances, self._last.imgsz) if self._last else None
        return rows.train(self._of_epochs, gpu_memory(), losses, batch)

    def _left(self, reached: float) -> str:
        """The time left for the run at this start's pace, evaluations included; "" at its end.

        Args:
            reached: epochs so far.
        """
        done = reached - (self._begun_at or 0.0)
        if self._begun_at is None or done <= 0 or reached >= self.epochs:
            return ""
        seconds = (self._clock() - self._began) / done * (self.epochs - reached)
        return f"{age_text(round(seconds))} left"

    def _alive(self, done: int) -> str:
        elapsed = self._clock() - self._epoch_start
        mean = self._loss.mean()
        losses = ", ".join(f"{name} {mean[name]:.4g}" for name in LOSS_NAMES)
        batches_here = max(done - (self._first_batch or 0), 1)
        left = elapsed / batches_here * (self.batches - done)
        run = self._left(self._epoch + done / self.batches)
        return (
            f"{self._of_epochs:>11} batch {done}/{self.batches}, {losses}, {left:.0f} s left in "
            f"this epoch{run and f', {run} in the run'}"
        )

    def _new_bar(self, text: str, total: int) -> Any:
        from ultralytics.utils.tqdm import TQDM

        if self._rows is NARROW:
            return ShortBar(text, total, self._stream, columns=columns_of(self._stream))
        return TQDM(total=total, desc=text, disable=False, file=self._stream)

    def _close_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            with suppress(OSError, ValueError):
                bar.close()

    def _write(self, text: str) -> None:
        """Write to the screen. A lost connection or closed pipe must not end the run."""
        # The bar redraws itself below the text at its next update.
        start = CLEAR_LINE if self._bar is not None else ""
        with suppress(OSError, ValueError):
            self._stream.write(f"{start}{text}\n")
            self._stream.flush()

    @staticmethod
    def _record(text: str) -> None:
        for line in text.splitlines():
            _log.info(line, extra={FILE_ONLY: True})


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _best(stats: EpochStats) -> str:
    """Which epoch is the best so far; "" if none has found anything."""
    if stats.is_best:
        return "best so far"
    if stats.best_epoch is None or not stats.best_fitness:
        return ""
    return f"best: epoch {stats.best_epoch + 1}, fitness {stats.best_fitness:.3g}"
