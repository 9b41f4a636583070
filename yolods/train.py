"""The training run: the loop on one screen, and the moments it is made of."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from yolods import interrupt
from yolods.checkpoint.store import CheckpointStore, Progress
from yolods.checkpoint.verify import newest_in
from yolods.cluster.pulse import PULSE, mark, slowly
from yolods.cluster.ranks import Ranks
from yolods.cluster.watchdog import Watchdog
from yolods.config import RunConfig
from yolods.data.loader import scaled_size, train_loader
from yolods.data.sampler import Stream
from yolods.data.splits import Split
from yolods.engine.base import Engine, StepResult
from yolods.engine.schedule import GROUPS, Schedule, Step
from yolods.errors import UserError
from yolods.evaluate import Evaluation, Evaluator, aloud
from yolods.files import replace_copy
from yolods.model.blueprint import Blueprint
from yolods.model.weights import read_pt, write_pt
from yolods.precise import TrainStatistics
from yolods.stability.attribution import INPUT
from yolods.stability.event import record, sentence
from yolods.stats import LOSS_NAMES, EpochStats, StepStats
from yolods.telemetry import STABILITY_FILE, Telemetry

log = logging.getLogger(__name__)

PICTURES_A_RUN = 5
"""How often validation pictures are drawn, besides at the end."""

FITNESS_DIGITS = 5
"""Decimals by which epochs are compared: ultralytics' validator gives its trainer no more."""


class Run:
    """A training run on this rank. `fit` and everything it calls is a collective."""

    def __init__(
        self,
        config: RunConfig,
        ranks: Ranks,
        engine: Engine,
        schedule: Schedule,
        train: Split,
        evaluator: Evaluator,
        statistics: TrainStatistics | None,
        store: CheckpointStore,
        blueprint: Blueprint,
        telemetry: Telemetry,
        progress: Progress,
        watchdog: Watchdog,
    ) -> None:
        """
        Args:
            statistics: takes those of best.pt anew; None where they stay as they are.
            blueprint: of the model, for .pt files.
            progress: where to go on; `Progress()` for a new run.
        """
        self.config, self.ranks, self.engine, self.schedule = config, ranks, engine, schedule
        self.evaluator, self.store, self.blueprint = evaluator, store, blueprint
        self.telemetry, self.progress, self.watchdog = telemetry, progress, watchdog
        self._train, self._statistics = train, statistics
        self._began = time.perf_counter() - progress.seconds
        self._stop = False
        self._stale = False
        """Whether images have been left out that the workers still deliver."""
        self._unreadable: set[str] = set()
        self._replaced_before = progress.replaced
        self._epoch_began, self._epoch_samples = time.perf_counter(), 0
        self._saved = progress.step

    def fit(self) -> None:
        """Train from `progress` to the last epoch, or until patience runs out.

        Raises:
            Stopped: by Ctrl-C or SIGTERM, or because a launcher is gone; a checkpoint has been written.
        """
        self.engine.training()
        if self.ranks.is_main:
            self.store.note_start()
        PULSE.started()
        with self.store, interrupt.patient():
            try:
                self.telemetry.epoch_begin(min(self._epoch, self.progress.epochs_done))
                if self._epochs_behind > self.progress.epochs_done:
                    self._close_epochs()  # the run was stopped between an epoch's last step and its evaluation
                while self.progress.position < self.schedule.total_samples and not self._stop:
                    self._pass()
                self._finish()
            except interrupt.Stopped as stopped:
                self._put_down(stopped)
                raise

    def _pass(self) -> None:
        """Train from here on, over as many epochs as may come, until images are left out that the loader still has."""
        self._train.dataset.bar(self._quarantined())
        self._stale = False
        with closing(self._batches()) as batches:
            while self.progress.position < self.schedule.total_samples and not (self._stop or self._stale):
                self._step(batches)

    def _step(self, batches: Iterator[dict[str, Any]]) -> None:
        """Take one optimizer step, and do what is due after it."""
        mark("between steps", step=self.progress.step + 1)
        started, epoch = time.perf_counter(), self._epoch
        step = self.schedule.step_at(self.progress.position)
        result = self.engine.train_step(step, batches, self._size(), stop=interrupt.asked())
        mark("between steps")
        self._record(step, result, time.perf_counter() - started)
        self._answer(result, epoch)
        self._hear(self.store.check)
        for line in self.watchdog.news():
            self.telemetry.event("straggler", line, warn=True)
        if result.stop:
            raise interrupt.Stopped()
        if self._epochs_behind > self.progress.epochs_done:
            self._close_epochs()
        elif self._due(self.config.deepspeed.own.checkpoint.every_steps, self.progress.step):
            self._save()

    def _put_down(self, stopped: interrupt.Stopped) -> None:
        """Save what there is, on request; all ranks have agreed to stop."""
        if self.progress.step > self._saved:
            self._save()
        self._hear(self.store.wait)
        # Of several hosts' launchers one may be gone, which the ranks of the others do not know.
        stopped.lost = self.ranks.from_main(any(self.ranks.to_main(stopped.lost)))
        name = {signal.SIGINT: "Ctrl-C"}.get(stopped.signal, stopped.signal.name)
        if stopped.lost:
            name = "a launcher is gone"
        epoch = min(self._epoch, self.progress.epochs_done)
        where = f"in epoch {epoch + 1}" if self.progress.epochs_done < self.config.epochs else "after the last epoch"
        self.telemetry.event("stop", f"{name}: stopped after step {self.progress.step}, {where}")
        self.telemetry.event("stop", f"to go on: ./launch.sh train --resume {self.config.run_dir}")
        if self.ranks.is_main and not stopped.lost:
            self.store.note_end(self.progress, stopped.status)
        self.ranks.barrier()

    @property
    def _epoch(self) -> int:
        return min(self.progress.position // self.schedule.samples, self.config.epochs - 1)

    @staticmethod
    def _due(every: int, count: int) -> bool:
        return every > 0 and count % every == 0

    def _batches(self) -> Iterator[dict[str, Any]]:
        """The replica's micro-batches from where the run stands, shown to telemetry as they pass."""
        if not self.engine.share.reads_images:
            return
        stream = Stream(self.schedule.samples, self.config.seed, self.schedule.batch)
        loader = train_loader(
            self._train.dataset,
            stream,
            first_position=self.progress.position,
            rank=self.engine.share.index,
            ranks=self.engine.share.count,
            micro=self.config.deepspeed.micro_batch,
            workers=self.config.workers,
            pin_memory=self.ranks.device.type == "cuda",
        )
        for number, batch in enumerate(aloud(loader, self.ranks), start=self.progress.micro_batches):
            if self.telemetry.wants_train_images(number):
                self.telemetry.train_images(batch, number)
            yield batch

    def _size(self) -> int | None:
        hyper = self.config.hyper
        if not hyper.multi_scale:
            return None
        stride = max(int(max(self.blueprint.strides)), 32)
        return scaled_size(hyper.seed, self.progress.step, self.config.imgsz, hyper.multi_scale, stride)

    def _record(self, step: Step, result: StepResult, seconds: float) -> None:
        """Move on by one step and tell telemetry."""
        now = self.progress
        counted = 0 if result.skipped else step.batches  # the loss of a skipped step may be inf or nan
        sums = np.array(now.loss_sums or [0.0] * len(LOSS_NAMES))
        if counted:
            sums += counted * np.array(list(result.loss.values()))
        samples = step.batches * self.schedule.batch
        self.progress = replace(
            now,
            position=now.position + samples,
            step=now.step + 1,
            micro_batches=now.micro_batches + step.batches,
            loss_sums=tuple(sums.tolist()),
            loss_weight=now.loss_weight + counted,
            lr=step.lr,
            seconds=time.perf_counter() - self._began,
            skipped=now.skipped + result.skipped,
            rollbacks=now.rollbacks + (result.verdict.action == "rollback"),
            replaced=now.replaced + len(result.replaced),
        )
        self._epoch_samples += samples
        place = self._train.dataset.source.place
        for file in sorted(map(place, set(result.replaced) - self._unreadable)):
            log.warning("%s could not be read; another sample took its place", file)
        self._unreadable |= set(result.replaced)
        shown = StepStats(
            step=self.progress.step,
            epoch=min(now.position // self.schedule.samples, self.config.epochs - 1),
            position=self.progress.position,
            samples=samples,
            loss=result.loss,
            grad_norm=result.grad_norm,
            lr=dict(zip(("pg0", "pg1", "pg2"), step.lr, strict=True)),
            momentum=step.momentum if self.engine.warms_momentum else None,
            loss_scale=result.loss_scale,
            skipped=result.skipped,
            norm_after=result.norm_after,
            layer_norms=None if result.reading is None else result.reading.norms.tolist(),
            seconds=seconds,
            data_seconds=result.data_seconds,
            instances=result.instances,
            imgsz=self._size() or self.config.imgsz,
        )
        with slowly("the screen"):  # which a person may hold
            self.telemetry.step(shown)

    def _answer(self, result: StepResult, epoch: int) -> None:
        """Tell of a step that was not applied; leave bad images out, and stop where the guard says so."""
        if result.verdict.applied and not result.verdict.vanished:
            return
        before = self._quarantined()
        counts = Counter(dict(self.progress.image_faults))
        counts.update(image for each in result.culprits if each.name == INPUT for image in set(each.files))
        self.progress = replace(self.progress, image_faults=tuple(sorted(counts.items())))
        barred = sorted(self._quarantined() - before)
        self._stale = bool(barred)
        place = self._train.dataset.source.place  # people are told of files
        event = record(
            result.verdict,
            [replace(each, files=tuple(map(place, each.files))) for each in result.culprits],
            result.reading,
            step=self.progress.step,
            epoch=epoch,
            position=self.progress.position,
            loss=sum(result.loss.values()),
            grad_norm=result.grad_norm,
            loss_scale=result.loss_scale,
            next_scale=result.next_scale,
            barred=list(map(place, barred)),
        )
        self.telemetry.stability(event)
        if result.verdict.action == "stop":
            self._hear(self.store.wait)
            folder = self.config.run_dir
            resume = "; --resume goes on from the last checkpoint" if newest_in(folder / "checkpoints") else ""
            raise UserError(
                f"step {event.step}: {sentence(event)} ({folder / STABILITY_FILE} has every event whole{resume})"
            )

    def _quarantined(self) -> set[str]:
        """Images that are left out, by their identities."""
        limit = self.config.deepspeed.own.overflow.quarantine
        return {image for image, count in self.progress.image_faults if limit and count >= limit}

    @property
    def _epochs_behind(self) -> int:
        return min(self.progress.position // self.schedule.samples, self.config.epochs)

    def _close_epochs(self) -> None:
        """Close the epoch that the last step ended; of a set that is smaller than a step, each of the epochs."""
        rate = self._epoch_samples / (time.perf_counter() - self._epoch_began)
        if (pipe := self.engine.report()) is not None:
            self.telemetry.pipeline(pipe)
        self.telemetry.ranks(self.watchdog.step_seconds())
        losses = np.array(self.progress.loss_sums) / max(self.progress.loss_weight, 1)
        while self._epochs_behind > self.progress.epochs_done and not self._stop:
            self._close_epoch(rate, dict(zip(LOSS_NAMES, losses.tolist(), strict=True)))
        self._epoch_began, self._epoch_samples = time.perf_counter(), 0

    def _close_epoch(self, rate: float, losses: dict[str, float]) -> None:
        """Evaluate, write weights, results and a checkpoint, and decide whether to go on."""
        epoch = self.progress.epochs_done
        last = epoch == self.config.epochs - 1
        evaluation, best = self._evaluate(epoch, last) if self.config.hyper.val or last else self._keep(epoch)
        with slowly("an epoch's results"):
            self.telemetry.epoch_end(
                EpochStats(
                    epoch=epoch,
                    seconds=time.perf_counter() - self._began,
                    train_loss=losses,
                    val_loss=evaluation.loss if evaluation else None,
                    metrics=evaluation.metrics if evaluation else None,
                    fitness=evaluation.fitness if evaluation else None,
                    lr={f"lr/pg{place}": value for place, value in enumerate(self.progress.lr[: len(GROUPS)])},
                    images_per_second=rate,
                    is_best=best and self.progress.best_fitness > 0,
                )
            )
        self.progress = replace(self.progress, epochs_done=epoch + 1, loss_sums=(), loss_weight=0)
        self._stop = self._out_of_patience(epoch)
        if last or self._stop or self._due(self.config.deepspeed.own.checkpoint.every_epochs, epoch + 1):
            self._save()
        if not (last or self._stop):
            self.telemetry.epoch_begin(epoch + 1)

    def _evaluate(self, epoch: int, last: bool) -> tuple[Evaluation | None, bool]:
        """Judge the moving average and write it to weights/; True where it is the best so far."""
        pictures = last or epoch % math.ceil(self.config.epochs / PICTURES_A_RUN) == 0
        with self.engine.evaluating():
            evaluation = self.evaluator(
                self.engine, pictures=pictures and self.config.hyper.plots, telemetry=self.telemetry
            )
            weights = self.engine.full_weights()
        fitness = self.ranks.from_main(round(evaluation.fitness, FITNESS_DIGITS) if evaluation else None)
        before = self.progress.best_fitness
        best = not before or fitness > before
        if best:
            self.progress = replace(self.progress, best_fitness=fitness, best_epoch=epoch)
        self._write_weights(weights, epoch, best or fitness == before, evaluation)
        return evaluation, best

    def _keep(self, epoch: int) -> tuple[None, bool]:
        """Write the moving average of an epoch that is not judged to weights/."""
        with self.engine.evaluating():
            weights = self.engine.full_weights()
        self._write_weights(weights, epoch, False, None)
        return None, False

    def _write_weights(
        self, weights: dict[str, Any] | None, epoch: int, best: bool, evaluation: Evaluation | None
    ) -> None:
        """Rank 0: last.pt, best.pt where it is, epochN.pt where asked for. A full disk is reported, not fatal.

        Of epochs that are equally good best.pt is the last, as in ultralytics, and patience counts from the first.
        """
        if weights is None:
            return
        folder = self.config.run_dir / "weights"
        try:
            with slowly("writing weights"):
                write_pt(folder / "last.pt", self.blueprint.skeleton, weights, self._facts(epoch, evaluation))
                if best:
                    replace_copy(folder / "last.pt", folder / "best.pt")
                if self._due(self.config.hyper.save_period, epoch + 1):
                    replace_copy(folder / "last.pt", folder / f"epoch{epoch + 1}.pt")
        except (OSError, RuntimeError) as error:
            self.telemetry.event(
                "weights", f"{folder} could not be written, the earlier files stay: {error}", warn=True
            )

    def _facts(self, epoch: int, evaluation: Evaluation | None) -> dict[str, Any]:
        """What a .pt says of itself."""
        return {
            "epoch": epoch,
            "best_fitness": self.progress.best_fitness,
            "train_args": train_args(self.config),
            "train_metrics": {**evaluation.metrics, "fitness": evaluation.fitness} if evaluation else {},
        }

    def _out_of_patience(self, epoch: int) -> bool:
        waited = epoch - self.progress.best_epoch
        patience = self.config.hyper.patience
        if not patience or waited < patience or self.progress.best_fitness is None:
            return False
        self.telemetry.event("early_stop", f"No improvement for {waited} epochs: stopping early (patience {patience})")
        return True

    def _save(self) -> None:
        mark("a checkpoint")
        self.progress = replace(self.progress, seconds=time.perf_counter() - self._began)
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

    def _finish(self) -> None:
        """Judge best.pt once more as anyone would load it, with every plot."""
        best = self.config.run_dir / "weights" / "best.pt"
        if not self.ranks.from_main(best.is_file()):
            raise UserError(f"{best} was never written; the log {self.config.run_dir / 'train.log'} says why")
        self._saved = self.progress.step  # from here on the engine holds best.pt's weights
        self._load_best(best)
        if self._statistics is not None:
            self._restate(best, self._statistics)
            self._load_best(best)
        self.telemetry.event("validate", f"\nValidating {best}...")
        plots = self.config.hyper.plots
        evaluation = self.evaluator(self.engine, plots=plots, pictures=plots, final=True, telemetry=self.telemetry)
        self._hear(self.store.wait)
        self._count_replaced()
        with slowly("the results"):
            if self.ranks.is_main:
                self.store.note_end(self.progress)
            self.telemetry.finish(evaluation.metrics if evaluation else None, time.perf_counter() - self._began)

    def _load_best(self, best: Path) -> None:
        self.engine.adopt(read_pt(best).state_dict())
        self.engine.deepspeed.eval()

    def _restate(self, best: Path, statistics: TrainStatistics) -> None:
        """Write best.pt with BatchNorm's statistics taken anew, where the val images say that it is better so."""
        # Epochs compete by the statistics of training, of a run that goes on, too: `progress` keeps that fitness.
        statistics(self.telemetry, self._quarantined())
        evaluation = self.evaluator(self.engine, telemetry=self.telemetry)
        weights = self.engine.full_weights()
        if evaluation is None or weights is None:  # rank 0 has both
            self.ranks.barrier()
            return
        before, now = self.progress.best_fitness or 0.0, round(evaluation.fitness, FITNESS_DIGITS)
        better = now > before
        told = (
            f"BatchNorm's statistics over {statistics.images} train images without augmentation: mAP50-95 "
            f"{before:.5f} -> {now:.5f}, "
        )
        try:
            if better:
                with slowly("writing weights"):
                    facts = {**self._facts(self.progress.best_epoch, evaluation), "best_fitness": now}
                    write_pt(best, self.blueprint.skeleton, weights, facts)
            told += "best.pt has these" if better else "best.pt keeps those of training"
            self.telemetry.event("statistics", told)
        except (OSError, RuntimeError) as error:
            self.telemetry.event("statistics", f"{told}but {best} could not be written: {error}", warn=True)
        self.ranks.barrier()

    def _count_replaced(self) -> None:
        """Say how many samples of this start, over all ranks, were other ones than the stream asked for."""
        told = self.ranks.to_main((self.progress.replaced - self._replaced_before, self._unreadable))
        if count := sum(samples for samples, _ in told):
            files = set().union(*(names for _, names in told))
            self.telemetry.event(
                "unreadable", f"{count} samples were replaced: {len(files)} files could not be read any more", warn=True
            )


def train_args(config: RunConfig) -> dict[str, Any]:
    """What a .pt remembers of its training, under ultralytics' names."""
    return {
        **config.hyper.as_ultralytics(),
        "task": "detect",
        "mode": "train",
        "model": config.model,
        "data": str(config.data),
        "epochs": config.epochs,
        "batch": config.batch_size,
        "imgsz": config.imgsz,
        "name": config.run_dir.name,
    }
