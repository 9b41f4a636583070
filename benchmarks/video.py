"""Whether the frames of videos are right: containers, codecs, rates and damage, with and without
PyAV.

    python benchmarks/video.py --record benchmarks/video.md

Every video is made here, with each frame's number drawn in it, and read by yolods and by a plain
loop with OpenCV. Making them needs PyAV; two minutes on one core. Nothing is written outside the
record and a temporary folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np

from benchmarks.hardware import describe
from tests.videos import cut, noisy, shown_number, turned, uneven_times, write_by_pyav, zeroed
from yolods.data.video import frames as reading
from yolods.data.video.containers import TS_PACKET
from yolods.data.video.frames import Video, VideoError

FRAMES = 300
SHARES = [share / 100 for share in range(40, 80, 2)]
"""Where videos are cut off in many places."""
NAMES = {"libx264": "H.264", "mpeg4": "MPEG-4", "libvpx-vp9": "VP9", "libsvtav1": "AV1"}

METHOD = f"""\
- Each video has {FRAMES} frames of 144x112 pixels, 25 a second unless its rate is variable (10 to
  250 ms between frames); *group* is the most frames from one key frame to the next. H.264 and
  MPEG-4 store frames before others that are shown earlier. Each frame shows its number as ten
  squares and once more inverted, so that a picture which a decoder patched up shows none.
- *yolods*: frames that it gave, and how many of them show their number; the others show another
  number, or none. An error refuses the video and discards its frames; a warning leaves them usable.
- *OpenCV alone*: `read()` in order until it fails. It reports no faults.
- *cut off*: the first 60% of the bytes. *zeros*: 10% of the bytes, from the middle on. *noise*: 40
  random bytes in the tenth after the middle.
- The last table spoils each video {len(SHARES)} times: by cuts from 40% to 78% of its bytes, and by
  noise of several seeds. A cut *at a packet* is rounded to the {TS_PACKET} bytes of a transport
  stream's packets and leaves no trace in the file's size. PyAV is installed.
- Target, for the first two tables: every frame that yolods gives shows its number, or the video is
  refused."""


@dataclass(frozen=True)
class Case:
    """A video: how it is made."""

    container: str
    codec: str
    group: int
    kind: str = ""
    """What is special about it."""


WHOLE = (
    Case("mp4", "libx264", 12),
    Case("mp4", "libx264", 250),
    Case("mp4", "mpeg4", 250),
    Case("mp4", "libsvtav1", 250),
    Case("mkv", "libx264", 12),
    Case("mkv", "mpeg4", 12),
    Case("avi", "mpeg4", 250),
    Case("avi", "libx264", 12),
    Case("ts", "libx264", 12),
    Case("ts", "libx264", 250),
    Case("ts", "mpeg4", 12),
    Case("webm", "libvpx-vp9", 12),
    Case("webm", "libvpx-vp9", 250),
    Case("webm", "libsvtav1", 12),
    Case("mp4", "libx264", 12, "fragments"),
    Case("mp4", "libx264", 12, "variable rate"),
    Case("mkv", "libx264", 250, "variable rate"),
    Case("webm", "libvpx-vp9", 12, "variable rate"),
    Case("mp4", "libx264", 12, "turned 90"),
    Case("mp4", "mpeg4", 12, "turned 180"),
    Case("mp4", "libx264", 250, "turned 270"),
    Case("mp4", "libsvtav1", 250, "turned 90"),
)
CUT = (
    Case("mp4", "libx264", 12, "cut off"),
    Case("mp4", "libx264", 12, "index first, cut off"),
    Case("mkv", "libx264", 12, "cut off"),
    Case("avi", "libx264", 250, "cut off"),
    Case("avi", "mpeg4", 12, "cut off"),
    Case("ts", "libx264", 250, "cut off"),
    Case("webm", "libvpx-vp9", 12, "cut off"),
    Case("webm", "libsvtav1", 250, "cut off"),
    Case("mkv", "libx264", 250, "variable rate, cut off"),
)
DAMAGED = (
    Case("mp4", "libx264", 12, "zeros"),
    Case("mkv", "libx264", 12, "zeros"),
    Case("avi", "mpeg4", 12, "zeros"),
    Case("ts", "libx264", 12, "zeros"),
    Case("webm", "libvpx-vp9", 12, "zeros"),
    Case("webm", "libsvtav1", 12, "zeros"),
    Case("mp4", "libx264", 12, "noise"),
    Case("ts", "libx264", 12, "noise"),
    Case("webm", "libvpx-vp9", 12, "noise"),
)
SWEPT = (
    Case("mp4", "libx264", 12, "index first"),
    Case("mkv", "libx264", 12),
    Case("avi", "libx264", 12),
    Case("avi", "mpeg4", 12),
    Case("webm", "libvpx-vp9", 12),
    Case("ts", "libx264", 12),
    Case("ts", "mpeg4", 12),
)
"""Videos that are spoiled in many places."""


@dataclass(frozen=True)
class Outcome:
    """What reading a video gave."""

    frames: int = 0
    right: int = 0
    """Frames that show their number."""
    error: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether no frame is wrong, or the video is refused."""
        return bool(self.error) or 0 < self.frames == self.right

    @property
    def text(self) -> str:
        """The cells of a table: frames, right ones, and what was said."""
        if self.error:
            return f"error | | {self.error}"
        said = "; ".join(self.warnings) or "-"
        return f"{self.frames} | {self.right} | {said}"


def make(case: Case, folder: Path) -> Path:
    """Write a video."""
    path = folder / f"clip.{case.container}"
    times = uneven_times(FRAMES) if "variable" in case.kind else None
    flags = "frag_keyframe" if case.kind == "fragments" else ""
    flags = "faststart" if "index first" in case.kind else flags
    container = {"movflags": flags} if flags else {}
    write_by_pyav(path, case.codec, FRAMES, group=case.group, times=times, container=container)
    return _changed(case, path)


def _changed(case: Case, path: Path) -> Path:
    target = path.with_name(f"changed{path.suffix}")
    if case.kind.startswith("turned"):
        return turned(path, target, int(case.kind.split()[1]))
    if "cut off" in case.kind:
        return cut(path, target)
    spoil = {"zeros": zeroed, "noise": noisy}.get(case.kind)
    return spoil(path, target) if spoil else path


def read_by_yolods(path: Path, turn: int = 0) -> Outcome:
    """Read a video with `Video`; `turn` is the degrees clockwise by which it is shown."""
    count = right = 0
    try:
        video = Video(path)
        for frame in video.frames():
            count += 1
            right += shown_number(_turned_back(frame.image, turn)) == frame.number
    except VideoError as error:
        return Outcome(error=_without_path(str(error), path))
    return Outcome(count, right, "", tuple(_without_path(line, path) for line in video.warnings))


def read_by_opencv(path: Path, turn: int = 0) -> Outcome:
    """Read a video until `read` fails."""
    capture, count, right = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), 0, 0
    while True:
        read, image = capture.read()
        if not read:
            return Outcome(count, right)
        right += shown_number(_turned_back(image, turn)) == count
        count += 1


def _turned_back(image: np.ndarray, turn: int) -> np.ndarray:
    codes = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
    return cv2.rotate(image, codes[turn]) if turn else image


def _without_path(text: str, path: Path) -> str:
    return text.replace(f"{path}: ", "").partition("; encode it again")[0]


@contextmanager
def without_pyav() -> Iterator[None]:
    """As if PyAV were not installed."""
    before: Callable[[], bool] = reading.pyav_installed
    reading.pyav_installed = lambda: False
    try:
        yield
    finally:
        reading.pyav_installed = before


def _table(cases: Sequence[Case], folder: Path) -> tuple[list[str], list[str], int]:
    """The lines of a table, the videos with a wrong frame that was not refused, and how many of
    these have no warning either."""
    lines = [
        "| container | codec | group | | yolods without PyAV | right | said | with PyAV | right "
        "| said | OpenCV alone | right |",
        "| - " * 12 + "|",
    ]
    wrong, silent = [], 0
    for case in cases:
        path = make(case, folder)
        turn = int(case.kind.split()[1]) if case.kind.startswith("turned") else 0
        with without_pyav():
            alone = read_by_yolods(path, turn)
        both = read_by_yolods(path, turn)
        stock = read_by_opencv(path, turn)
        name = f"{case.container} | {NAMES[case.codec]} | {case.group} | {case.kind}"
        lines.append(f"| {name} | {alone.text} | {both.text} | {stock.frames} | {stock.right} |")
        print(lines[-1], flush=True)
        failed = [outcome for outcome in (alone, both) if not outcome.holds]
        wrong += [name.replace(" |", ",")] * bool(failed)
        silent += not all(outcome.warnings for outcome in failed)
    return lines, wrong, silent


def _spoiled(path: Path) -> Iterator[tuple[str, list[Outcome]]]:
    """What was done to a video in many places, and what reading it gave."""
    target = path.with_name(f"spoiled{path.suffix}")
    yield "cut at any byte", [read_by_yolods(cut(path, target, share)) for share in SHARES]
    if path.suffix == ".ts":
        cuts = (cut(path, target, share, unit=TS_PACKET) for share in SHARES)
        yield "cut at a packet", list(map(read_by_yolods, cuts))
    seeds = range(len(SHARES))
    yield "noise", [read_by_yolods(noisy(path, target, seed)) for seed in seeds]


def _sweep(folder: Path) -> tuple[list[str], int, int]:
    """The table of videos that are spoiled in many places; their number, and how many of them have
    wrong frames without a warning."""
    lines = [
        "| container | codec | done | videos | all frames right | refused | wrong frames "
        "| of these without a warning |",
        "| - " * 8 + "|",
    ]
    videos = silently = 0
    for case in SWEPT:
        for done, found in _spoiled(make(case, folder)):
            wrong = [outcome for outcome in found if not outcome.holds]
            refused = sum(bool(outcome.error) for outcome in found)
            counts = len(found), len(found) - len(wrong) - refused, refused, len(wrong)
            silent = sum(not outcome.warnings for outcome in wrong)
            videos, silently = videos + len(found), silently + silent
            cells = case.container, NAMES[case.codec], done, *counts, silent
            lines.append(f"| {' | '.join(map(str, cells))} |")
            print(lines[-1], flush=True)
    return lines, videos, silently


def main() -> int:
    """Print the tables, and write them where `--record` says; 1 if the target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, help="a markdown file to write")
    options = parser.parse_args()
    import av

    machine = [*describe([0]), f"- PyAV {av.__version__}"]
    text, missed = [], []
    parts = {"Whole": WHOLE, "Cut off": CUT, "Damaged": DAMAGED}
    with tempfile.TemporaryDirectory() as folder:
        for title, cases in parts.items():
            lines, wrong, silent = _table(cases, Path(folder))
            text += ["", f"## {title}", "", *lines]
            missed += wrong if cases is not DAMAGED else []
        lines, videos, silently = _sweep(Path(folder))
        text += ["", "## Spoiled in many places", "", *lines]
    beyond = (
        f"Beyond the target, in the table of damage: {len(wrong)} of {len(DAMAGED)} videos have "
        "frames that show another number or none and are not refused; "
        f"{silent} of them without a warning. In the last table, {silently} of {videos} have such "
        "frames without a warning."
    )
    verdict = f"Target: missed by {'; '.join(missed)}" if missed else "Target: met by all."
    print(f"\n{verdict}\n{beyond}")
    if options.record:
        date = f"{datetime.now(timezone.utc):%Y-%m-%d}"
        command = f"`python benchmarks/video.py --record {options.record}`, {date}."
        head = ["# Frames of videos", "", command, "", *machine, "", METHOD, "", verdict, beyond]
        options.record.write_text("\n".join([*head, *text]) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
