"""The training run: the loop, on one screen."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from yolods.checkpoint.progress import Progress
from yolods.checkpoint.store import CheckpointStore
from yolods.checkpoint.verify import newest_in
from yolods.config import RunConfig
from yolods.distributed.phases import PHASES, mark, slowly
from yolods.engine.base import Engine
from yolods.engine.pipeline.stage_stats import peak_bytes
from yolods.errors import UserError
from yolods.optim.lr_schedule import Schedule
from yolods.stability.event import event_of, sentence
from yolods.stability.quarantine import Quarantine
from yolods.stability.record import StepRecord
from yolods.stats import EpochStats
from yolods.system import interrupt
from yolods.system.invocation import launch_command
from yolods.telemetry import STABILITY_FILE, Telemetry
from yolods.trace.tracing import NoTracing
from yolods.training.batches import TrainBatches
from yolods.training.final import FinalValidation
from yolods.training.memory_check import MemoryCheck
from yolods.training.pace import Pace
from yolods.training.selection import ModelSelection
from yolods.watchdog.watchdog import Watchdog


# Wide: one attribute for each thing that a step needs.
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
        memory: MemoryCheck,
        progress: Progress,
        tracing: NoTracing,
    ) -> None:
        """
        Args:
            selection: evaluates every epoch and writes its weights.
            final: evaluates the best epoch's weights at the end.
            memory: compares the memory of the first steps with the plan's.
            progress: where to continue; `Progress()` for a new run.
            tracing: traces some steps.
        """
        self.config, self.engine, self.schedule, self.batches = config, engine, schedule, batches
        self.selection, self.final, self.store = selection, final, store
        self.telemetry, self.watchdog, self.memory = telemetry, watchdog, memory
        self.progress, self.tracing = progress, tracing
        self._pace = Pace(progress.seconds)
        self._saved = progress.step

    def fit(self) -> None:
        """Train from `progress` to the last epoch, or until patience runs out.

        Raises:
            Stopped: by Ctrl-C or SIGTERM, or because a launcher is gone; a checkpoint is written.
            UserError: the overflow policy ended the run, or best.pt was never written.
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
                # A run may have been stopped between an epoch's last step and its evaluation.
                self._close_epochs()
                while self._goes_on:
                    self._pass()
                self.tracing.finish()
                self._finish()
            except interrupt.Stopped as stopped:
                self.tracing.drop()
                self._put_down(stopped)
                raise

    def rehearse(self, steps: int, epoch: int | None = None) -> None:
        """Take steps for a trace, without a checkpoint, an evaluation or a result.

        Args:
            steps: how many; the run's end does not matter.
            epoch: take them from its beginning (from 0); None: from `progress`.

        Raises:
            Stopped: by Ctrl-C or SIGTERM, or because a launcher is gone.
        """
        self.engine.training()
        if epoch is not None:
            self.progress = replace(self.progress, position=epoch * self.schedule.samples)
        PHASES.started()
        with interrupt.patient(), closing(self.batches.read(self.progress)) as batches:
            for _ in range(steps):
                self.tracing.before_step(self.progress.step + 1)
                if self._train(batches).stop:
                    raise interrupt.Stopped()
            self.tracing.finish()

    @property
    def _goes_on(self) -> bool:
        return self.progress.position < self.schedule.total_samples and not self.selection.exhausted

    def _pass(self) -> None:
        """Train with one loader until the run ends or an image is newly excluded.

        A loader lives across epochs, since starting its processes takes seconds. Its processes hold
        copies of the dataset, so a newly excluded image takes effect only in the next loader.
        """
        excluded = self._quarantine.excluded
        self.batches.exclude(excluded)
        with closing(self.batches.read(self.progress)) as batches:
            while self._goes_on and self._quarantine.excluded == excluded:
                self._step(batches)

    def _step(self, batches: Iterator[dict[str, Any]]) -> None:
        """Take one optimizer step and do everything that is due after it."""
        self.tracing.before_step(self.progress.step + 1)
        record = self._train(batches)
        self.memory.step(record.scalars, epoch_ends=self._epoch_ended)
        with slowly("the screen"):  # a user may hold it with Ctrl-S
            self.telemetry.step(record)
        if record.skipped or record.verdict.vanished:
            self._answer(record)
        self._hear(self.store.check)
        for line in self.watchdog.news():
            self.telemetry.event("straggler", line, warn=True)
        # All ranks agreed on `stop` within the step, so all of them raise after the same one.
        if record.stop:
            raise interrupt.Stopped()
        # The end of an epoch saves by itself, after its evaluation.
        if self._epoch_ended:
            self._close_epochs()
        elif is_due(self.config.deepspeed.own.checkpoint.every_steps, self.progress.step):
            self._save()

    def _train(self, batches: Iterator[dict[str, Any]]) -> StepRecord:
        """Take one step from the run's position and advance `progress`.

        Args:
            batches: micro-batches of this replica, from the run's position on.
        """
        # The step's number stays with all marks that follow.
        mark("between steps", step=self.progress.step + 1)
        began, before = time.perf_counter(), self.progress
        planned = self.schedule.step_at(before.position)
        imgsz = self.batches.size(before.step)
        self.engine.traffic.begin()
        record = self.engine.train_step(planned, batches, imgsz, stop=interrupt.asked())
        mark("between steps")  # the last pass has ended; what follows is not its time
        seconds = time.perf_counter() - began
        record.scalars.update(self.engine.traffic.end(seconds))
        samples = planned.batches * self.schedule.batch
        self._pace.count(samples)
        self.progress = before.after_step(
            record,
            samples=samples,
            batches=planned.batches,
            lr=planned.lr,
            seconds=self._pace.seconds,
        )
        return record.placed(
            step=self.progress.step,
            epoch=self.schedule.epoch_at(before.position),
            position=self.progress.position,
            samples=samples,
            imgsz=imgsz or self.config.imgsz,
            seconds=seconds,
        )

    def _answer(self, record: StepRecord) -> None:
        """Report a step that was not applied, quarantine its images, and end the run if it must."""
        before, after = self._quarantine, self._quarantine.after(record.culprits)
        self.progress = replace(self.progress, image_faults=after.faults)
        event = event_of(record, sorted(after.excluded - before.excluded), self.batches.place)
        self.telemetry.stability(event)
        if record.verdict.action == "stop":
            self._hear(self.store.wait)  # the message names the checkpoint that this may publish
            folder = self.config.run_dir
            resume = (
                "; --resume continues from the last checkpoint"
                if newest_in(folder / "checkpoints")
                else ""
            )
            raise UserError(
                f"step {event.step}: {sentence(event)} ({folder / STABILITY_FILE} has the full "
                f"events{resume})"
            )

    @property
    def _quarantine(self) -> Quarantine:
        return Quarantine(self.config.deepspeed.own.overflow.quarantine, self.progress.image_faults)

    @property
    def _epoch_ended(self) -> bool:
        """Whether the run has seen all samples of an epoch that it has not evaluated yet."""
        return self.schedule.epochs_behind(self.progress.position) > self.progress.epochs_done

    def _close_epochs(self) -> None:
        """Evaluate and record the epoch that the last step ended; several, which then share their
        training numbers, if a step has more images than the train set. A collective.
        """
        if not self._epoch_ended:
            return
        trained = {
            "train_loss": self.progress.mean_loss,
            "images_per_second": self._pace.rate(),
            "loader": self.batches.loading(self._pace.epoch_seconds),
        }
        if (pipe := self.engine.report()) is not None:
            self.telemetry.pipeline(pipe)
        if (communication := self.engine.traffic.report(self.engine.ranks)) is not None:
            self.telemetry.communication(communication)
        self.telemetry.ranks(self.watchdog.step_seconds())
        peaks = self.engine.ranks.to_main(peak_bytes(self.engine.ranks.device))
        self.telemetry.memory(dict(enumerate(peaks)))
        while self._epoch_ended and not self.selection.exhausted:
            self._close_epoch(trained)
        self._pace.begin_epoch()

    def _close_epoch(self, trained: Mapping[str, Any]) -> None:
        """Evaluate, write weights, results and a checkpoint, and decide whether to continue."""
        epoch = self.progress.epochs_done
        # The results come before the checkpoint: a run that resumes from it must find the epoch's
        # row in results.csv. A kill in between repeats the epoch's end, which replaces the row.
        self.progress, evaluation, is_best = self.selection(self.progress)
        with slowly("an epoch's results"):
            self.telemetry.epoch_end(
                EpochStats(
                    epoch=epoch,
                    position=self.progress.position,
                    seconds=self._pace.seconds,
                    val_loss=evaluation.loss if evaluation else None,
                    metrics=evaluation.metrics if evaluation else None,
                    fitness=evaluation.fitness if evaluation else None,
                    lr={f"lr/pg{place}": value for place, value in enumerate(self.progress.lr)},
                    is_best=is_best,
                    best_fitness=self.progress.best_fitness,
                    best_epoch=self.progress.best_epoch,
                    **trained,
                )
            )
        behind = self.schedule.epochs_behind(self.progress.position)
        self.progress = self.progress.after_epoch(behind)
        self.selection.check_patience(self.progress)
        ends = self.progress.epochs_done == self.config.epochs or self.selection.exhausted
        every = self.config.deepspeed.own.checkpoint.every_epochs
        if ends or is_due(every, self.progress.epochs_done):
            self._save()
        if not ends:
            self.telemetry.epoch_begin(self.progress.epochs_done)

    def _finish(self) -> None:
        """Evaluate best.pt as a user would load it, with every plot."""
        # From here on the engine holds best.pt's weights; a checkpoint must not contain them.
        self._saved = self.progress.step
        evaluation = self.final(self.progress, self._quarantine.excluded)
        self._hear(self.store.wait)
        self.batches.tell_replaced()
        with slowly("the results"):
            if self.engine.ranks.is_main:
                self.store.note_end(self.progress)
            self.telemetry.finish(evaluation.metrics if evaluation else None, self._pace.seconds)

    def _put_down(self, stopped: interrupt.Stopped) -> None:
        """Save a checkpoint and report the stop, on which all ranks have agreed."""
        if self.progress.step > self._saved:
            self._save()
        self._hear(self.store.wait)
        ranks, done = self.engine.ranks, self.progress.epochs_done
        # If one host lost its launcher, only its own ranks know; the exit status must be the same.
        stopped.lost = ranks.from_main(any(ranks.to_main(stopped.lost)))
        name = {signal.SIGINT: "Ctrl-C"}.get(stopped.signal, stopped.signal.name)
        if stopped.lost:
            name = "a launcher is gone"
        epoch = min(self.schedule.epoch_at(self.progress.position), done)
        where = f"in epoch {epoch + 1}" if done < self.config.epochs else "after the last epoch"
        self.telemetry.event("stop", f"{name}: stopped after step {self.progress.step}, {where}")
        self.telemetry.event(
            "stop", f"to resume: {launch_command('train', '--resume', str(self.config.run_dir))}"
        )
        # Nobody asked for a stop if a launcher is gone; without this note the run is restarted.
        if ranks.is_main and not stopped.lost:
            self.store.note_end(self.progress, stopped.status)
        ranks.barrier()

    def _save(self) -> None:
        mark("a checkpoint")
        self.progress = replace(self.progress, seconds=self._pace.seconds)
        if self._hear(lambda: self.store.save(self.engine, self.progress)):
            self._saved = self.progress.step

    def _hear(self, ask: Callable[[], None]) -> bool:
        """Call `ask`, which uses the store; warn and return False if it could not write.

        A full disk does not end a run: the earlier checkpoint is intact, and a later save may work.
        """
        try:
            ask()
        except OSError as error:
            self.telemetry.event(
                "checkpoint", f"{error}; the earlier checkpoint is kept", warn=True
            )
            return False
        return True


def is_due(every: int, count: int) -> bool:
    """Whether something with period `every` is due after `count` times; period 0: never."""
    return every > 0 and count % every == 0
