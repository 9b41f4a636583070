"""ZB-H1 against what its paper promises, and its makespan against another way of working it out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate

import pytest

from yolods.plan import zero_bubble
from yolods.plan.one_f_one_b import in_flight, instructions, simulate
from yolods.plan.zero_bubble import held, passes, simulate_split

GRID = [(stages, count) for stages in range(1, 9) for count in range(1, 17)]

Times = tuple[Sequence[float], Sequence[float], Sequence[float]]


def played(stages: int, count: int, times: Times, transfer: float = 0.0) -> list[dict[float, str]]:
    """When each stage starts each pass, by playing all stages' orders against each other; the
    simulation computes with slots instead."""
    orders = [passes(stages, stage, count) for stage in range(stages)]
    ends: dict[tuple[str, int, int], float] = {}
    rows: list[dict[float, str]] = [{} for _ in orders]
    places, free = [0] * stages, [0.0] * stages
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        before = list(places)
        for stage, order in enumerate(orders):
            while places[stage] < len(order):
                kind, number = order[places[stage]]
                source = {"F": ("F", stage - 1, number), "B": ("B", stage + 1, number)}.get(kind)
                outside = source is None or not 0 <= source[1] < stages
                if not outside and source not in ends:
                    break
                start = max(free[stage], 0.0 if outside else ends[source] + transfer)
                free[stage] = start + times["FBW".index(kind)][stage]
                ends[kind, stage, number] = free[stage]
                rows[stage][start] = f"{kind}{number}"
                places[stage] += 1
        assert places != before, "every stage waits for another"
    rows[0][max(free)] = "end"
    return rows


def test_the_docstring_s_table_is_the_schedule_of_equal_parts():
    rows = played(4, 8, ([1.0] * 4, [1.0] * 4, [1.0] * 4))
    for stage, row in enumerate(rows):
        cells = (f" {row.get(float(time), '.'):>2}" for time in range(27))
        assert f"    stage {stage}" + "".join(cells) in zero_bubble.__doc__.splitlines()
    assert simulate([1.0] * 4, [2.0] * 4, 8).makespan == 33


@pytest.mark.parametrize(("stages", "count"), GRID)
def test_every_pass_runs_once_in_its_order_and_nobody_waits_forever(stages: int, count: int):
    played(stages, count, ([1.0] * stages, [1.0] * stages, [1.0] * stages))
    for stage in range(stages):
        order = passes(stages, stage, count)
        assert len(set(order)) == len(order) == 3 * count
        for kind in "FBW":
            assert [number for each, number in order if each == kind] == list(range(count))
        assert tuple(each for each in order if each[0] != "W") == instructions(stages, stage, count)
        places = {each: place for place, each in enumerate(order)}
        for number in range(count):
            assert places["F", number] < places["B", number] < places["W", number]


@pytest.mark.parametrize(("stages", "count"), GRID)
def test_no_stage_holds_more_than_the_first_one_does_under_1f1b(stages: int, count: int):
    for stage in range(stages):
        order = passes(stages, stage, count)
        for last, most in (("B", in_flight(stages, stage, count)), ("W", held(stages, count))):
            steps = ((kind == "F") - (kind == last) for kind, _ in order)
            assert max(accumulate(steps)) <= most
    assert held(stages, count) == in_flight(stages, 0, count)


def test_the_simulation_is_what_playing_the_orders_gives():
    rng = random.Random(0)
    for _ in range(100):
        stages, count, transfer = rng.randint(1, 8), rng.randint(1, 16), rng.random()
        times = tuple([rng.random() for _ in range(stages)] for _ in range(3))
        found = simulate_split(*times, count, transfer)
        (end,) = (time for time, each in played(stages, count, times, transfer)[0].items()
                  if each == "end")  # fmt: skip
        assert found.makespan == pytest.approx(end)
        assert found.busy == pytest.approx([count * sum(each) for each in zip(*times, strict=True)])


@pytest.mark.parametrize(("stages", "count"), [each for each in GRID if each[1] >= each[0]])
@pytest.mark.parametrize("times", [(1.0, 1.0, 1.0), (1.0, 1.2, 0.8), (2.0, 1.0, 0.5)])
def test_equal_stages_are_idle_as_the_docstring_says(
    stages: int, count: int, times: tuple[float, float, float]
):
    forward, backward, weights = times
    waits = (stages - 1) * (forward + backward - weights)
    found = simulate_split(*([each] * stages for each in times), count)
    assert found.idle_share == pytest.approx(waits / (count * sum(times) + waits))


def test_four_stages_and_eight_micro_batches_wait_at_most_six_tenths_of_1f1b():
    """The parts of a YOLOv5's backward pass are about equal, and so is its forward pass."""
    for backward, weights in ((1.0, 1.0), (1.2, 0.8), (0.8, 1.2), (1.5, 1.0)):
        found = simulate_split([1.0] * 4, [backward] * 4, [weights] * 4, 8)
        plain = simulate([1.0] * 4, [backward + weights] * 4, 8)
        assert found.idle_share <= 0.6 * plain.idle_share


def test_without_weights_parts_it_is_1f1b():
    times = [1.0, 3.0, 2.0], [2.0, 5.0, 1.0]
    assert simulate_split(*times, [0.0] * 3, 5, 0.5) == simulate(*times, 5, 0.5)


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match=r"stage 2 is not in 0\.\.1"):
        passes(2, 2, 4)
    with pytest.raises(ValueError, match="at least 0 seconds"):
        simulate_split([1.0], [1.0], [-1.0], 4)
