"""A fingerprint of a set of images: their number, and checksums of contents, order, names and
times.

A run's samples are a function of (seed, epoch, index in the set), so a checkpoint is meaningful
only together with its set. The fingerprint has four checksums for a set of any size, and no image
is read for it: the size of its file, its shape and its boxes identify an image.
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
"""Threads that query file sizes: a file server takes a while per query."""

Change = Literal["", "count", "content", "order", "names", "times"]
"""How one set differs from another, the most serious first. `content`: other files or other boxes;
`order`: the same ones in another order; `names`: the same ones in the same order under other names;
`times`: files were rewritten, as by copying."""


@dataclass(frozen=True)
class Samples:
    """The fingerprint of a split's images and boxes."""

    count: int
    """Number of images."""
    content: str
    """Checksum of all images and boxes, independent of their order and names."""
    order: str
    """Checksum of the same in their order."""
    names: str
    """Checksum of their identities in order; a file's is its path below the data set's folder."""
    times: str
    """Checksum of their modification times, independent of order and names."""

    def as_dict(self) -> dict[str, Any]:
        """The entry in model.json."""
        return asdict(self)

    def change_from(self, before: Samples) -> Change:
        """The most serious difference from an earlier fingerprint of this split; "" if none."""
        for key in ("count", "content", "order", "names", "times"):
            if getattr(self, key) != getattr(before, key):
                return key
        return ""


def samples_of(labels: Iterable[Mapping[str, Any]], source: Source) -> Samples:
    """The fingerprint of a split.

    Args:
        labels: as in `Scan.labels`: im_file, shape, cls, bboxes.
        source: the source of the images, which knows their sizes and times.
    """
    order, names, content, times = blake2b(digest_size=16), blake2b(digest_size=16), 0, 0
    labels = list(labels)
    with ThreadPoolExecutor(READERS) as pool:
        stats = pool.map(source.fingerprint, (label["im_file"] for label in labels))
        for label, (size, time) in zip(labels, stats, strict=True):
            boxes = label["cls"].tobytes() + label["bboxes"].tobytes()
            image = blake2b(
                f"{size} {tuple(map(int, label['shape']))} ".encode() + boxes, digest_size=16
            )
            order.update(image.digest())
            names.update(os.fsencode(label["im_file"]) + b"\0")
            # Sums, unlike the running hashes above, do not depend on the order of the images.
            content += _number(image.digest())
            times += _number(blake2b(image.digest() + str(time).encode(), digest_size=16).digest())
    return Samples(
        len(labels), _digits(content), order.hexdigest(), names.hexdigest(), _digits(times)
    )


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "little")


def _digits(total: int) -> str:
    """32 digits of a sum of digests, which does not depend on their order."""
    return f"{total % 2**128:032x}"
