"""yolods.data.scan and verify: what is damaged is listed and left out, users' files stay as they
are."""

import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.tiny import make_dataset
from yolods.config.hyper.hyperparameters import read_hyper
from yolods.data.index import checks as checks_module
from yolods.data.index.image_files import CheckOptions
from yolods.data.scan import in_both, scan, write_problems
from yolods.data.spec import read_spec
from yolods.errors import Faults, UserError


@pytest.fixture
def yaml(tmp_path):
    return make_dataset(tmp_path / "set")


def look(yaml: Path, split: str = "train", **options):
    return scan(read_spec(yaml), split, cache=yaml.parents[1] / "cache/scans", **options)


def label(yaml: Path, i: int, split: str = "train") -> Path:
    return yaml.parent / f"labels/{split}/{i:03}.txt"


def image(yaml: Path, i: int, split: str = "train") -> Path:
    return yaml.parent / f"images/{split}/{i:03}.jpg"


def test_a_sound_set(yaml):
    found = look(yaml)
    assert found.problems == ()
    assert found.summary == "6 images, 12 boxes, 0 backgrounds"
    third = found.labels[2]
    assert third["im_file"] == "images/train/002.jpg"
    assert found.source.place(third["im_file"]) == str(image(yaml, 2))
    assert third["shape"] == (48, 64)
    assert third["cls"].dtype == third["bboxes"].dtype == np.float32
    rows = np.loadtxt(label(yaml, 2), dtype=np.float32)
    assert np.array_equal(np.hstack((third["cls"], third["bboxes"])), rows)


def test_ultralytics_finds_the_same(yaml, tmp_path):
    from ultralytics.data.dataset import YOLODataset

    (yaml.parent / "labels/train/003.txt").write_text(
        "0 0.1 0.1 0.9 0.2 0.5 0.8 0.3 0.4\n1 .2 .2 .6 .2 .6 .7\n"
    )
    ours = look(yaml)
    label(yaml, 0).unlink()
    label(yaml, 1).write_text("")
    ours = look(yaml)
    names = {0: "a", 1: "b"}
    theirs = YOLODataset(
        img_path=str(yaml.parent / "images/train"), data={"names": names}, augment=False
    )
    assert ours.backgrounds == 2
    for a, b in zip(ours.labels, theirs.labels, strict=True):
        assert ours.source.place(a["im_file"]) == b["im_file"]
        assert a["shape"] == b["shape"]
        np.testing.assert_allclose(a["cls"], b["cls"])
        np.testing.assert_allclose(a["bboxes"], b["bboxes"], rtol=0, atol=1e-7)
        assert (
            a["segments"] == b["segments"] == []
        )  # boxes and polygons mixed over files: polygons are dropped


def test_polygons_are_kept_where_every_box_has_one(yaml):
    for i in range(6):
        label(yaml, i).write_text("0 0.1 0.1 0.9 0.2 0.5 0.8 0.3 0.4\n")
    first = look(yaml).labels[0]
    np.testing.assert_allclose(first["bboxes"], [[0.5, 0.45, 0.8, 0.7]], atol=1e-6)
    assert [s.shape for s in first["segments"]] == [(4, 2)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 cat 0.1 0.1", "'cat' is not a number"),
        ("0 0.5 nan 0.1 0.1", "'nan' is not a finite number"),
        ("0 0.5 0.5 0.1", "4 numbers; a line is `class x y width height`"),
        ("0 0.5 0.5 0.1 0.1 0.9", "6 numbers; a line is"),
        ("0.5 0.5 0.5 0.1 0.1", "class id 0.5 is not an integer"),
        ("0 320 0.5 0.1 0.1", "coordinate 320 is outside [0, 1] (1% tolerance)"),
        ("0 -0.02 0.5 0.1 0.1", "coordinate -0.02 is outside [0, 1]"),
        ("0 0.5 0.5 0 0.1", "width 0 and height 0.1: both must be above 0"),
        ("1 0.25 0.25 0.5 0.5", "repeats line 1"),
    ],
)
def test_a_bad_line_is_dropped_and_the_image_kept(yaml, line, reason):
    label(yaml, 4).write_text(f"1 0.25 0.25 0.5 0.5\n\n{line}\n0 1.005 0.5 0.5 0.5\n")
    found = look(yaml)
    (problem,) = found.problems
    assert str(problem).startswith(f"{label(yaml, 4)}:3: ")
    assert reason in problem.text
    assert (found.images_skipped, found.lines_skipped, len(found.labels)) == (0, 1, 6)
    assert found.labels[4]["cls"].tolist() == [[1], [0]]
    assert found.summary.endswith("; 0 images and 1 label lines skipped, see problems.txt")


def damage(file: Path, how: str) -> None:
    data = file.read_bytes()
    if how == "absent":  # a link to nothing is found by name
        file.unlink()
        file.symlink_to("nowhere.jpg")
    elif how == "small":
        cv2.imwrite(str(file), np.zeros((9, 30, 3), np.uint8))
    else:
        file.write_bytes(
            {"empty": b"", "text": b"not an image", "cut": data[: len(data) // 2]}[how]
        )


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("empty", "damaged or not an image"),
        ("text", "damaged or not an image"),
        ("cut", "truncated"),
        ("small", "30x9 pixels: less than 10 on a side"),
        ("absent", "file does not exist"),
    ],
)
@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_a_bad_image_is_dropped(tmp_path, how, reason, suffix):
    yaml = make_dataset(tmp_path / "set", suffix=suffix)
    file = image(yaml, 1).with_suffix(f".{suffix}")
    damage(file, how)
    found = look(yaml)
    assert [(p.file, p.line) for p in found.problems] == [(str(file), None)]
    assert reason in found.problems[0].text.lower() or (suffix == "png" and how == "cut")
    assert (found.images_skipped, len(found.labels)) == (1, 5)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(yaml):
    image(yaml, 0).write_bytes(image(yaml, 0).read_bytes() + b"comment")
    assert look(yaml).problems == ()


def test_a_label_file_that_is_no_text(yaml):
    label(yaml, 0).write_bytes(b"\xff\xfe\x00")
    found = look(yaml)
    assert "label file cannot be read" in found.problems[0].text
    assert found.images_skipped == 1


def test_a_foreign_class_is_refused_in_one_line(yaml):
    label(yaml, 1).write_text("1 0.5 0.5 0.2 0.2\n7 0.5 0.5 0.1 0.1\n-1 0.5 0.5 0.2 0.2\n")
    with pytest.raises(UserError) as caught:
        look(yaml)
    assert str(caught.value) == (
        f"{label(yaml, 1)}:2: class id 7 is outside the 2 names of {yaml} (ids 0 to 1); "
        "2 boxes have such ids: -1, 7; correct names or the labels"
    )
    assert look(yaml, single_cls=True).labels[1]["cls"].tolist() == [[0], [0], [0]]


def test_an_empty_train_set(yaml):
    for i in range(6):
        label(yaml, i).write_text("")
    with pytest.raises(
        UserError,
        match=r"6 images but no usable box; labels are expected in files such as .*000.txt",
    ):
        look(yaml)
    for i in range(6):
        damage(image(yaml, i), "text")
    with pytest.raises(
        UserError,
        match=r"train: none of 6 images can be used; the first problem: .*000.jpg: damaged",
    ):
        look(yaml)


def test_options(yaml):
    assert len(look(yaml, fraction=0.5).labels) == 3
    assert len(look(yaml, fraction=2).labels) == 2
    only = look(yaml, classes=[1])
    assert {c for x in only.labels for c in x["cls"].ravel()} == {1.0}
    assert only.boxes == look(yaml).boxes - sum((x["cls"] == 0).sum() for x in look(yaml).labels)
    with pytest.raises(
        UserError, match=r"classes: 9, 10 is no class of .*, which names 2 \(ids 0 to 1\)"
    ):
        look(yaml, classes=[0, 9, 10])
    yaml.write_text(yaml.read_text() + "  2: never\n")
    with pytest.raises(UserError, match=r"no box is left after classes=\[2\]"):
        look(yaml, classes=[2])


def test_pose_labels_give_their_boxes(yaml):
    yaml.write_text(yaml.read_text() + "kpt_shape: [2, 2]\n")
    label(yaml, 0).write_text("0 0.5 0.5 0.2 0.2 0.4 0.4 0.6 0.6\n")
    found = look(yaml)
    assert found.problems == ()
    np.testing.assert_allclose(found.labels[0]["bboxes"], [[0.5, 0.5, 0.2, 0.2]])


def test_users_files_are_left_alone(yaml):
    damage(image(yaml, 0), "cut")
    label(yaml, 1).write_text("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0.2 0.2\n")
    root = yaml.parent
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}
    look(yaml)
    assert {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()
    } == before


def test_the_result_is_kept_and_checked_again_after_a_change(yaml, monkeypatch):
    label(yaml, 1).write_text(
        "0 0.1 0.1 0.9 0.2 0.5 0.8\nwords\n1 0.1 0.1 0.9 0.2 0.5 0.8 0.2 0.2\n"
    )
    damage(image(yaml, 0), "text")
    first = look(yaml)
    checks = []
    check = checks_module.check_pair
    monkeypatch.setattr(
        checks_module, "check_pair", lambda *a, **k: checks.append(a) or check(*a, **k)
    )
    again = look(yaml)
    assert checks == []
    assert (again.problems, again.summary) == (first.problems, first.summary)
    for a, b in zip(first.labels, again.labels, strict=True):
        assert (a["im_file"], a["shape"]) == (b["im_file"], b["shape"])
        assert np.array_equal(a["bboxes"], b["bboxes"])
        assert np.array_equal(a["cls"], b["cls"])
    os.utime(label(yaml, 2), ns=(1, 1))
    changed = look(yaml)
    assert [Path(image).stem for image, *_ in checks] == ["002"]
    assert (changed.problems, changed.summary) == (first.problems, first.summary)


def test_polygons_survive_the_cache(yaml):
    for i in range(6):
        label(yaml, i).write_text(
            "0 0.1 0.1 0.9 0.2 0.5 0.8\n1 0.1 0.1 0.9 0.2 0.5 0.8 0.3 0.4\n" * (i != 3)
        )
    first, again = look(yaml), look(yaml)
    for a, b in zip(first.labels, again.labels, strict=True):
        assert [s.tolist() for s in a["segments"]] == [s.tolist() for s in b["segments"]]
    assert [len(x["segments"]) for x in again.labels] == [2, 2, 2, 0, 2, 2]


def test_a_damaged_or_unwritable_cache_only_costs_time(yaml, caplog, monkeypatch, tmp_path):
    first = look(yaml)
    (store,) = (yaml.parents[1] / "cache/scans").iterdir()
    for column in store.glob("*/box.npy"):
        column.write_bytes(column.read_bytes()[:-1])
    assert look(yaml).summary == first.summary
    blocked = yaml.parents[1] / "file"
    blocked.write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = scan(read_spec(yaml), "train", cache=blocked)
    assert found.summary == first.summary and "could not store the result" in caplog.text
    assert found.index.columns.folder.is_relative_to(tmp_path)
    trusted = CheckOptions(trusted=True)
    assert scan(read_spec(yaml), "train", cache=blocked, options=trusted).boxes == first.boxes


def test_problems_file(yaml, tmp_path):
    label(yaml, 0).write_text("x\n")
    damage(image(yaml, 1), "text")
    write_problems(tmp_path / "problems.txt", look(yaml).problems)
    lines = (tmp_path / "problems.txt").read_text().splitlines()
    assert lines[0] == f"{label(yaml, 0)}:1: 'x' is not a number; line skipped"
    assert lines[1].startswith(f"{image(yaml, 1)}: damaged or not an image; image skipped")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("lines", "rows", "problems"),
    [
        (
            ["0 .1 .1 .5 .1 .5 .6 .1 .6", "0 .3 .35 .4 .5"],
            1,
            ["2: is the box of the polygon on line 1; line skipped"],
        ),
        (
            ["0 .3 .35 .4 .5", "0 .1 .1 .5 .1 .5 .6 .1 .6"],
            1,
            ["1: is the box of the polygon on line 2; line skipped"],
        ),
        (
            ["0 .301 .351 .4 .498", "0 .1 .1 .5 .1 .5 .6 .1 .6"],
            1,
            ["1: is the box of the polygon on line 2"],
        ),
        (["1 .3 .35 .4 .5", "0 .1 .1 .5 .1 .5 .6 .1 .6"], 2, []),
        (["0 .35 .35 .4 .5", "0 .1 .1 .5 .1 .5 .6 .1 .6"], 2, []),
        (["0 .3 .35 .4 .5", "0 .301 .351 .4 .5"], 2, []),
        (
            ["0 .3 .35 .4 .5", "0 .301 .35 .4 .5", "0 .1 .1 .5 .1 .5 .6 .1 .6"],
            2,
            ["1: is the box of"],
        ),
        (
            [
                "0 .3 .35 .4 .5",
                "0 .8 .8 .2 .2",
                "0 .7 .7 .9 .7 .9 .9 .7 .9",
                "0 .1 .1 .5 .1 .5 .6 .1 .6",
            ],
            2,
            ["1: is the box of the polygon on line 4", "2: is the box of the polygon on line 3"],
        ),
    ],
)
def test_a_box_and_its_own_polygon_are_one_object(yaml, lines, rows, problems):
    label(yaml, 0).write_text("\n".join(lines) + "\n")
    for _ in range(2):  # the second time from the cache
        found = look(yaml)
        assert len(found.labels[0]["cls"]) == len(found.labels[0]["bboxes"]) == rows
        assert len(found.problems) == found.lines_skipped == len(problems)
        for problem, text in zip(found.problems, problems, strict=True):
            assert str(problem).startswith(f"{label(yaml, 0)}:{text}")


def test_polygons_are_kept_where_boxes_beside_them_were_theirs(yaml):
    for i in range(6):
        label(yaml, i).write_text("0 .3 .35 .4 .5\n0 .1 .1 .5 .1 .5 .6 .1 .6\n")
    assert [len(each["segments"]) for each in look(yaml).labels] == [1] * 6


def test_lines_of_a_list_that_are_not_used_are_counted_and_the_first_are_shown(yaml):
    root = yaml.parent
    good = "".join(f"./images/train/{i:03}.jpg\n" for i in range(4))
    bad = "".join(f'"./images/train/{i:03}.jpg"\n' for i in range(4))
    (root / "list.txt").write_text(good + bad)
    yaml.write_text(yaml.read_text().replace("train: images/train", "train: list.txt"))
    found = look(yaml)
    assert (len(found.labels), len(found.list_problems), len(found.problems)) == (4, 4, 4)
    assert found.summary.endswith(", 4 lines of a list ignored, see problems.txt")
    (line,) = found.warnings
    assert line.startswith(
        f"train: 4 lines of its list are ignored, the first: {root / 'list.txt'}:5: '\"./images"
    )
    assert "list.txt:7: " in line and "list.txt:8: " not in line and "\n" not in line
    assert look(yaml, "val").warnings == []


def test_a_validation_set_without_a_box_is_said(yaml):
    for i in range(4):
        label(yaml, i, "val").unlink()
    (line,) = look(yaml, "val").warnings
    assert (
        line.startswith("val: 4 images but no box: every metric is 0")
        and "labels/val/000.txt" in line
    )
    assert look(yaml).warnings == []


def test_a_number_alone_is_a_list_of_one_class(yaml):
    hyper = read_hyper(None, ["classes=1"], Faults()).hyper
    found = look(yaml, classes=hyper.classes)
    assert {each for label in found.labels for each in label["cls"].ravel()} == {1.0}


def test_images_that_are_named_twice_or_are_in_both_splits_are_said(yaml):
    yaml.write_text("train: [images/train, images]\nval: images/val\nnames: [a, b]\n")
    train, val = look(yaml), look(yaml, "val")
    alone = len(list((yaml.parent / "images/train").iterdir()))
    assert len(train.labels) == 2 * alone + len(val.labels)
    assert train.warnings == [
        f"train: its sources name images again {alone} times; each image counts as often as it is "
        "named"
    ]
    count = len(val.labels)
    assert (
        in_both(train, val)
        == f"{count} of {count} val images are train images as well: metrics will be too good"
    )
    yaml.write_text("train: images/train\nval: images/val\nnames: [a, b]\n")
    assert in_both(look(yaml), val) == ""


def test_videos_beside_images_are_not_used_and_told(yaml):
    for name in ("clip.mp4", "x/other.MKV"):
        file = yaml.parent / "images/train" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"a video")
    told = [
        "train: 2 videos in its folders of images not used; move them into a folder of their own, "
        "and name that"
    ]
    assert look(yaml).warnings == look(yaml).warnings == told
    assert len(look(yaml).labels) == 6
    assert look(yaml, "val").warnings == []
