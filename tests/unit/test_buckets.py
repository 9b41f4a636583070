"""The size of a bucket of gradients."""

from __future__ import annotations

import pytest

from yolods.plan.buckets import BUCKETS, LARGEST, bucket_elements


@pytest.mark.parametrize(
    ("trained", "whole", "expected"),
    [
        (6_000, False, 1_000),
        (6_001, False, 1_001),
        (6_001, True, 6_001),
        (BUCKETS * LARGEST + 600, False, LARGEST),
        (BUCKETS * LARGEST + 600, True, BUCKETS * LARGEST + 600),
        (0, False, 1),  # a stage of which nothing is trained
    ],
)
def test_a_sixth_of_the_gradients_up_to_a_limit(trained: int, whole: bool, expected: int) -> None:
    assert bucket_elements(trained, whole=whole) == expected
