"""Looks for leaks between the splits of a data set: hashes beside the index, a line, a sheet."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from yolods.data.index.checks import scan_workers
from yolods.data.index.image_files import CheckOptions
from yolods.data.leaks.hashing import Hashes, hash_images
from yolods.data.leaks.search import near_pairs
from yolods.data.leaks.sheet import draw_sheet
from yolods.data.leaks.warning import SplitImages, warning_lines
from yolods.data.pack.sample import group_name
from yolods.data.scan import Scan, scan
from yolods.data.spec import DataSpec
from yolods.data.video.packing.opener import unpacked_videos
from yolods.errors import Faults
from yolods.system.files import replace_file
from yolods.system.humanize import plural

HASHES_FILE = "hashes-1.npy"
"""Beside the index; its number grows with every change of the hash."""
AT_ONCE = 20_000
"""Images that are hashed without being asked for: about two minutes on one core."""


def look_for_leaks(
    spec: DataSpec, cache: Path, *, asked: bool = False, progress: bool = False
) -> list[str]:
    """Lines about near-duplicates between train and val; [] if there are none.

    Args:
        spec: the data yaml; its images are there.
        cache: the cache folder, for the index, the hashes and the sheet.
        asked: look however many images there are.
        progress: show bars.

    Raises:
        UserError: the data cannot be used.
    """
    faults, videos = Faults(), 0
    for split in ("train", "val"):
        with faults.caught():
            videos += unpacked_videos(spec, split, scan_workers(1))
    faults.raise_if_any()
    if videos and not asked:
        return [
            f"leaks between the splits are looked for once {plural(videos, 'video')} have been "
            "packed, which the start of a run does; --leaks packs them now"
        ]
    checks = CheckOptions(scan_workers(1), progress=progress)
    scans = [
        scan(spec, split, cache=cache / "index", single_cls=True, options=checks)
        for split in ("train", "val")
    ]
    count = sum(len(each.labels) for each in scans)
    if count > AT_ONCE and not asked:
        return [
            f"leaks between the splits of {plural(count, 'image')} are looked for with --leaks; "
            f"it takes about {count / AT_ONCE * 2:.0f} minutes of one core"
        ]
    sheet = cache / "leaks" / f"{_name(spec)}.jpg"
    return leaks_between(scans[0], scans[1], sheet, progress=progress)


def leaks_between(train: Scan, val: Scan, sheet: Path, *, progress: bool = False) -> list[str]:
    """Lines about near-duplicates between two splits; [] if there are none.

    Args:
        train: the training split.
        val: the other one.
        sheet: a picture of the nearest pairs, which is drawn if there are any; an earlier one is
            removed otherwise.
        progress: show bars.

    Raises:
        UserError: a process died.
    """
    hashes = [_hashes(each, progress) for each in (train, val)]
    images = [_images(each) for each in (train, val)]
    pairs = near_pairs(hashes[0].values, hashes[1].values)
    lines = warning_lines(pairs, images[0], images[1])
    if pairs:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(pairs, images[0], images[1], sheet)
        lines.append(f"the nearest pairs side by side: {sheet}")
    else:
        sheet.unlink(missing_ok=True)
    left_out = (each.left_out(one.split) for each, one in zip(hashes, images, strict=True))
    return [*lines, *filter(None, left_out)]


def _hashes(found: Scan, progress: bool) -> Hashes:
    """The hashes of a split's images, kept beside their index, which names every change of a
    file."""
    file = found.index.notes / HASHES_FILE
    with suppress(OSError, ValueError):
        kept = np.load(file, allow_pickle=False)
        if kept.shape == (len(found.labels) + 1, 4):
            return Hashes(kept[1:], int(kept[0, 0]))
    text = f"hashing {found.split}" if progress else ""
    rows: Sequence[int] = [int(row) for row in found.labels.rows]
    made = hash_images(found.source.read, rows, workers=scan_workers(1), progress=text)
    first = np.array([[made.unreadable, 0, 0, 0]], np.uint64)
    with suppress(OSError):  # without room, the next look hashes again
        whole = np.concatenate([first, made.values])
        replace_file(file, lambda stream: np.save(stream, whole), shared=True)
    return made


def _images(found: Scan) -> SplitImages:
    rows, ids, source = found.labels.rows, found.index.ids, found.source
    names = [ids[int(row)] for row in rows]
    groups: Sequence[str] = ()
    if "group" in found.index.columns.names:
        numbers = found.index.columns["group"][np.asarray(rows)].tolist()
        groups = [group_name(name, number) for name, number in zip(names, numbers, strict=True)]
    return SplitImages(found.split, names, lambda place: source.read(int(rows[place])), groups)


def _name(spec: DataSpec) -> str:
    digest = hashlib.blake2b(os.fsencode(str(spec.yaml)), digest_size=8).hexdigest()
    return f"{spec.yaml.stem}-{digest}"
