"""The training run: the loop, on one screen."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from yolods.checkpoint.progress import Progress
from yolods.checkpoint.store import CheckpointStore
from yolods.checkpoint.verify import newest_in
from yolods.config import RunConfig
from yolods.distributed.phases import PHASES, mark, slowly
from yolods.engine.base import Engine
from yolods.errors import UserError
from yolods.optim.lr_schedule import Schedule
from yolods.stability.event import event_of, sentence
from yolods.stability.quarantine import Quarantine
from yolods.stability.record import StepRecord
from yolods.stats import EpochStats
from yolods.system import interrupt
from yolods.system.invocation import launch_command
from yolods.telemetry import STABILITY_FILE, Telemetry
from yolods.training.batches import TrainBatches
from yolods.training.final import FinalValidation
from yolods.training.pace import Pace
from yolods.training.selection import ModelSelection
from yolods.watchdog.watchdog import Watchdog


class Run:
    """A training run on this rank. `fit` and everything it calls is a collective."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        schedule: Schedule,
        batches: TrainBatches,
        selection: ModelSelection,
        final: FinalValidation,
        store: CheckpointStore,
        telemetry: Telemetry,
        watchdog: Watchdog,
        progress: Progress,
    ) -> None:
        """
        Args:
            selection: judges every epoch, and writes its weights.
            final: judges the best of them at the end.
            progress: where to go on; `Progress()` for a new run.
        """
        self.config, self.engine, self.schedule, self.batches = config, engine, schedule, batches
        self.selection, self.final, self.store = selection, final, store
        self.telemetry, self.watchdog, self.progress = telemetry, watchdog, progress
        self._pace = Pace(progress.seconds)
        self._saved = progress.step

    def fit(self) -> None:
        """Train from `progress` to the last epoch, or until patience runs out.

        Raises:
            Stopped: by Ctrl-C or SIGTERM, or because a launcher is gone; a checkpoint has been written.
        """
        self.engine.training()
        if self.engine.ranks.is_main:
            self.store.note_start()
        PHASES.started()
        with self.store, interrupt.patient():
            try:
                self.telemetry.epoch_begin(
                    min(self.schedule.epoch_at(self.progress.position), self.progress.epochs_done)
                )
                self._close_epochs()  # of a run that was stopped between an epoch's last step and its evaluation
                while self._goes_on:
                    self._pass()
                self._finish()
            except interrupt.Stopped as stopped:
                self._put_down(stopped)
                raise

    @property
    def _goes_on(self) -> bool:
        return self.progress.position < self.schedule.total_samples and not self.selection.exhausted

    def _pass(self) -> None:
        """Train from here on, over as many epochs as may come, until images are left out that the loader still has."""
        excluded = self._quarantine.excluded
        self.batches.exclude(excluded)
        with closing(self.batches.read(self.progress)) as batches:
            while self._goes_on and self._quarantine.excluded == excluded:
                self._step(batches)

    def _step(self, batches: Iterator[dict[str, Any]]) -> None:
        """Take one optimizer step, and do what is due after it."""
        record = self._train(batches)
        with slowly("the screen"):  # which a person may hold
            self.telemetry.step(record)
        if record.skipped or record.verdict.vanished:
            self._answer(record)
        self._hear(self.store.check)
        for line in self.watchdog.news():
            self.telemetry.event("straggler", line, warn=True)
        if record.stop:
            raise interrupt.Stopped()
        if self._epoch_ended:
            self._close_epochs()
        elif is_due(self.config.deepspeed.own.checkpoint.every_steps, self.progress.step):
            self._save()

    def _train(self, batches: Iterator[dict[str, Any]]) -> StepRecord:
        """Have the engine take a step from where the run stands, and move on by it."""
        mark("between steps", step=self.progress.step + 1)
        began, before = time.perf_counter(), self.progress
        step, size = self.schedule.step_at(before.position), self.batches.size(before.step)
        record = self.engine.train_step(step, batches, size, stop=interrupt.asked())
        mark("between steps")
        seconds, samples = time.perf_counter() - began, step.batches * self.schedule.batch
        self._pace.count(samples)
        self.progress = before.after_step(
            record, samples=samples, batches=step.batches, lr=step.lr, seconds=self._pace.seconds
        )
        return record.placed(
            step=self.progress.step,
            epoch=self.schedule.epoch_at(before.position),
            position=self.progress.position,
            samples=samples,
            imgsz=size or self.config.imgsz,
            seconds=seconds,
        )

    def _answer(self, record: StepRecord) -> None:
        """Tell of a step that was not applied; leave bad images out, and stop where the guard says so."""
        before, after = self._quarantine, self._quarantine.after(record.culprits)
        self.progress = replace(self.progress, image_faults=after.faults)
        event = event_of(record, sorted(after.excluded - before.excluded), self.batches.place)
        self.telemetry.stability(event)
        if record.verdict.action == "stop":
            self._hear(self.store.wait)
            folder = self.config.run_dir
            resume = "; --resume goes on from the last checkpoint" if newest_in(folder / "checkpoints") else ""
            raise UserError(
                f"step {event.step}: {sentence(event)} ({folder / STABILITY_FILE} has every event whole{resume})"
            )

    @property
    def _quarantine(self) -> Quarantine:
        return Quarantine(self.config.deepspeed.own.overflow.quarantine, self.progress.image_faults)

    @property
    def _epoch_ended(self) -> bool:
        """Whether an epoch's samples have been seen that is still to be evaluated."""
        return self.schedule.epochs_behind(self.progress.position) > self.progress.epochs_done

    def _close_epochs(self) -> None:
        """Close the epoch that the last step ended; of a set that is smaller than a step, each of the epochs."""
        if not self._epoch_ended:
            return
        rate, losses = self._pace.rate(), self.progress.mean_loss
        if (pipe := self.engine.report()) is not None:
            self.telemetry.pipeline(pipe)
        self.telemetry.ranks(self.watchdog.step_seconds())
        while self._epoch_ended and not self.selection.exhausted:
            self._close_epoch(rate, losses)
        self._pace.begin_epoch()

    def _close_epoch(self, rate: float, losses: dict[str, float]) -> None:
        """Evaluate, write weights, results and a checkpoint, and decide whether to go on."""
        epoch = self.progress.epochs_done
        self.progress, evaluation, is_best = self.selection(self.progress)
        with slowly("an epoch's results"):
            self.telemetry.epoch_end(
                EpochStats(
                    epoch=epoch,
                    seconds=self._pace.seconds,
                    train_loss=losses,
                    val_loss=evaluation.loss if evaluation else None,
                    metrics=evaluation.metrics if evaluation else None,
                    fitness=evaluation.fitness if evaluation else None,
                    lr={f"lr/pg{place}": value for place, value in enumerate(self.progress.lr)},
                    images_per_second=rate,
                    is_best=is_best,
                )
            )
        self.progress = self.progress.after_epoch()
        self.selection.lose_patience(self.progress)
        ends = self.progress.epochs_done == self.config.epochs or self.selection.exhausted
        if ends or is_due(self.config.deepspeed.own.checkpoint.every_epochs, self.progress.epochs_done):
            self._save()
        if not ends:
            self.telemetry.epoch_begin(self.progress.epochs_done)

    def _finish(self) -> None:
        """Judge best.pt once more as anyone would load it, with every plot."""
        self._saved = self.progress.step  # from here on the engine holds best.pt's weights, which are not to be saved
        evaluation = self.final(self.progress, self._quarantine.excluded)
        self._hear(self.store.wait)
        self.batches.tell_replaced()
        with slowly("the results"):
            if self.engine.ranks.is_main:
                self.store.note_end(self.progress)
            self.telemetry.finish(evaluation.metrics if evaluation else None, self._pace.seconds)

    def _put_down(self, stopped: interrupt.Stopped) -> None:
        """Save what there is, on request; all ranks have agreed to stop."""
        if self.progress.step > self._saved:
            self._save()
        self._hear(self.store.wait)
        ranks, done = self.engine.ranks, self.progress.epochs_done
        # Of several hosts' launchers one may be gone, which the ranks of the others do not know.
        stopped.lost = ranks.from_main(any(ranks.to_main(stopped.lost)))
        name = {signal.SIGINT: "Ctrl-C"}.get(stopped.signal, stopped.signal.name)
        if stopped.lost:
            name = "a launcher is gone"
        epoch = min(self.schedule.epoch_at(self.progress.position), done)
        where = f"in epoch {epoch + 1}" if done < self.config.epochs else "after the last epoch"
        self.telemetry.event("stop", f"{name}: stopped after step {self.progress.step}, {where}")
        self.telemetry.event("stop", f"to go on: {launch_command('train', '--resume', str(self.config.run_dir))}")
        if ranks.is_main and not stopped.lost:
            self.store.note_end(self.progress, stopped.status)
        ranks.barrier()

    def _save(self) -> None:
        mark("a checkpoint")
        self.progress = replace(self.progress, seconds=self._pace.seconds)
        if self._hear(lambda: self.store.save(self.engine, self.progress)):
            self._saved = self.progress.step

    def _hear(self, ask: Callable[[], None]) -> bool:
        """Ask something of the store; False, and a warning, if a checkpoint could not be written."""
        try:
            ask()
        except OSError as error:
            self.telemetry.event("checkpoint", f"{error}; the earlier checkpoint stays", warn=True)
            return False
        return True


def is_due(every: int, count: int) -> bool:
    """Whether something that is done every so many times is due after `count` of them; 0: it never is."""
    return every > 0 and count % every == 0
