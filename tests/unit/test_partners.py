"""yolods.data.augment.partners: partners come from the block, and from the set without one."""

import random
from collections import Counter
from types import SimpleNamespace

from ultralytics.data.augment import Compose, CutMix, MixUp, Mosaic

from yolods.data.augment.partners import Partners
from yolods.data.sampler import SampleId

BLOCK_LENGTH = (40, 3, 17, 8, 25, 31, 6, 12)


def drawing(sample: SampleId) -> Partners:
    partners = Partners()
    partners.begin(sample)
    return partners


def test_they_are_other_images_of_the_block_and_distinct():
    partners = drawing(SampleId(0, 17, BLOCK_LENGTH))
    random.seed(1)
    seen = Counter()
    for _ in range(700):
        drawn = partners.drawn(3)
        assert len({*drawn, 17}) == 4
        seen.update(drawn)
    assert set(seen) == {*BLOCK_LENGTH} - {17}
    assert all(220 < count < 380 for count in seen.values())  # 300 each, if they are equally likely


def test_a_small_block_repeats_its_images():
    random.seed(0)
    assert set(drawing(SampleId(0, 3, (3, 5))).drawn(3)) <= {3, 5}
    assert drawing(SampleId(0, 3, (3,))).drawn(3) == [3, 3, 3]


def test_transforms_ask_here_only_for_samples_with_a_block():
    data = type("Set", (), {"cache": "ram", "__len__": lambda self: 1000})()
    mosaic, partners = Mosaic(data, imgsz=64), Partners()
    before = Compose([mosaic])
    mixup, cutmix = MixUp(data, before, p=1.0), CutMix(data, before, p=1.0)
    partners.serve(Compose([before, mixup, cutmix, SimpleNamespace()]))
    for transform, count in ((mosaic, 3), (mixup, 1), (cutmix, 1)):
        partners.begin(SampleId(0, 17, BLOCK_LENGTH))
        drawn = transform.get_indexes()
        assert len(drawn) == count and set(drawn) <= {*BLOCK_LENGTH} - {17}
        partners.begin(SampleId(0, 17))
        random.seed(5)
        own = transform.get_indexes()
        random.seed(5)
        assert own == type(transform).get_indexes(transform)
