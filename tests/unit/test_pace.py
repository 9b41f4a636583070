"""Wall time over all starts of a run, and images per second of an epoch."""

from __future__ import annotations

from yolods.training.pace import Pace


def test_time_goes_on_from_earlier_starts_and_a_rate_begins_anew_each_epoch() -> None:
    now = [100.0]
    pace = Pace(50.0, clock=lambda: now[0])
    now[0] += 4.0
    pace.count(16)
    pace.count(24)
    assert (pace.seconds, pace.rate()) == (54.0, 10.0)
    now[0] += 6.0  # an evaluation
    pace.begin_epoch()
    now[0] += 2.0
    pace.count(8)
    assert (pace.seconds, pace.rate()) == (62.0, 4.0)
