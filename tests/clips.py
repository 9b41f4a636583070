"""Data sets of videos for tests and benchmarks: coloured shapes that move, and their labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.videos import HEIGHT, WIDTH, picture
from yolods.data.index.image_files import CheckOptions
from yolods.data.scan import Scan, scan
from yolods.data.spec import read_spec
from yolods.system.folders import cache_dir

RED, GREEN, BLUE = (40, 40, 220), (40, 200, 40), (220, 80, 40)
CLASSES = {"square": RED, "disc": GREEN, "triangle": BLUE}
FOURCC = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".webm": "VP80"}


def make_clips(root: Path, clips: Mapping[str, int], size: tuple[int, int] = (96, 128)) -> Path:
    """Write videos and their labels below `root`, and return a data yaml without splits.

    Args:
        root: the data set's folder.
        clips: frames of each video, by its path below `videos`, such as "train/a.mp4".
        size: (height, width) of the frames in pixels.
    """
    for number, (name, frames) in enumerate(clips.items()):
        video = root / "videos" / name
        labels = (root / "labels" / name).with_suffix("")
        for folder in (video.parent, labels):
            folder.mkdir(parents=True, exist_ok=True)
        scene = Scene(number, size)
        _write(video, [scene.frame(k) for k in range(frames)])
        for k in range(frames):
            (labels / f"{k:06}.txt").write_text(scene.label(k))
    names = ", ".join(CLASSES)
    path = root / "clips.yaml"
    path.write_text(f"names: [{names}]\n")
    return path


def with_splits(yaml: Path, text: str, name: str = "set.yaml") -> Path:
    """A copy of a yaml with further lines."""
    path = yaml.with_name(name)
    path.write_text(yaml.read_text() + text)
    return path


NUMBERED_SPLITS = "train: videos\nval: more\nnames: [a]\nbase: 0\n"


def numbered_set(root: Path) -> Path:
    """Two numbered clips for train, one for val, and their `set.yaml`; returns the folder."""
    numbered_clip(root / "videos/a.mp4", 6)
    numbered_clip(root / "videos/b.avi", 5)
    numbered_clip(root / "more/videos/v.mp4", 3)
    (root / "set.yaml").write_text(NUMBERED_SPLITS)
    return root


def look(root: Path, split: str = "train", **options: Any) -> Scan:
    """A split of a set's `set.yaml`, opened as one rank of a host does."""
    checks = CheckOptions(progress=True, **options)
    return scan(read_spec(root / "set.yaml"), split, cache=cache_dir() / "index", options=checks)


def packs() -> list[Path]:
    """The packs of videos in the cache."""
    return sorted((cache_dir() / "videos").rglob("*.pack"))


def numbered_clip(path: Path, frames: int, layout: str = "folder", base: int = 0) -> Path:
    """A video whose frames show their number (`tests.videos.shown_number`), with labels.

    Each frame has one box, whose centre tells the number as well: x is number / 1024.

    Args:
        path: the video.
        frames: their number, up to 1024.
        layout: of the labels.
        base: the number of the first frame in them.
    """
    labels = path.parent.parent / "labels"
    clip = labels / path.stem
    for folder in (path.parent, labels if layout in ("beside", "sequence") else clip):
        folder.mkdir(parents=True, exist_ok=True)
    _write(path, [picture(number) for number in range(frames)])
    if layout == "sequence":
        clip.with_suffix(".txt").write_text(
            "".join(_sequence_line(number, base) for number in range(frames))
        )
        return path
    name = {"folder": "{}/{:06}.txt", "cvat": "{}/frame_{:06}.txt", "beside": "{}_{:06}.txt"}[
        layout
    ]
    for number in range(frames):
        text = labels / name.format(path.stem, number + base)
        text.write_text(f"0 {number / 1024} 0.5 0.1 0.1\n")
    return path


def told_number(box: np.ndarray) -> int:
    """The number that a box of a numbered clip tells: (5,) class, centre x, centre y, w, h."""
    return round(float(box[1]) * 1024)


def _sequence_line(number: int, base: int) -> str:
    """MOT's line of a frame; the box may reach over the border, where it is cut."""
    x, w, h = number / 1024 * WIDTH, 0.001 * WIDTH, 0.1 * HEIGHT
    return f"{number + base},1,{x - w / 2:.6f},{0.45 * HEIGHT:.6f},{w:.6f},{h:.6f},1,1,1\n"


class Scene:
    """Shapes that cross a background of their own, each on a straight way that ends at walls."""

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        height, width = size
        random = np.random.default_rng(seed)
        self._size = size
        ground = random.integers(70, 150, (height // 12, width // 12, 3), dtype=np.uint8)
        self._ground = cv2.resize(ground, (width, height), interpolation=cv2.INTER_CUBIC)
        self._half = random.uniform(0.1, 0.17, len(CLASSES)) * height
        self._start = random.uniform(0, 2, (len(CLASSES), 2))
        self._speed = random.uniform(0.01, 0.04, (len(CLASSES), 2))

    def frame(self, number: int) -> np.ndarray:
        """(h, w, 3) uint8 BGR."""
        image = self._ground.copy()
        for kind, (x, y, half) in enumerate(self._boxes(number)):
            _draw(image, kind, round(x), round(y), round(half))
        return image

    def label(self, number: int) -> str:
        """The lines of a frame's text."""
        height, width = self._size
        return "".join(
            f"{kind} {x / width:.6f} {y / height:.6f} {2 * half / width:.6f} "
            f"{2 * half / height:.6f}\n"
            for kind, (x, y, half) in enumerate(self._boxes(number))
        )

    def _boxes(self, number: int) -> list[tuple[float, float, float]]:
        """Centre x and y, and half of the side, in pixels."""
        height, width = self._size
        way = (self._start + number * self._speed) % 2
        back_and_forth = np.minimum(way, 2 - way)
        return [
            (half + x * (width - 2 * half), half + y * (height - 2 * half), half)
            for (x, y), half in zip(back_and_forth.tolist(), self._half.tolist(), strict=True)
        ]


def _draw(image: np.ndarray, kind: int, x: int, y: int, half: int) -> None:
    colour = list(CLASSES.values())[kind]
    if kind == 0:
        cv2.rectangle(image, (x - half, y - half), (x + half, y + half), colour, -1)
    elif kind == 1:
        cv2.circle(image, (x, y), half, colour, -1)
    else:
        corners = np.array([[x, y - half], [x - half, y + half], [x + half, y + half]])
        cv2.fillPoly(image, [corners], colour)


def _write(path: Path, frames: list[np.ndarray]) -> None:
    height, width = frames[0].shape[:2]
    code = cv2.VideoWriter_fourcc(*FOURCC[path.suffix])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 25, (width, height))
    assert writer.isOpened(), f"OpenCV cannot write {path.suffix}"
    for frame in frames:
        writer.write(frame)
    writer.release()
