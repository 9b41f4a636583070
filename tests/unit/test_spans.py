"""Many numbers as a few spans."""

from __future__ import annotations

import pytest

from yolods.data.video.spans import span_text


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([7], "7"),
        ([5, 3, 4], "3-5"),
        ([1, 2, 9, 4, 2], "1-2, 4, 9"),
        (range(0, 12, 2), "0, 2, 4, 6, 8, ..."),
    ],
)
def test_numbers_are_sorted_and_joined(numbers, text):
    assert span_text(numbers) == text
