"""The micro-batches that a replica trains on, read from the run's position in the stream."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

from yolods.checkpoint.progress import Progress
from yolods.config import RunConfig
from yolods.data.dataset import DetectionSet
from yolods.data.loader import scaled_size, train_loader
from yolods.data.pack.packed import is_raw_pack
from yolods.data.sampler import BLOCK_LENGTH, Stream
from yolods.distributed.world import Ranks, Share
from yolods.evaluation.evaluator import log_user_errors
from yolods.optim.lr_schedule import Schedule
from yolods.stats import LoaderStats
from yolods.telemetry import Telemetry
from yolods.training.pace import LoaderPace, loader_advice, loader_stats

log = logging.getLogger(__name__)


class TrainBatches:
    """Reads a replica's share of the stream, and counts files that cannot be read."""

    def __init__(
        self,
        config: RunConfig,
        dataset: DetectionSet,
        schedule: Schedule,
        ranks: Ranks,
        share: Share,
        telemetry: Telemetry,
        *,
        stride: int,
        partners: str,
    ) -> None:
        """
        Args:
            dataset: the train set, with augmentation.
            share: this rank's part of the stream, and whether it reads images at all.
            stride: pixels; the sides of images are multiples of it.
            partners: where mosaic partners come from: all or block.
        """
        self._config, self.dataset, self._schedule = config, dataset, schedule
        self._ranks, self._share, self._telemetry = ranks, share, telemetry
        self._stride, self._partners = stride, partners
        self._loading, self._advised = LoaderPace(config.workers), False
        self._unreadable: set[str] = set()
        self._replaced = 0

    def place(self, image: str) -> str:
        """The name that messages use for the image with this identity."""
        return self.dataset.source.place(image)

    def exclude(self, images: Iterable[str]) -> None:
        """Stop reading these images. Batches under way in the loader still contain them."""
        self.dataset.exclude(images)

    def read(self, progress: Progress) -> Iterator[dict[str, Any]]:
        """Endless micro-batches from the run's position; none on a rank that reads no images.

        Close the iterator to end the loader's processes.
        """
        # In a pipeline only the first stage reads images; the engine sends the labels to the last.
        if not self._share.first_stage:
            return
        block = BLOCK_LENGTH if self._partners == "block" else 0
        stream = Stream(self._schedule.samples, self._config.seed, self._schedule.batch, block)
        loader = train_loader(
            self.dataset,
            stream,
            first_position=progress.position,
            dp_rank=self._share.dp_rank,
            dp_size=self._share.dp_size,
            micro=self._config.deepspeed.micro_batch,
            workers=self._config.workers,
            pin_memory=self._ranks.device.type == "cuda",
        )
        for number, batch in enumerate(
            self._timed(log_user_errors(loader, self._ranks)), start=progress.micro_batches
        ):
            self._note_replaced(batch.get("replaced", ()))
            if self._telemetry.wants_train_images(number):
                self._telemetry.train_images(batch, number)
            yield batch

    def _timed(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self._loading.count(batch.pop("making"), time.perf_counter() - began)
            yield batch

    def loading(self, seconds: float) -> LoaderStats | None:
        """How samples were made since the last call, over all ranks, in `seconds` of training.

        A collective; None on other ranks than 0. The first time that the loader holds the run back,
        this says so.
        """
        stats = loader_stats(self._ranks.to_main(self._loading.take()), seconds)
        advice = loader_advice(
            stats,
            self._config.imgsz,
            raw=is_raw_pack(self.dataset.source),
            mosaic=self._config.hyper.mosaic if self._partners == "all" else 0.0,
        )
        if advice and not self._advised:
            self._advised = True
            self._telemetry.event("loader", advice, warn=True)
        return stats

    def size(self, step: int) -> int | None:
        """Side in pixels to scale the images of step `step` (from 0) to; None keeps their size.

        It depends on the seed and the step alone, so that ranks agree without communicating and a
        resumed run draws the same sizes.
        """
        hyper = self._config.hyper
        if not hyper.multi_scale:
            return None
        return scaled_size(hyper.seed, step, self._config.imgsz, hyper.multi_scale, self._stride)

    def tell_replaced(self) -> None:
        """Report how many samples were replaced since this start, over all ranks. A collective."""
        told = self._ranks.to_main((self._replaced, self._unreadable))
        if count := sum(samples for samples, _ in told):
            files = set().union(*(names for _, names in told))
            self._telemetry.event(
                "unreadable",
                f"{count} samples were replaced: {len(files)} files could no longer be read",
                warn=True,
            )

    def _note_replaced(self, images: Iterable[str]) -> None:
        images = tuple(images)
        self._replaced += len(images)
        for file in sorted(map(self.place, set(images) - self._unreadable)):
            log.warning("%s could not be read; replaced by another sample", file)
        self._unreadable |= set(images)
