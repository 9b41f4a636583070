"""Assigns whole videos to splits, and refuses a video in two of them.

Frames of one video are nearly alike, so a validation set with frames of training videos measures
nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

from yolods.errors import Faults, UserError
from yolods.system.humanize import plural

HASHED_BYTES = 1 << 20
"""Videos of equal size and with equal first bytes, this many, are one video."""


def split_by_video(
    videos: Sequence[Path], shares: Mapping[str, float], *, root: Path, seed: int = 0
) -> dict[str, list[Path]]:
    """Assign each video to one split: `shares` of their number, and the rest to "train".

    Videos are assigned in the order of a hash of the seed and their path below `root`. So the
    result does not depend on where the data set is, and a new video moves few others.

    Args:
        videos: all videos.
        shares: each split but "train", and its share in (0, 1).
        root: the data set's folder.
        seed: another seed gives another split.

    Returns:
        The videos of "train" and of each split of `shares`, at least one, in the order of `videos`.

    Raises:
        UserError: a share is not in (0, 1), nothing is left for "train", or there are fewer videos
            than splits.
    """
    faults = Faults()
    for name, share in shares.items():
        if name == "train" or not 0 < share < 1:
            faults.add(
                f"split: {name}: {share} is not a share between 0 and 1 of a split but train"
            )
    if not faults and sum(shares.values()) >= 1:
        faults.add(f"split: the shares add up to {sum(shares.values()):g}; leave some for train")
    if len(videos) <= len(shares):
        faults.add(
            f"split: {plural(len(videos), 'video')} cannot be split by video into "
            f"{', '.join(['train', *shares])}; each split needs at least one"
        )
    faults.raise_if_any()
    order = sorted(videos, key=lambda video: _hashed(f"{seed} {os.path.relpath(video, root)}"))
    chosen: dict[Path, str] = {}
    for name, count in _counts(len(videos), shares).items():
        chosen |= dict.fromkeys(order[len(chosen) : len(chosen) + count], name)
    return {
        name: [video for video in videos if chosen.get(video, "train") == name]
        for name in ("train", *shares)
    }


def refuse_shared(splits: Mapping[str, Sequence[Path]]) -> None:
    """Refuse a video that is in two splits, under one name, by a link, or as a copy.

    Raises:
        UserError: one line per video.
    """
    faults = Faults()
    named = [(name, video) for name, videos in splits.items() for video in videos]
    for group in _same(named):
        if len({name for name, _ in group}) > 1:
            places = " and ".join(f"{name}: {video}" for name, video in group)
            faults.add(f"one video is in several splits: {places}; keep it in one")
    faults.raise_if_any()


def _counts(videos: int, shares: Mapping[str, float]) -> dict[str, int]:
    """The number of videos of each split but "train"; at least one is left for that."""
    counts = {name: max(1, round(share * videos)) for name, share in shares.items()}
    while sum(counts.values()) >= videos:
        counts[max(counts, key=lambda name: counts[name])] -= 1
    return counts


def _hashed(text: str) -> bytes:
    return blake2b(os.fsencode(text), digest_size=16).digest()


def _same(named: Sequence[tuple[str, Path]]) -> Iterator[list[tuple[str, Path]]]:
    """Groups of entries that are one video."""
    by_size: dict[int, list[tuple[str, Path]]] = {}
    for name, video in named:
        by_size.setdefault(_size(video), []).append((name, video))
    for alike in by_size.values():
        if len(alike) > 1:
            groups: dict[bytes, list[tuple[str, Path]]] = {}
            for name, video in alike:
                groups.setdefault(_start(video), []).append((name, video))
            yield from groups.values()


def _size(video: Path) -> int:
    try:
        return video.stat().st_size
    except OSError as error:
        raise UserError(f"{video}: cannot be read: {error}") from error


def _start(video: Path) -> bytes:
    """A hash of the first bytes."""
    with video.open("rb") as stream:
        return blake2b(stream.read(HASHED_BYTES), digest_size=16).digest()
