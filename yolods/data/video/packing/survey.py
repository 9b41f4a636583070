"""Looks at all videos of a split before their frames are packed: what there is, and every fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from yolods.data.pack.encode import Encoding, encode_image
from yolods.data.pack.shard import ROOM
from yolods.data.pack.split import FIXED_BYTES, ROW_BYTES
from yolods.data.verify import CheckedPair
from yolods.data.video.frames import Video
from yolods.data.video.packing.frame_set import FrameSet
from yolods.errors import Faults, UserError
from yolods.system.workers import in_workers

MEASURED_FRAMES, APART = 2, 24
"""Frames of a video that are encoded to estimate the length of all, and frames between them."""
BOX_BYTES = 90
"""Bytes of a box in a pack, about: a line of text and a row of the index."""
FEW_VIDEOS = 3
"""Up to so many videos, this process looks at them itself."""


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video before all of it is decoded."""

    frames: int
    """The most frames that it can have, and usually their number."""
    shape: tuple[int, int]
    """Height and width in pixels."""
    used: int
    """Number of frames that are packed."""
    boxes: int
    """Boxes in them."""
    image_bytes: float
    """Bytes of a stored frame, about."""

    @property
    def bytes(self) -> float:
        """Bytes of all in a pack, about."""
        return self.used * (self.image_bytes + ROOM + ROW_BYTES) + self.boxes * BOX_BYTES


def survey(
    frames: FrameSet,
    encoding: Encoding,
    *,
    any_class: bool,
    workers: int,
    seen: Callable[[int], Any] = lambda _: None,
) -> list[VideoFacts]:
    """Look at every video and its labels.

    Args:
        frames: the frames that are used.
        encoding: how they are stored.
        any_class: whether class ids may be outside the names.
        workers: processes.
        seen: is called with numbers of videos.

    Raises:
        UserError: one line for each fault of each video.
    """
    look = partial(_look, frames=frames, encoding=encoding, any_class=any_class)
    places = range(len(frames.videos))
    workers = 1 if len(places) <= FEW_VIDEOS else workers
    faults, facts = Faults(), []
    for line in frames.faults:
        faults.add(line)
    with closing(in_workers(look, places, workers, doing="looks at videos")) as found:
        for each in found:
            seen(1)
            if isinstance(each, VideoFacts):
                facts.append(each)
                continue
            for line in each.splitlines():
                faults.add(line)
    faults.raise_if_any()
    return facts


def estimated_pack_bytes(facts: Sequence[VideoFacts]) -> int:
    """Bytes that the pack of all videos takes, about."""
    return int(sum(each.bytes for each in facts)) + FIXED_BYTES


def as_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """A frame (h, w, 3) uint8 BGR with 3 channels, or with 1: grey."""
    import cv2

    return image if channels == 3 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]


def _look(place: int, *, frames: FrameSet, encoding: Encoding, any_class: bool) -> VideoFacts | str:
    """What is known of a video; or its faults, one per line."""
    try:
        video = Video(frames.videos[place])
        if frames.faults:
            return _further_fault(place, video, frames)
        channels = frames.spec.channels
        images = [each.image for each in islice(video.frames(APART), MEASURED_FRAMES)]
        sizes = [
            len(encode_image(as_channels(image, channels), "", encoding, channels).data)
            for image in images
        ]
        shape = images[0].shape[:2]
        pairs = list(frames.read(place, video.expected, shape).pairs.values())
        if not any_class:
            _refuse_foreign_ids(frames, pairs)
    except UserError as error:
        return str(error)
    boxes = sum(len(pair.rows) for pair in pairs)
    return VideoFacts(video.expected, shape, len(pairs), boxes, float(np.mean(sizes)))


def _further_fault(place: int, video: Video, frames: FrameSet) -> str:
    """What is wrong with a video that cannot be used because of others; "" if nothing."""
    shape = next(video.frames()).image.shape[:2]
    if video.path in frames.labels:
        frames.read(place, video.expected, shape)
    return ""


def _refuse_foreign_ids(frames: FrameSet, pairs: Sequence[CheckedPair]) -> None:
    """Refuse class ids outside the names, before hours are spent on packing."""
    count = len(frames.spec.names)
    foreign = [
        (pair.label_file, line, int(row[0]))
        for pair in pairs
        for line, row in zip(pair.lines, pair.rows, strict=True)
        if not 0 <= row[0] < count
    ]
    if not foreign:
        return
    file, line, number = foreign[0]
    more = f"; {len(foreign)} boxes have such ids"
    raise UserError(
        f"{file}:{line}: class id {number} is outside the {count} names of {frames.spec.yaml} "
        f"(ids 0 to {count - 1}){more if len(foreign) > 1 else ''}; correct names or the labels"
    )
