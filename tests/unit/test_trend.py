"""What is usual of a number that moves by factors, and what stands out from it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from yolods.stability.trend import DECAY, LayerTrends, Trend


def trend_of(values) -> Trend:
    trend = Trend()
    for value in values:
        trend.add(value)
    return trend


def test_at_first_the_mean_is_that_of_all_values():
    assert trend_of([1, 10, 100]).usual == pytest.approx(10)


def test_one_value_far_out_moves_it_by_its_share_of_a_logarithm():
    trend = trend_of([2.0] * 200)
    trend.add(2.0 * 1000)
    assert trend.usual == pytest.approx(2.0 * 1000 ** (1 - DECAY))


def test_what_stands_out_is_far_away_both_by_its_factor_and_by_the_deviation():
    quiet = trend_of([1.0] * 60)
    assert quiet.excess(10.1, 10, 6) and not quiet.excess(9.9, 10, 6)
    noisy = trend_of([0.1, 10.0] * 30)
    assert not noisy.excess(50.0, 10, 6)
    assert noisy.excess(1e9, 10, 6)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_what_has_no_logarithm_is_neither_taken_in_nor_out_of_line(value):
    trend = trend_of([1.0, 2.0])
    before = trend.state()
    trend.add(value)
    assert trend.state() == before
    assert not trend.excess(value, 0.1, 0)


def test_after_a_checkpoint_a_trend_goes_on_as_it_would_have():
    one, other = trend_of([1.0, 3.0, 0.2]), Trend()
    other.load(json.loads(json.dumps(one.state())))
    one.add(5.0)
    other.add(5.0)
    assert one.state() == other.state()


def test_a_layer_is_compared_with_its_own_past():
    trends = LayerTrends(2)
    assert trends.excess(np.array([5.0, 5.0])).tolist() == [1, 1]
    trends.add(np.array([1.0, 100.0]), 1e-12, 3)
    assert trends.excess(np.array([10.0, 10.0])) == pytest.approx([10, 0.1])


def test_a_gradient_of_exactly_0_says_nothing_of_what_is_usual():
    trends = LayerTrends(1)
    for norm in (2.0, 0.0, 0.0):
        trends.add(np.array([norm]), 1e-12, 100)
    assert math.exp(trends.mean[0]) == pytest.approx(2.0)
    assert trends.counts.tolist() == [1]


def test_a_layer_that_has_vanished_is_told_once_until_it_recovers():
    trends = LayerTrends(2)
    told = [
        trends.add(np.array([1.0, norm]), 1e-6, 2) for norm in (1e-9, 1e-9, 1e-9, 1.0, 1e-9, 1e-9)
    ]
    assert told == [[], [1], [], [], [], [1]]


def test_a_state_follows_its_parameters_to_other_places_and_is_left_where_one_is_new():
    one, moved, other = LayerTrends(2), LayerTrends(2), LayerTrends(2)
    one.add(np.array([1.0, 100.0]), 1e-12, 3)
    state = json.loads(json.dumps(one.state()))
    moved.load(state, [1, 0])
    assert np.exp(moved.mean) == pytest.approx([100, 1])
    other.load(state, [0, None])
    assert other.counts.tolist() == [0, 0]
