"""Opens videos as a split's images: their frames are packed into the cache once, and read there."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from yolods.data.pack.packed import PackedImages
from yolods.data.pack.sample import frame_of
from yolods.data.scan import Opening
from yolods.data.spec import DataSpec
from yolods.data.video.packing.cached import AS_JPEG, ensure_packed, is_packed, pack_place
from yolods.data.video.packing.frame_set import FrameSet
from yolods.data.video.packing.survey import survey
from yolods.errors import UserError
from yolods.system.files import replace_text

if TYPE_CHECKING:
    import numpy as np

OPENED_FILE = "videos.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS)


class VideoFrames:
    """A `Source` of frames, whose pack is in the cache."""

    def __init__(self, packed: PackedImages, videos: Mapping[str, str]) -> None:
        """
        Args:
            packed: their pack.
            videos: each video's file by its identity.
        """
        self.index, self.side = packed.index, packed.side
        self._packed, self._videos = packed, dict(videos)

    def read(self, row: int) -> np.ndarray:
        """See `Source.read`."""
        return self._packed.read(row)

    def place(self, identity: str) -> str:
        """The video, and the number of the frame from 0."""
        video, number = frame_of(identity)
        return f"{self._videos.get(video, video)} frame {number}"


def open_videos(opening: Opening) -> VideoFrames:
    """The `Opener` of videos: pack their frames, unless the cache has them.

    Raises:
        UserError: one line for each fault of each video, or there is no room.
    """
    note = opening.folder / OPENED_FILE
    if opening.options.trusted:
        # The first rank of this host has compared all files, which are many for this.
        with suppress(OSError, ValueError):
            known = json.loads(note.read_text(encoding="utf-8"))
            return _opened(Path(known["pack"]), known["videos"], opening.folder)
    frames = FrameSet.of(opening.spec, opening.split)
    pack = pack_place(frames, opening.split)
    try:
        ensure_packed(pack, frames, opening)
        videos = dict(zip(frames.ids, map(str, frames.videos), strict=True))
        opening.folder.mkdir(parents=True, exist_ok=True)
        replace_text(note, json.dumps({"pack": str(pack), "videos": videos}))
    except OSError as error:
        if error.errno not in NO_ROOM + NO_ACCESS:
            raise
        raise UserError(
            f"{error.filename or pack}: {error.strerror}, and the frames of videos are packed "
            "there; make room, or name another cache with YOLODS_CACHE: the next start goes on"
        ) from error
    with suppress(OSError):  # another user's
        os.utime(pack.parent)
    return _opened(pack, videos, opening.folder)


def unpacked_videos(spec: DataSpec, split: str, workers: int) -> int:
    """The number of videos of a split that would be packed when it is opened, after a look at them.

    Args:
        spec: the data yaml.
        split: 'train', 'val' or 'test'.
        workers: processes that look.

    Raises:
        UserError: one line for each fault of each video.
    """
    if not spec.videos(split):
        return 0
    frames = FrameSet.of(spec, split)
    if is_packed(frames, split):
        return 0
    survey(frames, AS_JPEG, any_class=True, workers=workers)
    return len(frames.videos)


def _opened(pack: Path, videos: Mapping[str, str], folder: Path) -> VideoFrames:
    return VideoFrames(PackedImages.opened(pack, folder), videos)
