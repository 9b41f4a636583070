"""What packets say about frames that are missing."""

from __future__ import annotations

import numpy as np
import pytest

from yolods.data.video.packets import Missing, Packets, missing

STEP = 0.04
REORDERED = (0, 3, 1, 2, 6, 4, 5, 9, 7, 8, 12, 10, 11)
"""Frames in the order of storage, each third one before two that are shown earlier."""


def packets(order=range(12), **settings) -> Packets:
    return Packets(np.array(order, float) * STEP, **settings)


def times(*numbers: int) -> list[float]:
    return [number * STEP for number in numbers]


def test_nothing_is_missing():
    whole = packets(REORDERED, declared=13 * STEP)
    assert (whole.certain, whole.cut, whole.falls_short, whole.gaps) == (13, False, False, [])
    assert missing(whole, times(*range(13))) == Missing()


def test_missing_before_between_and_after():
    found = missing(packets(), times(2, 3, 5, 6, 8, 9))
    assert found == Missing(before=2, between=(2, 5), after=2)  # frame 0 is the one at 2


@pytest.mark.parametrize("decoded", [times(0, 1, 99), times(0, 2, 1), [0.0, float("nan")]])
def test_times_that_packets_do_not_have_say_nothing(decoded):
    assert missing(packets(), decoded) is None


def test_a_count_that_fits_needs_no_times():
    # In an avi, times are those of decoding.
    assert missing(packets(), times(*range(2, 14))) == Missing()


def test_the_last_frames_of_a_broken_file_are_not_certain():
    """The frame stored last may be incomplete, and one before it may wait for predecessors."""
    cut = packets(REORDERED[:8], broken_off=True)
    assert cut.cut and cut.certain == 8 - 1 - 1
    assert packets(range(8), broken_off=True).certain == 7


def test_a_gap_among_the_last_frames_is_a_cut():
    cut = packets((*range(30), 33))
    assert not cut.cut and cut.gaps == [pytest.approx((29 * STEP, 33 * STEP))]
    cut = packets((*REORDERED, 15, 13, 14, 18))
    assert cut.cut and cut.certain == len(cut.times) - 1
    assert cut.gaps == []  # the frame after it is not used


def test_an_end_before_the_declared_one():
    assert packets(declared=2.0).falls_short
    assert not packets(declared=0.9).falls_short  # sound is often a little longer
    assert packets([], declared=2.0).falls_short


def test_a_variable_rate_has_no_gaps():
    assert packets((0, 1, 5, 6, 12, 13, 20)).gaps == []


def test_packets_before_the_first_picture():
    assert packets().before(2 * STEP) == 2
    assert packets().before(0.0) == 0


def test_unknown_times_prove_nothing():
    unknown = Packets(np.array([0.0, np.nan, 0.08, np.nan]))
    assert (unknown.certain, unknown.cut, unknown.gaps) == (4, False, [])
    assert missing(unknown, [0.0, 0.08]) is None
