"""yolods.data.leaks.warning: pairs are told by image, or by video where that is known."""

from yolods.data.leaks.search import Pair
from yolods.data.leaks.warning import SplitImages, leaks_of, warning_lines


def images(split: str, count: int, groups=()) -> SplitImages:
    return SplitImages(
        split, [f"{split}/{row}.jpg" for row in range(count)], lambda row: None, groups
    )


def test_without_pairs_it_is_silent():
    assert warning_lines([], images("train", 9), images("val", 4)) == []


def test_the_nearest_images_are_named():
    pairs = [Pair(7, 3, 0), Pair(1, 0, 4), Pair(1, 2, 9), Pair(5, 1, 30)]
    assert warning_lines(pairs, images("train", 9), images("val", 6)) == [
        "val: 4 of 6 images (66.7%) nearly repeat train images, so metrics will be too good; "
        "the nearest: val/3.jpg and train/7.jpg (0 of 256 bits apart); "
        "val/0.jpg and train/1.jpg (4 of 256 bits apart); "
        "val/2.jpg and train/1.jpg (9 of 256 bits apart); "
        "remove one image of each pair; if they are frames of a video, split by video"
    ]


def test_images_of_one_video_are_named_by_it():
    train = images("train", 6, ["a.mp4"] * 3 + ["b.mp4"] * 3)
    val = images("val", 4, ["b.mp4", "a.mp4", "a.mp4", "b.mp4"])
    pairs = [Pair(3, 0, 2), Pair(0, 1, 3), Pair(2, 2, 5)]
    assert warning_lines(pairs, train, val) == [
        "val: 3 of 4 images (75.0%) nearly repeat train images, so metrics will be too good; "
        "the nearest: b.mp4 (1 image, 2 of 256 bits apart at the nearest); "
        "a.mp4 (2 images, 3 of 256 bits apart at the nearest); "
        "split by group (such as a video), not by image"
    ]


def test_two_videos_of_one_place_and_single_images_have_their_own_remedy():
    train = images("train", 4, ["a.mp4", "a.mp4", "", "c.mp4"])
    val = images("val", 5, ["b.mp4", "b.mp4", "", "c.mp4", "b.mp4"])
    pairs = [Pair(0, 0, 1), Pair(2, 2, 2), Pair(2, 4, 3), Pair(1, 1, 4)]
    found = leaks_of(pairs, train, val)
    assert [(each.groups, each.images, each.nearest.bits) for each in found] == [
        (("a.mp4", "b.mp4"), 2, 1),
        (None, 1, 2),
        (None, 1, 3),
    ]
    (line,) = warning_lines(pairs, train, val)
    assert "the nearest: b.mp4 and a.mp4 (2 images, 1 of 256 bits apart at the nearest); " in line
    assert line.endswith(
        "; remove one image of each pair; if they are frames of a video, split by video"
    )
    (line,) = warning_lines([*pairs, Pair(3, 3, 8)], train, val)
    assert (
        "; split by group (such as a video), not by image; remove one image of each pair;" in line
    )
    assert line.count("bits apart") == 3
