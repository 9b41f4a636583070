"""Model selection: evaluates each epoch's moving average, writes it, and keeps the best."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from yolods.checkpoint.progress import Progress
from yolods.config import RunConfig
from yolods.distributed.phases import slowly
from yolods.engine.base import Engine
from yolods.evaluation.evaluator import Evaluation, Evaluator
from yolods.telemetry import Telemetry
from yolods.training.weight_files import WeightsWriter

PICTURES_A_RUN = 5
"""How often a run draws validation pictures, in addition to those at its end."""

FITNESS_DIGITS = 5
"""Decimals of fitness in comparisons: ultralytics' validator gives its trainer no more."""


def rounded_fitness(evaluation: Evaluation) -> float:
    """The fitness by which evaluations are compared."""
    return round(evaluation.fitness, FITNESS_DIGITS)


class Judged(NamedTuple):
    """The result of an epoch."""

    progress: Progress
    """The run's progress, with the best epoch so far."""
    evaluation: Evaluation | None
    """None on ranks other than 0, and if the epoch was not evaluated."""
    is_best: bool
    """Whether its fitness is above 0 and higher than in every earlier epoch."""


class ModelSelection:
    """Evaluates the moving average of the weights after each epoch. All ranks call it together."""

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        evaluator: Evaluator,
        writer: WeightsWriter,
        telemetry: Telemetry,
    ) -> None:
        self.evaluator, self.writer = evaluator, writer
        self._config, self._engine, self._telemetry = config, engine, telemetry
        self.exhausted = False
        """Whether no epoch was better for `patience` epochs, so that the run ends."""

    def __call__(self, progress: Progress) -> Judged:
        """Evaluate epoch `progress.epochs_done` unless --noval is set; write its weights."""
        epoch = progress.epochs_done
        last = epoch == self._config.epochs - 1
        evaluation, fitness = None, None
        with self._engine.evaluating():
            if self._config.hyper.val or last:
                pictures = last or epoch % math.ceil(self._config.epochs / PICTURES_A_RUN) == 0
                evaluation, fitness = self._evaluate(pictures and self._config.hyper.plots)
            # Of equally good epochs, best.pt is the last and patience counts from the first, as in
            # ultralytics.
            is_best = fitness is not None and progress.is_best(fitness)
            is_as_good = fitness is not None and progress.is_as_good(fitness)
            if fitness is not None:
                progress = progress.after_evaluation(fitness)
            # Here, because outside of this block the model is no longer the average.
            self._write(epoch, evaluation, progress.best_fitness, is_as_good)
        return Judged(progress, evaluation, is_best and (progress.best_fitness or 0.0) > 0)

    def _evaluate(self, pictures: bool) -> tuple[Evaluation | None, float]:
        """The evaluation (on rank 0) and the rounded fitness (on every rank)."""
        evaluation = self.evaluator(self._engine, pictures=pictures, telemetry=self._telemetry)
        fitness = rounded_fitness(evaluation) if evaluation else None
        return evaluation, self._engine.ranks.from_main(fitness)

    def _write(
        self, epoch: int, evaluation: Evaluation | None, best_fitness: float | None, is_best: bool
    ) -> None:
        """Write the model's weights on rank 0, tensor by tensor, out of those of all ranks."""
        weights = self._engine.weights()
        with slowly("writing weights"):
            if self._engine.ranks.is_main:
                self.writer.write_epoch(
                    weights, epoch, evaluation, best_fitness=best_fitness, is_best=is_best
                )
            # Every rank takes part in every tensor, also in those that a failed write has left.
            deque(weights, maxlen=0)

    def check_patience(self, progress: Progress) -> None:
        """Set and log whether the run is `exhausted`: the best epoch is `patience` epochs ago.

        Args:
            progress: after the epoch was counted, so that `epochs_done` - 1 is the last one.
        """
        patience = self._config.hyper.patience
        waited = progress.epochs_done - 1 - progress.best_epoch
        # As long as no epoch has a fitness, `best_epoch` is only its default.
        self.exhausted = bool(patience) and waited >= patience and progress.best_fitness is not None
        if self.exhausted:
            self._telemetry.event(
                "early_stop",
                f"No improvement for {waited} epochs: stopping early (patience {patience})",
            )
