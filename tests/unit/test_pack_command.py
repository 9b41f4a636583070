"""yolods.data.pack.command: `yolods pack` from its flags to its report."""

import errno
import os
import shutil
import signal
from collections import namedtuple

import cv2
import numpy as np
import pytest

from tests.clips import make_clips, with_splits
from tests.packs import flip, hashes, make_odd_set
from yolods import cli
from yolods.data.index.fingerprint import samples_of
from yolods.data.pack import command as command_module
from yolods.data.pack.manifest import read_record
from yolods.data.pack.writer import PackWriter
from yolods.data.scan import scan
from yolods.data.spec import read_spec

Disk = namedtuple("Disk", "total used free")


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """A power cut is not played here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def yaml(tmp_path):
    return make_odd_set(tmp_path / "set")


@pytest.fixture
def pack(yaml, tmp_path, capsys):
    """Calls the command; returns its status, what it printed, and its errors."""

    def call(*words, data=yaml, out=tmp_path / "out"):
        code = cli.main(["pack", "--data", str(data), "--out", str(out), *map(str, words)])
        shown = capsys.readouterr()
        errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
        return code, shown.out, errors

    return call


def test_a_set_is_packed_and_used_by_its_yaml(pack, yaml, tmp_path):
    code, shown, errors = pack()
    assert (code, errors) == (0, [])
    lines = shown.splitlines()
    assert lines[0].startswith("train: 11 images, 20 boxes, ") and "in 1 tar file" in lines[0]
    assert lines[1].startswith("val: 4 images, ")
    assert lines[-1].endswith(f"use it with --data {tmp_path}/out/tiny.yaml")
    assert not (tmp_path / "out/problems.txt").exists()
    spec = read_spec(tmp_path / "out/tiny.yaml")
    assert spec.names == read_spec(yaml).names
    assert spec.train == (tmp_path / "out/train.pack",)
    found = scan(spec, "train", cache=tmp_path / "cache")
    assert found.summary == "11 images, 20 boxes, 1 backgrounds"


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        ([], (None, 95, False)),
        (["--imgsz", 64], (64, 95, False)),
        (["--imgsz", 64, "--quality", 70], (64, 70, False)),
        (["--imgsz", 64, "--raw"], (64, 95, True)),
    ],
)
def test_flags_choose_how_images_are_stored(pack, tmp_path, words, settings):
    assert pack(*words, "--splits", "val")[0] == 0
    found = read_record(tmp_path / "out/val.pack").settings
    assert (found["imgsz"], found["quality"], found["uncompressed"]) == settings
    assert not (tmp_path / "out/train.pack").exists()


def test_what_is_skipped_equal_or_in_two_splits_is_reported(pack, yaml, tmp_path):
    images = yaml.parent / "images"
    (images / "train/bad.jpg").write_bytes(b"no image")
    (yaml.parent / "labels/train/001.txt").write_text("0 .5 .5 .25 .25\nbad\n")
    shutil.copy(images / "train/000.jpg", images / "train/copy.jpg")
    shutil.copy(images / "train/000.jpg", images / "val/leak.jpg")
    code, shown, _ = pack()
    assert code == 0
    (line,) = (line for line in shown.splitlines() if line.startswith("train:"))
    assert line.endswith(
        "; 1 image equal to an earlier one; 1 faulty image left out; 1 label line skipped"
    )
    assert "1 of 5 val images are train images as well" in shown
    problems = (tmp_path / "out/problems.txt").read_text().splitlines()
    assert len(problems) == 2
    assert problems[0].endswith("labels/train/001.txt:2: 'bad' is not a number; line skipped")
    assert "train/bad.jpg: damaged or not an image" in problems[1]


def test_all_wrong_flags_are_told_at_once(capsys):
    words = ["--raw", "--quality", "0", "--stride", "0", "--shard-size", "big", "--workers", "-1"]
    assert cli.main(["pack", *words]) == 2
    errors = capsys.readouterr().err
    for text in (
        "--data is missing",
        "--out is missing",
        "--stride is 0: it must be a whole number of at least 1",
        "--raw and --quality exclude each other",
        "--raw needs --imgsz",
        "--quality is 0: it must be a whole number in [1, 100]",
        "--shard-size is 'big'",
        "--workers is -1",
    ):
        assert errors.count(f"error: {text}") == 1, text


@pytest.mark.parametrize(
    ("text", "bytes"), [("500", 500), ("3K", 3072), ("2m", 2 << 20), ("1GiB", 1 << 30)]
)
def test_lengths_have_units(pack, tmp_path, text, bytes):
    assert pack("--shard-size", text, "--splits", "val")[0] == 0
    assert read_record(tmp_path / "out/val.pack").settings["shard_bytes"] == bytes


def test_a_users_yaml_and_files_are_not_replaced(pack, yaml, tmp_path):
    before = hashes(yaml.parent)
    code, _, errors = pack(out=yaml.parent)
    assert code == 2
    assert errors == [f"error: {yaml} exists and is not the yaml of a pack; name another --out"]
    (tmp_path / "out/train.pack").mkdir(parents=True)
    (tmp_path / "out/train.pack/mine.txt").write_text("")
    code, _, errors = pack("--overwrite")
    assert code == 2 and "has files that are no pack" in errors[0]
    assert hashes(yaml.parent) == before


def test_no_pack_is_made_among_the_images_or_among_files_of_others(pack, yaml, tmp_path):
    before = sorted((tmp_path / "set").rglob("*"))
    code, _, errors = pack(out=yaml.parent / "images/train/new")
    assert code == 2 and f"is in {yaml.parent / 'images/train'}, which {yaml} names" in errors[0]
    others = tmp_path / "others"
    others.mkdir()
    (others / "leaks.jpg").write_text("mine")
    code, _, errors = pack(out=others)
    assert code == 2 and "is not empty and has no packs" in errors[0]
    code, _, errors = pack(out=others / "leaks.jpg")
    assert code == 2 and "leaks.jpg: it is not a folder; name another --out" in errors[0]
    code, _, errors = pack(out=others / "leaks.jpg/below")
    assert code == 2 and errors[0].endswith("leaks.jpg is not a folder; name another --out")
    assert (others / "leaks.jpg").read_text() == "mine"
    assert sorted((tmp_path / "set").rglob("*")) == before


def test_a_second_call_changes_nothing_and_other_flags_are_refused(pack, tmp_path):
    pack()
    before = hashes(tmp_path / "out")
    code, shown, _ = pack()
    assert code == 0 and "train: is packed already" in shown
    code, _, errors = pack("--imgsz", 64)
    assert code == 2 and len(errors) == 2
    assert "train.pack is packed already, with other settings (imgsz: None, now 64" in errors[0]
    assert hashes(tmp_path / "out") == before
    assert pack("--imgsz", 64, "--overwrite")[0] == 0
    assert read_record(tmp_path / "out/train.pack").settings["imgsz"] == 64


def test_ctrl_c_ends_it_and_says_how_to_go_on(pack, tmp_path, monkeypatch):
    pack(out=tmp_path / "whole")
    add, count = PackWriter.add, []

    def interrupted(writer, stored):
        count.append(stored)
        if len(count) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        add(writer, stored)

    monkeypatch.setattr(PackWriter, "add", interrupted)
    code, shown, errors = pack("--shard-size", "12K")
    assert (code, errors) == (130, [])
    assert "stopped; the same command goes on behind the last finished tar file" in shown
    monkeypatch.undo()
    code, shown, _ = pack("--shard-size", "12K")
    assert code == 0 and "train: goes on" in shown
    pack("--shard-size", "12K", out=tmp_path / "fresh")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EACCES, "grant access to it, or name another --out"),
        (errno.EROFS, "name another --out"),
        (errno.EISDIR, "name another --out"),
    ],
)
def test_a_place_that_refuses_while_it_packs_is_told(pack, monkeypatch, tmp_path, number, remedy):
    file = str(tmp_path / "out/train.pack/00000.tar")

    def refused(writer, stored):
        raise OSError(number, os.strerror(number), file)

    monkeypatch.setattr(PackWriter, "add", refused)
    code, _, errors = pack()
    assert (code, errors) == (2, [f"error: {file}: {os.strerror(number)}; {remedy}"])


def test_a_folder_in_the_place_of_the_yaml_is_told(pack, tmp_path):
    (tmp_path / "out/tiny.yaml").mkdir(parents=True)
    code, _, (error,) = pack()
    assert code == 2
    assert error.endswith("tiny.yaml exists and is not the yaml of a pack; name another --out")


def test_a_full_disk_is_told_before_and_while_it_packs(pack, monkeypatch, tmp_path):
    monkeypatch.setattr(command_module.shutil, "disk_usage", lambda _: Disk(1, 1, 1000))
    code, _, (error,) = pack()
    assert code == 2
    assert error.endswith(
        "1000 B are free; free some, or choose another --out, a smaller --imgsz or no --raw"
    )
    assert "are needed (train " in error and " + val " in error
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()

    def full(writer, stored):
        raise OSError(28, "No space left on device", "00000.tar")

    monkeypatch.setattr(PackWriter, "add", full)
    code, _, (error,) = pack()
    assert code == 2 and "the disk is full; free some of it, and the same command" in error
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    assert pack()[0] == 0


def test_packs_are_verified_and_what_is_damaged_is_named(pack, tmp_path, capsys):
    pack("--shard-size", "12K")
    assert cli.main(["pack", "--verify", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": intact, ")[0] for line in lines] == [
        *(f"{tmp_path}/out/train.pack", f"{tmp_path}/out/val.pack")
    ]
    flip(tmp_path / "out/train.pack/00001.tar", 600)
    (tmp_path / "out/val.pack/index/group.npy").write_bytes(b"")
    assert cli.main(["pack", "--verify", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert "train.pack/00001.tar is damaged; copy it again" in errors
    assert "train.pack/00001.tar: images/train/001.jpg: wrong checksum" in errors
    assert "val.pack/index/group.npy is damaged; copy it again" in errors
    assert cli.main(["pack", "--verify", str(tmp_path / "out/val.pack")]) == 2
    assert cli.main(["pack", "--verify", str(tmp_path)]) == 2
    assert "there is no pack in it" in capsys.readouterr().err
    verify = ["pack", "--verify", str(tmp_path / "out")]
    assert cli.main([*verify, "--data", "d.yaml", "--out", "x"]) == 2
    assert "omit --data and --out, or omit --verify" in capsys.readouterr().err
    assert cli.main([*verify, "--raw", "--shard-size", "1G"]) == 2
    assert "omit --raw and --shard-size, or omit --verify" in capsys.readouterr().err


def test_what_cannot_be_stored_so_is_refused(pack, yaml, tmp_path):
    code, _, errors = pack("--splits", "test")
    assert code == 2 and "--splits test: " in errors[0] and "has no test" in errors[0]
    pack()
    code, _, errors = pack(data=tmp_path / "out/tiny.yaml", out=tmp_path / "again")
    assert code == 2 and len(errors) == 2 and "its images are not files" in errors[0]
    yaml.write_text(yaml.read_text() + "channels: 4\n")
    code, _, errors = pack("--imgsz", 64, out=tmp_path / "four")
    assert code == 2 and "images of 4 channels can only be stored as they are" in errors[0]


def test_a_test_split_is_packed_unless_its_images_are_missing(pack, yaml, tmp_path):
    yaml.write_text(yaml.read_text() + "test: images/test\n")
    code, shown, _ = pack()
    assert code == 0 and "test: its images are missing, so it is not packed" in shown
    shutil.copytree(yaml.parent / "images/val", yaml.parent / "images/test")
    code, shown, _ = pack()
    assert code == 0 and "test: 4 images, 0 boxes" in shown
    assert read_spec(tmp_path / "out/tiny.yaml").test == (tmp_path / "out/test.pack",)


def test_channels_and_names_are_kept(pack, yaml, tmp_path):
    yaml.write_text(
        "train: images/train\nval: images/val\nchannels: 1\nkpt_shape: [2, 3]\n"
        "names: ['no', 'ä: b']\n"
    )
    assert pack("--imgsz", 64, "--raw")[0] == 0
    spec = read_spec(tmp_path / "out/tiny.yaml")
    assert (spec.names, spec.channels, spec.keypoints) == (("no", "ä: b"), 1, (2, 3))
    image = scan(spec, "train", cache=tmp_path / "cache").source.read(0)
    assert image.shape == (64, 64, 1) and image.dtype == np.uint8
    grey = cv2.imread(str(yaml.parent / "images/train/000.jpg"), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(image[..., 0], cv2.resize(grey, (64, 64)))


def test_a_split_that_is_packed_later_joins_the_yaml(pack, tmp_path):
    pack("--splits", "val")
    assert "train:" not in (tmp_path / "out/tiny.yaml").read_text()
    pack("--splits", "train")
    assert read_spec(tmp_path / "out/tiny.yaml").val == (tmp_path / "out/val.pack",)


# Videos


@pytest.fixture
def clips(tmp_path, monkeypatch):
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    made = make_clips(tmp_path / "clips", {"train/a.mp4": 12, "train/b.avi": 7, "val/c.mp4": 4})
    return with_splits(made, "train: videos/train\nval: videos/val/c.mp4\nstride: 6\n")


def test_frames_of_videos_are_packed_and_used_like_any(pack, clips, tmp_path):
    code, shown, errors = pack(data=clips)
    assert (code, errors) == (0, [])
    assert shown.startswith("train: 4 images, 12 boxes, ")
    assert not (tmp_path / "cache/videos").exists()
    found = scan(read_spec(tmp_path / "out/set.yaml"), "train", cache=tmp_path / "cache/index")
    assert [*found.index.ids] == [
        f"videos/train/{name}#{number:06}" for name in ("a.mp4", "b.avi") for number in (0, 6)
    ]
    direct = scan(read_spec(clips), "train", cache=tmp_path / "cache/index")
    assert samples_of(found.labels) == samples_of(direct.labels)
    assert np.array_equal(found.source.read(3), direct.source.read(3))


@pytest.mark.parametrize(
    ("words", "images", "side"), [(["--stride", 4], 5, None), (["--imgsz", 64, "--raw"], 4, 64)]
)
def test_flags_apply_to_videos(pack, clips, tmp_path, words, images, side):
    assert pack(*words, data=clips)[0] == 0
    record, val = (read_record(tmp_path / f"out/{name}.pack") for name in ("train", "val"))
    assert (record.images, record.settings["imgsz"], val.images) == (images, side, 4)
    code, _, errors = pack(*words, "--stride", 3, data=clips)
    assert code == 2 and len(errors) == 1
    assert "other settings (stride: " in errors[0] and ", now 3; videos_and_labels: " in errors[0]


def test_a_stride_is_refused_where_no_split_is_of_videos(pack, yaml):
    code, _, errors = pack("--stride", 2)
    assert code == 2
    assert errors == [f"error: --stride 2: it thins videos, and {yaml} names none; omit it"]


def test_faults_of_all_videos_of_all_splits_are_told_at_once(pack, clips, tmp_path):
    shutil.rmtree(clips.parent / "labels/train/b")
    (clips.parent / "labels/val/c/000000.txt").unlink()
    code, _, errors = pack(data=clips)
    assert code == 2 and len(errors) == 2
    assert "b.avi: has no labels" in errors[0] and "they may count from 0 or from 1" in errors[1]
    assert not (tmp_path / "out").exists()


def test_problems_of_videos_are_listed(pack, clips, tmp_path):
    (clips.parent / "labels/train/a/000006.txt").write_text("0 .5 .5 .1 .1\n0 7 .5 .1 .1\n")
    (clips.parent / "labels/train/b/000001.txt").unlink()
    code, shown, _ = pack(data=clips)
    assert code == 0 and "in 1 tar file; 2 problems\n" in shown
    for again in (False, True):
        lines = (tmp_path / "out/problems.txt").read_text().splitlines()
        assert "labels/train/a/000006.txt:2: coordinate 7" in lines[0]
        assert "labels/train/b/NUMBER.txt: 1 of 7 frames have no label file" in lines[1]
        assert again or pack(data=clips)[0] == 0


# Leaks


def test_near_duplicates_between_the_splits_are_named_and_drawn(pack, yaml, tmp_path):
    images = yaml.parent / "images"
    code, shown, _ = pack(out=tmp_path / "clean")
    assert "nearly repeat" not in shown and not (tmp_path / "clean/leaks.jpg").exists()
    noise = cv2.resize(np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8), (160, 120))
    cv2.imwrite(str(images / "train/noise.png"), noise)
    cv2.imwrite(str(images / "val/other.jpg"), noise)
    code, shown, _ = pack()
    assert code == 0
    assert "val: 1 of 5 images (20.0%) nearly repeat train images, so metrics" in shown
    assert f"the nearest pairs side by side: {tmp_path}/out/leaks.jpg" in shown
    assert cv2.imread(str(tmp_path / "out/leaks.jpg")) is not None
    before = hashes(tmp_path / "out/train.pack")
    pack()
    assert hashes(tmp_path / "out/train.pack") == before
