"""The index of a split of image files: the newest one if no file has changed, else a new one."""

from __future__ import annotations

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.data.utils import img2label_paths

from yolods.data.images.listing import find_images, unused_lines
from yolods.data.index.builds import IndexStore
from yolods.data.index.checks import Earlier, FilePair, check_pairs
from yolods.data.index.freshness import (
    ALL,
    CHANGE_COLUMNS,
    DRAWN,
    Surroundings,
    change,
    parents,
    surroundings,
)
from yolods.data.index.table import Index
from yolods.data.source import ImageFiles, identities
from yolods.data.spec import DataSpec
from yolods.data.verify import Problem
from yolods.errors import UserError
from yolods.system.bar import counting_bar

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckOptions:
    """How files are checked; nothing of it affects the result."""

    workers: int = 1
    """Processes that check files."""
    every: bool = False
    """Compare every file with an earlier check, and not only a sample of a large split."""
    progress: bool = False
    """Show a bar, and say what is done."""
    trusted: bool = False
    """Another process of this host has just compared; open what it has left."""


@dataclass(frozen=True)
class OpenedFiles:
    """Checked image files of a split."""

    source: ImageFiles
    """The files."""
    list_problems: tuple[Problem, ...]
    """Lines in .txt lists that name no image file."""
    named_again: int
    """How often the yaml names an image that it has already named."""
    videos: int
    """Number of videos in the folders of images."""


def open_files(
    spec: DataSpec, split: str, folder: Path, fraction: float, options: CheckOptions
) -> OpenedFiles:
    """Check a split's files, or those that have changed since the last check.

    Args:
        spec: the data yaml.
        split: 'train', 'val' or 'test'.
        folder: of this split's index, in the cache.
        fraction: in (0, 1], the share of the sorted images to use; above 1, their number.
        options: how files are checked.

    Raises:
        UserError: a source is missing, or there is no image.
    """
    cache, spare = IndexStore(folder), IndexStore(temporary(folder.name))
    # Where the cache had no room, what it has is older; a build in the cache removes the spare one.
    index = spare.newest() or cache.newest()
    changed = _changed(index, spec, options) if index else "no index"
    if changed:
        if index and options.progress:
            log.info("%s: %s has changed since the last check; checking again", split, changed)
        index = _build_somewhere(cache, spare, spec, split, fraction, index, options)
    known = index.counts.further
    return OpenedFiles(
        _files(index, spec),
        tuple(Problem(*each) for each in known["list_problems"]),
        known["named_again"],
        known["videos"],
    )


def _files(index: Index, spec: DataSpec) -> ImageFiles:
    return ImageFiles(index, spec.root, spec.channels, index.counts.further["spelled"])


def _changed(index: Index, spec: DataSpec, options: CheckOptions) -> str:
    """What has changed since the index was made; "" if nothing is found."""
    if options.trusted:
        return ""
    place, ids = _files(index, spec).place, index.ids

    def files_of(row: int) -> tuple[str, str]:
        file = place(ids[row])
        return file, img2label_paths([file])[0]

    before = Surroundings(**index.counts.further["surroundings"])
    if options.progress and index.counts.images > ALL and not options.every:
        log.info(
            "%d of %d images are compared with the last check, and the times of all folders; "
            "--check-data compares all",
            DRAWN,
            index.counts.images,
        )
    return change(index, before, files_of, every=options.every)


def temporary(name: str) -> Path:
    """This user's folder for an index while the cache has no room for it."""
    return Path(tempfile.gettempdir()) / f"yolods-{os.getuid()}" / name


def _build_somewhere(cache: IndexStore, spare: IndexStore, *what: Any) -> Index:
    try:
        index = _build(cache, *what)
        spare.remove()
        return index
    except OSError as error:
        log.warning("could not store the result of the data check in the cache: %s", error)
    try:
        return _build(spare, *what)
    except OSError as error:
        raise UserError(
            f"no room for the index of the data: {error}; free some, or name another cache with "
            "YOLODS_CACHE"
        ) from error


def _build(
    store: IndexStore,
    spec: DataSpec,
    split: str,
    fraction: float,
    earlier: Index | None,
    options: CheckOptions,
) -> Index:
    paths = spec.sources(split)
    found = find_images(paths)
    files = first_of(found.files, fraction)
    labels = img2label_paths(files)
    around = surroundings(
        [*found.folders, *parents(files), *parents(labels)],
        [str(path) for path in paths if path.suffix == ".txt"],
    )
    ids, spelled = identities(files, spec.root)
    pairs = [FilePair(*each) for each in zip(ids, files, labels, strict=True)]
    with (
        store.build(CHANGE_COLUMNS) as writer,
        counting_bar(f"checking {split}", len(pairs), "images", shown=options.progress) as bar,
    ):
        before = earlier and Earlier(earlier, options.every)
        for block in check_pairs(pairs, spec.keypoints, before, options.workers, bar.update):
            writer.add(block)
        unused = unused_lines(paths)
        writer.counts.further |= {
            "surroundings": around.as_dict(),
            "spelled": spelled,
            "named_again": found.named_again,
            "videos": found.videos,
            "list_problems": [_unused(*each) for each in unused],
        }
    index = store.newest()
    assert index is not None
    return index


def first_of(samples: Any, fraction: float) -> Any:
    """The first samples of a sequence: a share of it up to 1, a number above."""
    count = int(fraction) if fraction > 1 else max(1, round(len(samples) * fraction))
    return samples[:count]


def _unused(file: Path, line: int, text: str) -> tuple[str, int, str]:
    return str(file), line, f"{text[:100]!r} is not the name of an image file; line ignored"
