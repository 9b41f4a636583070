"""Opens a split: its files are checked before training, faulty ones are listed, none is changed.

The results are an index in yolods' cache folder (`index.builds`), which every rank and loader
process of a host maps into its memory, and which is used again as long as no file changes.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ultralytics.data.utils import img2label_paths

from yolods.data.classes import check_classes
from yolods.data.index.image_files import CheckOptions, first_of, open_files
from yolods.data.index.labels import Labels
from yolods.data.index.table import Index
from yolods.data.source import ImageFiles, Source, opener_of
from yolods.data.spec import DataSpec
from yolods.data.verify import Problem
from yolods.errors import UserError
from yolods.system.humanize import plural

VERSION = 5
"""Version of the index's format and of the rules in verify.py; a new one voids old indexes."""

LINES_SHOWN = 3
"""Maximum number of a list's lines in a warning."""


@dataclass(frozen=True)
class Opening:
    """What a split that is not made of image files is opened with."""

    spec: DataSpec
    """The data yaml."""
    split: str
    """'train', 'val' or 'test'."""
    folder: Path
    """A folder in the cache, in which the source may keep what it derives."""
    options: CheckOptions = field(default_factory=CheckOptions)
    """How data are checked. One rank per host opens a source first, and the others with `trusted`
    when it has returned."""
    any_class: bool = False
    """Whether class ids may be outside the names, because all become one class."""


@dataclass(frozen=True)
class Scan:
    """The intact images of a split with their boxes, and what was skipped."""

    split: str
    """'train', 'val' or 'test'."""
    labels: Labels
    """Labels of the intact images."""
    source: Source
    """The source that reads the images."""
    list_problems: tuple[Problem, ...] = ()
    """Lines in .txt lists that name no image file."""
    named_again: int = 0
    """How often the sources name an image that they have already named."""
    videos_unused: int = 0
    """Number of videos beside the images."""

    @property
    def index(self) -> Index:
        """What is known about every image of the source."""
        return self.source.index

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything that was skipped: lines of .txt lists, then the rest in the order of files."""
        found = self.index.problems() if self.index.counts.problems else ()
        return (*self.list_problems, *(problem for _, problem in found))

    @property
    def images_skipped(self) -> int:
        """Number of skipped images."""
        return self.index.counts.images - self.index.counts.kept

    @property
    def lines_skipped(self) -> int:
        """Number of skipped label lines in kept images."""
        return self.index.counts.lines_skipped

    @property
    def backgrounds(self) -> int:
        """Number of kept images without a box."""
        return self.labels.totals.backgrounds

    @property
    def boxes(self) -> int:
        """Number of boxes in all kept images."""
        return self.labels.totals.boxes

    @property
    def summary(self) -> str:
        """One line for the log."""
        line = f"{len(self.labels)} images, {self.boxes} boxes, {self.backgrounds} backgrounds"
        if self.index.counts.problems or self.list_problems:
            line += f"; {self.images_skipped} images and {self.lines_skipped} label lines skipped"
            ignored = len(self.list_problems)
            line += f", {ignored} lines of a list ignored" if ignored else ""
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
        if self.list_problems:
            first = "; ".join(str(problem) for problem in self.list_problems[:LINES_SHOWN])
            found.append(
                f"{self.split}: {len(self.list_problems)} lines of its list are ignored, the "
                f"first: {first}"
            )
        if self.videos_unused:
            found.append(
                f"{self.split}: {plural(self.videos_unused, 'video')} in its folders of images "
                "not used; move them into a folder of their own, and name that"
            )
        if self.split != "train" and not self.boxes:
            found.append(
                f"{self.split}: {len(self.labels)} images but no box: every metric is 0 for every "
                f"model{_label_place(self.source.index.ids[int(self.labels.rows[0])], self.source)}"
            )
        return found


def scan(
    spec: DataSpec,
    split: str,
    *,
    cache: Path,
    single_cls: bool = False,
    classes: Sequence[int] | None = None,
    fraction: float = 1.0,
    options: CheckOptions | None = None,
) -> Scan:
    """Open a split, after checking its files if that has not been done or they have changed.

    Damaged images and label lines are skipped and listed.

    Args:
        spec: the data yaml.
        split: 'train', 'val' or 'test'.
        cache: folder of indexes.
        single_cls: make every class id 0.
        classes: keep only the boxes of these ids; None keeps all.
        fraction: in (0, 1], the share of the sorted images to use; above 1, their number.
        options: how files are checked.

    Raises:
        UserError: a class id is outside the names, no image is intact, or no training image has a
            box.
    """
    check_classes(spec.names, spec.yaml, classes)
    options = options or CheckOptions()
    folder = cache / _name(spec, split, fraction)
    if kind := spec.kinds.get(split):
        source = opener_of(kind)(Opening(spec, split, folder, options, any_class=single_cls))
        found = Scan(split, _labels(source, single_cls, classes, fraction), source)
    else:
        opened = open_files(spec, split, folder, fraction, options)
        labels = _labels(opened.source, single_cls, classes)
        found = Scan(
            split, labels, opened.source, opened.list_problems, opened.named_again, opened.videos
        )
    if not single_cls:  # with a single class, ids do not matter
        _refuse_foreign_classes(found, spec)
    _refuse_useless(found, classes)
    return found


def in_both(train: Scan, val: Scan) -> str:
    """The warning about images that are in both splits; "" if there are none."""
    trained, judged = (
        each.index.columns["place"][np.asarray(each.labels.rows)] for each in (train, val)
    )
    count = int(np.isin(judged, trained).sum())
    if not count:
        return ""
    return (
        f"{count} of {len(judged)} {val.split} images are {train.split} images as well: metrics "
        "will be too good"
    )


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
    """Write one line per problem: `file:line: text`."""
    path.write_text(
        "".join(f"{problem}\n" for problem in problems),
        encoding="utf-8",
        errors="backslashreplace",
    )


def _labels(
    source: Source, single_cls: bool, classes: Sequence[int] | None, fraction: float = 1.0
) -> Labels:
    rows = source.index.kept_rows()
    if fraction != 1:
        end = len(first_of(range(source.index.counts.images), fraction))
        rows = rows[rows < end] if isinstance(rows, np.ndarray) else rows[:end]
    return Labels(source.index, rows, single_cls=single_cls, classes=classes)


def _refuse_foreign_classes(found: Scan, spec: DataSpec) -> None:
    """Refuse class ids outside the names: the yaml is wrong, and so would be the classes."""
    nc, counts = len(spec.names), found.index.counts
    if counts.lowest_class >= 0 and counts.highest_class < nc:
        return
    classes = found.index.columns["box"][:, 0]
    outside = np.flatnonzero((classes < 0) | (classes >= nc))
    first = int(outside[0])
    row = int(np.searchsorted(found.index.columns["box_end"], first, side="right"))
    ids = np.unique(classes[outside]).astype(int).tolist()
    more = f"; {len(outside)} boxes have such ids: {', '.join(map(str, ids[:10]))}"
    raise UserError(
        f"{_label_file(found.index.ids[row], found.source)}:"
        f"{int(found.index.columns['line'][first])}: "
        f"class id {int(classes[first])} is outside the {nc} names of {spec.yaml} "
        f"(ids 0 to {nc - 1}){more if len(outside) > 1 else ''}; correct names or the labels"
    )


def _refuse_useless(found: Scan, classes: Sequence[int] | None) -> None:
    """Refuse a split without an intact image, and a train split without a box."""
    counts = found.index.counts
    if not counts.images:
        raise UserError(f"{found.split}: no images in it")
    if not len(found.labels):
        raise UserError(
            f"{found.split}: none of {counts.images} images can be used; the first problem: "
            f"{found.problems[len(found.list_problems)]}"
        )
    if found.split != "train" or found.boxes:
        return
    if counts.boxes:
        raise UserError(f"train: no box is left after classes={list(classes or ())}")
    problems = found.problems[len(found.list_problems) :]
    raise UserError(
        f"train: {len(found.labels)} images but no usable box"
        f"{_label_place(found.index.ids[0], found.source)}"
        + (f"; the first problem: {problems[0]}" if problems else "")
    )


def _label_file(identity: str, source: Source) -> str:
    """Where a sample's labels are, for messages."""
    place = source.place(identity)
    return img2label_paths([place])[0] if isinstance(source, ImageFiles) else place


def _label_place(identity: str, source: Source) -> str:
    """The end of a message about missing labels: where an image's label file is expected."""
    if not isinstance(source, ImageFiles):
        return ""
    return f"; labels are expected in files such as {_label_file(identity, source)}"


def _name(spec: DataSpec, split: str, fraction: float) -> str:
    """Name of a split's index: a hash of all that decides which files are checked, and how."""
    parts = (VERSION, spec.yaml, split, spec.root, spec.keypoints, spec.video, fraction)
    parts = (*parts, *spec.sources(split))
    digest = hashlib.blake2b(os.fsencode("\0".join(map(str, parts))), digest_size=8)
    return f"{split}-{digest.hexdigest()}"
