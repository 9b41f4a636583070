"""What stages report of a step, beside what the schedule would leave."""

from __future__ import annotations

import pytest

from yolods.engine.pipeline.stage_stats import Gauge, summarise
from yolods.engine.pipeline.stage_timer import StageTimes


def gauge(stage: int, *, forward: float, backward: float, total: float) -> Gauge:
    return Gauge(
        stage, StageTimes(forward, backward, total - forward - backward, total, 0), sent=0.0, peak=0
    )


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 16])
@pytest.mark.parametrize("stages", [2, 4])
def test_a_perfect_pipeline_is_idle_for_exactly_the_bound(stages, micro_batches):
    """The last stage ends its part of a step before the first, by as much as the backward passes
    that follow. By its own time it seemed busier than the schedule permits: 31% idle were shown
    beside a bound of 36%."""
    makespan = 3.0 * (micro_batches + stages - 1)
    found = [
        gauge(
            stage, forward=micro_batches, backward=2.0 * micro_batches, total=makespan - 2.0 * stage
        )
        for stage in range(stages)
    ]
    told = summarise(found, micro_batches)
    assert told.idle == pytest.approx(told.bound)
    assert told.bound == pytest.approx((stages - 1) / (micro_batches + stages - 1))


def test_under_zero_bubble_the_bound_is_that_of_its_own_schedule():
    """Two stages, F = B = W = 1 s. The second one divides all of 3 passes, or the last one of 4: of
    10 or 14 seconds each stage is idle for 1 or 2; under 1F1B it would be 3 of 12 or of 15."""
    for count, divided, idle in ((3, 3, 1 / 10), (4, 1, 2 / 14)):
        whole = 3.0 * count + (1 if divided == count else 2)
        found = [
            Gauge(
                stage,
                StageTimes(count, 2.0 * count - apart, 1.0, whole, 0, weights=apart),
                sent=0.0,
                peak=0,
            )
            for stage, apart in enumerate((0.0, float(divided)))
        ]
        told = summarise(found, count, "zb")
        assert (told.schedule, told.bound) == ("zb", pytest.approx(idle))
        assert told.idle == pytest.approx(told.bound)
        assert [stage.backward for stage in told.stages] == [2.0 * count] * 2, "both parts"


def test_what_is_lost_besides_shows_above_the_bound():
    found = [
        gauge(stage, forward=4.0, backward=8.0, total=20.0 - 2.0 * stage) for stage in range(2)
    ]
    told = summarise(found, 4)
    assert told.idle == pytest.approx(1 - 12 / 20)
    assert told.idle > told.bound
