"""yolods.data.augment.scratch: arrays that are kept as long as their shape stays."""

import numpy as np

from yolods.data.augment.scratch import Scratch


def test_an_array_is_kept_until_another_shape_is_asked_for():
    scratch = Scratch()
    first = scratch.array("a", 2, 3)
    assert first.shape == (2, 3) and first.dtype == np.uint8
    assert scratch.array("a", 2, 3) is first
    assert scratch.array("b", 2, 3) is not first
    assert scratch.array("a", 3, 2).shape == (3, 2)
    assert scratch.array("a", 2, 3) is not first
