"""Checks every image and label file of a split before training: keeps intact ones, lists faulty
ones, changes none.

The result is stored in yolods' cache folder and used again as long as no file's size or time
changes.
"""

import hashlib
import json
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.utils import img2label_paths

from yolods.data.source import ImageFiles, Source, opener_of
from yolods.data.spec import DataSpec, check_classes, find_images, place_of, unused_lines
from yolods.data.verify import CheckedPair, Problem, check_pair
from yolods.errors import UserError
from yolods.system.files import replace_file

VERSION = 2
"""Version of the cache's format and of the rules in verify.py; a new one voids old caches."""

LINES_SHOWN = 3
"""Maximum number of a list's lines in a warning."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """The intact images of a split with their boxes, and what was skipped."""

    split: str
    """'train', 'val' or 'test'."""
    labels: list[dict[str, Any]]
    """ultralytics' label dictionaries, one per image.

    Keys: im_file (its identity in `source`), shape (height, width), cls (n, 1) and bboxes (n, 4)
    float32 (normalised centre x, centre y, width, height), segments (list of (k, 2) float32).
    """
    problems: tuple[Problem, ...]
    """Everything that was skipped: lines of .txt lists, then the rest in the order of the files."""
    images_skipped: int
    """Number of skipped images."""
    lines_skipped: int
    """Number of skipped label lines in kept images."""
    source: Source
    """The source that reads the images."""
    lines_unused: int = 0
    """Number of lines in .txt lists that name no image file."""
    named_again: int = 0
    """How often the sources name an image that they have already named."""

    @property
    def boxes(self) -> int:
        """Number of boxes in all kept images."""
        return sum(len(label["cls"]) for label in self.labels)

    @property
    def backgrounds(self) -> int:
        """Number of kept images without a box."""
        return sum(len(label["cls"]) == 0 for label in self.labels)

    @property
    def summary(self) -> str:
        """One line for the log."""
        line = f"{len(self.labels)} images, {self.boxes} boxes, {self.backgrounds} backgrounds"
        if self.problems:
            line += f"; {self.images_skipped} images and {self.lines_skipped} label lines skipped"
            line += f", {self.lines_unused} lines of a list ignored" if self.lines_unused else ""
            line += ", see problems.txt"
        return line

    @property
    def warnings(self) -> list[str]:
        """Lines about what the user probably did not intend."""
        found = []
        if self.named_again:
            found.append(
                f"{self.split}: its sources name images again {self.named_again} times; "
                "each image counts as often as it is named"
            )
        if self.lines_unused:
            first = "; ".join(
                str(problem) for problem in self.problems[: min(self.lines_unused, LINES_SHOWN)]
            )
            found.append(
                f"{self.split}: {self.lines_unused} lines of its list are ignored, the first: "
                f"{first}"
            )
        if self.split != "train" and not self.boxes:
            found.append(
                f"{self.split}: {len(self.labels)} images but no box: every metric is 0 for every "
                f"model{_label_place(self.source.place(self.labels[0]['im_file']), self.source)}"
            )
        return found


def scan(
    spec: DataSpec,
    split: str,
    *,
    cache: Path,
    single_cls: bool = False,
    classes: Sequence[int] | None = None,
    workers: int = 8,
    progress: bool = False,
    fraction: float = 1.0,
) -> Scan:
    """Check a split's files, or load the last result if no file has changed.

    Damaged images and label lines are skipped and listed.

    Args:
        spec: the data yaml.
        split: 'train', 'val' or 'test'.
        cache: folder of stored results.
        single_cls: make every class id 0.
        classes: keep only the boxes of these ids; None keeps all.
        workers: number of threads that check files.
        progress: show a bar.
        fraction: in (0, 1], the share of the sorted images to use; above 1, their number.

    Raises:
        UserError: a class id is outside the names, no image is intact, or no training image has a
            box.
    """
    check_classes(spec.names, spec.yaml, classes)
    paths, named_again, passed_over = spec.sources(split), 0, []
    if opener := opener_of(paths):
        source, found = opener(paths, spec)
        found = _first(found, fraction)
        if not found:
            raise UserError(f"{split}: no images in {', '.join(map(str, paths))}")
    else:
        images, named_again = find_images(paths)
        files = _first(images, fraction)
        source, found = _files(files, spec, split, cache, workers, progress)
        passed_over = [
            Problem(
                str(file), line, f"{text[:100]!r} is not the name of an image file; line ignored"
            )
            for file, line, text in unused_lines(paths)
        ]
    if not single_cls:  # with a single class, ids do not matter
        _refuse_foreign_classes(found, spec)
    result = _result(split, found, source, single_cls, classes, passed_over)
    return replace(result, named_again=named_again)


def _files(
    files: list[str], spec: DataSpec, split: str, cache: Path, workers: int, progress: bool
) -> tuple[ImageFiles, list[CheckedPair]]:
    """Check image files and their labels, or load the last result."""
    label_files = img2label_paths(files)
    store = _store(cache, spec, split, files)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        key = _fingerprint(pool, [*files, *label_files], spec)
        found = _load(store, key)
        if found is None:
            check = partial(check_pair, keypoints=spec.keypoints)
            checked: Iterable[CheckedPair] = pool.map(check, files, label_files)
            if progress:
                from tqdm import tqdm

                what = f"checking {split}"
                checked = tqdm(
                    checked, total=len(files), desc=what, unit=" images", leave=False, disable=None
                )
            found = list(checked)
            _save(store, key, found)
    source = ImageFiles(files, spec.root, spec.channels)
    for item, identity in zip(found, source.ids, strict=True):
        item.id = identity
    return source, found


def in_both(train: Scan, val: Scan) -> str:
    """The warning about images that are in both splits; "" if there are none."""
    trained = {place_of(train.source.place(label["im_file"])) for label in train.labels}
    count = sum(place_of(val.source.place(label["im_file"])) in trained for label in val.labels)
    if not count:
        return ""
    return (
        f"{count} of {len(val.labels)} {val.split} images are {train.split} images as well: "
        "metrics will be too good"
    )


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write one line per problem: `file:line: text`."""
    path.write_text(
        "".join(f"{problem}\n" for problem in problems), encoding="utf-8", errors="backslashreplace"
    )


def _first(samples: list[Any], fraction: float) -> list[Any]:
    count = int(fraction) if fraction > 1 else max(1, round(len(samples) * fraction))
    return samples[:count]


def _refuse_foreign_classes(found: list[CheckedPair], spec: DataSpec) -> None:
    """Refuse class ids outside the names: the yaml is wrong, and so would be the classes."""
    nc = len(spec.names)
    ids: Counter[int] = Counter()
    first: tuple[str, int, int] | None = None
    for item in found:
        outside = (item.rows[:, 0] < 0) | (item.rows[:, 0] >= nc)
        for place in np.flatnonzero(outside):
            foreign = int(item.rows[place, 0])
            line = item.lines[place] if item.lines else int(place) + 1
            first = first or (item.label_file or item.file, line, foreign)
            ids[foreign] += 1
    if first:
        known = ", ".join(map(str, sorted(ids)[:10]))
        more = f"; {ids.total()} boxes have such ids: {known}" if ids.total() > 1 else ""
        raise UserError(
            f"{first[0]}:{first[1]}: class id {first[2]} is outside the {nc} names of {spec.yaml} "
            f"(ids 0 to {nc - 1}){more}; correct names or the labels"
        )


def _result(
    split: str,
    found: list[CheckedPair],
    source: Source,
    single_cls: bool,
    classes: Sequence[int] | None,
    passed_over: list[Problem],
) -> Scan:
    kept = [item for item in found if item.shape is not None]
    problems = [problem for item in found for problem in item.problems]
    if not kept:
        raise UserError(
            f"{split}: none of {len(found)} images can be used; the first problem: {problems[0]}"
        )
    if split == "train" and not any(len(item.rows) for item in kept):
        raise UserError(
            f"train: {len(kept)} images but no usable box{_label_place(found[0].file, source)}"
            + (f"; the first problem: {problems[0]}" if problems else "")
        )
    # ultralytics drops all polygons of a set in which some box has none; so does this.
    all_segments = all(len(item.segments) == len(item.rows) for item in kept)
    labels = [_label(item, all_segments, single_cls, classes) for item in kept]
    if split == "train" and not any(len(label["cls"]) for label in labels):
        raise UserError(f"train: no box is left after classes={list(classes or ())}")
    return Scan(
        split,
        labels,
        (*passed_over, *problems),
        len(found) - len(kept),
        sum(item.lines_skipped for item in kept),
        source,
        len(passed_over),
    )


def _label_place(image: str, source: Source) -> str:
    """The end of a message about missing labels: where an image's label file is expected."""
    if not isinstance(source, ImageFiles):
        return ""
    return f"; labels are expected in files such as {img2label_paths([image])[0]}"


def _label(
    item: CheckedPair, with_segments: bool, single_cls: bool, classes: Sequence[int] | None
) -> dict[str, Any]:
    keep = (
        np.ones(len(item.rows), bool)
        if classes is None
        else np.isin(item.rows[:, 0], list(classes))
    )
    rows = item.rows[keep]
    return {
        "im_file": item.id,
        "shape": item.shape,
        "cls": np.zeros((len(rows), 1), np.float32) if single_cls else rows[:, :1].copy(),
        "bboxes": rows[:, 1:].copy(),
        "segments": [s for s, k in zip(item.segments, keep, strict=True) if k]
        if with_segments
        else [],
        "keypoints": None,
        "normalized": True,
        "bbox_format": "xywh",
    }


def _store(cache: Path, spec: DataSpec, split: str, files: list[str]) -> Path:
    text = "\0".join((str(spec.yaml), split, str(len(files)), *map(str, spec.sources(split))))
    return cache / f"{split}-{hashlib.blake2b(os.fsencode(text), digest_size=8).hexdigest()}.npz"


def _fingerprint(pool: ThreadPoolExecutor, files: list[str], spec: DataSpec) -> str:
    """A hash of every path, size and time, and of the settings that affect the result."""
    # Sizes and times instead of contents: a large set is queried in seconds and never read.
    digest = hashlib.blake2b(
        f"{VERSION} {len(spec.names)} {spec.keypoints}".encode(), digest_size=16
    )
    for file, stat in zip(files, pool.map(_size_and_time, files, chunksize=64), strict=True):
        digest.update(os.fsencode(file) + b"\0" + stat)
    return digest.hexdigest()


def _size_and_time(file: str) -> bytes:
    try:
        stat = os.stat(file)
    except OSError:
        return b"absent\0"
    return f"{stat.st_size} {stat.st_mtime_ns}\0".encode()


def _save(store: Path, key: str, found: list[CheckedPair]) -> None:
    """Store the result; a full or read-only cache only costs time."""
    segments = [segment for item in found for segment in item.segments]
    # Flat arrays without pickled objects: they load fast, and `allow_pickle` can stay off.
    meta = {
        "key": key,
        "files": [
            (item.file, item.label_file, item.shape, len(item.rows), len(item.segments))
            for item in found
        ],
        "problems": [[(p.file, p.line, p.text) for p in item.problems] for item in found],
        "skipped": [item.lines_skipped for item in found],
    }
    arrays = {
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
        "rows": np.concatenate([item.rows for item in found]),
        "lines": np.array([line for item in found for line in item.lines], np.int64),
        "sizes": np.array([len(segment) for segment in segments], np.int64),
        "points": np.concatenate([np.zeros((0, 2), np.float32), *segments]),
    }
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        replace_file(store, lambda stream: np.savez(stream, **arrays), shared=True)
    except OSError as error:
        log.warning("could not store the result of the data check in %s: %s", store.parent, error)


def _load(store: Path, key: str) -> list[CheckedPair] | None:
    try:
        with np.load(store, allow_pickle=False) as data:
            meta = json.loads(data["meta"].tobytes())
            if meta["key"] != key:
                return None
            rows, lines = data["rows"], data["lines"].tolist()
            segments = (
                np.split(data["points"], np.cumsum(data["sizes"])[:-1])
                if len(data["sizes"])
                else []
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # missing, truncated by a crash, or of another format: check again
    found, row, segment = [], 0, 0
    for (file, label_file, shape, n, k), problems, skipped in zip(
        meta["files"], meta["problems"], meta["skipped"], strict=True
    ):
        found.append(
            CheckedPair(
                file,
                tuple(shape) if shape else None,
                rows[row : row + n],
                segments[segment : segment + k],
                lines[row : row + n],
                label_file,
                [Problem(*problem) for problem in problems],
                skipped,
            )
        )
        row, segment = row + n, segment + k
    return found
