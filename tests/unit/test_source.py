"""yolods.data.source: what an image file is known by, and what opens what a data yaml names."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.indexes import image_files
from yolods.data.source import SOURCES, VIDEOS, Unreadable, by_identity, opener_of


def image(file: Path, value: int, channels: int = 3) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.full((12, 16, channels), value, np.uint8))
    return str(file)


def test_files_are_known_by_their_path_below_the_folder_of_the_set(tmp_path):
    files = [image(tmp_path / "set/images/a.png", 1), image(tmp_path / "other/b.png", 2)]
    source = image_files(files, tmp_path / "set", 3)
    assert [*source.index.ids] == ["images/a.png", "../other/b.png"]
    assert [source.place(each) for each in [*source.index.ids]] == files
    assert [int(source.read(row).mean()) for row in range(len(files))] == [1, 2]


@pytest.mark.parametrize(
    "name",
    [
        "a.jpg",
        "x/a.jpg",
        "x//a.jpg",
        "./a.jpg",
        "x/../a.jpg",
        "../a.jpg",
        "x/..a.jpg",
        ".x/a.jpg",
        "x./a.jpg",
    ],
)
def test_an_identity_is_the_relative_path(name, tmp_path):
    file = f"{tmp_path}/{name}"
    assert image_files([file], tmp_path).index.ids[0] == os.path.relpath(file, tmp_path)


def test_a_set_that_was_moved_has_the_same_identities(tmp_path):
    before = image_files([image(tmp_path / "here/a.png", 1)], tmp_path / "here", 3)
    (tmp_path / "here").rename(tmp_path / "there")
    after = image_files([str(tmp_path / "there/a.png")], tmp_path / "there", 3)
    assert [*before.index.ids] == [*after.index.ids]
    assert not Path(before.place("a.png")).exists() and Path(after.place("a.png")).exists()


def test_a_file_that_is_named_twice_is_one_sample_and_two_files_never_are(tmp_path):
    """Beyond a link, `..` leads to another folder than the text says."""
    image(tmp_path / "far/set/x.png", 1)
    file, other = image(tmp_path / "a.png", 2), image(tmp_path / "far/a.png", 3)
    (tmp_path / "link").symlink_to(tmp_path / "far/set")
    beyond = f"{tmp_path}/link/../a.png"
    source = image_files([file, f"{tmp_path}/./a.png", beyond], tmp_path, 3)
    assert [*source.index.ids] == ["a.png", "a.png", beyond]
    assert [int(source.read(row).mean()) for row in range(3)] == [2, 2, 3]
    assert os.path.samefile(other, source.place(beyond))


@pytest.mark.parametrize(
    ("channels", "shape"), [(1, (12, 16, 1)), (3, (12, 16, 3)), (4, (12, 16, 4))]
)
def test_images_are_read_with_the_channels_of_the_set(tmp_path, channels, shape):
    source = image_files([image(tmp_path / "a.png", 7, max(channels, 3))], tmp_path, channels)
    assert source.read(0).shape == shape
    assert source.read(0).dtype == np.uint8


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    source = image_files([str(tmp_path / "bad.png"), str(tmp_path / "gone.png")], tmp_path, 3)
    for row in (0, 1):
        with pytest.raises(Unreadable):
            source.read(row)


def test_what_an_older_checkpoint_notes_by_file_is_found_by_identity(tmp_path):
    source = image_files([f"{tmp_path}/a.png", f"{tmp_path}/b.png"], tmp_path, 3)
    noted = {f"{tmp_path}/a.png": 1, "a.png": 1, "b.png": 2, "/elsewhere/c.png": 1}
    assert by_identity(noted, source.index.ids, source) == {
        "a.png": 2,
        "b.png": 2,
        "/elsewhere/c.png": 1,
    }
    assert by_identity({}, source.index.ids, source) == {}


def test_a_kind_of_source_has_an_opener(monkeypatch):
    monkeypatch.setitem(SOURCES, ".films", "os.path:join")
    assert opener_of(".films") is os.path.join
    assert all(callable(opener_of(kind)) for kind in (".pack", VIDEOS))
