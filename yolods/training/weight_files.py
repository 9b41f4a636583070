"""The .pt files of a run: weights/last.pt, best.pt and epochN.pt, which `ultralytics.YOLO()` loads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from yolods.config import RunConfig
from yolods.distributed.phases import slowly
from yolods.evaluation.evaluator import Evaluation
from yolods.model.blueprint import Blueprint
from yolods.model.weights import write_pt
from yolods.system.files import replace_copy
from yolods.telemetry import Telemetry


class WeightsWriter:
    """Writes what rank 0 has gathered. What cannot be written leaves the earlier file whole, and ends no run."""

    def __init__(self, config: RunConfig, blueprint: Blueprint, telemetry: Telemetry) -> None:
        """
        Args:
            blueprint: of the model.
            telemetry: hears of a disk that is full.
        """
        self.blueprint = blueprint
        self.folder = config.run_dir / "weights"
        self.best = self.folder / "best.pt"
        self._telemetry, self._train_args = telemetry, train_args(config)
        self._save_period = config.hyper.save_period

    def write_epoch(
        self,
        weights: Mapping[str, Tensor],
        epoch: int,
        evaluation: Evaluation | None,
        *,
        best_fitness: float | None,
        is_best: bool,
    ) -> None:
        """Write last.pt, best.pt where it is, and epochN.pt where one is asked for.

        Args:
            weights: the moving average as a state_dict, fp32 on the CPU.
            epoch: from 0.
            evaluation: of these weights; None: they were not judged.
            best_fitness: of the run so far, this epoch included.
        """
        last = self.folder / "last.pt"
        try:
            with slowly("writing weights"):
                write_pt(last, self.blueprint.skeleton, weights, self._facts(epoch, evaluation, best_fitness))
                if is_best:
                    replace_copy(last, self.best)
                if self._save_period > 0 and (epoch + 1) % self._save_period == 0:
                    replace_copy(last, self.folder / f"epoch{epoch + 1}.pt")
        except (OSError, RuntimeError) as error:
            self._telemetry.event(
                "weights", f"{self.folder} could not be written, the earlier files stay: {error}", warn=True
            )

    def replace_best(self, weights: Mapping[str, Tensor], epoch: int, evaluation: Evaluation, fitness: float) -> None:
        """Put other weights in the place of best.pt.

        Raises:
            OSError, RuntimeError: they could not be written; the earlier file is left whole.
        """
        with slowly("writing weights"):
            write_pt(self.best, self.blueprint.skeleton, weights, self._facts(epoch, evaluation, fitness))

    def _facts(self, epoch: int, evaluation: Evaluation | None, best_fitness: float | None) -> dict[str, Any]:
        """What a .pt says of itself, under ultralytics' names."""
        return {
            "epoch": epoch,
            "best_fitness": best_fitness,
            "train_args": self._train_args,
            "train_metrics": {**evaluation.metrics, "fitness": evaluation.fitness} if evaluation else {},
        }


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
