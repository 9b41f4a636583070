"""yolods.data.pack.shard: plain tar files, and names in them that make an ordinary data set."""

import subprocess
import tarfile
from hashlib import sha256

import pytest

from yolods.data.pack.shard import ROOM, MemberNames, ShardWriter

FILES = {
    "images/train/a.jpg": b"x" * 700,
    "labels/train/a.txt": b"",
    f"images/train/{'long' * 40}/b.jpg": b"y" * 512,
    "images/train/\udcff é.jpg": b"z",
}


def written(path):
    shard = ShardWriter(path)
    places = {name: shard.add(name, data) for name, data in FILES.items()}
    return shard.finish(), places


def test_tar_reads_it_and_places_are_right(tmp_path):
    record, places = written(tmp_path / "00000.tar")
    data = (tmp_path / "00000.tar").read_bytes()
    assert (record.file, record.bytes) == ("00000.tar", len(data))
    assert record.sha256 == sha256(data).hexdigest()
    for name, place in places.items():
        assert data[place : place + len(FILES[name])] == FILES[name]
    with tarfile.open(tmp_path / "00000.tar") as tar:
        members = {each.name: each for each in tar.getmembers()}
    assert members.keys() == FILES.keys()
    assert {(each.mtime, each.uid, each.gid, each.mode) for each in members.values()} == {
        (0, 0, 0, 0o644)
    }
    (tmp_path / "out").mkdir()
    words = ["tar", "-xf", tmp_path / "00000.tar", "-C", tmp_path / "out"]
    subprocess.run(words, check=True, timeout=20)
    for name, data in FILES.items():
        assert (tmp_path / "out" / name).read_bytes() == data


def test_the_same_files_give_the_same_bytes(tmp_path):
    assert written(tmp_path / "00000.tar")[0].sha256 == written(tmp_path / "00001.tar")[0].sha256


def test_it_has_its_name_only_when_it_is_complete(tmp_path):
    shard = ShardWriter(tmp_path / "00000.tar")
    shard.add("images/a.jpg", b"x")
    assert not (tmp_path / "00000.tar").exists()
    shard.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_sample_needs_no_more_room_than_is_said(tmp_path):
    shard = ShardWriter(tmp_path / "00000.tar")
    shard.add("images/a.jpg", b"x" * 513)
    shard.add("labels/a.txt", b"y" * 513)
    assert shard.size <= 2 * 513 + ROOM
    shard.abandon()


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("images/train/a.jpg", "images/train/a.png"),
        ("images/a.jpg", "images/train/a.png"),
        ("train/images/a.jpg", "images/train/a.png"),
        ("images/val/a.jpg", "images/train/val/a.png"),
        ("images/x/images/y/a.jpg", "images/train/y/a.png"),
        ("a.b.jpg", "images/train/a.b.png"),
        ("../other/b.png", "images/train/other/b.png"),
        ("/far/away/images/c.jpg", "images/train/c.png"),
        ("clip.mp4/000001", "images/train/clip.mp4/000001.png"),
        ("x/.hidden/.a.jpg", "images/train/x/_hidden/_a.png"),
        ("images.jpg", "images/train/images.png"),
        ("videos/train/x/clip.mp4#000012", "images/train/x/clip.mp4#000012.png"),
        ("images/videos/clip.avi#000012", "images/train/videos/clip.avi#000012.png"),
    ],
)
def test_names_follow_ultralytics_rule_for_labels(identity, name):
    assert MemberNames("train").name(identity, ".png") == name


def test_names_that_collide_are_told_apart():
    names = MemberNames("train")
    wanted = ["a.jpg", "a.png", "images/a.jpg", "a~2.jpg", "a.jpg", "b.jpg"]
    assert [names.name(each, ".jpg").removeprefix("images/train/") for each in wanted] == [
        *("a.jpg", "a~2.jpg", "a~3.jpg", "a~2~2.jpg", "a~4.jpg", "b.jpg")
    ]
