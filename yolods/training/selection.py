"""Which epoch's weights are the best: every epoch's moving average is judged and written to weights/."""

from __future__ import annotations

import math
from typing import NamedTuple

from yolods.checkpoint.progress import Progress
from yolods.config import RunConfig
from yolods.engine.base import Engine
from yolods.evaluation.evaluator import Evaluation, Evaluator
from yolods.telemetry import Telemetry
from yolods.training.weight_files import WeightsWriter

PICTURES_A_RUN = 5
"""How often validation pictures are drawn, besides at the end."""

FITNESS_DIGITS = 5
"""Decimals by which models are compared: ultralytics' validator gives its trainer no more."""


class Judged(NamedTuple):
    """What has become of an epoch."""

    progress: Progress
    """With the best epoch so far."""
    evaluation: Evaluation | None
    """None on other ranks than 0, and where the epoch was not judged."""
    is_best: bool
    """Whether it is better than all before it, by more than nothing."""


class ModelSelection:
    """Judges the moving average at an epoch's end, and says when patience has run out. Calling it is a collective."""

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
        """Whether patience has run out, and the run is to end."""

    def __call__(self, progress: Progress) -> Judged:
        """Judge the epoch after `progress.epochs_done`, unless --noval leaves it out, and write its weights."""
        epoch = progress.epochs_done
        last = epoch == self._config.epochs - 1
        evaluation, fitness = None, None
        with self._engine.evaluating():
            if self._config.hyper.val or last:
                pictures = last or epoch % math.ceil(self._config.epochs / PICTURES_A_RUN) == 0
                evaluation, fitness = self._evaluate(pictures and self._config.hyper.plots)
            weights = self._engine.full_weights()
        # Equally good epochs: best.pt is the last of them, and patience counts from the first, as in ultralytics.
        is_best = fitness is not None and progress.is_best(fitness)
        is_as_good = fitness is not None and progress.is_as_good(fitness)
        if fitness is not None:
            progress = progress.after_evaluation(fitness)
        if weights is not None:  # on rank 0
            self.writer.write_epoch(weights, epoch, evaluation, best_fitness=progress.best_fitness, is_best=is_as_good)
        return Judged(progress, evaluation, is_best and (progress.best_fitness or 0.0) > 0)

    def _evaluate(self, pictures: bool) -> tuple[Evaluation | None, float]:
        """The evaluation, on rank 0, and the fitness by which epochs compete, on every rank."""
        evaluation = self.evaluator(self._engine, pictures=pictures, telemetry=self._telemetry)
        fitness = round(evaluation.fitness, FITNESS_DIGITS) if evaluation else None
        return evaluation, self._engine.ranks.from_main(fitness)

    def lose_patience(self, progress: Progress) -> None:
        """Set `exhausted`, and say so, where the epoch that has just been closed is too far from the best one."""
        patience, waited = self._config.hyper.patience, progress.epochs_done - 1 - progress.best_epoch
        self.exhausted = bool(patience) and waited >= patience and progress.best_fitness is not None
        if self.exhausted:
            self._telemetry.event(
                "early_stop", f"No improvement for {waited} epochs: stopping early (patience {patience})"
            )
