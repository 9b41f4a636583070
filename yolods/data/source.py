"""The source of a split's images: an interface of three methods, and its implementation for image
files.

A sample has an identity, a string that is unique in its source and does not depend on where the
source is stored. Batches (under ultralytics' key `im_file`), the quarantine, predictions and a
checkpoint's fingerprint of the data set name samples by it; `place` turns it into what a user would
look for.

Nothing heavy is imported at the top, because `spec` needs `SOURCES` before any process starts.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from yolods.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from yolods.data.verify import CheckedPair


class Unreadable(Exception):
    """An image that was intact when it was checked and cannot be read now."""


class Source(Protocol):
    """The samples of one split. Loader processes have copies of it."""

    def read(self, identity: str) -> np.ndarray:
        """The decoded image, (h, w, channels) uint8, colours as BGR; the caller may write into it.

        Raises:
            Unreadable: it can no longer be read.
        """

    def place(self, identity: str) -> str:
        """The sample's name in messages: the file, and the place in a file with several samples."""

    def fingerprint(self, identity: str) -> tuple[int, int]:
        """The sample's size in bytes and modification time in ns; (-1, -1) if it is gone."""


Opener = Callable[[tuple[Path, ...], Any], "tuple[Source, list[CheckedPair]]"]
"""Takes the paths that a data yaml names for a split, and the yaml's `DataSpec`; returns their
source and one `CheckedPair` with its `id` per sample, in the same order on every rank."""

SOURCES: dict[str, str] = {}
"""Suffixes of further files that a data yaml may name, with their `Opener` as `module:function`."""


def opener_of(paths: Sequence[Path]) -> Opener | None:
    """The opener for the paths that a yaml names for a split; None: image files, checked by `scan`.

    Raises:
        UserError: the paths are of several kinds.
    """
    kinds = {path.suffix: SOURCES.get(path.suffix) for path in paths}
    if len({*kinds.values()}) > 1:
        raise UserError(f"{', '.join(map(str, paths))}: a split must have one kind of source")
    named = next(iter(kinds.values()), None)
    if named is None:
        return None
    module, _, function = named.partition(":")
    return getattr(importlib.import_module(module), function)


_DOTS = re.compile(r"(^|/)\.{0,2}(/|$)")
"""Matches a path with an empty part, `.` or `..`."""


class ImageFiles:
    """A `Source` of one file per image.

    An identity is a path below the data set's folder, so that a set may be moved.
    """

    def __init__(self, files: Sequence[str], root: Path, channels: int) -> None:
        """
        Args:
            files: image files; one may occur several times.
            root: the data set's folder.
            channels: 1 for grey, 3 for colour; other numbers: as the file has them.
        """
        self._channels = channels
        self._files: dict[str, str] = {}
        top = os.path.join(os.path.abspath(root), "")
        self.ids = [self._add(file, _below(file, top)) for file in files]
        """The identities, one per file in the same order."""

    def _add(self, file: str, below: str) -> str:
        """Note a file and return its identity."""
        known = self._files.setdefault(below, file)
        # `..` after a link leads elsewhere, so two paths with the same text may name two files.
        identity = (
            below if known == file or os.path.realpath(known) == os.path.realpath(file) else file
        )
        self._files.setdefault(identity, file)
        return identity

    def read(self, identity: str) -> np.ndarray:
        """See `Source.read`."""
        import cv2
        from ultralytics.utils.patches import imread

        flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(
            self._channels, cv2.IMREAD_UNCHANGED
        )
        file = self._files[identity]
        try:
            image = imread(file, flags=flag)
        except (OSError, ValueError, cv2.error) as error:
            raise Unreadable(file) from error
        if image is None:
            raise Unreadable(file)
        return image[..., None] if image.ndim == 2 else image

    def place(self, identity: str) -> str:
        """The file, as the yaml spells it."""
        return self._files[identity]

    def fingerprint(self, identity: str) -> tuple[int, int]:
        """See `Source.fingerprint`."""
        try:
            stat = os.stat(self._files[identity])
        except OSError:  # removed since the scan; the loader reports it
            return -1, -1
        return stat.st_size, stat.st_mtime_ns


def _below(file: str, top: str) -> str:
    """`os.path.relpath`, but ten times as fast for plain paths: a large set has many files."""
    rest = file[len(top) :]
    return os.path.relpath(file, top) if not file.startswith(top) or _DOTS.search(rest) else rest


def by_identity(named: Mapping[str, int], ids: Sequence[str], source: Source) -> dict[str, int]:
    """Counts by identity. Old checkpoints have them by place; these are converted."""
    if not named:
        return {}
    places = {source.place(identity): identity for identity in ids}
    found: dict[str, int] = {}
    for name, value in named.items():
        identity = places.get(name, name)
        found[identity] = found.get(identity, 0) + value
    return found
