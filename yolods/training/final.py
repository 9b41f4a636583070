"""The end of a run: better BatchNorm statistics for best.pt, and its final evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch

from yolods.checkpoint.progress import Progress
from yolods.checkpoint.pt_file import PtWeights
from yolods.distributed.phases import slowly
from yolods.engine.base import Engine
from yolods.errors import UserError
from yolods.evaluation.evaluator import Evaluation, Evaluator
from yolods.telemetry import Telemetry
from yolods.training.precise_bn import TrainStatistics
from yolods.training.selection import rounded_fitness
from yolods.training.weight_files import WeightsWriter


class FinalValidation:
    """Evaluates best.pt with every plot. A call is a collective and loads best.pt."""

    def __init__(
        self,
        engine: Engine,
        evaluator: Evaluator,
        statistics: TrainStatistics | None,
        writer: WeightsWriter,
        telemetry: Telemetry,
        *,
        plots: bool,
    ) -> None:
        """
        Args:
            statistics: recomputes the BatchNorm statistics of best.pt; None keeps them.
            plots: draw curves, the confusion matrix and pictures.
        """
        self.evaluator = evaluator
        self._engine, self._statistics, self._writer = engine, statistics, writer
        self._telemetry, self._plots = telemetry, plots

    def __call__(self, progress: Progress, excluded: Iterable[str]) -> Evaluation | None:
        """The result on rank 0; None elsewhere.

        Args:
            excluded: train images to leave out.

        Raises:
            UserError: on every rank: best.pt was never written.
            Stopped: on every rank: one was asked to stop.
        """
        best = self._writer.best
        # Rank 0's answer counts: on another host a cached directory may not show the file yet.
        if not self._engine.ranks.from_main(best.is_file()):
            raise UserError(
                f"{best} was never written; the log {self._writer.folder.parent / 'train.log'} "
                "says why"
            )
        self._load()
        if self._statistics is not None:
            self._restate(self._statistics, progress, excluded)
            self._load()  # once more: best.pt may have kept the statistics of training
        self._telemetry.event("validate", f"\nValidating {best}...")
        return self.evaluator(
            self._engine,
            plots=self._plots,
            pictures=self._plots,
            final=True,
            telemetry=self._telemetry,
        )

    def _load(self) -> None:
        self._engine.adopt(PtWeights(self._writer.best))
        self._engine.deepspeed.eval()

    def _restate(
        self, statistics: TrainStatistics, progress: Progress, excluded: Iterable[str]
    ) -> None:
        """Write best.pt with recomputed BatchNorm statistics if they raise its fitness on the val
        images.

        Both versions are evaluated in fp16, as best.pt stores them. The fitness of an epoch was
        measured in fp32, before the weights were written, and the epochs of a resumed run still
        compete by it, so `progress` stays as it is.
        """
        ranks, before = self._engine.ranks, self._judge()
        statistics(self._telemetry, excluded)
        self._round_statistics()  # as `before`, which was loaded from a .pt in fp16
        now = self._judge()
        is_better = ranks.from_main(
            before is not None
            and now is not None
            and rounded_fitness(now) > rounded_fitness(before)
        )
        # Gathering is a collective and slow, so only for weights that are written.
        weights = self._engine.weights() if is_better else iter(())
        if before is not None and now is not None:  # on rank 0
            told = (
                f"BatchNorm's statistics over {statistics.images} train images without "
                f"augmentation: mAP50-95 {rounded_fitness(before):.5f} -> "
                f"{rounded_fitness(now):.5f}, "
            )
            try:
                if is_better:
                    self._writer.replace_best(
                        weights, progress.best_epoch, now, rounded_fitness(now)
                    )
                told += "used in best.pt" if is_better else "best.pt keeps those of training"
                self._telemetry.event("statistics", told)
            except OSError as error:
                told += f"but {self._writer.best} could not be written: {error}"
                self._telemetry.event("statistics", told, warn=True)
        with slowly("writing weights"):
            # Every rank takes part in every tensor, also in those that a failed write has left.
            deque(weights, maxlen=0)
        ranks.barrier()  # before any rank reads best.pt again

    def _judge(self) -> Evaluation | None:
        return self.evaluator(self._engine, telemetry=self._telemetry)

    def _round_statistics(self) -> None:
        """Round the statistics as a .pt does: to fp16, with infinities at its largest number."""
        for buffer in self._engine.statistics():
            buffer.copy_(torch.nan_to_num(buffer.half()))
