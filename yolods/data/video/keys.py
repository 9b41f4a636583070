"""Reads the keys of a data yaml that say how its videos are used. Needs only the standard library.

videos: videos                   # all videos, which `split` divides; or `train: videos`
split: {val: 0.2, by: video}     # shares of their number
stride: 5                        # of training videos every fifth frame
base: 1                          # the number of the first frame in the names of labels
first_class: 1                   # the number of the first class in MOT and VisDrone texts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yolods.data.video.entries import find_videos
from yolods.data.video.split import split_by_video
from yolods.errors import Faults, nearest
from yolods.parsing.rules import check, real, shown, whole

ALL_VIDEOS, DIVIDED = "videos", "split"
VIDEO_RULES = {"stride": whole(1), "base": whole(0, 1), "first_class": whole(0, 1)}
VIDEO_KEYS = (ALL_VIDEOS, DIVIDED, *VIDEO_RULES)
"""The keys that only have an effect on videos."""
SHARE = real(0, 1, above=True, below=True)


@dataclass(frozen=True)
class VideoKeys:
    """How the videos of a data set are used."""

    stride: int = 1
    """Of training videos, frames 0, `stride`, 2 x `stride`, ... are used."""
    base: int | None = None
    """The number of the first frame in the names of labels; None: as the labels prove."""
    first_class: int = 1
    """The number of the first class in MOT and VisDrone texts."""
    shares: tuple[tuple[str, float], ...] = ()
    """Splits but train, and the share of the videos that each gets; none: the yaml names the videos
    of each split."""
    named: tuple[str, ...] = ()
    """Which of these keys the yaml has."""

    @property
    def divided(self) -> tuple[str, ...]:
        """The splits that the videos are divided into."""
        return ("train", *(split for split, _ in self.shares)) if self.shares else ()

    def stride_of(self, split: str) -> int:
        """The stride of a split: frames of an evaluation are never left out."""
        return self.stride if split == "train" else 1

    def videos_of(self, split: str, paths: Sequence[Path], root: Path) -> list[Path]:
        """The videos of a split, sorted.

        Args:
            split: 'train', 'val' or 'test'.
            paths: the files and folders that the yaml names for it.
            root: the data set's folder.

        Raises:
            UserError: see `find_videos` and `split_by_video`.
        """
        videos = find_videos(paths)
        if split not in self.divided:
            return videos
        return split_by_video(videos, dict(self.shares), root=root)[split]


def read_video_keys(data: Mapping[str, Any], faults: Faults) -> VideoKeys:
    """Read a data yaml's keys for videos; a wrong one adds a fault and gets its default."""
    found = {}
    for key, rule in VIDEO_RULES.items():
        if data.get(key) is not None:
            valid, value = check(rule, data[key], key, faults)
            found |= {key: value} if valid else {}
    named = tuple(key for key in VIDEO_KEYS if data.get(key) is not None)
    return VideoKeys(**found, shares=_shares(data, faults), named=named)


def _shares(data: Mapping[str, Any], faults: Faults) -> tuple[tuple[str, float], ...]:
    block = data.get(DIVIDED)
    if block is None:
        if data.get(ALL_VIDEOS) is not None:
            faults.add(
                "videos: also needs a split, such as `split: {val: 0.2, by: video}`; or name the "
                "videos of each split as train and val"
            )
        return ()
    if not isinstance(block, dict):
        faults.add(f"split is {shown(block)}: it must be a mapping such as {{val: 0.2, by: video}}")
        return ()
    return tuple(_named_shares(data, block, faults))


def _named_shares(
    data: Mapping[str, Any], block: Mapping[Any, Any], faults: Faults
) -> list[tuple[str, float]]:
    splits, found = ("val", "test"), []
    if block.get("by") != "video":
        faults.add(f"split.by is {shown(block.get('by'))}: it must be video")
    for key, value in block.items():
        if key in splits:
            good, share = check(SHARE, value, f"split.{key}", faults)
            found += [(key, share)] if good else []
            if data.get(key) is not None:
                faults.add(f"split.{key}: there is a `{key}` as well; remove one of the two")
        elif key != "by":
            known = (*splits, "by")
            faults.add(
                f"split: unknown key {shown(key)}{nearest(str(key), known)}; known: "
                f"{', '.join(known)}"
            )
    if not set(splits) & block.keys():
        faults.add("split: names no share; write one, such as {val: 0.2, by: video}")
    if data.get(ALL_VIDEOS) is not None and data.get("train") is not None:
        faults.add("videos: there is a `train` as well; name all videos in one of the two")
    return found
