"""The sections of the measurement of leaks."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.leaks_scenes import (
    CHANGES,
    HEIGHT,
    PAN,
    TREMOR,
    WIDTH,
    fixed_camera,
    moving_camera,
    on_white,
)
from benchmarks.report import Spread
from yolods.data.images.listing import find_images
from yolods.data.images.read import read_image
from yolods.data.leaks.hashing import (
    FEWEST_SLOPES,
    GREY_LEVELS,
    HASH_BITS,
    PLAIN,
    bits_of,
    cell_rises,
    dhash,
    hash_images,
    slopes,
)
from yolods.data.leaks.search import MOST_BITS, near_pairs
from yolods.data.leaks.warning import SplitImages, warning_lines
from yolods.data.source import Unreadable, identities
from yolods.data.spec import DataSpec, read_spec

CLIPS, FRAMES, GAP = 4, 150, 30
"""Generated videos, frames of each, and frames left out between blocks."""
LAST = FRAMES // 4
"""Frames of the block that is for validation."""
COPIED = 40
"""Images of a set that are changed."""
DRAWINGS = 200
"""Drawings on white of each number of shapes."""
SEARCHED = (100_000, 10_000)
"""Training and validation hashes of the timed search."""

METHOD = f"""\
- A pair is warned of within {MOST_BITS} of {HASH_BITS} bits. An image is compared if it rises in
  {FEWEST_SLOPES} differences of cells by more than {GREY_LEVELS} grey levels, and falls in as many.
- *Nearest*: the distances in bits from validation images to their nearest training image, the ten
  smallest.
- *Videos*: {CLIPS} generated ones of {FRAMES} frames at {WIDTH}x{HEIGHT}. A moving camera pans by
  {PAN} pixels a frame over a place of its own; a fixed one trembles by {TREMOR:g} pixel. Shapes
  move through both; noise and JPEG quality 90. A quarter of the frames is validation: at random,
  or the last {LAST} of each video, directly or after {GAP} left out; or one whole video.
- *Drawings*: discs and squares at random places on white, {DRAWINGS} of each number of shapes;
  every two of a number are compared.
- *Times*: CPU time on one thread; median and extremes. *Hash*: of the decoded image."""

HEAD = [
    "| split | train | val | val images warned of | nearest |",
    "| --- | ---: | ---: | ---: | --- |",
]


@dataclass(frozen=True)
class Case:
    """A split, and whether it has to be warned of."""

    name: str
    train: np.ndarray
    """(n, 4) uint64 hashes."""
    val: np.ndarray
    """(m, 4) uint64 hashes."""
    warned: bool

    @property
    def row(self) -> str:
        """A row of the table."""
        bits = [pair.bits for pair in near_pairs(self.train, self.val, most_bits=HASH_BITS)]
        near = sum(each <= MOST_BITS for each in bits)
        told = f"{near} ({near / len(self.val):.1%})" if near else "none"
        ten = " ".join(map(str, bits[:10]))
        return f"| {self.name} | {len(self.train)} | {len(self.val)} | {told} | {ten} |"

    @property
    def right(self) -> bool:
        """Whether it is warned of, or not, as it should be."""
        return bool(near_pairs(self.train, self.val, limit=1)) == self.warned


@dataclass(frozen=True)
class Part:
    """A section of the record."""

    lines: list[str]
    cases: tuple[Case, ...] = ()


class Opened:
    """A data set's two splits with their hashes."""

    def __init__(self, yaml: Path) -> None:
        spec = read_spec(yaml)
        self.train, self.val = _images(spec, "train"), _images(spec, "val")
        self.hashes = {
            side.split: hash_images(side.read, range(len(side.names)), workers=1)
            for side in (self.train, self.val)
        }

    def warning(self) -> list[str]:
        """What a user is told."""
        pairs = near_pairs(self.hashes["train"].values, self.hashes["val"].values)
        return warning_lines(pairs, self.train, self.val)

    def left_out(self) -> str:
        """How many images are not compared, and how plain the plainest is."""
        sides = (self.train, self.val)
        rises = [cell_rises(side.read(row)) for side in sides for row in range(len(side.names))]
        return (
            f"{sum(each.plain for each in self.hashes.values())} images are too plain, "
            f"{sum(each.unreadable for each in self.hashes.values())} unreadable; "
            f"the plainest rises or falls {min(map(slopes, rises))} times"
        )


def _images(spec: DataSpec, split: str) -> SplitImages:
    files = find_images(spec.sources(split))[0]
    names, _ = identities(files, spec.root)

    def read(row: int) -> np.ndarray:
        if (image := read_image(files[row], spec.channels)) is None:
            raise Unreadable(files[row])
        return image

    return SplitImages(split, names, read)


def published(sets: Mapping[str, Opened], warned: Collection[str]) -> Part:
    """Splits as they are, with the warnings in full.

    Args:
        warned: names of those that have to be warned of.
    """
    cases = tuple(
        Case(name, found.hashes["train"].values, found.hashes["val"].values, name in warned)
        for name, found in sets.items()
    )
    return Part(
        [
            *("## Published splits", "", *HEAD, *(case.row for case in cases), ""),
            *(f"- {name}: {found.left_out()}" for name, found in sets.items()),
            *("", "The warning:", ""),
            *(f"    {line}" for found in sets.values() for line in found.warning()),
            "",
        ],
        cases,
    )


def copied(sets: Mapping[str, Opened]) -> Part:
    """How far changed copies are from their original."""
    rows = [
        f"## Changed copies of {COPIED} validation images",
        "",
        f"| median (min..max) bits apart | {' | '.join(sets)} |",
        f"| --- |{' ---: |' * len(sets)}",
    ]
    originals = [[found.val.read(row) for row in range(COPIED)] for found in sets.values()]
    for name, change in CHANGES.items():
        cells = [
            Spread.of(_apart(dhash(each), dhash(change(each))) for each in images).text(0)
            for images in originals
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return Part([*rows, ""])


def _apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.unpackbits((one ^ other).view(np.uint8)).sum())


def videos() -> Part:
    """Generated videos, split in several ways."""
    moving = [_hashed(moving_camera(seed, FRAMES)) for seed in range(CLIPS)]
    places = [_hashed(fixed_camera(seed, seed, FRAMES)) for seed in range(CLIPS)]
    one_place = [_hashed(fixed_camera(0, seed, FRAMES)) for seed in range(CLIPS)]
    gap = f"moving cameras, by block, {GAP} frames left out"
    cases = (
        Case("moving cameras, by frame at random", *_at_random(moving), warned=True),
        Case("moving cameras, by block", *_by_block(moving, 0), warned=True),
        Case(gap, *_by_block(moving, GAP), warned=False),
        Case("moving cameras, by video", *_by_video(moving), warned=False),
        Case("fixed cameras, by frame at random", *_at_random(places), warned=True),
        Case("fixed cameras, by video", *_by_video(places), warned=False),
        Case("one fixed camera, by video", *_by_video(one_place), warned=True),
    )
    return Part(
        [
            *("## Generated videos", "", *HEAD, *(case.row for case in cases), ""),
            "Neighbours at the border of two blocks are warned of. One fixed camera is warned of",
            "however its videos are split: both splits show the same place.",
            *("", "| moving camera, frames later | bits apart |", "| ---: | ---: |"),
            *(f"| {step} | {_frames_apart(moving, step).text(0)} |" for step in (1, 2, 5, 10, 20)),
            "",
        ],
        cases,
    )


def _hashed(frames: Iterable[np.ndarray]) -> np.ndarray:
    return np.array([dhash(frame) for frame in frames])


def _at_random(clips: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """A quarter of all frames for validation."""
    frames = np.concatenate(clips)
    order = np.random.RandomState(0).permutation(len(frames))
    return frames[order[len(frames) // 4 :]], frames[order[: len(frames) // 4]]


def _by_block(clips: Sequence[np.ndarray], gap: int) -> tuple[np.ndarray, np.ndarray]:
    """The end of each video for validation, and `gap` frames before it for nothing."""
    train = np.concatenate([clip[: len(clip) - LAST - gap] for clip in clips])
    return train, np.concatenate([clip[-LAST:] for clip in clips])


def _by_video(clips: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(clips[1:]), clips[0]


def _frames_apart(clips: Sequence[np.ndarray], step: int) -> Spread:
    later = [zip(clip, clip[step:], strict=False) for clip in clips]
    return Spread.of(_apart(one, other) for pairs in later for one, other in pairs)


def drawings() -> Part:
    """What the rule about plain images leaves out, and what would be taken for near without it."""
    rows = [
        "## Drawings on white",
        "",
        "| shapes | pairs | of them near | pairs left by the rule | of them near |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    rng = np.random.RandomState(1)
    for count in (1, 3, 5, 8, 12):
        images = [on_white(rng, count) for _ in range(DRAWINGS)]
        every = np.array([bits_of(cell_rises(image)) for image in images])
        kept = _hashed(images)
        kept = kept[(kept != PLAIN).any(1)]
        rows.append(f"| {count} | {_pairs_and_near(every)} | {_pairs_and_near(kept)} |")
    return Part([*rows, ""])


def _pairs_and_near(hashes: np.ndarray) -> str:
    bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, HASH_BITS // 8), axis=1)
    apart = [(bits[i] != bits[i + 1 :]).sum(1) for i in range(len(bits))]
    found = np.concatenate([*apart, np.zeros(0, int)])
    return f"{len(found)} | {(found <= MOST_BITS).sum()}"


def times() -> Part:
    """CPU time of a hash, of decoding beside it, and of the search."""
    cv2.setNumThreads(1)
    frame = next(moving_camera(0, 1))
    rows = [_time_row(cv2.resize(frame, size)) for size in ((1280, 720), (640, 480))]
    rng = np.random.default_rng(0)
    train, val = (rng.integers(1, 2**64, (count, 4), dtype=np.uint64) for count in SEARCHED)
    search, memory = _cpu(lambda: near_pairs(train, val), 1, 3), _most_memory(train, val)
    return Part(
        [
            *(
                "## Times",
                "",
                "| ms an image | decode | hash |",
                "| --- | ---: | ---: |",
                *rows,
                "",
            ),
            f"Search for the nearest of {SEARCHED[0]} random hashes to each of {SEARCHED[1]}:",
            f"{search.text(0)} ms of CPU time; {memory:.0f} MiB of memory at most.",
            "",
        ]
    )


def _time_row(image: np.ndarray) -> str:
    data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    decode = _cpu(lambda: cv2.imdecode(data, cv2.IMREAD_COLOR))
    hashed = _cpu(lambda: dhash(image))
    return f"| {image.shape[1]}x{image.shape[0]} | {decode.text(2)} | {hashed.text(2)} |"


def _most_memory(train: np.ndarray, val: np.ndarray) -> float:
    """MiB that a search takes beyond the hashes."""
    tracemalloc.start()
    near_pairs(train, val)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most / 2**20


def _cpu(work: Callable[[], object], repeats: int = 30, rounds: int = 9) -> Spread:
    """CPU milliseconds of a call."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(repeats):
            work()
        found.append((time.process_time() - began) / repeats * 1000)
    return Spread.of(found)
