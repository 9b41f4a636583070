"""Where the labels of videos are found, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolods.data.video.labels.label_files import find_labels, label_folders, label_places
from yolods.errors import Faults, UserError


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def faults(*videos: Path) -> list[str]:
    with pytest.raises(UserError) as caught:
        find_labels(videos)
    return str(caught.value).splitlines()


@pytest.fixture
def clip(tmp_path) -> Path:
    return touch(tmp_path / "videos/train/clip.mp4")


@pytest.mark.parametrize("folder", ["labels/train", "videos/train"])
@pytest.mark.parametrize(
    ("layout", "names", "place", "numbers"),
    [
        ("folder", ("clip/000000.txt", "clip/12.txt"), "clip/NUMBER.txt", [0, 12]),
        ("beside", ("clip_000003.txt", "clip_4.txt"), "clip_NUMBER.txt", [3, 4]),
        ("cvat", ("clip/frame_000010.txt",), "clip/frame_NUMBER.txt", [10]),
        ("sequence", ("clip.txt",), "clip.txt", []),
    ],
)
def test_each_layout_in_each_folder(tmp_path, clip, folder, layout, names, place, numbers):
    for name in names:
        touch(tmp_path / folder / name)
    found = find_labels([clip])[clip]
    assert (found.video, found.layout) == (clip, layout)
    assert found.place == tmp_path / folder / place
    assert sorted(found.files) == numbers
    assert {*found.files.values()} <= {tmp_path / folder / name for name in names}


def test_the_last_folder_of_videos_or_images_counts():
    assert label_folders(Path("/images/a/videos/b/c.mp4"))[0] == Path("/images/a/labels/b")
    assert label_folders(Path("/videos/images/c.mp4"))[0] == Path("/videos/labels")
    assert label_folders(Path("/data/c.mp4")) == [Path("/data")]


def test_other_texts_are_no_labels(tmp_path, clip):
    names = ("clip/classes.txt", "clip/frame_x.txt", "clip_old.txt", "clip_1_2.txt", "other_1.txt")
    for name in names:
        touch(tmp_path / "labels/train" / name)
    (said,) = faults(clip)
    assert said.startswith(
        f"{clip}: has no labels; expected one of: {tmp_path}/labels/train/clip/000000.txt, "
    )
    assert said.endswith(f"{tmp_path}/videos/train/clip.txt")


def test_the_text_of_another_video_is_no_frame_of_this_one(tmp_path, clip):
    other = touch(clip.with_name("clip_1.mp4"))
    touch(tmp_path / "labels/train/clip_1.txt")
    touch(tmp_path / "labels/train/clip.txt")
    found = find_labels([clip, other])
    assert [found[each].layout for each in (clip, other)] == ["sequence", "sequence"]


def test_two_layouts_are_refused_with_both_places(tmp_path, clip):
    touch(tmp_path / "labels/train/clip/000001.txt")
    touch(tmp_path / "labels/train/clip/frame_000001.txt")
    touch(clip.with_suffix(".txt"))
    assert faults(clip) == [
        f"{clip}: has labels in 3 layouts: {tmp_path}/labels/train/clip/NUMBER.txt and "
        f"{tmp_path}/labels/train/clip/frame_NUMBER.txt and {clip.with_suffix('.txt')}; keep one"
    ]


def test_every_fault_at_once(tmp_path, clip):
    bare = touch(clip.with_name("bare.mp4"))
    one, two = (touch(tmp_path / f"labels/train/clip/{name}.txt") for name in ("007", "7"))
    said = faults(bare, clip)
    assert said[0].startswith(f"{bare}: has no labels;")
    assert said[1] == f"{clip}: {one} and {two} have the number 7; remove one"


def test_two_videos_with_one_name_cannot_share_labels(tmp_path, clip):
    other = touch(clip.with_suffix(".avi"))
    text = touch(tmp_path / "labels/train/clip.txt")
    assert faults(clip, other) == [f"{clip} and {other}: both have the labels {text}; rename one"]


def test_videos_of_another_split_cannot_share_labels_either(tmp_path, clip):
    """A copy of a video in another format would otherwise be validated on."""
    other, text = clip.with_suffix(".avi"), touch(tmp_path / "labels/train/clip.txt")
    touch(other)
    found = Faults()
    assert list(find_labels([clip], found, others=[other])) == [clip]
    assert list(found) == [f"{other} and {clip}: both have the labels {text}; rename one"]


def test_a_sequence_of_another_splits_video_is_not_a_frame_of_this_ones(tmp_path, clip):
    """`clip_0001.txt` was taken for frame 1 of clip.mp4."""
    other = touch(clip.with_name("clip_0001.mp4"))
    texts = [touch(tmp_path / f"labels/train/{name}.txt") for name in ("clip", "clip_0001")]
    for video, unlike, text in ((clip, other, texts[0]), (other, clip, texts[1])):
        assert find_labels([video], others=[unlike])[video].place == text


def test_places_of_labels_beside_a_video_or_a_folder_of_videos(tmp_path, clip):
    folder, labels = clip.parent, tmp_path / "labels/train"
    assert label_places(folder) == label_places(clip) == []
    texts = [touch(labels / "clip/0.txt"), touch(folder / "clip.txt"), touch(folder / "clip/1.txt")]
    assert label_places(folder) == [labels]
    assert label_places(clip) == [labels, texts[2].parent, texts[1]]
    touch(folder / "clip_000001.txt")
    assert label_places(clip)[-1] == folder


def test_faults_may_be_collected(tmp_path, clip):
    other = touch(tmp_path / "videos/train/other.mp4")
    touch(tmp_path / "labels/train/other.txt")
    said = Faults()
    assert list(find_labels([clip, other], said)) == [other]
    assert len(said) == 1
