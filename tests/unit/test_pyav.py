"""PyAV's frames and packets."""

from __future__ import annotations

import numpy as np
import pytest

from tests.videos import shown_number, turned, write_by_opencv, write_by_pyav
from yolods.data.video.opencv import OpenCvReader

pytest.importorskip("av", reason="needs PyAV: pip install 'yolods[video]'")

from yolods.data.video.pyav import PyAvReader, pyav_installed


def test_times_and_images_as_opencv_gives_them(tmp_path):
    path = write_by_opencv(tmp_path / "a.mp4", "mp4v", 10)
    reader, other = PyAvReader(path), OpenCvReader(path)
    assert pyav_installed()
    assert reader.packets.times == pytest.approx(other.packets.times)
    found = [(time, shown_number(reader.image())) for time in reader.times()]
    assert [number for _, number in found] == list(range(10))
    assert [time for time, _ in found] == pytest.approx(list(other.times()))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_both_turn_the_same_way(tmp_path, degrees):
    path = write_by_opencv(tmp_path / "a.mp4", "mp4v", 3)
    path = turned(path, tmp_path / "turned.mp4", degrees)
    reader, other = PyAvReader(path), OpenCvReader(path)
    assert next(reader.times()) == next(other.times()) == 0
    ours, theirs = reader.image(), other.image()
    assert ours.shape == theirs.shape and np.abs(ours.astype(int) - theirs).mean() < 3


def test_frames_stored_in_another_order(tmp_path):
    reader = PyAvReader(write_by_pyav(tmp_path / "a.mkv", "libx264", 20))
    assert not (np.diff(reader.packets.times) > 0).all()
    assert [shown_number(reader.image()) for _ in reader.times()] == list(range(20))


def test_no_video_has_no_packets(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"no video" * 100)
    assert len(PyAvReader(path).packets.times) == 0
