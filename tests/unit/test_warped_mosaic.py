"""yolods.data.augment.warped_mosaic: mosaic and warp in one step give what ultralytics' two steps
give."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from ultralytics.data.augment import Compose, Mosaic, RandomPerspective
from ultralytics.utils.instance import Instances

from yolods.data.augment.scratch import Scratch
from yolods.data.augment.warped_mosaic import WarpedMosaic

SIDE = 48


class Images:
    """Stands in for a data set of ten images."""

    cache = "ram"

    def __init__(self, channels: int, polygons: bool) -> None:
        self.channels, self.polygons = channels, polygons

    def __len__(self) -> int:
        return 10

    def get_image_and_label(self, i: int) -> dict:
        rng = np.random.default_rng(i)
        height, width = (SIDE, SIDE - 9) if i % 2 else (SIDE - 20, SIDE)
        image = rng.integers(0, 256, (height, width, self.channels), dtype=np.uint8)
        image.flags.writeable = False
        boxes = rng.uniform(0.2, 0.5, (i % 4, 4)).astype(np.float32)
        count = len(boxes) if self.polygons else 0
        segments = rng.uniform(0, 1, (count, 1000, 2)).astype(np.float32)
        return {
            "im_file": str(i),
            "ori_shape": (99, 77),
            "resized_shape": (height, width),
            "ratio_pad": (0.5, 0.5),
            "img": image,
            "cls": rng.integers(0, 5, (len(boxes), 1)).astype(np.float32),
            "instances": Instances(boxes, segments),
        }


def both(channels: int, polygons: bool, p: float, four: bool) -> SimpleNamespace:
    images = Images(channels, polygons)
    mosaic = Mosaic(images, imgsz=SIDE, p=p)
    affine = RandomPerspective(degrees=10.0, size=(SIDE, SIDE))
    ours = WarpedMosaic(mosaic, affine, Scratch(), four=four)
    return SimpleNamespace(images=images, theirs=Compose([mosaic, affine]), ours=ours)


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_a_sample_is_ultralytics_own(polygons, channels, p):
    made = both(channels, polygons, p, four=False)
    for i in range(10):
        random.seed(i)
        theirs = made.theirs(made.images.get_image_and_label(i))
        after = random.random()
        random.seed(i)
        ours = made.ours(made.images.get_image_and_label(i))
        assert random.random() == after
        assert ours.keys() == theirs.keys()
        assert np.array_equal(ours.pop("img"), theirs.pop("img"))
        ours_instances, instances = ours.pop("instances"), theirs.pop("instances")
        assert np.array_equal(ours_instances.bboxes, instances.bboxes)
        assert np.array_equal(ours_instances.segments, instances.segments)
        assert np.array_equal(ours.pop("cls"), theirs.pop("cls"))
        assert ours == theirs


def test_a_fourth_channel_stays_on_demand_and_the_image_is_the_caller_s_own_without():
    for four, channels in ((False, 3), (True, 4)):
        made = both(3, False, 1.0, four)
        random.seed(3)
        first = made.ours(made.images.get_image_and_label(3))["img"]
        assert first.shape == (SIDE, SIDE, channels)
        before = first.copy()
        made.ours(made.images.get_image_and_label(4))
        assert np.array_equal(first, before) == (not four)
