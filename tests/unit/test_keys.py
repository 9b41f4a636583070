"""yolods.data.video.keys: the keys of a data yaml that say how videos are used."""

from __future__ import annotations

import pytest

from yolods.data.video.keys import VideoKeys, read_video_keys
from yolods.errors import Faults

SPLIT = {"val": 0.25, "by": "video"}


def read(**data) -> VideoKeys:
    faults = Faults()
    keys = read_video_keys(data, faults)
    assert list(faults) == []
    return keys


def test_what_is_not_written_has_a_default():
    assert read() == read(stride=None, base=None) == VideoKeys(1, None, 1, ())
    keys = ("stride", "base", "first_class")
    assert read(stride=5, base=0, first_class=0) == VideoKeys(5, 0, 0, (), keys)


def test_videos_are_divided_by_shares():
    keys = read(videos="videos", split={"val": 0.2, "test": 0.1, "by": "video"})
    assert keys.shares == (("val", 0.2), ("test", 0.1))
    assert keys.divided == ("train", "val", "test")
    assert read(train="videos", split=SPLIT, test="others").divided == ("train", "val")
    assert read(train="videos", val="others").divided == ()


def test_frames_of_an_evaluation_are_never_left_out():
    keys = VideoKeys(stride=5)
    assert [keys.stride_of(split) for split in ("train", "val", "test")] == [5, 1, 1]


def test_each_video_is_in_one_split(tmp_path):
    for number in range(8):
        (tmp_path / f"{number}.mp4").touch()
    keys = VideoKeys(shares=(("val", 0.25),))
    train, val = (keys.videos_of(split, [tmp_path], tmp_path) for split in ("train", "val"))
    assert (len(train), len(val)) == (6, 2)
    assert sorted(train + val) == keys.videos_of("test", [tmp_path], tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"stride": 0}, "stride is 0: it must be a whole number of at least 1"),
        ({"stride": "5"}, "stride is '5': it must be a whole number of at least 1"),
        ({"base": 2}, "base is 2: it must be a whole number in [0, 1]"),
        ({"base": True}, "base is true: it must be a whole number in [0, 1]"),
        ({"first_class": -1}, "first_class is -1: it must be a whole number in [0, 1]"),
        ({"videos": "x"}, "videos: also needs a split, such as `split: {val: 0.2, by: video}`"),
        ({"split": 0.2}, "split is 0.2: it must be a mapping such as {val: 0.2, by: video}"),
        ({"split": {"val": 0.2}}, "split.by is empty: it must be video"),
        ({"split": {**SPLIT, "by": "frame"}}, "split.by is 'frame': it must be video"),
        ({"split": {**SPLIT, "val": 1}}, "split.val is 1: it must be a number in (0, 1)"),
        ({"split": {"by": "video"}}, "split: names no share"),
        ({"split": {**SPLIT, "vall": 0.1}}, "split: unknown key 'vall' (did you mean 'val'?)"),
        ({"split": {**SPLIT, 3: 0.1}}, "split: unknown key 3; known: val, test, by"),
        ({"split": SPLIT, "val": "x"}, "split.val: there is a `val` as well"),
        ({"split": SPLIT, "videos": "x", "train": "y"}, "videos: there is a `train` as well"),
    ],
)
def test_a_wrong_value_is_one_fault(data, said):
    faults = Faults()
    read_video_keys(data, faults)
    (line,) = faults
    assert line.startswith(said)


def test_all_of_them_at_once():
    faults = Faults()
    data = {"stride": 0, "base": 7, "first_class": "a", "split": {"by": 1, "val": 2, "x": 3}}
    assert read_video_keys(data, faults) == VideoKeys(
        named=("split", "stride", "base", "first_class")
    )
    assert len(faults) == 6
