"""Whole videos in one split each."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolods.data.video.split import HASHED_BYTES, refuse_shared, split_by_video
from yolods.errors import UserError

VIDEOS = [Path(f"/data/videos/{number:02}.mp4") for number in range(20)]


def split(videos=VIDEOS, shares=None, root=Path("/data"), seed=0):
    return split_by_video(videos, shares or {"val": 0.2}, root=root, seed=seed)


def test_each_video_is_in_one_split():
    found = split(shares={"val": 0.2, "test": 0.1})
    assert {name: len(videos) for name, videos in found.items()} == {
        "train": 14,
        "val": 4,
        "test": 2,
    }
    assert sorted(video for videos in found.values() for video in videos) == VIDEOS
    assert found["train"] == sorted(found["train"])


def test_neither_order_nor_place_matters_and_a_seed_does():
    found = split()
    moved = [Path("/elsewhere") / video.relative_to("/data") for video in reversed(VIDEOS)]
    again = split(moved, root=Path("/elsewhere"))
    assert {video.name for video in again["val"]} == {video.name for video in found["val"]}
    assert split(seed=1)["val"] != found["val"]


def test_a_new_video_moves_few_others():
    before, after = split(), split([*VIDEOS, Path("/data/videos/99.mp4")])
    assert len({*before["val"]} - {*after["val"]}) <= 1


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("count", [2, 3])
def test_each_split_has_a_video(count, share):
    assert all(split(VIDEOS[:count], {"val": share}).values())


@pytest.mark.parametrize(
    ("count", "shares", "said"),
    [
        (9, {"val": 1.0}, "split: val: 1.0 is not a share between 0 and 1"),
        (9, {"train": 0.5}, "split: train: 0.5 is not a share between 0 and 1 of a split but"),
        (9, {"val": 0.5, "test": 0.5}, "split: the shares add up to 1; leave some for train"),
        (1, {"val": 0.5}, "split: 1 video cannot be split by video into train, val; each split"),
    ],
)
def test_what_is_refused(count, shares, said):
    with pytest.raises(UserError) as caught:
        split(VIDEOS[:count], shares)
    assert str(caught.value).startswith(said)


def test_one_video_in_two_splits(tmp_path):
    data = {"a": b"1" * 50, "copy": b"1" * 50, "b": b"2" * 50, "c": b"3" * 60}
    files = {name: tmp_path / f"{name}.mp4" for name in data}
    for name, text in data.items():
        files[name].write_bytes(text)
    link = tmp_path / "link.mp4"
    link.symlink_to(files["c"])
    refuse_shared({"train": [files["a"], files["copy"], files["c"]], "val": [files["b"]]})
    with pytest.raises(UserError) as caught:
        refuse_shared({"train": [files["a"], files["c"]], "val": [files["copy"], files["b"], link]})
    assert str(caught.value).splitlines() == [
        f"one video is in several splits: train: {files[one]} and val: {two}; keep it in one"
        for one, two in (("a", files["copy"]), ("c", link))
    ]


def test_the_first_bytes_tell_videos_apart(tmp_path):
    one, two = tmp_path / "a.mp4", tmp_path / "b.mp4"
    one.write_bytes(bytes(HASHED_BYTES) + b"1")
    two.write_bytes(bytes(HASHED_BYTES - 1) + b"12")
    refuse_shared({"train": [one], "val": [two]})
    with pytest.raises(UserError, match=r"none\.mp4: cannot be read"):
        refuse_shared({"train": [one], "val": [tmp_path / "none.mp4"]})
