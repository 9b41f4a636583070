"""One clock for all ranks, from round trips."""

from __future__ import annotations

import pytest
import torch

from tests.traced import call, part, record
from yolods.distributed.world import Ranks
from yolods.trace.clocks import RankClock, Reading, best_reading, compare_clocks


def test_the_fastest_round_counts_and_bounds_the_error() -> None:
    """The other clock is 100 s ahead; the way back takes as long as the whole fastest round."""
    rounds = [(0.0, 100.1, 0.9), (1.0, 101.0, 1.2), (2.0, 102.3, 2.6)]
    reading = best_reading(rounds)
    assert reading.shown == 101.0
    assert reading.ahead == pytest.approx(99.9) and reading.error == pytest.approx(0.1)
    assert abs(reading.ahead - 100) <= reading.error + 1e-9


def test_times_move_to_the_other_clock_with_an_even_drift() -> None:
    clock = RankClock(Reading(100.0, 90.0, 0.001), Reading(200.0, 90.5, 0.003))
    assert clock.on_main(100.0) == 10.0 and clock.on_main(200.0) == 109.5
    assert clock.on_main(150.0) == pytest.approx(59.75)
    assert clock.drift == 0.5 and clock.error == 0.003


def test_a_record_moves_whole() -> None:
    clock = RankClock(Reading(0.0, 1.0, 0.0), Reading(9.0, 1.0, 0.0))
    moved = clock.move(record(part(2, 3, "forward"), calls=[call(2, 3)]))
    assert moved == record(part(1, 2, "forward"), calls=[call(1, 2)])


def test_a_single_rank_is_its_own_clock() -> None:
    (reading,) = compare_clocks(Ranks(0, 1, 0, "here", torch.device("cpu")), lambda: 7.0)
    clock = RankClock(reading, reading)
    assert clock.on_main(8.0) == 8.0 and clock.error == 0.0
