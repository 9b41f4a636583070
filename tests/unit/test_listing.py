"""Image files are found in folders, lists and links, each as often as a split's sources name it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import make_dataset
from yolods.data.images.listing import IMAGE_SUFFIXES, find_images, list_images, unused_lines


def test_image_types_are_those_of_ultralytics():
    from ultralytics.data.utils import IMG_FORMATS

    assert IMAGE_SUFFIXES == IMG_FORMATS


@pytest.mark.parametrize("target", [".", "..", "../..", "/"])
def test_a_link_to_a_folder_above_it_adds_no_images(tmp_path, target):
    make_dataset(tmp_path, train=4)
    (tmp_path / "images/train/again").symlink_to(target)
    assert [Path(file).name for file in list_images((tmp_path / "images/train",))] == [
        f"{i:03}.jpg" for i in range(4)
    ]


def test_each_real_folder_is_looked_into_once_under_its_own_name(tmp_path):
    make_dataset(tmp_path, train=4)
    (tmp_path / "images/train").rename(tmp_path / "images/b")
    for name, target in (("a", "b"), ("c", "b"), ("x", "y"), ("y", "x")):
        (tmp_path / "images" / name).symlink_to(target)
    found = list_images((tmp_path / "images",))
    assert [str(Path(file).relative_to(tmp_path / "images")) for file in found] == [
        *(f"b/{i:03}.jpg" for i in range(4)),
        *(f"val/{i:03}.jpg" for i in range(4)),
    ]


def test_a_link_to_images_elsewhere_is_followed_and_so_are_links_in_there(tmp_path):
    make_dataset(tmp_path / "other", train=2)
    make_dataset(tmp_path / "third", train=3)
    (tmp_path / "other/images/train/more").symlink_to(tmp_path / "third/images/train")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/link").symlink_to(tmp_path / "other/images/train")
    found = list_images((tmp_path / "images",))
    assert [str(Path(file).relative_to(tmp_path / "images")) for file in found] == [
        *(f"link/{i:03}.jpg" for i in range(2)),
        *(f"link/more/{i:03}.jpg" for i in range(3)),
    ]


def test_hidden_files_and_folders_are_no_part_of_a_set(tmp_path):
    make_dataset(tmp_path, train=2)
    (tmp_path / "images/train/.hidden").mkdir()
    for name in (".hidden/a.jpg", ".b.jpg"):
        (tmp_path / "images/train" / name).write_bytes(b"")
    assert len(list_images((tmp_path / "images/train",))) == 2


def test_lines_of_a_list_that_name_no_image_are_known(tmp_path):
    make_dataset(tmp_path, train=2)
    text = (
        './images/train/000.jpg\n\n"./images/train/001.jpg"\n./images/train/001.jpg 10,20,30,40,0\n'
        "# note\n"
    )
    file = tmp_path / "list.txt"
    file.write_text(text)
    sources = (file, tmp_path / "images/train", tmp_path / "images/train/000.jpg")
    assert [(line, text) for _, line, text in unused_lines(sources)] == [
        (3, '"./images/train/001.jpg"'),
        (4, "./images/train/001.jpg 10,20,30,40,0"),
        (5, "# note"),
    ]


def test_an_image_that_several_sources_name_is_there_as_often_and_counted(tmp_path):
    make_dataset(tmp_path, train=3, val=2)
    (tmp_path / "linked").symlink_to("images")
    (tmp_path / "list.txt").write_text("./images/val/000.jpg\n" * 3)
    sources = [
        tmp_path / name
        for name in ("images/train", "images", "list.txt", "images/train", "linked/val")
    ]
    files, again, folders, videos = find_images(tuple(sources))
    assert len(files) == 3 + 5 + 3 + 3 + 2
    assert files.count(str(tmp_path / "images/val/000.jpg")) == 1 + 3
    assert (again, videos) == (3 + 3 + 3 + 2, 0)
    assert {Path(each).name for each in folders} == {"train", "images", "val"}
    assert find_images((tmp_path / "images/train", tmp_path / "images/val")).named_again == 0
