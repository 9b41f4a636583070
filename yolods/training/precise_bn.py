"""Recomputes BatchNorm's statistics over train images (`model.bn_statistics`)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from yolods.data.dataset import DetectionSet
from yolods.data.loader import eval_batches
from yolods.distributed.phases import mark
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.evaluation.evaluator import load
from yolods.system import interrupt
from yolods.telemetry import Telemetry

log = logging.getLogger(__name__)


class TrainStatistics:
    """Recomputes a model's statistics over part of the train set. Calling it is a collective."""

    def __init__(
        self,
        dataset: DetectionSet,
        ranks: Ranks,
        engine: Engine,
        *,
        forward_batch: int,
        workers: int,
    ) -> None:
        """
        Args:
            dataset: the images, without augmentation.
            engine: its model receives the statistics.
            forward_batch: maximum images per forward pass on a rank.
            workers: loader processes per rank.
        """
        share = engine.share
        self.images = len(dataset)
        self._dataset, self._ranks, self._engine, self._workers = dataset, ranks, engine, workers
        self._batches = eval_batches(
            dataset, dp_rank=share.dp_rank, dp_size=share.dp_size, forward_batch=forward_batch
        )

    def __call__(self, telemetry: Telemetry, excluded: Iterable[str] = ()) -> None:
        """Write the statistics of the images into the engine's model, which is in evaluation mode.

        Args:
            excluded: images that are replaced by others.

        Raises:
            Stopped: on every rank: one was asked to stop. Ranks that need each other in a forward
                pass (ZeRO-3, pipelines) complete all passes first.
        """
        self._dataset.exclude(excluded)
        telemetry.val_begin(len(self._batches), "statistics")
        self._engine.restate_statistics(self._counted_batches(telemetry))
        if self._ranks.from_main(any(self._ranks.to_main(interrupt.asked()))):
            raise interrupt.Stopped()

    def _counted_batches(self, telemetry: Telemetry) -> Iterator[tuple[Any, int]]:
        """Each batch's images, and how many of them count: those that only fill it up do not.

        Images are None on ranks that are not a first stage.
        """
        reads = self._engine.share.first_stage
        loaded = load(self._dataset, self._batches, self._ranks, reads=reads, workers=self._workers)
        for number, batch in enumerate(loaded):
            mark("statistics", number)
            # A rank that leaves early blocks the others if a forward pass is a collective.
            if interrupt.asked() and self._engine.share.alone:
                return
            for image in batch.get("replaced", ()):
                file = self._dataset.source.place(image)
                log.warning(
                    "%s could not be read; a grey image replaces it in BatchNorm's statistics", file
                )
            yield batch["img"], batch["real"]
            # Here the forward pass is over.
            telemetry.val_progress()
