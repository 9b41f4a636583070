"""A replica's micro-batches as a step takes them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from yolods.distributed.phases import mark


class ReplayableBatches:
    """Hands out micro-batches, counts the time that they are waited for, and can hand out a step's once more."""

    def __init__(self, batches: Iterator[dict[str, Any]], *, keep: bool) -> None:
        """
        Args:
            batches: in the order of the stream.
            keep: whether the step may be run again, for which its batches stay in host memory until it is over.
        """
        self._batches, self._keep = batches, keep
        self._kept: list[dict[str, Any]] = []
        self._again: Iterator[dict[str, Any]] | None = None
        self.waited = 0.0
        """Seconds."""
        self.replaced: list[str] = []
        """Images that could not be read and were replaced by other samples, by their identities."""
        self.files: list[tuple[tuple[str, ...], ...]] = []
        """Of every micro-batch, of every image in it, the images of the data set that it was made of."""

    def take(self) -> dict[str, Any]:
        """The next micro-batch."""
        if self._again is not None:
            return next(self._again)
        mark("data", len(self.files))
        started = time.perf_counter()
        batch = next(self._batches)
        self.waited += time.perf_counter() - started
        self.replaced += batch.get("replaced", ())
        self.files.append(tuple(batch.get("sources") or ((file,) for file in batch.get("im_file", ()))))
        if self._keep:
            self._kept.append(batch)
        return batch

    def rewind(self) -> None:
        """Start again with the step's first micro-batch."""
        self._again = iter(self._kept)
