"""Image sizes that a model cannot take, with the arithmetic."""

from __future__ import annotations

import pytest

from yolods.config.image_size import drawn_between, single_value_fault, size_fault


@pytest.mark.parametrize(
    ("size", "use"), [(100, "96 or 128"), (10, "32 or 64"), (641, "640 or 672")]
)
def test_a_size_between_two_multiples_offers_both(size, use):
    assert size_fault(size, 32, "yolov5n", "--imgsz") == (
        f"--imgsz {size}: yolov5n needs a multiple of 32; use {use}"
    )
    assert size_fault(640, 32, "yolov5n", "--imgsz") is None


def test_sizes_vary_by_their_share_and_are_no_smaller_than_a_cell():
    assert drawn_between(640, 0.5, 32) == (320, 992)
    assert drawn_between(64, 0.9, 32) == (32, 153)


@pytest.mark.parametrize(
    ("size", "batch", "options", "wrong"),
    [
        (32, 1, {}, True),
        (32, 2, {}, False),
        (32, 1, {"ranks": 2}, False),
        (64, 1, {}, False),
        (64, 1, {"multi_scale": 0.5}, True),
        (128, 1, {"multi_scale": 0.5}, False),
    ],
)
def test_batchnorm_needs_two_values_per_channel(size, batch, options, wrong):
    fault = single_value_fault(size, 32, batch, **options)
    assert (fault is not None) == wrong
    assert fault is None or (
        fault.startswith(f"--imgsz {size}") and "= 1 value per channel" in fault
    )
