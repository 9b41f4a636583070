"""Packs the frames of a split's videos into the cache, once for all processes.

videos/1f0c.../train.pack    the name is a hash of videos, labels, and how they are used
"""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path

from yolods.data.pack.begun import PackBusy
from yolods.data.pack.encode import Encoding
from yolods.data.pack.manifest import PACK_FILE, check_shards, read_record
from yolods.data.pack.writer import PackWriter
from yolods.data.scan import Opening
from yolods.data.video.packing.frame_set import FrameSet
from yolods.data.video.packing.packer import PackableFrames, frames_settings
from yolods.data.video.packing.survey import VideoFacts, survey
from yolods.errors import Faults, UserError
from yolods.system.bar import counting_bar
from yolods.system.folders import cache_dir
from yolods.system.humanize import age_text, plural, size_text

log = logging.getLogger(__name__)

AS_JPEG = Encoding()
"""Frames in the cache are JPEGs of their own size."""
SHARD_LENGTH = 256 << 20
"""Maximum bytes of a tar file: what a killed process loses of its work."""
PAUSE = 2.0
"""Seconds between two looks at whether another process has packed the videos."""
UNUSED_DAYS = 30
WITH_TRAIN = "val"
"""A run opens this split after the training split, so that its faults are told first."""


def pack_place(frames: FrameSet, split: str) -> Path:
    """The folder of a split's pack, finished or not."""
    return cache_dir() / "videos" / frames.digest / f"{split}.pack"


def is_packed(frames: FrameSet, split: str) -> bool:
    """Whether the pack of a split is finished."""
    return (pack_place(frames, split) / PACK_FILE).exists()


def ensure_packed(pack: Path, frames: FrameSet, opening: Opening) -> None:
    """Pack the frames unless that has been done, or wait for another process that does.

    Args:
        pack: the folder.
        frames: the split's frames.
        opening: what the split is opened with.

    Raises:
        UserError: one line for each fault of each video, or there is no room.
        OSError: the disk is full, or the cache may not be written.
    """
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
    with PackWriter(
        pack,
        opening.split,
        AS_JPEG,
        channels=frames.spec.channels,
        shard_bytes=SHARD_LENGTH,
        further=frames_settings(frames),
    ) as writer:
        try:
            samples = _checked_frames(frames, opening, writer)
        except UserError:
            if not writer.bytes_done:
                writer.discard()
                _remove_empty(pack.parent)
            raise
        _pack_all(samples, writer, opening)


def _checked_frames(frames: FrameSet, opening: Opening, writer: PackWriter) -> PackableFrames:
    """The frames, after a look at all videos of a run and at the room on the disk.

    Raises:
        UserError: a line per fault.
    """
    sets = {opening.split: frames}
    if opening.split == "train" and opening.spec.videos(WITH_TRAIN):
        other = FrameSet.of(opening.spec, WITH_TRAIN)
        if not is_packed(other, WITH_TRAIN):
            sets[WITH_TRAIN] = other
    faults, found = Faults(), {}
    for split, each in sets.items():
        with faults.caught():
            found[split] = PackableFrames(each, _facts(split, each, opening))
    faults.raise_if_any()
    _check_space(writer, found)
    return found[opening.split]


def _facts(split: str, frames: FrameSet, opening: Opening) -> list[VideoFacts]:
    shown, workers = opening.options.progress, max(opening.options.workers, 1)
    with counting_bar(f"looking at {split}", len(frames.videos), "videos", shown=shown) as bar:
        return survey(
            frames, AS_JPEG, any_class=opening.any_class, workers=workers, seen=bar.update
        )


def _check_space(writer: PackWriter, found: dict[str, PackableFrames]) -> None:
    """Refuse a disk without room for the packs."""
    sizes = {split: each.estimated_bytes() for split, each in found.items()}
    needed = sum(sizes.values()) - writer.bytes_done
    free = shutil.disk_usage(writer.folder).free
    if needed > free:
        parts = " + ".join(
            f"{split} {size_text(size)} for {plural(len(found[split]), 'frame')}"
            for split, size in sizes.items()
        )
        done = f" - {size_text(writer.bytes_done)} that are done" if writer.bytes_done else ""
        raise UserError(
            f"{cache_dir() / 'videos'}: about {size_text(needed)} are needed for frames of videos "
            f"({parts}{done}), {size_text(free)} are free; free some, name another cache with "
            "YOLODS_CACHE, write a larger `stride` into the data yaml, or use `yolods pack --imgsz`"
        )


def _pack_all(samples: PackableFrames, writer: PackWriter, opening: Opening) -> None:
    split, shown, began = opening.split, opening.options.progress, time.monotonic()
    if shown:
        log.info("%s", _announcement(samples, writer, split))
    try:
        with counting_bar(f"packing {split}", len(samples), "frames", shown=shown) as bar:
            samples.pack(writer, max(opening.options.workers, 1), bar.update)
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


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it has a pack
        folder.rmdir()
