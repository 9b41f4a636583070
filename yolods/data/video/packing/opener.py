"""Opens videos as a split's images: their frames are packed into the cache once, and read there.

videos/1f0c.../train.pack    in the cache; a hash of videos, labels and how they are used
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from yolods.data.pack.begun import PackBusy
from yolods.data.pack.encode import Encoding
from yolods.data.pack.manifest import PACK_FILE, check_shards, read_record
from yolods.data.pack.packed import PackedImages
from yolods.data.pack.sample import frame_of
from yolods.data.pack.writer import PackWriter
from yolods.data.scan import Opening
from yolods.data.spec import DataSpec
from yolods.data.video.packing.frame_set import FrameSet
from yolods.data.video.packing.packer import PackableFrames, frames_settings
from yolods.data.video.packing.survey import VideoFacts, survey
from yolods.errors import UserError
from yolods.system.files import replace_text
from yolods.system.folders import cache_dir
from yolods.system.humanize import age_text, plural, size_text

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)

AS_JPEG = Encoding()
"""Frames in the cache are JPEGs of their own size."""
SHARD_LENGTH = 256 << 20
"""Maximum bytes of a tar file; what a killed process loses of its work."""
OPENED_FILE = "videos.json"
PAUSE = 2.0
"""Seconds between two looks at whether another process has packed the videos."""
UNUSED_DAYS = 30
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
        _ensure(pack, frames, opening)
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


def pack_place(frames: FrameSet, split: str) -> Path:
    """The folder of a split's pack, finished or not."""
    return cache_dir() / "videos" / frames.digest / f"{split}.pack"


def unpacked_videos(spec: DataSpec, split: str) -> int:
    """The number of videos of a split that would be packed when it is opened.

    Raises:
        UserError: see `FrameSet.of`.
    """
    if not spec.videos(split):
        return 0
    frames = FrameSet.of(spec, split)
    return 0 if (pack_place(frames, split) / PACK_FILE).exists() else len(frames.videos)


def _opened(pack: Path, videos: Mapping[str, str], folder: Path) -> VideoFrames:
    return VideoFrames(PackedImages.opened(pack, folder), videos)


def _ensure(pack: Path, frames: FrameSet, opening: Opening) -> None:
    """Pack the frames, or wait for another process that does."""
    waiting = False
    while not _is_whole(pack):
        try:
            _pack(pack, frames, opening)
        except PackBusy:
            if not waiting and opening.options.progress:
                log.info("%s: another process packs its videos; waiting for it", opening.split)
            waiting = True
            time.sleep(PAUSE)


def _is_whole(pack: Path) -> bool:
    if not (pack / PACK_FILE).exists():
        return False
    try:
        check_shards(pack, read_record(pack))
    except UserError as error:
        first = str(error).splitlines()[0].partition(";")[0]
        log.warning("%s; the videos are packed again", first)
        shutil.rmtree(pack)
        return False
    return True


def _pack(pack: Path, frames: FrameSet, opening: Opening) -> None:
    workers = max(opening.options.workers, 1)
    with PackWriter(
        pack,
        opening.split,
        AS_JPEG,
        channels=frames.spec.channels,
        shard_bytes=SHARD_LENGTH,
        further=frames_settings(frames),
    ) as writer:
        try:
            facts = _looked_at(frames, opening, workers)
            samples = PackableFrames(frames, facts)
            _check_space(pack, samples, writer)
        except UserError:
            if not writer.bytes_done:
                writer.discard()
                _remove_empty(pack.parent)
            raise
        _pack_all(samples, writer, opening, workers)


def _looked_at(frames: FrameSet, opening: Opening, workers: int) -> list[VideoFacts]:
    shown = opening.options.progress
    with _bar(f"looking at {opening.split}", len(frames.videos), "videos", shown=shown) as bar:
        return survey(
            frames, AS_JPEG, any_class=opening.any_class, workers=workers, seen=bar.update
        )


def _pack_all(samples: PackableFrames, writer: PackWriter, opening: Opening, workers: int) -> None:
    split, shown, began = opening.split, opening.options.progress, time.monotonic()
    if shown:
        log.info("%s", _announcement(samples, writer, split))
    try:
        with _bar(f"packing {split}", len(samples), "frames", shown=shown) as bar:
            samples.pack(writer, workers, bar.update)
    finally:
        _remove_empty(writer.folder.parent)
    if shown:
        log.info("%s: packed in %s", split, age_text(time.monotonic() - began))


def _announcement(samples: PackableFrames, writer: PackWriter, split: str) -> str:
    done = f", of which {size_text(writer.bytes_done)} are done" if writer.bytes_done else ""
    line = (
        f"{split}: packing {plural(len(samples), 'frame')} of videos into {writer.folder} for this "
        f"start and later ones, about {size_text(samples.estimated_bytes())}{done}"
    )
    if size := _unused_bytes(writer.folder.parents[1]):
        line += (
            f"; packs there that no start has opened for {UNUSED_DAYS} days have {size_text(size)}"
        )
    return line


def _unused_bytes(folder: Path) -> int:
    """Bytes of packs that have not been opened for a while."""
    since = time.time() - UNUSED_DAYS * 24 * 3600
    old = (each for each in folder.iterdir() if each.stat().st_mtime < since)
    return sum(file.stat().st_size for each in old for file in each.rglob("*.tar"))


def _check_space(pack: Path, samples: PackableFrames, writer: PackWriter) -> None:
    """Refuse a disk without room for the pack."""
    needed, free = samples.estimated_bytes() - writer.bytes_done, shutil.disk_usage(pack).free
    if needed > free:
        raise UserError(
            f"{pack}: about {size_text(needed)} are needed for {plural(len(samples), 'frame')} of "
            f"videos, {size_text(free)} are free; free some, name another cache with YOLODS_CACHE, "
            "write a larger `stride` into the data yaml, or use `yolods pack --imgsz`"
        )


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it has a pack
        folder.rmdir()


def _bar(what: str, total: int, unit: str, *, shown: bool) -> tqdm[Any]:
    hidden = None if shown else True  # None: hidden unless it goes to a terminal
    return tqdm(total=total, desc=what, unit=f" {unit}", leave=False, disable=hidden)
