"""OpenCV's frames and packets."""

from __future__ import annotations

import sys

import cv2
import pytest

from tests.videos import shown_number, write_by_opencv
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


def test_old_versions_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "__version__", "4.10.0")
    with pytest.raises(UserError, match=r"^OpenCV 4\.10\.0 ends some videos early; install 4\.12"):
        OpenCvReader(tmp_path / "a.mp4")
