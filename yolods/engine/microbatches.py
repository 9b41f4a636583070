"""The micro-batches of one step on one replica."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from yolods.distributed.phases import mark


class ReplayableBatches:
    """Returns micro-batches, measures the time spent waiting for them, and can repeat them."""

    def __init__(self, batches: Iterator[dict[str, Any]], *, keep: bool) -> None:
        """
        Args:
            batches: micro-batches in stream order.
            keep: whether the step may run again. If so, its batches stay in host memory until it is
                over.
        """
        self._batches, self._keep = batches, keep
        self._kept: list[dict[str, Any]] = []
        self._again: Iterator[dict[str, Any]] | None = None
        self.waited = 0.0
        """Seconds spent waiting for data."""
        self.replaced: list[str] = []
        """Identities of images that could not be read and were replaced by other samples."""
        self.files: list[tuple[tuple[str, ...], ...]] = []
        """For every micro-batch and image: the images of the data set that it is made of."""

    def take(self) -> dict[str, Any]:
        """The next micro-batch."""
        if self._again is not None:
            return next(self._again)
        mark("data", len(self.files))
        started = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - started
        self.replaced += batch.get("replaced", ())
        # An augmented image lists all images that it is made of; otherwise its own file counts.
        self.files.append(
            tuple(batch.get("sources") or ((file,) for file in batch.get("im_file", ())))
        )
        if self._keep:
            self._kept.append(batch)
        return batch

    def rewind(self) -> None:
        """Start again with the step's first micro-batch."""
        self._again = iter(self._kept)
