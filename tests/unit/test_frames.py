"""Frames of generated videos show their own number, or an error says what is wrong."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.videos import cut, shown_number, turned, write_by_opencv, write_by_pyav, zeroed
from yolods.data.video import frames as reading
from yolods.data.video.frames import Video, VideoError
from yolods.data.video.packets import Packets

needs_pyav = pytest.mark.skipif(
    importlib.util.find_spec("av") is None, reason="needs PyAV: pip install 'yolods[video]'"
)
FRAMES = 24


@pytest.fixture
def without_pyav(monkeypatch):
    monkeypatch.setattr(reading, "pyav_installed", lambda: False)


def shown(video: Video, stride: int = 1) -> list[int]:
    """The frames' numbers; each shows its own."""
    frames = list(video.frames(stride))
    assert [shown_number(frame.image) for frame in frames] == [frame.number for frame in frames]
    return [frame.number for frame in frames]


def fault(path: Path) -> str:
    """The error about a video without its path."""
    with pytest.raises(VideoError) as caught:
        list(Video(path).frames())
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


# Whole videos


@pytest.mark.parametrize(
    ("name", "fourcc"),
    [("a.mp4", "mp4v"), ("a.avi", "MJPG"), ("a.mkv", "mp4v"), ("a.webm", "VP80")],
)
def test_every_frame_shows_its_number(tmp_path, name, fourcc):
    video = Video(write_by_opencv(tmp_path / name, fourcc, FRAMES))
    assert video.expected == FRAMES
    assert shown(video) == list(range(FRAMES))
    assert (video.count, video.warnings) == (FRAMES, [])


@needs_pyav
@pytest.mark.parametrize(
    ("name", "codec", "times"),
    [
        ("a.mp4", "libx264", None),
        ("a.avi", "libx264", None),
        ("a.ts", "mpeg4", None),
        ("a.mkv", "libx264", [*range(0, 400, 40), *range(400, 1800, 100)]),
        ("a.webm", "libsvtav1", None),
    ],
)
def test_codecs_orders_and_rates_that_only_pyav_can_write(tmp_path, name, codec, times):
    video = Video(write_by_pyav(tmp_path / name, codec, FRAMES, times=times))
    assert shown(video) == list(range(FRAMES)) and video.warnings == []


def test_times_and_a_stride(tmp_path):
    video = Video(write_by_opencv(tmp_path / "a.mp4", "mp4v", FRAMES))
    assert shown(video, 10) == [0, 10, 20] and video.count == FRAMES
    assert [frame.time for frame in video.frames(10)] == pytest.approx([0, 0.4, 0.8])


@pytest.mark.parametrize(
    ("degrees", "back"),
    [
        (90, cv2.ROTATE_90_COUNTERCLOCKWISE),
        (180, cv2.ROTATE_180),
        (270, cv2.ROTATE_90_CLOCKWISE),
    ],
)
def test_a_turned_video_is_read_as_it_is_shown(tmp_path, degrees, back):
    path = write_by_opencv(tmp_path / "a.mp4", "mp4v", 5)
    video = Video(turned(path, tmp_path / "turned.mp4", degrees))
    images = [frame.image for frame in video.frames()]
    assert [shown_number(cv2.rotate(image, back)) for image in images] == list(range(5))


# Videos that are not whole


def test_an_mp4_without_its_index_is_named(tmp_path):
    path = write_by_opencv(tmp_path / "a.mp4", "mp4v", FRAMES)
    said = "cut off: an mp4 or mov file without its index (moov); copy or record it again"
    assert fault(cut(path, tmp_path / "cut.mp4")) == said


@pytest.mark.parametrize(("suffix", "fourcc"), [("mkv", "mp4v"), ("avi", "MJPG")])
def test_what_is_left_of_a_cut_video_is_right(tmp_path, suffix, fourcc):
    path = write_by_opencv(tmp_path / f"a.{suffix}", fourcc, FRAMES)
    video = Video(cut(path, tmp_path / f"cut.{suffix}"))
    numbers = shown(video)
    assert FRAMES / 3 < len(numbers) < FRAMES and numbers == list(range(len(numbers)))
    assert len(video.warnings) == 1
    assert video.warnings[0].endswith(f" s; {len(numbers)} frames can be used")


@needs_pyav
@pytest.mark.parametrize("suffix", ["avi", "mkv", "ts"])
def test_a_cut_between_frames_stored_in_another_order(tmp_path, suffix):
    path = write_by_pyav(tmp_path / f"a.{suffix}", "libx264", 60)
    for share in (0.5, 0.6, 0.7):
        video = Video(cut(path, tmp_path / f"cut.{suffix}", share))
        numbers = shown(video)
        assert numbers == list(range(len(numbers))) and len(numbers) > 15
        assert "cut off after" in video.warnings[0]


def test_frames_that_do_not_decode_are_named(tmp_path):
    path = write_by_opencv(tmp_path / "a.mp4", "mp4v", FRAMES)
    said = fault(zeroed(path, tmp_path / "zeros.mp4", 0.2))
    assert said.startswith("damaged: ") and " of 24 frames cannot be decoded, near frame " in said
    assert said.endswith(
        "encode it again (ffmpeg -i OLD -c:v libx264 NEW.mp4) and check its labels, or leave it out"
    )


def test_what_is_no_video_is_named(tmp_path, without_pyav):
    path = tmp_path / "a.mkv"
    path.write_bytes(b"no video" * 100)
    assert fault(path) == (
        "damaged or not a video: OpenCV cannot open it; install PyAV, which may read it: "
        "pip install 'yolods[video]'"
    )
    path.unlink()
    assert fault(path) == "does not exist"


@needs_pyav
def test_a_gap_is_told(tmp_path):
    times = [40 * (number + 5 * (number > 11)) for number in range(FRAMES)]
    video = Video(write_by_pyav(tmp_path / "a.mkv", "libx264", FRAMES, times=times))
    assert shown(video) == list(range(FRAMES))
    assert video.gaps == [pytest.approx((0.44, 0.68))]
    (line,) = video.warnings
    assert "1 gap between frames, the first from 0.44 to 0.68 s: frames were dropped" in line


@needs_pyav
def test_without_pyav_its_codecs_are_refused_with_the_remedy(tmp_path, without_pyav):
    path = write_by_pyav(tmp_path / "a.mp4", "libsvtav1", 5)
    assert fault(path) == (
        "no frame of 5 can be decoded by OpenCV; install PyAV, which may read it: "
        "pip install 'yolods[video]'"
    )


# What readers tell


class Told:
    """A reader of frames at given times."""

    def __init__(self, packets: Packets, times: list[float]) -> None:
        self.packets, self._times = packets, times

    def times(self):
        return iter(self._times)

    def image(self):
        return np.zeros((2, 2, 3), np.uint8)


def told(monkeypatch, tmp_path, times, *more_times, **settings) -> Video:
    """A video of 20 packets whose readers decode these times, counted in frames."""
    packets = Packets(np.arange(20) / 25, 20 / 25, **settings)
    first, *more = ([number / 25 for number in each] for each in (times, *more_times))
    path = tmp_path / "a.mp4"
    path.touch()
    monkeypatch.setattr(reading, "OpenCvReader", lambda _: Told(packets, first))
    monkeypatch.setattr(reading, "pyav_installed", lambda: bool(more))
    if more:
        other = type(
            "Other", (Told,), {"__init__": lambda self, _: Told.__init__(self, packets, more[0])}
        )
        monkeypatch.setattr(reading, "PyAvReader", other)
    return Video(path)


def test_where_opencv_stops_early_pyav_goes_on(monkeypatch, tmp_path):
    video = told(monkeypatch, tmp_path, range(12), range(20))
    assert [frame.number for frame in video.frames()] == list(range(20))
    assert (video.count, video.warnings) == (20, [])


def test_a_reader_that_goes_on_has_to_agree(monkeypatch, tmp_path):
    video = told(monkeypatch, tmp_path, range(2, 12), range(20))
    with pytest.raises(VideoError, match=r"frame 0 is at 0\.080 s for OpenCV, and at 0\.000 s for"):
        list(video.frames())


def test_missing_ends_are_told(monkeypatch, tmp_path):
    video = told(monkeypatch, tmp_path, range(2, 19))
    assert [frame.number for frame in video.frames()] == list(range(17))
    begins, ends = (line.partition(": ")[2] for line in video.warnings)
    assert begins == "begins with 2 packets without a picture; frame 0 is the first picture"
    assert ends == "ends with 1 packet without a picture; 17 frames can be used"


def test_missing_frames_are_counted_from_the_first_picture(monkeypatch, tmp_path):
    video = told(monkeypatch, tmp_path, [*range(1, 5), 6, *range(9, 20)])
    with pytest.raises(VideoError, match=r"damaged: 3 of 20 frames .* near frame 4, 6-7;"):
        list(video.frames())


def test_times_of_no_packet_are_refused(monkeypatch, tmp_path):
    video = told(monkeypatch, tmp_path, [0, 1, 50])
    with pytest.raises(VideoError, match="only 3 of 20 frames can be decoded, and their times"):
        list(video.frames())
