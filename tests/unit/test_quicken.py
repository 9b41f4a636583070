"""yolods.data.augment.quicken: whole samples stay what ultralytics' pipeline makes them, and a
pipeline that is not known stays as it is."""

import copy

import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import Compose, CopyPaste, Mosaic

from tests.tiny import make_dataset
from yolods.data import dataset as module
from yolods.data.augment.finish import Finish
from yolods.data.augment.quicken import parts_of, quicken
from yolods.data.augment.scratch import Scratch
from yolods.data.augment.warped_mosaic import WarpedMosaic
from yolods.data.dataset import DetectionSet
from yolods.data.scan import scan
from yolods.data.spec import as_ultralytics, read_spec

HYPER = (
    {},
    {"mosaic": 0.5, "mixup": 0.5, "cutmix": 0.5, "flipud": 0.5, "bgr": 0.5},
    {"mosaic": 0.0, "degrees": 20.0, "shear": 5.0},
    {"hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "perspective": 0.001},
    {"copy_paste": 0.5},
    {"copy_paste": 0.5, "copy_paste_mode": "mixup"},
)


@pytest.fixture(params=["boxes", "polygons", "grey"])
def opened(request, tmp_path):
    yaml = make_dataset(tmp_path / "set")
    if request.param == "grey":
        yaml.write_text(yaml.read_text() + "channels: 1\n")
    if request.param == "polygons":
        for file in (tmp_path / "set/labels").rglob("*.txt"):
            file.write_text("0 0.2 0.2 0.8 0.25 0.7 0.9\n1 0.1 0.1 0.5 0.1 0.5 0.4 0.2 0.4\n")
    spec = read_spec(yaml)
    found = scan(spec, "train", cache=tmp_path / "cache")

    def dataset(hyper: dict) -> DetectionSet:
        space = get_cfg(overrides={"epochs": 20, "close_mosaic": 5, **hyper})
        return DetectionSet(found, as_ultralytics(spec), space, imgsz=64, augment=True, seed=4)

    return dataset


@pytest.mark.parametrize("hyper", HYPER)
def test_samples_are_those_of_ultralytics_own_steps(opened, hyper, monkeypatch):
    quick = opened(hyper)
    monkeypatch.setattr(module, "quicken", lambda pipeline, scratch: pipeline)
    plain = opened(hyper)
    assert isinstance(quick.transforms.transforms[-1], Finish)
    assert not any(isinstance(part, Finish | WarpedMosaic) for part in parts_of(plain.transforms))
    for epoch in (0, 16):
        for index in range(6):
            ours, theirs = quick[epoch, index], plain[epoch, index]
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
                assert same(ours[key], value), key


def test_what_is_replaced(opened):
    def kinds(hyper: dict) -> list[type]:
        return [type(part) for part in parts_of(opened(hyper).transforms)]

    assert kinds({}).count(WarpedMosaic) == 1 and Mosaic not in kinds({})
    assert CopyPaste in kinds({"copy_paste": 0.5})
    assert Mosaic in kinds({"copy_paste": 0.5})  # between it and the warp is another step
    assert kinds({"copy_paste": 0.5, "copy_paste_mode": "mixup"}).count(WarpedMosaic) == 2


def test_a_pipeline_with_another_step_stays_as_it_is(opened):
    plain = opened({}).build_transforms
    pipeline = Compose([*plain(copy.copy(get_cfg())).transforms, lambda labels: labels])
    before = [*pipeline.transforms]
    assert quicken(pipeline, Scratch()).transforms == before


def test_a_sample_of_another_pipeline_is_written_where_it_should_be(opened, monkeypatch):
    monkeypatch.setattr(module, "quicken", lambda pipeline, scratch: pipeline)
    data = opened({})
    out = np.zeros((data.channels, 64, 64), np.uint8)
    sample = data.sample((0, 3), out)
    assert torch.equal(sample["img"], data[0, 3]["img"]) and out.any()
    assert np.array_equal(sample["img"].numpy(), out)
