"""Finds the label files of videos, in one of four layouts.

    folder    labels/clip/000123.txt         one YOLO text per frame
    beside    labels/clip_000123.txt         one YOLO text per frame
    cvat      labels/clip/frame_000123.txt   one YOLO text per frame, as CVAT exports them
    sequence  labels/clip.txt                one MOT or VisDrone text per video

`labels` takes the place of the last `videos` or `images` in the path of the video's folder; labels
may also stand in the video's own folder.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Literal

from yolods.data.video.entries import is_video
from yolods.errors import Faults

LabelLayout = Literal["folder", "beside", "cvat", "sequence"]

REPLACED = ("videos", "images")
"""Folders of videos, beside which there is one named `labels`."""

OF_FRAME = re.compile(r"(\d+)\.txt", re.ASCII)
OF_CVAT = re.compile(r"frame_(\d+)\.txt", re.ASCII)
OF_CLIP = re.compile(r"(.+)_(\d+)\.txt", re.ASCII)


@dataclass(frozen=True)
class LabelFiles:
    """The label files of one video."""

    video: Path
    layout: LabelLayout
    place: Path
    """What messages name: a folder, a sequence's text, or the pattern of texts in a folder."""
    files: Mapping[int, Path] = field(default_factory=dict)
    """For layouts with a text per frame: the number in its name, and the text."""


def find_labels(
    videos: Sequence[Path], faults: Faults | None = None, *, others: Sequence[Path] = ()
) -> dict[Path, LabelFiles]:
    """The label files of each video.

    Args:
        videos: all videos of a split.
        others: those of the other splits, whose labels may stand in the same folders.
        faults: receives the faults, and videos with a fault are absent from the result; None: they
            are raised.

    Raises:
        UserError: a video has none, or in two layouts; two videos share labels; or two texts have
            one number. One line per fault.
    """
    raised, faults = faults is None, Faults() if faults is None else faults
    folders = _Folders([*videos, *others])
    found: dict[Path, LabelFiles] = {}
    for video in videos:
        with faults.caught():
            found[video] = _find(video, folders)
    owners: dict[Path, Path] = {}
    for video in others:
        for folder in label_folders(video):
            owners |= dict.fromkeys(_places(video, folder).values(), video)
    for video, labels in found.items():
        if (owner := owners.setdefault(labels.place, video)) != video:
            faults.add(f"{owner} and {video}: both have the labels {labels.place}; rename one")
    if raised:
        faults.raise_if_any()
    return found


def label_folders(video: Path) -> list[Path]:
    """The folders in which a video's labels may be."""
    parts = video.parent.parts
    places = [place for place, part in enumerate(parts) if part in REPLACED]
    if not places:
        return [video.parent]
    return [Path(*parts[: places[-1]], "labels", *parts[places[-1] + 1 :]), video.parent]


def label_places(named: Path) -> list[Path]:
    """Existing folders and files that have the labels of a video, or of a folder of videos.

    Args:
        named: the video or folder; what lies below the folder is left out.
    """
    if named.is_dir():
        return [folder for folder in label_folders(named / "clip.mp4")[:-1] if folder.is_dir()]
    clip = named.with_suffix("")
    beside = [place for place in (clip, clip.with_name(f"{clip.name}.txt")) if place.exists()]
    if any(
        OF_CLIP.fullmatch(text.name) for text in named.parent.glob(f"{escape(clip.name)}_*.txt")
    ):
        beside.append(named.parent)
    return [*(folder for folder in label_folders(named)[:-1] if folder.is_dir()), *beside]


class _Folders:
    """The names in folders of labels, each folder listed once for all videos."""

    def __init__(self, videos: Iterable[Path]) -> None:
        self._names: dict[Path, list[str]] = {}
        self._clips: dict[Path, dict[str, list[tuple[int, Path]]]] = {}
        self._videos = {(folder, video.stem) for video in videos for folder in label_folders(video)}

    def names(self, folder: Path) -> list[str]:
        """The sorted names in a folder; none if it does not exist."""
        if folder not in self._names:
            self._names[folder] = sorted(os.listdir(folder)) if folder.is_dir() else []
        return self._names[folder]

    def clips(self, folder: Path) -> Mapping[str, list[tuple[int, Path]]]:
        """Texts such as `clip_000123.txt` in a folder, by clip."""
        if folder not in self._clips:
            # `clip_1.txt` is the sequence of `clip_1.mp4` if there is such a video.
            beside = {Path(name).stem for name in self.names(folder) if is_video(Path(name))}
            clips = self._clips[folder] = defaultdict(list)
            for name in self.names(folder):
                match, stem = OF_CLIP.fullmatch(name), name.removesuffix(".txt")
                if match and stem not in beside and (folder, stem) not in self._videos:
                    clips[match[1]].append((int(match[2]), folder / name))
        return self._clips[folder]

    def numbered(self, folder: Path, pattern: re.Pattern[str]) -> list[tuple[int, Path]]:
        """Texts of a folder whose names match, with the number in the name."""
        matches = ((pattern.fullmatch(name), name) for name in self.names(folder))
        return [(int(match[1]), folder / name) for match, name in matches if match]


def _find(video: Path, folders: _Folders) -> LabelFiles:
    """The labels of one video.

    Raises:
        UserError: see `find_labels`.
    """
    found = [each for folder in label_folders(video) for each in _in_folder(video, folder, folders)]
    faults = Faults()
    if not found:
        faults.add(
            f"{video}: has no labels; expected one of: "
            + ", ".join(
                str(text) for folder in label_folders(video) for text in _expected(video, folder)
            )
        )
    if len(found) > 1:
        faults.add(
            f"{video}: has labels in {len(found)} layouts: "
            f"{' and '.join(str(each.place) for each in found)}; keep one"
        )
    faults.raise_if_any()
    return found[0]


def _in_folder(video: Path, folder: Path, folders: _Folders) -> list[LabelFiles]:
    clip, places = folder / video.stem, _places(video, folder)
    texts: dict[LabelLayout, list[tuple[int, Path]]] = {
        "folder": folders.numbered(clip, OF_FRAME),
        "cvat": folders.numbered(clip, OF_CVAT),
        "beside": folders.clips(folder).get(video.stem, []),
    }
    found = [
        LabelFiles(video, layout, places[layout], _by_number(video, numbered))
        for layout, numbered in texts.items()
        if numbered
    ]
    if places["sequence"].name in folders.names(folder):
        found.append(LabelFiles(video, "sequence", places["sequence"]))
    return found


def _places(video: Path, folder: Path) -> dict[LabelLayout, Path]:
    """Where a video's labels would be in a folder, by layout: what messages name."""
    clip = folder / video.stem
    return {
        "folder": clip / "NUMBER.txt",
        "cvat": clip / "frame_NUMBER.txt",
        "beside": folder / f"{video.stem}_NUMBER.txt",
        "sequence": folder / f"{video.stem}.txt",
    }


def _by_number(video: Path, numbered: Iterable[tuple[int, Path]]) -> dict[int, Path]:
    faults, found = Faults(), {}
    for number, text in numbered:
        if (other := found.setdefault(number, text)) != text:
            faults.add(f"{video}: {other} and {text} have the number {number}; remove one")
    faults.raise_if_any()
    return found


def _expected(video: Path, folder: Path) -> list[Path]:
    """Examples of label files."""
    clip = folder / video.stem
    return [
        clip / "000000.txt",
        clip / "frame_000000.txt",
        folder / f"{video.stem}_000000.txt",
        folder / f"{video.stem}.txt",
    ]
