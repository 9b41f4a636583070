"""The .pt files of a run, which `ultralytics.YOLO()` loads: last.pt, best.pt, epochN.pt."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from yolods.checkpoint.pt_file import write_pt
from yolods.config import RunConfig
from yolods.distributed.phases import slowly
from yolods.evaluation.evaluator import Evaluation
from yolods.model.blueprint import Blueprint
from yolods.system.files import replace_copy
from yolods.telemetry import Telemetry


class WeightsWriter:
    """Writes the weights on rank 0. A failed write keeps the earlier file and the run continues."""

    def __init__(self, config: RunConfig, blueprint: Blueprint, telemetry: Telemetry) -> None:
        """
        Args:
            blueprint: the model.
            telemetry: receives warnings, such as of a full disk.
        """
        self.blueprint = blueprint
        self.folder = config.run_dir / "weights"
        self.best = self.folder / "best.pt"
        self._telemetry, self._train_args = telemetry, train_args(config)
        self._save_period = config.hyper.save_period

    def write_epoch(
        self,
        weights: Iterable[tuple[str, Tensor]],
        epoch: int,
        evaluation: Evaluation | None,
        *,
        best_fitness: float | None,
        is_best: bool,
    ) -> None:
        """Write last.pt, best.pt if `is_best`, and epochN.pt if `save_period` is due.

        Args:
            weights: the moving average, every tensor of the state_dict in fp32 on the CPU; it is
                not exhausted if the file cannot be written.
            epoch: from 0.
            evaluation: the result of these weights; None if they were not evaluated.
            best_fitness: the best of the run so far, this epoch included.
            is_best: whether these weights become best.pt.
        """
        last = self.folder / "last.pt"
        try:
            with slowly("writing weights"):
                facts = self._facts(epoch, evaluation, best_fitness)
                write_pt(last, self.blueprint.skeleton, weights, facts)
                if is_best:
                    replace_copy(last, self.best)
                if self._save_period > 0 and (epoch + 1) % self._save_period == 0:
                    replace_copy(last, self.folder / f"epoch{epoch + 1}.pt")
        except OSError as error:
            text = f"{self.folder} could not be written, the earlier files are kept: {error}"
            self._telemetry.event("weights", text, warn=True)

    def replace_best(
        self,
        weights: Iterable[tuple[str, Tensor]],
        epoch: int,
        evaluation: Evaluation,
        fitness: float,
    ) -> None:
        """Replace best.pt by other weights.

        Raises:
            OSError: they could not be written; the earlier file is intact.
        """
        with slowly("writing weights"):
            write_pt(
                self.best, self.blueprint.skeleton, weights, self._facts(epoch, evaluation, fitness)
            )

    def _facts(
        self, epoch: int, evaluation: Evaluation | None, best_fitness: float | None
    ) -> dict[str, Any]:
        """The metadata of a .pt, under ultralytics' names."""
        return {
            "epoch": epoch,
            "best_fitness": best_fitness,
            "train_args": self._train_args,
            "train_metrics": {**evaluation.metrics, "fitness": evaluation.fitness}
            if evaluation
            else {},
        }


def train_args(config: RunConfig) -> dict[str, Any]:
    """The training arguments that a .pt contains, under ultralytics' names."""
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
