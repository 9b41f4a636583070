"""From the costs of samples to medians, ratios, verdicts and the record: arithmetic and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.loader_sets import ImageSet
from benchmarks.report import Spread

OLD, THEIRS = "old", "ultralytics"
BLOCK = 8
JPEG = ("--quality", "95")


@dataclass(frozen=True)
class Case:
    """One loader."""

    key: str
    title: str
    side: str = "yolods"
    """Whose loader."""
    block: int | None = 0
    """Length of the blocks that mosaic partners come from; 0: partners from the whole set; None:
    what a run takes by default for a set of such images that is larger than its cache."""
    keep: bool = False
    """Whether all images stay in memory."""
    simplejpeg: bool = False
    """Whether it may decode by simplejpeg, where that is installed."""
    pack: tuple[str, ...] = ()
    """Further words of `yolods pack`, of a loader that reads a pack at training size."""


CASES = {
    case.key: case
    for case in (
        Case(OLD, "yolods at 042a112"),
        Case("default", "default", block=None),
        Case("all", "partners `all`"),
        Case("block", "partners `block`", block=BLOCK),
        Case("all-fast", "partners `all`, simplejpeg", simplejpeg=True),
        Case("block-fast", "partners `block`, simplejpeg", block=BLOCK, simplejpeg=True),
        Case("jpeg-pack", "JPEG pack, `all`", simplejpeg=True, pack=JPEG),
        Case("jpeg-default", "JPEG pack, default", block=None, simplejpeg=True, pack=JPEG),
        Case("raw-pack", "raw pack, default", block=None, pack=("--raw",)),
        Case("kept", "all images in memory", keep=True),
        Case(THEIRS, "ultralytics", side="ultralytics"),
        Case("floor", "ultralytics, all images in memory", side="ultralytics", keep=True),
    )
}
"""Packs are of `yolods pack`; where that is not there, their cases are left out."""

PLACES = tuple((name, size) for name in ("HD", "BCCD") for size in (320, 640))
TARGETS = (
    ("block", OLD, ("HD", 640), 1.6),
    *((case, THEIRS, place, 1.0) for case in ("default", "block") for place in PLACES),
    ("jpeg-pack", OLD, ("HD", 320), 3.5),
    ("jpeg-pack", OLD, ("HD", 640), 1.6),
    ("raw-pack", OLD, ("HD", 320), 3.5),
    ("raw-pack", OLD, ("HD", 640), 2.3),
    *(("raw-pack", THEIRS, place, 1.25) for place in PLACES),
)
"""A case, the one that it is compared with, set and size in pixels, and how many times as fast it
has to be."""


@dataclass(frozen=True)
class Costs:
    """What samples of one set at one size cost."""

    images: ImageSet
    imgsz: int
    """Pixels."""
    milliseconds: Mapping[str, Sequence[float]]
    """CPU milliseconds per sample by case, a number per round; in a round the cases take turns."""

    def speed(self, case: str, other: str) -> Spread | None:
        """How many times as fast a case is as another, round by round; None without both."""
        if not {case, other} <= self.milliseconds.keys():
            return None
        pairs = zip(self.milliseconds[other], self.milliseconds[case], strict=True)
        return Spread.of(theirs / ours for theirs, ours in pairs)


@dataclass(frozen=True)
class Judged:
    """A target, and what was measured."""

    text: str
    """What it is about."""
    speed: Spread
    target: float


def judged(measured: Sequence[Costs]) -> list[Judged]:
    """The targets whose cases were measured."""
    found = []
    for case, other, place, target in TARGETS:
        for costs in measured:
            speed = costs.speed(case, other)
            if (costs.images.title, costs.imgsz) == place and speed is not None:
                found.append(Judged(f"{place[0]} at {place[1]} px, {case}", speed, target))
    return found


def missed(measured: Sequence[Costs]) -> list[Judged]:
    """Those that are not met."""
    return [each for each in judged(measured) if each.speed.median < each.target]


def tables(measured: Sequence[Costs]) -> list[str]:
    """Milliseconds, and speed beside the old yolods and ultralytics."""
    heads = [f"{costs.images.title} {costs.imgsz}" for costs in measured]
    lines = ["## CPU ms per sample, median (min..max)", "", *_head(heads)]
    for case in _shown(measured):
        cells = [Spread.of(each.milliseconds[case.key]).text(2) for each in measured]
        lines.append(f"| {case.title} | {' | '.join(cells)} |")
    for other in (OLD, THEIRS):
        if any(other in costs.milliseconds for costs in measured):
            lines += ["", f"## Times as fast as {CASES[other].title}, round by round", ""]
            lines += _head(heads)
            for case in _shown(measured):
                cells = [_cell(costs.speed(case.key, other)) for costs in measured]
                lines += [f"| {case.title} | {' | '.join(cells)} |"] if case.key != other else []
    return lines


def _shown(measured: Sequence[Costs]) -> list[Case]:
    return [case for case in CASES.values() if all(case.key in m.milliseconds for m in measured)]


def _head(heads: Sequence[str]) -> list[str]:
    return [f"| loader | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]


def _cell(speed: Spread | None) -> str:
    return "" if speed is None else speed.text(2)


def described(measured: Sequence[Costs]) -> list[str]:
    """A line per set."""
    sets = {costs.images.title: costs.images for costs in measured}
    return [
        f"- {each.title}: {each.images} images of {each.bytes / 1000:.0f} kB"
        for each in sets.values()
    ]


def verdict(measured: Sequence[Costs]) -> str:
    """One line: whether the targets are met."""
    count = f"{len(judged(measured))} of {len(TARGETS)} targets could be judged"
    if found := missed(measured):
        texts = [f"{one.text} {one.speed.text(2)}, not {one.target}" for one in found]
        return f"**{count}. Missed: {'; '.join(texts)}.**"
    return f"**{count}, and are met.**"
