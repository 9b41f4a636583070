"""yolods.data.augment.finish: colours, flips and tensors in one step give what ultralytics' four
give."""

import random
from copy import deepcopy

import cv2
import numpy as np
import pytest
import torch
from ultralytics.data.augment import Compose, Format, RandomFlip, RandomHSV
from ultralytics.utils.instance import Instances

from yolods.data.augment.finish import IMAGE_OUT, Finish
from yolods.data.augment.scratch import Scratch

HEIGHT, WIDTH = 24, 31


def sample(seed: int, channels: int = 3, boxes: int = 5, normalized: bool = False) -> dict:
    rng = np.random.default_rng(seed)
    sides = np.ones(4) if normalized else np.array([WIDTH, HEIGHT] * 2)
    rows = (rng.uniform(0, 1, (boxes, 4)) * sides).astype(np.float32)
    form = "xywh" if normalized else "xyxy"
    return {
        "im_file": "x",
        "img": rng.integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8),
        "cls": rng.integers(0, 5, (boxes, 1)).astype(np.float32),
        "instances": Instances(rows, np.zeros((0, 1000, 2), np.float32), None, form, normalized),
    }


def steps(flip: float = 0.5, gains=(0.5, 0.9, 0.9), bgr: float = 0.5) -> list:
    return [
        RandomHSV(*gains),
        RandomFlip(flip, "vertical"),
        RandomFlip(flip, "horizontal"),
        Format(bgr=bgr),
    ]


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)


def check(given: list, number: int, **kind) -> None:
    """One sample by both, and where it was written."""
    hsv, *flips, form = given
    finish = Finish(hsv, flips, form, Scratch())
    seed(number)
    theirs = Compose(given)(sample(number, **kind))
    after = random.random(), np.random.rand()
    for further in (0, 1) if kind.get("channels", 3) == 3 else (0,):
        labels = sample(number, **kind)
        if further:
            labels["img"] = cv2.cvtColor(labels["img"], cv2.COLOR_BGR2BGRA)
        out = np.zeros((kind.get("channels", 3), HEIGHT, WIDTH), np.uint8)
        seed(number)
        ours = finish({**labels, IMAGE_OUT: out})
        assert (random.random(), np.random.rand()) == after
        assert ours.keys() == theirs.keys()
        for key in ("img", "cls", "bboxes", "batch_idx"):
            assert torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype
        assert np.array_equal(out, theirs["img"].numpy())
        assert ours["img"].data_ptr() == torch.from_numpy(out).data_ptr()


@pytest.mark.parametrize("gains", [(0.5, 0.9, 0.9), (0.0, 0.0, 0.0), (0.0, 0.7, 0.0)])
@pytest.mark.parametrize("bgr", [0.0, 0.5, 1.0])
def test_a_sample_is_ultralytics_own(gains, bgr):
    for number in range(12):
        check(steps(gains=gains, bgr=bgr), number)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channels_keep_their_values(channels):
    for number in range(6):
        check(steps(), number, channels=channels)


@pytest.mark.parametrize("kind", [{"boxes": 0}, {"boxes": 1}, {"normalized": True}])
def test_boxes_in_every_form(kind):
    for number in range(6):
        check(steps(), number, **kind)


def test_every_colour_is_ultralytics_own():
    levels = np.arange(0, 256, 5, dtype=np.uint8)
    image = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    image = image.repeat(2, axis=0)
    hsv, *flips, form = steps(flip=0.0, bgr=0.0)
    finish = Finish(hsv, flips, form, Scratch())
    for number in range(10):
        labels = sample(0, boxes=0) | {"img": image.copy()}
        seed(number)
        theirs = Compose([hsv, *flips, form])(deepcopy(labels))["img"]
        seed(number)
        out = np.empty((3, *image.shape[:2]), np.uint8)
        assert torch.equal(finish({**labels, IMAGE_OUT: out})["img"], theirs)


def test_cv2_writes_into_the_planes_that_it_is_given():
    """`Finish` copies where it does not."""
    image, planes = sample(0)["img"], np.zeros((3, HEIGHT, WIDTH), np.uint8)
    cv2.split(image, [*planes])
    assert np.array_equal(planes, image.transpose(2, 0, 1))
