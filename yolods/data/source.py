"""The source of a split's images: an index and two methods, and its implementation for image files.

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

if TYPE_CHECKING:
    import numpy as np

    from yolods.data.index.table import Index


class Unreadable(Exception):
    """An image that was intact when it was checked and cannot be read now."""


class Source(Protocol):
    """The samples of one split. Loader processes have copies of it."""

    index: Index
    """What is known about each sample without reading it, by row."""
    side: int | None
    """Maximum of the images' long sides in pixels, if the source keeps larger ones scaled down to
    it; None: images are as they were checked."""

    def read(self, row: int) -> np.ndarray:
        """The decoded image, (h, w, channels) uint8, colours as BGR; the caller may write into it.

        Raises:
            Unreadable: it can no longer be read.
        """

    def place(self, identity: str) -> str:
        """The sample's name in messages: the file, and the place in a file with several samples."""


Opener = Callable[[Any], Source]
"""Opens a split, out of an `Opening` (scan.py)."""

VIDEOS = "videos"
"""The key of videos, and of folders of them, in `SOURCES`."""
SOURCES: dict[str, str] = {
    ".pack": "yolods.data.pack.packed:open_pack",
    VIDEOS: "yolods.data.video.packing.opener:open_videos",
}
"""What a data yaml may name beside images: suffixes of files and folders, or a kind of them, with
the `Opener` as `module:function`."""


def opener_of(kind: str) -> Opener:
    """The opener of a key of `SOURCES`."""
    module, _, function = SOURCES[kind].partition(":")
    return getattr(importlib.import_module(module), function)


_DOTS = re.compile(r"(^|/)\.{0,2}(/|$)")
"""Matches a path with an empty part, `.` or `..`."""


class ImageFiles:
    """A `Source` of one file per image.

    An identity is a path below the data set's folder, so that a set may be moved.
    """

    def __init__(
        self, index: Index, root: Path, channels: int, spelled: Mapping[str, str] | None = None
    ) -> None:
        """
        Args:
            index: the files' index.
            root: the data set's folder.
            channels: 1 for grey, 3 for colour; other numbers: as the file has them.
            spelled: files by those identities that are not the files' paths below `root`.
        """
        self.index, self.side = index, None
        self._root, self._channels = os.path.abspath(root), channels
        self._spelled = dict(spelled or {})

    def read(self, row: int) -> np.ndarray:
        """See `Source.read`."""
        from yolods.data.images.read import read_image

        file = self.place(self.index.ids[row])
        image = read_image(file, self._channels)
        if image is None:
            raise Unreadable(file)
        return image

    def place(self, identity: str) -> str:
        """The file, as the yaml spells it."""
        return self._spelled.get(identity) or _file_of(self._root, identity)


def identities(files: Sequence[str], root: Path) -> tuple[list[str], dict[str, str]]:
    """Identities of image files, and the files whose path is not their identity below `root`.

    Args:
        files: image files as the yaml spells them; one may occur several times.
        root: the data set's folder.
    """
    top = os.path.join(os.path.abspath(root), "")
    if all(file.startswith(top) and not _DOTS.search(file, len(top) - 1) for file in files):
        return [file[len(top) :] for file in files], {}
    known: dict[str, str] = {}
    spelled: dict[str, str] = {}
    found = []
    for file in files:
        below = os.path.relpath(file, top)
        first = known.setdefault(below, file)
        # `..` after a link leads elsewhere, so two paths with the same text may name two files.
        same = first == file or os.path.realpath(first) == os.path.realpath(file)
        if same and first != _file_of(top, below):
            spelled[below] = first
        found.append(below if same else file)
    return found, spelled


def _file_of(top: str, identity: str) -> str:
    """The file of an identity below, or beside, the folder `top`."""
    file = os.path.join(top, identity)
    return os.path.normpath(file) if identity.startswith("..") else file


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
