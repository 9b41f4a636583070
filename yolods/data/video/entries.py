"""Finds the videos that a data yaml names: files, or folders of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from yolods.errors import Faults

VIDEO_SUFFIXES = frozenset(
    ("3gp", "asf", "avi", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "ogv", "ts")
) | {"webm", "wmv"}
"""Endings of video files, in lower case without the dot."""


def is_video(path: Path) -> bool:
    """Whether a file is named like a video."""
    return path.suffix[1:].lower() in VIDEO_SUFFIXES


def find_videos(paths: Iterable[Path]) -> list[Path]:
    """The videos among files and in folders and below them, sorted, without hidden ones.

    Links keep their spelling, because labels are expected beside the videos as they are named.

    Raises:
        UserError: a path is missing or not a video, a folder has none, or a video is named twice;
            one line per fault.
    """
    faults = Faults()
    found: dict[str, Path] = {}
    for path in paths:
        videos = list(videos_below(path)) if path.is_dir() else [path]
        if fault := _fault(path, videos):
            faults.add(fault)
            continue
        for video in videos:
            place = os.path.realpath(video)
            if place in found:
                faults.add(f"{video}: names the video {found[place]} again; remove one of the two")
            found.setdefault(place, video)
    faults.raise_if_any()
    return sorted(found.values())


def _fault(path: Path, videos: list[Path]) -> str:
    """What is wrong with a path that a yaml names; "" if nothing."""
    known = f"known types: {' '.join(sorted(VIDEO_SUFFIXES))}"
    if not path.exists():
        return f"{path}: does not exist"
    if not videos:
        return f"{path}: no videos in this folder; {known}"
    if not all(map(is_video, videos)):
        return f"{path}: is not named like a video; {known}"
    return ""


def videos_below(top: Path) -> Iterator[Path]:
    """Videos in a folder and below it. Each real folder is searched once, linked ones included."""
    seen: set[str] = set()
    for folder, below, files in os.walk(top, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else sorted(each for each in below if each[0] != ".")
        if real not in seen:
            yield from filter(is_video, (Path(folder, each) for each in files if each[0] != "."))
        seen.add(real)
