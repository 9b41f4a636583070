"""A run's data sets: what is told of them, how many images a pass without augmentation sees, and
class weights."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fake_detector import ALONE, HYPER
from tests.indexes import boxes_of
from tests.packs import packed_yaml
from tests.tiny import make_dataset
from yolods.data import splits
from yolods.data.pack.encode import Encoding
from yolods.data.scan import Scan
from yolods.data.spec import read_spec
from yolods.data.splits import (
    DEMO_PATH,
    SplitOptions,
    class_weights,
    note_problems,
    open_split,
    read_data,
    unaugmented,
)
from yolods.errors import UserError

OPTIONS = SplitOptions(imgsz=64, stride=32, epochs=1, workers=0, local_ranks=1)


@pytest.fixture
def yaml(tmp_path) -> Path:
    return make_dataset(tmp_path / "set")


def test_rare_classes_weigh_more_and_the_mean_stays_one():
    weights = class_weights(Scan("train", boxes_of([0, 0, 0], [0, 1], []), None), 2, 1.0)
    assert (weights[1] / weights[0]).item() == pytest.approx(4)
    assert weights.mean().item() == pytest.approx(1)
    root = class_weights(Scan("train", boxes_of([0, 0, 0], [0, 1]), None), 2, 0.5)
    assert (root[1] / root[0]).item() == pytest.approx(2)


def test_a_class_without_a_box_weighs_as_the_others_do_on_average():
    weights = class_weights(Scan("train", boxes_of([0, 0, 0, 0, 2]), None), 3, 1.0)
    assert weights[1].item() == pytest.approx((weights[0] + weights[2]).item() / 2)


def test_without_a_power_nothing_is_weighed_and_without_a_box_nothing_can_be():
    assert class_weights(Scan("train", boxes_of([], []), None), 2, 0) is None
    with pytest.raises(UserError, match=r"^cls_pw=0\.5: the train set has no box"):
        class_weights(Scan("train", boxes_of([], []), None), 2, 0.5)


def test_a_pass_without_augmentation_sees_some_of_the_images_drawn_by_the_seed(yaml):
    spec = read_spec(yaml)
    train = open_split(spec, "train", HYPER, OPTIONS, ALONE, augment=True)

    def seen(most: int, seed: int = 0) -> list[str]:
        return sorted(unaugmented(train, most, spec, replace(HYPER, seed=seed), OPTIONS).im_files)

    everything = sorted(label["im_file"] for label in train.scan.labels)
    assert seen(99) == seen(len(everything)) == everything
    drawn = seen(3)
    assert drawn == seen(3) and len(set(drawn)) == 3
    assert any(seen(3, seed) != drawn for seed in range(1, 4))


def test_a_share_of_the_images_is_taken_for_training_alone(yaml):
    spec, hyper = read_spec(yaml), replace(HYPER, fraction=0.5)
    opened = [
        open_split(spec, "train", hyper, OPTIONS, ALONE, augment=augment)
        for augment in (True, False)
    ]
    assert [len(split.dataset) for split in opened] == [3, 6]


def test_images_that_a_pack_keeps_too_small_are_told(yaml, tmp_path, caplog):
    made = packed_yaml(yaml, tmp_path / "out", Encoding(32))
    for imgsz, told in ((64, True), (32, False)):
        caplog.clear()
        options = replace(OPTIONS, imgsz=imgsz)
        open_split(read_spec(made), "val", HYPER, options, ALONE, augment=False)
        assert ("val: its images are kept at 32 pixels and enlarged" in caplog.text) == told


def test_rank_0_makes_the_demo_and_says_what_is_odd_about_a_yaml(
    tmp_path, yaml, monkeypatch, caplog
):
    odd = tmp_path / "odd.yaml"
    odd.write_text(
        yaml.read_text().partition("names:")[0] + "names: [a, a]\n" + f"path: {yaml.parent}\n"
    )
    monkeypatch.setattr(splits, "ensure_demo", lambda cache: odd)
    with caplog.at_level(logging.WARNING):
        assert read_data(DEMO_PATH, ALONE).yaml == odd
    assert caplog.messages == [f"{odd}: several classes have the same name: a (2 times)"]


def test_problems_are_written_for_both_splits_and_a_line_told_for_each(tmp_path, yaml):
    tmp_path = tmp_path / "run"
    tmp_path.mkdir()
    scans = [
        open_split(read_spec(yaml), name, HYPER, OPTIONS, ALONE, augment=False).scan
        for name in ("train", "val")
    ]
    lines = note_problems(tmp_path, tuple(scans))
    assert [line.split(" images")[0] for line in lines] == ["train: 6", "val: 4"]
    assert list(tmp_path.iterdir()) == [], "without a problem there is no file"
    label = yaml.parent / "labels/val/000.txt"
    label.write_text(label.read_text() + "0 0.5\n")
    odd = open_split(read_spec(yaml), "val", HYPER, OPTIONS, ALONE, augment=False).scan
    line = note_problems(tmp_path, (scans[0], odd))[1]
    assert line.endswith("1 label lines skipped, see problems.txt")
    assert (tmp_path / "problems.txt").read_text().startswith(f"{label}:2: 2 numbers")
    shared = note_problems(tmp_path, (scans[0], replace(scans[0], split="val")))
    assert shared[-1].startswith(
        "6 of 6 val images are train images as well: metrics will be too good"
    )
