"""The wall time of a run, its speed in images per second, and that of its loaders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from yolods.data.loader import Making
from yolods.stats import LoaderStats

WAITED_TOO_LONG = 0.2
"""Share of an epoch from which on a run is told that its loader holds it back."""
READ_FROM_A_PACK = 0.25
"""Share of reading and decoding that remains with a raw pack; 0.13 for images of 1280x720, 0.4 for
those of 640x480 at 640 pixels (benchmarks/loader.md)."""
WORTHWHILE = 1.1
"""How many times as fast samples have to be made for a way to be named."""


class Pace:
    """Wall time of a run over all its starts, and images per second in the current epoch."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """
        Args:
            seconds: wall time of the run before this start.
            clock: monotonic seconds, from any origin.
        """
        self._clock = clock
        self._began = clock() - seconds
        self._epoch_began, self._samples = clock(), 0

    @property
    def seconds(self) -> float:
        """Wall time of the run so far."""
        return self._clock() - self._began

    def count(self, samples: int) -> None:
        """Count a step over `samples` images."""
        self._samples += samples

    def rate(self) -> float:
        """Images per second of this epoch's training."""
        return self._samples / self.epoch_seconds

    @property
    def epoch_seconds(self) -> float:
        """Wall time of this epoch's training."""
        return self._clock() - self._epoch_began

    def begin_epoch(self) -> None:
        """Reset the rate; call it after evaluation and saving, which must not count as training."""
        self._epoch_began, self._samples = self._clock(), 0


class LoaderShare(NamedTuple):
    """One rank's part of an epoch's loading."""

    images: int = 0
    """Samples made."""
    seconds: float = 0.0
    """Seconds in which its processes made them, added up."""
    decoding: float = 0.0
    """Seconds of these for reading and decoding."""
    waited: float = 0.0
    """Seconds in which the rank waited for them."""
    processes: int = 1
    """Processes that made them."""


class LoaderPace:
    """What a rank's loader has cost since the epoch began."""

    def __init__(self, processes: int) -> None:
        """`processes`: the loader's; 0: the rank makes its samples itself."""
        self._none = LoaderShare(processes=max(processes, 1))
        self._share = self._none

    def count(self, making: Making, waited: float) -> None:
        """Count a micro-batch, and the seconds in which the rank waited for it."""
        so_far = self._share
        self._share = LoaderShare(
            so_far.images + making.images,
            so_far.seconds + making.seconds,
            so_far.decoding + making.decoding,
            so_far.waited + waited,
            so_far.processes,
        )

    def take(self) -> LoaderShare:
        """The sums, which begin anew."""
        share, self._share = self._share, self._none
        return share


def loader_stats(shares: Iterable[LoaderShare], seconds: float) -> LoaderStats | None:
    """All ranks' loading in `seconds` of training; None if no rank has read an image."""
    read = [share for share in shares if share.images and share.seconds]
    if not read or not seconds:
        return None
    made = sum(share.seconds for share in read)
    return LoaderStats(
        images_per_second=sum(each.images / each.seconds * each.processes for each in read),
        decode_share=sum(each.decoding for each in read) / made,
        wait_share=min(sum(each.waited for each in read) / (len(read) * seconds), 1.0),
    )


def loader_advice(
    stats: LoaderStats | None, imgsz: int, *, raw: bool = False, mosaic: float = 0.0
) -> str:
    """What to do about a loader that holds the run back; "" if it does not.

    Args:
        stats: an epoch's.
        imgsz: long side of the samples in pixels.
        raw: whether the images come out of a raw pack already.
        mosaic: share of the samples that are mosaics of images of the whole set.
    """
    if stats is None or stats.wait_share < WAITED_TOO_LONG:
        return ""
    ways = ["more --workers where cores are free"]
    pack = _gain(stats, 1.0 if raw else READ_FROM_A_PACK)
    if pack >= WORTHWHILE:
        ways.append(
            f"a raw pack at {imgsz} pixels (`pack --imgsz {imgsz} --raw`), which makes samples "
            f"about {pack:.1f} x as fast"
        )
    # One image is decoded per sample then, instead of one and three more for each mosaic.
    block = _gain(stats, 1 / (1 + 3 * mosaic))
    if block >= WORTHWHILE:
        ways.append(
            f"`mosaic_partners=block`, about {block:.1f} x as fast without a pack, at some "
            "accuracy on some sets (docs/data.md)"
        )
    return (
        f"the loader holds this run back: ranks waited {stats.wait_share:.0%} of the epoch for "
        f"images; {'; or '.join(ways)}"
    )


def _gain(stats: LoaderStats, remains: float) -> float:
    """How many times as fast samples are made if so much of reading and decoding remains."""
    return 1 / (1 - (1 - remains) * stats.decode_share)
