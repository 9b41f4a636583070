"""Decides for `mosaic_partners=auto` where the images that a sample is mixed with come from."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from yolods.config.hyper.hyperparameters import Hyper
from yolods.data.pack.packed import is_raw_pack
from yolods.data.resize import fitted
from yolods.data.scan import Scan
from yolods.system.humanize import size_text

KEPT_WHOLE = 1 << 30
"""Bytes of decoded images up to which a set counts as one that loader processes keep. Each of eight
processes has so much where a rank has 64 GiB of memory (`default_cache_bytes`). It is a constant
and not the memory that happens to be free, so that a run has the same samples everywhere."""
SHAPES_AT_ONCE = 1 << 16
"""Images whose sizes are added up at once, so that a large set takes no memory."""


class PartnerChoice(NamedTuple):
    """Where mosaic partners come from."""

    partners: str
    """all or block."""
    why: str = ""
    """The end of a sentence; "": a user decided, or nothing depends on it."""

    @property
    def lines(self) -> list[str]:
        """The line for the console; none without a reason."""
        return [f"mosaic partners: {self.partners}, {self.why}"] if self.why else []


def choose_partners(hyper: Hyper, train: Scan, imgsz: int, channels: int) -> PartnerChoice:
    """What `mosaic_partners` stands for in a new run, by its configuration and its images alone.

    Args:
        train: the train split.
        imgsz: long side of the samples in pixels.
        channels: of the images.
    """
    if hyper.mosaic_partners != "auto":
        return PartnerChoice(hyper.mosaic_partners)
    if not (hyper.mosaic or hyper.mixup or hyper.cutmix or hyper.copy_paste):
        return PartnerChoice("all")
    if is_raw_pack(train.source):
        return PartnerChoice("all", "because images of a raw pack need no decoding")
    size = decoded_bytes(train.labels.shapes, imgsz, channels)
    decoded = f"the decoded set ({size_text(size)})"
    if hyper.cache == "ram":
        return PartnerChoice("all", f"because cache=ram keeps {decoded} in memory")
    limit = f"the {size_text(KEPT_WHOLE)} that auto takes for a loader process's cache"
    if size <= KEPT_WHOLE:
        return PartnerChoice("all", f"because {decoded} fits {limit}")
    return PartnerChoice(
        "block",
        f"because {decoded} does not fit {limit}; with all, each mosaic would decode four images",
    )


def decoded_bytes(shapes: np.ndarray, imgsz: int, channels: int) -> int:
    """Bytes of all images in training size.

    Args:
        shapes: (n, 2) height and width of each image in pixels.
        imgsz: long side in pixels that they are scaled to.
        channels: of an image, each a byte per pixel.
    """
    parts = (shapes[at : at + SHAPES_AT_ONCE] for at in range(0, len(shapes), SHAPES_AT_ONCE))
    return sum(int(fitted(part, imgsz).prod(1).sum()) for part in parts) * channels
