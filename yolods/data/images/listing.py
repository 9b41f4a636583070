"""Finds the image files of a split's sources: folders, .txt lists and single files.

Needs only the standard library, so that it can run before any process starts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from yolods.data.video.entries import VIDEO_SUFFIXES
from yolods.errors import UserError

IMAGE_SUFFIXES = frozenset(
    (
        "avif",
        "bmp",
        "dng",
        "heic",
        "heif",
        "jp2",
        "jpeg",
        "jpg",
        "mpo",
        "png",
        "tif",
        "tiff",
        "webp",
    )
)


def list_images(sources: tuple[Path, ...]) -> list[str]:
    """Sorted image files of all sources: folders, .txt lists and single files.

    A list has one path per line; "./" refers to the list's folder, and the files need not exist. A
    file that is named several times is returned as often, as in ultralytics, because some users
    show rare images more often in this way.

    Raises:
        UserError: a source is missing, or there is no image.
    """
    return find_images(sources).files


class FoundImages(NamedTuple):
    """The image files of a split's sources."""

    files: list[str]
    """Sorted; see `list_images`."""
    named_again: int
    """How often the sources name a file that they have already named."""
    folders: list[str]
    """All folders that were searched, also those without images."""
    videos: int
    """Number of videos in these folders, which are not used."""


def find_images(sources: tuple[Path, ...]) -> FoundImages:
    """The result of `list_images`, and how it was found."""
    files: list[str] = []
    folders: list[str] = []
    videos: list[str] = []
    for source in sources:
        if not source.exists():
            raise UserError(f"{source} does not exist (named in the data yaml)")
        files.extend(images_in(source, folders, videos))
    if not files:
        raise UserError(
            f"no images in {', '.join(map(str, sources))}; known types: "
            f"{' '.join(sorted(IMAGE_SUFFIXES))}"
        )
    again = len(files) - len({place_of(each) for each in files})
    return FoundImages(sorted(files), again, folders, len(videos))


def unused_lines(sources: tuple[Path, ...]) -> list[tuple[Path, int, str]]:
    """Lines of .txt lists that name no image file: (list, line from 1, text). They are ignored."""
    lists = [source for source in sources if not source.is_dir() and not _is_image(str(source))]
    return [
        (source, number, line.strip())
        for source in lists
        for number, line in enumerate(_lines(source), 1)
        if line.strip() and not _is_image(line.strip())
    ]


def place_of(file: str) -> tuple[str, str]:
    """A key that is equal for two spellings of one file: its real folder and its name there."""
    folder, name = os.path.split(file)
    return _real(folder), name


@lru_cache(maxsize=4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)


def images_in(
    source: Path, folders: list[str] | None = None, videos: list[str] | None = None
) -> Iterator[str]:
    """Image files of one source. Folders that are searched are appended to `folders`, and videos in
    them to `videos`."""
    if source.is_dir():
        names = _files_below(str(source), [] if folders is None else folders)
    elif _is_image(str(source)):
        names = iter((str(source),))
    else:
        beside = str(source.parent) + os.sep
        names = (
            beside + x[2:] if x.startswith("./") else x
            for x in (line.strip() for line in _lines(source))
        )
    for name in names:
        if _is_image(name):
            yield name
        elif videos is not None and _suffix_of(name) in VIDEO_SUFFIXES:
            videos.append(name)


def _lines(source: Path) -> list[str]:
    return source.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")


def _files_below(top: str, searched: list[str]) -> Iterator[str]:
    """Files in a folder and below it, without hidden ones. Each real folder is searched once, and
    appended to `searched`.

    Links to folders are followed after the folders themselves, so that files appear under their
    real paths if these are below `top`. A link to one of its own parent folders is not followed,
    because it would lead to all files again, and to more.
    """
    seen: set[tuple[int, int]] = set()
    links = [top]
    while links:
        start = links.pop(0)
        for folder, below, files in os.walk(start):
            # Device and inode, because two links may lead to one folder by different paths.
            identity = _identity(folder)
            if identity in seen:
                below.clear()
                continue
            seen.add(identity)
            searched.append(folder)
            below[:] = sorted(name for name in below if not name.startswith("."))
            linked = [
                path
                for path in (os.path.join(folder, name) for name in below)
                if os.path.islink(path)
            ]
            links += [path for path in linked if not _above(path)]
            yield from (os.path.join(folder, name) for name in files if not name.startswith("."))


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _above(link: str) -> bool:
    """Whether a link leads to one of its own parent folders."""
    target = os.path.realpath(link)
    return os.path.commonpath((target, os.path.realpath(os.path.dirname(link)))) == target


def _is_image(name: str) -> bool:
    return _suffix_of(name) in IMAGE_SUFFIXES


def _suffix_of(name: str) -> str:
    return name.rpartition(".")[-1].lower()
