"""Where the images of a split come from: an interface of three questions about a sample, and the answers for files.

A sample is known by its identity, a string that says which one of its source it is, wherever the source lies. Batches
name samples by it (under ultralytics' key `im_file`), and so do quarantine, predictions and the record of a data set in
a checkpoint; `place` turns it into what a person would look for.

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
    """An image that was sound when it was checked and cannot be read now."""


class Source(Protocol):
    """Samples of one split. Loader processes have copies of it."""

    def read(self, identity: str) -> np.ndarray:
        """The decoded image, (h, w, channels) uint8, colours as BGR; the caller may write into it.

        Raises:
            Unreadable: it cannot be read any more.
        """

    def place(self, identity: str) -> str:
        """What messages call the sample: the file, and the place in it where it has several."""

    def fingerprint(self, identity: str) -> tuple[int, int]:
        """Bytes of the sample and when they were last written (ns): what tells it from another without reading it.
        (-1, -1) where it is gone."""


Opener = Callable[[tuple[Path, ...], Any], "tuple[Source, list[CheckedPair]]"]
"""Takes what a data yaml names for a split, and the yaml's `DataSpec`; gives their source, and a `CheckedPair` with its
`id` per sample, in the same order on every rank."""

SOURCES: dict[str, str] = {}
"""Endings of files that a data yaml may name beside folders, images and .txt lists, each with its `Opener` as
`module:function`."""


def opener_of(paths: Sequence[Path]) -> Opener | None:
    """What opens everything that a yaml names for a split; None: image files, which `scan` checks one by one.

    Raises:
        UserError: they are of several kinds.
    """
    kinds = {path.suffix: SOURCES.get(path.suffix) for path in paths}
    if len({*kinds.values()}) > 1:
        raise UserError(f"{', '.join(map(str, paths))}: of several kinds; a split has one kind of source")
    named = next(iter(kinds.values()), None)
    if named is None:
        return None
    module, _, function = named.partition(":")
    return getattr(importlib.import_module(module), function)


_DOTS = re.compile(r"(^|/)\.{0,2}(/|$)")
"""In a path: a part that names no file."""


class ImageFiles:
    """A `Source` of one file per image, known by its path below the data set's folder: of a set that was moved they are
    the same samples."""

    def __init__(self, files: Sequence[str], root: Path, channels: int) -> None:
        """
        Args:
            files: may name one several times.
            root: the data set's folder.
            channels: of the images: 1 grey, 3 colour; others as the file has them.
        """
        self._channels = channels
        self._files: dict[str, str] = {}
        top = os.path.join(os.path.abspath(root), "")
        self.ids = [self._add(file, _below(file, top)) for file in files]
        """One per file, in their order."""

    def _add(self, file: str, below: str) -> str:
        """Note a file and return its identity."""
        known = self._files.setdefault(below, file)
        # Beyond a link `..` leads elsewhere, so two paths that read alike may be of two files.
        identity = below if known == file or os.path.realpath(known) == os.path.realpath(file) else file
        self._files.setdefault(identity, file)
        return identity

    def read(self, identity: str) -> np.ndarray:
        """See `Source.read`."""
        import cv2
        from ultralytics.utils.patches import imread

        flag = {1: cv2.IMREAD_GRAYSCALE, 3: cv2.IMREAD_COLOR}.get(self._channels, cv2.IMREAD_UNCHANGED)
        file = self._files[identity]
        try:
            image = imread(file, flags=flag)
        except (OSError, ValueError, cv2.error) as error:
            raise Unreadable(file) from error
        if image is None:
            raise Unreadable(file)
        return image[..., None] if image.ndim == 2 else image

    def place(self, identity: str) -> str:
        """The file, as the yaml has it."""
        return self._files[identity]

    def fingerprint(self, identity: str) -> tuple[int, int]:
        """See `Source.fingerprint`."""
        try:
            stat = os.stat(self._files[identity])
        except OSError:  # gone since the scan; a loader will say so
            return -1, -1
        return stat.st_size, stat.st_mtime_ns


def _below(file: str, top: str) -> str:
    """`os.path.relpath`, ten times as fast for what is written plainly: of a large set every file is asked for."""
    rest = file[len(top) :]
    return os.path.relpath(file, top) if not file.startswith(top) or _DOTS.search(rest) else rest


def by_identity(named: Mapping[str, int], ids: Sequence[str], source: Source) -> dict[str, int]:
    """What is noted of samples, by their identities; where it was noted by their places, as checkpoints once did."""
    if not named:
        return {}
    places = {source.place(identity): identity for identity in ids}
    found: dict[str, int] = {}
    for name, value in named.items():
        identity = places.get(name, name)
        found[identity] = found.get(identity, 0) + value
    return found
