"""What tells one set of images from another: how many there are, their order, contents and names, in a few words.

A run's samples are a function of (seed, epoch, place in the set), so a checkpoint means something only beside the set
that it was made with. The record is four checksums, whatever the size of the set, and no image is read for it: an image
counts as what its file's size, its shape and its boxes say.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from yolods.data.source import Source

READERS = 8
"""Threads that ask for files' sizes: on a file server each answer takes a while."""

Change = Literal["", "count", "content", "order", "names", "times"]
"""How one set differs from another, the gravest first. `content`: other files or other boxes; `order`: the same ones,
sorted otherwise; `names`: the same ones in the same order; `times`: files written anew, as by copying."""


@dataclass(frozen=True)
class Samples:
    """The images of a split with their boxes."""

    count: int
    """Images."""
    content: str
    """Checksum of all images and boxes, whatever their order and names."""
    order: str
    """Of the same in their order."""
    names: str
    """Of their identities, in their order: of files their names below the data set's folder."""
    times: str
    """Of when each was last written, whatever their order and names."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)

    def change_from(self, before: Samples) -> Change:
        """What is the gravest difference from another record of this split."""
        for key in ("count", "content", "order", "names", "times"):
            if getattr(self, key) != getattr(before, key):
                return key
        return ""


def samples_of(labels: Iterable[Mapping[str, Any]], source: Source) -> Samples:
    """The record of a split.

    Args:
        labels: as `Scan.labels`: im_file, shape, cls, bboxes.
        source: where the images are; their identities are their names.
    """
    order, names, content, times = blake2b(digest_size=16), blake2b(digest_size=16), 0, 0
    labels = list(labels)
    with ThreadPoolExecutor(READERS) as pool:
        stats = pool.map(source.fingerprint, (label["im_file"] for label in labels))
        for label, (size, time) in zip(labels, stats, strict=True):
            boxes = label["cls"].tobytes() + label["bboxes"].tobytes()
            image = blake2b(f"{size} {tuple(map(int, label['shape']))} ".encode() + boxes, digest_size=16)
            order.update(image.digest())
            names.update(os.fsencode(label["im_file"]) + b"\0")
            content += _number(image.digest())
            times += _number(blake2b(image.digest() + str(time).encode(), digest_size=16).digest())
    return Samples(len(labels), _digits(content), order.hexdigest(), names.hexdigest(), _digits(times))


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "little")


def _digits(total: int) -> str:
    """A sum does not depend on the order of what is added."""
    return f"{total % 2**128:032x}"
