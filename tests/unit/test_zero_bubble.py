"""ZB-H1 against what its paper promises, its makespan against another way of working it out, and
the passes that it divides against all other choices."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate

import pytest

from yolods.plan import zero_bubble
from yolods.plan.one_f_one_b import Instruction, in_flight, instructions, simulate
from yolods.plan.zero_bubble import (
    COST,
    all_divided,
    division,
    flying,
    passes,
    simulate_split,
)

GRID = [(stages, count) for stages in range(1, 9) for count in (*range(1, 17), 40)]
FEW, MANY = (4, 8), (2, 8)
"""Stages and micro-batches of which all passes are divided, and only those after the last F."""

Times = tuple[Sequence[float], Sequence[float], Sequence[float]]
Orders = Sequence[Sequence[Instruction]]


def orders_of(stages: int, count: int) -> Orders:
    return [passes(stages, stage, count) for stage in range(stages)]


def played(
    orders: Orders, times: Times, *, transfer: float = 0.0, cost: float = 0.0
) -> list[dict[Instruction, tuple[float, float]]]:
    """When each stage starts and ends each pass, by playing all stages' orders against each other;
    the simulation computes with slots instead."""
    rows: list[dict[Instruction, tuple[float, float]]] = [{} for _ in orders]
    places, free = [0] * len(orders), [0.0] * len(orders)
    while any(place < len(order) for place, order in zip(places, orders, strict=True)):
        before = list(places)
        for stage, order in enumerate(orders):
            while places[stage] < len(order):
                kind, number = order[places[stage]]
                source = {"F": stage - 1, "B": stage + 1}.get(kind, -1)
                outside = not 0 <= source < len(orders)
                if not outside and (kind, number) not in rows[source]:
                    break
                seconds = times["FBW".index(kind)][stage] * (1 + cost * (kind == "W"))
                if kind == "B" and ("W", number) not in order:
                    seconds += times[2][stage]
                arrived = 0.0 if outside else rows[source][kind, number][1] + transfer
                start = max(free[stage], arrived)
                free[stage] = start + seconds
                rows[stage][kind, number] = start, free[stage]
                places[stage] += 1
        assert places != before, "every stage waits for another"
    return rows


def makespan(orders: Orders, cost: float = 0.0) -> float:
    """Of parts that take equally long."""
    ones = [1.0] * len(orders)
    rows = played(orders, (ones, ones, ones), cost=cost)
    return max(end for row in rows for _, end in row.values())


@pytest.mark.parametrize(("stages", "count"), [FEW, MANY])
def test_the_docstring_s_tables_are_the_schedule_of_equal_parts(stages: int, count: int):
    ones = [1.0] * stages
    rows = played(orders_of(stages, count), (ones, ones, ones))
    width = int(max(end for row in rows for _, end in row.values()))
    for stage, row in enumerate(rows):
        cells = ["."] * width
        for (kind, number), (start, end) in row.items():
            cells[int(start) : int(end)] = [f"{kind}{number}"] * int(end - start)
        line = f"    stage {stage}" + "".join(f" {cell:>2}" for cell in cells)
        assert line in zero_bubble.__doc__.splitlines()
    assert f"1F1B takes {simulate(ones, [2.0] * stages, count).makespan:g}" in zero_bubble.__doc__


@pytest.mark.parametrize(("stages", "count"), GRID)
def test_every_pass_runs_once_in_its_order_and_nobody_waits_forever(stages: int, count: int):
    makespan(orders_of(stages, count))
    for stage, order in enumerate(orders_of(stages, count)):
        assert len(set(order)) == len(order)
        assert tuple(each for each in order if each[0] != "W") == instructions(stages, stage, count)
        first = division(stages, stage, count).first
        assert [number for kind, number in order if kind == "W"] == list(range(first, count))
        places = {each: place for place, each in enumerate(order)}
        for number in range(first, count):
            assert places["B", number] < places["W", number]
            # Otherwise weights' gradients would be added up in another order than under 1F1B.
            assert all(places["B", whole] < places["W", number] for whole in range(first))


def test_all_passes_but_the_first_stage_s_are_divided_or_those_after_the_last_forward():
    def divided(stages: int, count: int) -> list[list[int]]:
        orders = orders_of(stages, count)
        return [[number for kind, number in order if kind == "W"] for order in orders]

    assert divided(*FEW) == [[], *[list(range(8))] * 3]
    assert divided(*MANY) == [[], [7]]
    assert divided(4, 20) == [[], [17, 18, 19], [18, 19], [19]]
    for stages, count in GRID:
        if all_divided(stages, count):
            continue
        for stage, order in enumerate(orders_of(stages, count)[1:], 1):
            after = order[order.index(("F", count - 1)) + 1 :]
            assert [kind for kind, _ in after] == ["B", "W"] * in_flight(stages, stage, count)


@pytest.mark.parametrize(("stages", "count"), GRID)
def test_no_stage_holds_more_than_the_first_one_does_under_1f1b(stages: int, count: int):
    for stage, order in enumerate(orders_of(stages, count)):
        waiting = {number for kind, number in order if kind == "W"}
        ends = {"W", "B"}
        steps = (
            (kind == "F") - (kind in ends and (kind == "W" or number not in waiting))
            for kind, number in order
        )
        held = max(accumulate(steps))
        assert held == flying("zb", stages, stage, count) <= in_flight(stages, 0, count)
        if not all_divided(stages, count):
            assert held == flying("1f1b", stages, stage, count) == in_flight(stages, stage, count)


def test_the_simulation_is_what_playing_the_orders_gives():
    rng = random.Random(0)
    both = set()
    for _ in range(200):
        stages, count = rng.randint(1, 8), rng.randint(1, 24)
        transfer, cost = rng.random(), rng.random()
        times = tuple([rng.random() for _ in range(stages)] for _ in range(3))
        found = simulate_split(*times, count, transfer, cost)
        rows = played(orders_of(stages, count), times, transfer=transfer, cost=cost)
        assert found.makespan == pytest.approx(max(end for row in rows for _, end in row.values()))
        busy = [sum(end - start for start, end in row.values()) for row in rows]
        assert found.busy == pytest.approx(busy)
        both.add(all_divided(stages, count))
    assert both == {True, False}


@pytest.mark.parametrize(("stages", "count"), [each for each in GRID if each[1] >= each[0] > 1])
def test_a_step_takes_what_the_docstring_says(stages: int, count: int):
    plain = 3 * (count + stages - 1)
    ones = [1.0] * stages
    assert simulate(ones, [2.0] * stages, count).makespan == plain
    found = simulate_split(ones, ones, ones, count, cost=COST).makespan
    partly = plain - (stages - 1) + (stages - 2) * COST
    wholly = plain - 2 * (stages - 1) + count * COST
    assert found == pytest.approx(wholly if all_divided(stages, count) else partly)
    assert found == pytest.approx(min(wholly, partly))


@pytest.mark.parametrize(("stages", "count"), [each for each in GRID if each[1] >= each[0]])
@pytest.mark.parametrize("times", [(1.0, 1.0, 1.0), (1.0, 1.2, 0.8), (2.0, 1.0, 0.5)])
def test_equal_stages_wait_for_b_and_f_and_where_all_is_divided_not_for_w(
    stages: int, count: int, times: tuple[float, float, float]
):
    forward, backward, weights = times
    hidden = weights if all_divided(stages, count) else 0.0
    waits = (stages - 1) * (forward + backward - hidden)
    found = simulate_split(*([each] * stages for each in times), count)
    assert found.idle_share == pytest.approx(waits / (count * sum(times) + waits))


def test_four_stages_and_eight_micro_batches_wait_at_most_six_tenths_of_1f1b():
    """The parts of a YOLOv5's backward pass are about equal, and so is its forward pass."""
    for backward, weights in ((1.0, 1.0), (1.2, 0.8), (0.8, 1.2), (1.5, 1.0)):
        found = simulate_split([1.0] * 4, [backward] * 4, [weights] * 4, 8)
        plain = simulate([1.0] * 4, [backward + weights] * 4, 8)
        assert found.idle_share <= 0.6 * plain.idle_share


def chosen(
    stages: int, stage: int, count: int, divided: Sequence[int], lag: int
) -> tuple[Instruction, ...]:
    """A stage's passes if it divides these: W follows B of the micro-batch `lag` places later, and
    precedes the next whole pass, so that gradients are added up in order."""
    order: list[Instruction] = []
    waiting: list[int] = []
    for kind, number in instructions(stages, stage, count):
        if kind == "B" and number not in divided:
            order += (("W", each) for each in waiting)
            waiting = []
        order.append((kind, number))
        if kind == "B" and number in divided:
            waiting.append(number)
            while waiting and waiting[0] <= number - lag:
                order.append(("W", waiting.pop(0)))
    return (*order, *(("W", each) for each in waiting))


def choices(stages: int, stage: int, count: int) -> set[tuple[Instruction, ...]]:
    """Every order in which a stage may run its passes, whichever of them it divides."""
    if stage == 0:
        return {instructions(stages, 0, count)}
    return {
        chosen(stages, stage, count, divided, lag)
        for size in range(count + 1)
        for divided in itertools.combinations(range(count), size)
        for lag in range(stages)
    }


@pytest.mark.parametrize(
    ("stages", "count"), [(2, 1), (2, 2), (2, 3), (2, 4), (2, 6), (3, 1), (3, 2), (3, 3), (3, 4)]
)
def test_no_other_choice_of_passes_takes_less_or_divides_fewer_in_that_time(
    stages: int, count: int
):
    def rank(orders: Orders) -> tuple[float, int]:
        return round(makespan(orders, COST), 6), sum(map(len, orders))

    every = itertools.product(*(choices(stages, stage, count) for stage in range(stages)))
    assert min(map(rank, every)) == rank(orders_of(stages, count))


def fewer(stages: int, count: int) -> Iterator[Orders]:
    """The schedule with one divided pass less."""
    orders = orders_of(stages, count)
    for stage in range(1, stages):
        found = division(stages, stage, count)
        divided = range(found.first, count)
        assert chosen(stages, stage, count, divided, found.lag) == orders[stage]
        for whole in divided:
            others = [each for each in divided if each != whole]
            without = chosen(stages, stage, count, others, found.lag)
            yield [*orders[:stage], without, *orders[stage + 1 :]]


@pytest.mark.parametrize(
    ("stages", "count"), [(2, 3), (2, 4), (2, 40), (3, 3), (3, 7), (3, 8), (4, 8), (4, 20), (5, 17)]
)
def test_every_divided_pass_shortens_the_step(stages: int, count: int):
    found = makespan(orders_of(stages, count), COST)
    others = list(fewer(stages, count))
    assert others and all(makespan(each, COST) > found + 1e-6 for each in others)


@pytest.mark.parametrize(("stages", "count"), [(6, 40), (8, 40)])
def test_of_more_stages_a_divided_pass_too_many_costs_less_than_half_a_unit(
    stages: int, count: int
):
    """Without the cost, every one of them shortens the step."""
    found = [makespan(orders_of(stages, count), cost) for cost in (0.0, COST)]
    for each in fewer(stages, count):
        assert makespan(each) > found[0]
        assert makespan(each, COST) > found[1] - 0.5


def test_without_weights_parts_it_is_1f1b():
    times = [1.0, 3.0, 2.0], [2.0, 5.0, 1.0]
    assert simulate_split(*times, [0.0] * 3, 5, 0.5) == simulate(*times, 5, 0.5)


def test_large_pipelines_are_ordered_in_no_time():
    began = time.process_time()
    orders_of(16, 64)
    assert time.process_time() - began < 0.5


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match=r"stage 2 is not in 0\.\.1"):
        passes(2, 2, 4)
    with pytest.raises(ValueError, match="at least 0 seconds"):
        simulate_split([1.0], [1.0], [-1.0], 4)
