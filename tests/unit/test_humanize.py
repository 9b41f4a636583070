"""Numbers as people read them."""

from __future__ import annotations

import pytest

from yolods.system.humanize import age_text, amount, clock_text, plural, size_text


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (5 << 20, "5 MiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 42, "4096.0 GiB"),
    ],
)
def test_bytes_come_in_the_largest_unit_that_keeps_them_above_1(size, words):
    assert size_text(size) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (119, "119 s"),
        (120, "2 minutes"),
        (7199, "120 minutes"),
        (7200, "2 hours"),
        (200000, "2 days"),
    ],
)
def test_time_comes_in_the_largest_unit_of_which_there_are_two(seconds, words):
    assert age_text(seconds) == words


def test_only_one_has_no_s():
    assert [plural(count, "rank") for count in (0, 1, 2)] == ["0 ranks", "1 rank", "2 ranks"]
    assert amount(1, 2048) == "1 file, 2 KiB"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00")]
)
def test_a_duration_as_on_a_clock(seconds, text):
    assert clock_text(seconds) == text
