"""A fingerprint of a set of images: their number, and checksums of contents, order, names and
times.

A run's samples are a function of (seed, epoch, index in the set), so a checkpoint is meaningful
only together with its set. The fingerprint has four checksums for a set of any size, and no image
is read for it: the size of its file, its shape and its boxes identify an image.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

from yolods.system.files import replace_text

if TYPE_CHECKING:
    from yolods.data.index.labels import Labels

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


def samples_of(labels: Labels) -> Samples:
    """The fingerprint of a split.

    It is kept beside the index, because it takes a second per 300,000 images.
    """
    note = labels.index.notes / f"samples-{_digest(labels.chosen_as().encode())}.json"
    try:
        return Samples(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        found = _computed(labels)
    # Without room for it, the next start computes it again.
    with suppress(OSError):
        replace_text(note, json.dumps(found.as_dict()))
    return found


def _computed(labels: Labels) -> Samples:
    order, names, content, times = blake2b(digest_size=16), blake2b(digest_size=16), 0, 0
    ids, stats = labels.index.ids, labels.index.columns["stat"]
    for row, digest in zip(labels.rows, labels.digests(), strict=True):
        order.update(digest)
        names.update(os.fsencode(ids[row]) + b"\0")
        # Sums, unlike the running hashes above, do not depend on the order of the images.
        content += _number(digest)
        time = str(int(stats[row, 1])).encode()
        times += _number(blake2b(digest + time, digest_size=16).digest())
    return Samples(
        len(labels), _digits(content), order.hexdigest(), names.hexdigest(), _digits(times)
    )


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "little")


def _digits(total: int) -> str:
    """32 digits of a sum of digests, which does not depend on their order."""
    return f"{total % 2**128:032x}"


def _digest(text: bytes) -> str:
    return blake2b(text, digest_size=8).hexdigest()
