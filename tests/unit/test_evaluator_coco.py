"""Evaluation against an independent judge, COCOeval, and with detectors that err in known ways."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fake_detector import HYPER, FakeDetector, evaluator_of, open_val
from tests.tiny import make_dataset
from yolods import compat
from yolods.data.index.labels import Labels
from yolods.data.spec import read_spec
from yolods.data.splits import Split
from yolods.telemetry import Telemetry

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd" / "bccd.yaml"


@pytest.fixture(autouse=True, scope="module")
def torchvision_or_its_stand_in():
    compat.stand_in_for_torchvision()


def coco_of(split: Split, nc: int) -> dict:
    """The labels, read from their files once more and independently, in COCO's form."""
    images, boxes = [], []
    for label in split.scan.labels:
        file = Path(split.scan.source.place(label["im_file"]))
        height, width = label["shape"]
        images.append({"id": len(images), "file_name": file.name, "width": width, "height": height})
        text = Path(str(file.with_suffix(".txt")).replace("/images/", "/labels/")).read_text()
        for line in text.splitlines():
            cls, x, y, w, h = map(float, line.split())
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            entry = {
                "id": len(boxes) + 1,
                "image_id": images[-1]["id"],
                "category_id": int(cls) + 1,
                "bbox": box,
            }
            boxes.append({**entry, "area": box[2] * box[3], "iscrowd": 0})
    return {
        "info": {},
        "images": images,
        "annotations": boxes,
        "categories": [{"id": i + 1} for i in range(nc)],
    }


def judged_by_coco(labels: dict, predictions: Path) -> tuple[float, float]:
    """(mAP50-95, mAP50) of a results file."""
    from faster_coco_eval import COCO, COCOeval_faster

    numbers = {
        image["file_name"]: image["id"] for image in labels["images"]
    }  # it wants ids that are numbers
    boxes = [
        {**box, "image_id": numbers[box["file_name"]]}
        for box in json.loads(predictions.read_text())
    ]
    truth = COCO(labels)
    judge = COCOeval_faster(truth, truth.loadRes(boxes), "bbox")
    judge.params.maxDets = [1, 10, 300]
    for step in (judge.evaluate, judge.accumulate, judge.summarize):
        step()
    return judge.stats[0], judge.stats[1]


def compare_with_coco(yaml: Path, imgsz: int, out: Path) -> None:
    split, names = open_val(yaml, imgsz), read_spec(yaml).names
    evaluator = evaluator_of(split, names, out)
    result = evaluator(
        FakeDetector(split.dataset, evaluator._batches, len(names)),
        boxes_to=out / "predictions.json",
    )
    strict, loose = judged_by_coco(coco_of(split, len(names)), out / "predictions.json")
    assert 0.3 < strict < 0.95
    assert result.metrics["metrics/mAP50-95(B)"] == pytest.approx(strict, abs=0.01)
    assert result.metrics["metrics/mAP50(B)"] == pytest.approx(loose, abs=0.01)


def test_cocoeval_agrees(tmp_path):
    compare_with_coco(make_dataset(tmp_path / "data", train=1, val=150, nc=3), 64, tmp_path)


@pytest.mark.skipif(
    not BCCD.is_file(),
    reason="the BCCD data set does not lie beside the repository (shared/data/bccd)",
)
def test_cocoeval_agrees_on_real_images(tmp_path):
    before = {file: file.stat().st_mtime_ns for file in BCCD.parent.rglob("*")}
    compare_with_coco(BCCD, 320, tmp_path)
    assert {file: file.stat().st_mtime_ns for file in BCCD.parent.rglob("*")} == before


def test_boxes_are_written_in_pixels_of_the_users_images(tmp_path):
    yaml = make_dataset(tmp_path / "data", train=1, val=3, nc=2, size=128)
    split = open_val(yaml, 64)
    evaluator = evaluator_of(split, ("a", "b"), tmp_path, forward_batch=4)

    class Exact(FakeDetector):
        def _guess(self, index, width, height):
            sample = self._dataset[index]
            boxes = sample["bboxes"].numpy() * (width, height, width, height)
            scores = np.eye(2)[sample["cls"][:, 0].int().numpy()] * 0.9
            return torch.tensor(np.concatenate([boxes, scores], 1), dtype=torch.float32)

    result = evaluator(
        Exact(split.dataset, evaluator._batches, 2), boxes_to=tmp_path / "boxes.json"
    )
    assert result.metrics["metrics/mAP50-95(B)"] == pytest.approx(0.995)
    written = json.loads((tmp_path / "boxes.json").read_text())
    labels = coco_of(split, 2)["annotations"]
    assert len(written) == len(labels) == 6
    for label in labels:
        near = min(
            written,
            key=lambda box: (box["image_id"] != label["image_id"]) * 1e6 + _apart(box, label),
        )
        assert _apart(near, label) < 0.02
        assert near["category_id"] == label["category_id"]


def _apart(one: dict, other: dict) -> float:
    return max(abs(a - b) for a, b in zip(one["bbox"], other["bbox"], strict=True))


@pytest.mark.parametrize(("single_cls", "low", "high"), [(False, 0.0, 0.05), (True, 0.3, 1.0)])
def test_a_single_class_pays_no_heed_to_ids(tmp_path, single_cls, low, high):
    class Mistaken(FakeDetector):
        def _guess(self, index, width, height):
            rows = super()._guess(index, width, height)
            return torch.cat([rows[:, :4], rows[:, 4:].roll(1, dims=1)], 1)

    hyper = replace(HYPER, single_cls=single_cls)
    split = open_val(make_dataset(tmp_path / "data", train=1, val=20, nc=3))
    evaluator = evaluator_of(split, ("a", "b", "c"), tmp_path, hyper=hyper)
    if single_cls:
        labels = split.dataset.labels
        split.dataset.labels = Labels(labels.index, labels.rows, single_cls=True)
    result = evaluator(Mistaken(split.dataset, evaluator._batches, 3))
    assert low <= result.metrics["metrics/mAP50(B)"] <= high


def test_an_unreadable_image_is_reported_and_counts_as_missed(tmp_path):
    yaml = make_dataset(tmp_path / "data", train=1, val=5, nc=2)
    split = open_val(yaml)
    (tmp_path / "data" / "images" / "val" / "003.jpg").unlink()
    evaluator = evaluator_of(split, ("a", "b"), tmp_path, forward_batch=2)
    said = []

    class Ear(Telemetry):
        def event(self, kind, text, *, warn=False):
            said.append((kind, text, warn))

    result = evaluator(FakeDetector(split.dataset, evaluator._batches, 2), telemetry=Ear())
    file = tmp_path / "data" / "images" / "val" / "003.jpg"
    assert result.images == 5
    assert said == [
        ("unreadable", f"{file} could not be read and counts as an image without boxes", True)
    ]
