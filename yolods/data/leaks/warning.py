"""What a user is told about near-duplicate pairs: by image, or by group where a group is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from yolods.data.leaks.hashing import HASH_BITS
from yolods.data.leaks.search import Pair
from yolods.system.humanize import plural

NEAREST_NAMED = 3
"""Pairs, or groups of pairs, that a warning names."""

BY_GROUP = "split by group (such as a video), not by image"
BY_IMAGE = "remove one image of each pair; if they are frames of a video, split by video"


@dataclass(frozen=True)
class SplitImages:
    """A split's images, by the rows that `Pair` has."""

    split: str
    """'train', 'val' or 'test'."""
    names: Sequence[str]
    """The name of each image in messages."""
    read: Callable[[int], np.ndarray]
    """Returns the decoded image of a row, as `Source.read`; raises `Unreadable`."""
    groups: Sequence[str] = ()
    """The group of each image, such as its video, "" if it has none; empty: no image has one."""

    def group(self, row: int) -> str:
        """The group of an image; "" if it has none."""
        return self.groups[row] if len(self.groups) else ""


@dataclass(frozen=True)
class Leak:
    """A pair, or all pairs of the same two groups."""

    nearest: Pair
    """The pair, or the nearest of them."""
    images: int
    """Number of validation images."""
    groups: tuple[str, str] | None
    """The groups of the training and the validation images; None for a pair of images."""

    @property
    def one_group(self) -> bool:
        """Whether both splits have images of one group."""
        return self.groups is not None and self.groups[0] == self.groups[1]

    @property
    def group(self) -> str:
        """The name of the groups, that of the validation images first; "" for a pair of images."""
        return " and ".join(dict.fromkeys(reversed(self.groups))) if self.groups else ""

    @property
    def size(self) -> str:
        """The distance, and of groups the number of images."""
        bits = f"{self.nearest.bits} of {HASH_BITS} bits apart"
        return f"{plural(self.images, 'image')}, {bits} at the nearest" if self.groups else bits

    def text(self, train: SplitImages, val: SplitImages) -> str:
        """Names and size."""
        images = f"{val.names[self.nearest.val]} and {train.names[self.nearest.train]}"
        return f"{self.group or images} ({self.size})"


def leaks_of(pairs: Sequence[Pair], train: SplitImages, val: SplitImages) -> list[Leak]:
    """The pairs, in their order; those of the same two groups are one, at the place of its first.

    Args:
        pairs: from `near_pairs`, the nearest first.
        train: the images to which `Pair.train` refers.
        val: those to which `Pair.val` refers.
    """
    found: dict[tuple[str, str] | Pair, list[Pair]] = {}
    for pair in pairs:
        groups = (train.group(pair.train), val.group(pair.val))
        found.setdefault(groups if all(groups) else pair, []).append(pair)
    return [
        Leak(same[0], len(same), None if isinstance(key, Pair) else key)
        for key, same in found.items()
    ]


def warning_lines(pairs: Sequence[Pair], train: SplitImages, val: SplitImages) -> list[str]:
    """One line with the number of pairs, the nearest ones and the remedy; [] if there are none.

    The parameters are those of `leaks_of`.
    """
    if not pairs:
        return []
    found = leaks_of(pairs, train, val)
    remedies = [
        BY_GROUP if any(each.one_group for each in found) else "",
        BY_IMAGE if any(not each.one_group for each in found) else "",
    ]
    nearest = "; ".join(each.text(train, val) for each in found[:NEAREST_NAMED])
    return [
        f"{val.split}: {len(pairs)} of {plural(len(val.names), 'image')} "
        f"({len(pairs) / len(val.names):.1%}) nearly repeat {train.split} images, so metrics will "
        f"be too good; the nearest: {nearest}; {'; '.join(filter(None, remedies))}"
    ]
