"""The micro-batches that a replica trains on, from wherever the run stands in the stream."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from yolods.checkpoint.progress import Progress
from yolods.config import RunConfig
from yolods.data.dataset import DetectionSet
from yolods.data.loader import scaled_size, train_loader
from yolods.data.sampler import Stream
from yolods.distributed.world import Ranks, Share
from yolods.evaluation.evaluator import log_user_errors
from yolods.optim.lr_schedule import Schedule
from yolods.telemetry import Telemetry

log = logging.getLogger(__name__)


class TrainBatches:
    """Reads a replica's share of the stream, shows telemetry what passes, and notes files that cannot be read."""

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
    ) -> None:
        """
        Args:
            dataset: the train set, with augmentation.
            share: this rank's part of the stream, and whether it reads images at all.
            stride: pixels of which the sides of images are multiples.
        """
        self._config, self.dataset, self._schedule = config, dataset, schedule
        self._ranks, self._share, self._telemetry, self._stride = ranks, share, telemetry, stride
        self._unreadable: set[str] = set()
        self._replaced = 0

    def place(self, image: str) -> str:
        """What messages call an image that is known by its identity."""
        return self.dataset.source.place(image)

    def exclude(self, images: Iterable[str]) -> None:
        """Leave images out of what is read from now on. Batches that are being read still have them."""
        self.dataset.exclude(images)

    def read(self, progress: Progress) -> Iterator[dict[str, Any]]:
        """Micro-batches from where the run stands, without an end; none on a rank that reads no images.

        Close the iterator to end the loader's processes.
        """
        if not self._share.first_stage:
            return
        stream = Stream(self._schedule.samples, self._config.seed, self._schedule.batch)
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
        for number, batch in enumerate(log_user_errors(loader, self._ranks), start=progress.micro_batches):
            self._note_replaced(batch.get("replaced", ()))
            if self._telemetry.wants_train_images(number):
                self._telemetry.train_images(batch, number)
            yield batch

    def size(self, step: int) -> int | None:
        """Side in pixels that the images of the step after `step` others are scaled to; None: they stay as they are."""
        hyper = self._config.hyper
        if not hyper.multi_scale:
            return None
        return scaled_size(hyper.seed, step, self._config.imgsz, hyper.multi_scale, self._stride)

    def tell_replaced(self) -> None:
        """Say how many samples of this start were not those that the stream asked for, over all ranks: a collective."""
        told = self._ranks.to_main((self._replaced, self._unreadable))
        if count := sum(samples for samples, _ in told):
            files = set().union(*(names for _, names in told))
            self._telemetry.event(
                "unreadable", f"{count} samples were replaced: {len(files)} files could not be read any more", warn=True
            )

    def _note_replaced(self, images: Iterable[str]) -> None:
        images = tuple(images)
        self._replaced += len(images)
        for file in sorted(map(self.place, set(images) - self._unreadable)):
            log.warning("%s could not be read; another sample took its place", file)
        self._unreadable |= set(images)
