"""An image with its labels on the way into a pack, and the rows of a pack's index."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from yolods.data.index.block import Block, block_of
from yolods.data.index.columns import ColumnType
from yolods.data.pack.decode import Undecodable
from yolods.data.pack.encode import Encoded, Encoding, encode_image
from yolods.data.verify import CheckedPair, Problem

FRAME_MARK = "#"
"""Between a video and the number of a frame in an identity."""
ALONE_IN_GROUP = -1
"""Group of an image that belongs to none."""
PACK_COLUMNS = {
    "shard": ColumnType("<i4"),
    "offset": ColumnType("<i8"),
    "size": ColumnType("<i8"),
    "crc32": ColumnType("<u4"),
    "group": ColumnType("<i4"),
    "plain_jpeg": ColumnType("|u1"),
}
"""The columns of a pack's index beside those of every index: number of the tar file, place and
length in bytes of the stored image in it, its checksum, `Sample.group`, `Encoded.plain_jpeg`. Its
`place` is a hash of the image's original bytes, so that equal images are found."""


@dataclass(frozen=True)
class Sample:
    """An image to pack, from any source."""

    check: CheckedPair
    """Its identity, its shape as it will be read at full size, and its boxes. `file` and
    `label_file` only matter for `problems`, which name them."""
    data: bytes | np.ndarray
    """The image file, whose ending is that of the identity; or pixels, (h, w, channels) uint8 as
    BGR."""
    stat: tuple[int, int, int, int]
    """Size in bytes and time in ns of the original image, and of its labels; -1: absent. A later
    call goes on behind finished samples only if they are unchanged in this."""
    label: bytes | None = None
    """The label file; None: there is none, and labels are written out of the boxes."""
    group: int = ALONE_IN_GROUP
    """Equal for images that belong together, such as frames of a video."""
    own_problems: bool = True
    """Whether `problems` name files in the pack, and not those of the user, which may be gone."""


@dataclass(frozen=True)
class StoredSample:
    """An image as it lies in a pack."""

    check: CheckedPair
    stat: tuple[int, int, int, int]
    group: int
    own_problems: bool
    image: Encoded
    label: bytes | None
    """The label file; None: there is none."""
    crc32: int
    """Checksum of the stored image."""
    content: int
    """64 bits of a hash of the image's original bytes."""


def store(sample: Sample, encoding: Encoding, channels: int) -> StoredSample:
    """Encode an image. One that cannot be decoded keeps its bytes, so that training will name it.

    Raises:
        ValueError: pixels of other than 1 or 3 channels.
    """
    check = sample.check
    try:
        image = encode_image(sample.data, check.id, encoding, channels)
    except Undecodable:
        text = "cannot be decoded; training replaces it by another image"
        check = replace(check, problems=[*check.problems, Problem(check.file, None, text)])
        image = encode_image(sample.data, check.id, Encoding(), channels)
    original = sample.data if isinstance(sample.data, bytes) else image.data
    label = sample.label
    if label is None and len(check.rows):
        label = label_text(check).encode()
    return StoredSample(
        check=check,
        stat=sample.stat,
        group=sample.group,
        own_problems=sample.own_problems,
        image=image,
        label=label,
        crc32=zlib.crc32(image.data),
        content=int.from_bytes(blake2b(original, digest_size=8).digest(), "little"),
    )


def label_text(check: CheckedPair) -> str:
    """A label file with the boxes, or with the polygons where there are some.

    Reading it gives the same 32-bit numbers.
    """
    lines = []
    for place, row in enumerate(check.rows):
        values = check.segments[place].ravel() if check.segments else row[1:]
        lines.append(f"{int(row[0])} {' '.join(f'{value:.9g}' for value in values)}\n")
    return "".join(lines)


@dataclass(frozen=True)
class PackedRow:
    """What is known of a sample that has been written."""

    check: CheckedPair
    """As in `StoredSample`; see `Sample.own_problems`."""
    stored: StoredSample
    """Without its bytes, which are in the tar file."""
    offset: int
    """Place of the image's first byte in the tar file."""
    size: int
    """Bytes of the stored image."""


def packed_row(stored: StoredSample, name: str, offset: int) -> PackedRow:
    """A sample that has been written under the name `name`."""
    without = replace(stored, image=replace(stored.image, data=b""), label=None)
    check = _renamed(stored.check, name) if stored.own_problems else stored.check
    return PackedRow(check, without, offset, len(stored.image.data))


def pack_block(rows: Sequence[PackedRow], shard: int) -> Block:
    """At least one row of a pack's index.

    Args:
        rows: the samples.
        shard: number of their tar file.
    """
    stored = [row.stored for row in rows]
    block = block_of(
        [row.check for row in rows], [one.stat for one in stored], [one.content for one in stored]
    )
    values = {
        "shard": [shard] * len(rows),
        "offset": [row.offset for row in rows],
        "size": [row.size for row in rows],
        "crc32": [one.crc32 for one in stored],
        "group": [one.group for one in stored],
        "plain_jpeg": [one.image.plain_jpeg for one in stored],
    }
    block.further = {
        name: np.array(values[name], kind.dtype) for name, kind in PACK_COLUMNS.items()
    }
    return block


def _renamed(check: CheckedPair, name: str) -> CheckedPair:
    if not check.problems:
        return check
    named = {check.label_file: label_name(name)}
    return replace(
        check,
        problems=[
            Problem(named.get(each.file, name), each.line, each.text) for each in check.problems
        ],
    )


def group_name(identity: str, group: int) -> str:
    """The group of an image in messages: the video of a frame; "" if it has none."""
    if group == ALONE_IN_GROUP:
        return ""
    video, mark, _ = identity.rpartition(FRAME_MARK)
    return video if mark else f"group {group}"


def frame_identity(video: str, number: int) -> str:
    """The identity of a frame.

    Args:
        video: identity of the video.
        number: of the frame, from 0.
    """
    return f"{video}{FRAME_MARK}{number:06}"


def frame_of(identity: str) -> tuple[str, int]:
    """The inverse of `frame_identity`."""
    video, _, number = identity.rpartition(FRAME_MARK)
    return video, int(number)


def label_name(image: str) -> str:
    """Name in a pack of the labels of an image of the name `images/...`."""
    return f"labels{image.removeprefix('images').rpartition('.')[0]}.txt"
