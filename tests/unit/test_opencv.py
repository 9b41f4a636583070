"""OpenCV's frames and packets."""

from __future__ import annotations

import sys

import cv2
import pytest

from tests.videos import shown_number, write_by_opencv
from yolods.data.video import opencv
from yolods.data.video.opencv import OpenCvReader
from yolods.errors import UserError


def test_times_and_images_in_order_from_the_first_each_time(tmp_path):
    reader = OpenCvReader(write_by_opencv(tmp_path / "a.mp4", "mp4v", 10))
    assert len(reader.packets.times) == 10 and reader.packets.declared == pytest.approx(0.4)
    for _ in range(2):
        found = [(time, shown_number(reader.image())) for time in reader.times()]
        assert [number for _, number in found] == list(range(10))
        assert [time for time, _ in found] == pytest.approx([0.04 * k for k in range(10)])


def test_no_video_has_no_packets_and_nothing_is_printed(tmp_path, run_process):
    # In a process of its own, because the first use of FFmpeg decides what it prints.
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\0\0\0\x10ftypisom" + bytes(500))
    lines = (
        "from pathlib import Path",
        "from yolods.data.video.opencv import OpenCvReader",
        f"print(len(OpenCvReader(Path({str(path)!r})).packets.times))",
    )
    done = run_process([sys.executable, "-c", "\n".join(lines)])
    assert (done.stdout, done.stderr) == ("0\n", "")


class Capture:
    """A file whose packets can be read or not, one per letter: `x` can, and `.` cannot."""

    def __init__(self, packets: str) -> None:
        self._left, self._time = iter(packets), -40.0

    def isOpened(self):
        return True

    def grab(self):
        found = next(self._left, ".") == "x"
        self._time += 40 * found
        return found

    def get(self, what):
        return {cv2.CAP_PROP_POS_MSEC: self._time, cv2.CAP_PROP_FPS: 25.0}.get(what, 12.0)


def test_what_cannot_be_read_or_decoded_does_not_end_the_file(tmp_path, monkeypatch):
    packets, frames = "xxx..xxxx.xx", "xx.xxxx.x"
    monkeypatch.setattr(
        opencv, "_opened", lambda path, *settings: Capture(packets if settings else frames)
    )
    path = tmp_path / "a.bin"
    path.touch()
    reader = OpenCvReader(path)
    assert reader.packets.times == pytest.approx([0.04 * k for k in range(9)])
    assert reader.packets.unreadable == (3, 3, 7)
    assert list(reader.times()) == pytest.approx([0.04 * k for k in range(7)])


def test_old_versions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "__version__", "4.10.0")
    with pytest.raises(UserError, match=r"^OpenCV 4\.10\.0 ends some videos early; install 4\.12"):
        OpenCvReader(tmp_path / "a.mp4")
