"""A pipeline's passes as they ran, and without delays: against the simulation of the plan."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.traced import call, part, record
from yolods.plan.one_f_one_b import Instruction, instructions, simulate
from yolods.plan.zero_bubble import passes, simulate_split
from yolods.trace.schedule import Pass, as_run, ideal, idle_share, makespan, stages_in

FORWARD, BACKWARD, WEIGHTS = (1.0, 1.5, 2.0), (2.0, 1.0, 2.5), (0.5, 1.0, 0.75)


def rows(schedule: str, micro_batches: int) -> list[list[Pass]]:
    """The passes of all stages, at moments that mean nothing."""
    order = passes if schedule == "zb" else instructions
    ordered = [order(len(FORWARD), stage, micro_batches) for stage in range(len(FORWARD))]
    return [
        [Pass(what, 99.0, seconds(what, stage, each, schedule)) for what in each]
        for stage, each in enumerate(ordered)
    ]


def seconds(what: Instruction, stage: int, order: Sequence[Instruction], schedule: str) -> float:
    """Of a pass. Zero-bubble's undivided backward passes, which have no W, take B + W."""
    kind, number = what
    whole = schedule == "zb" and kind == "B" and ("W", number) not in order
    return {"F": FORWARD, "B": BACKWARD, "W": WEIGHTS}[kind][stage] + whole * WEIGHTS[stage]


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 8])
def test_without_delays_it_is_the_simulated_step(micro_batches: int) -> None:
    for schedule, told in (
        ("1f1b", simulate(FORWARD, BACKWARD, micro_batches)),
        ("zb", simulate_split(FORWARD, BACKWARD, WEIGHTS, micro_batches)),
    ):
        found = ideal(rows(schedule, micro_batches), schedule)
        assert makespan(found) == pytest.approx(told.makespan), schedule
        assert idle_share(found) == pytest.approx(told.idle_share), schedule


def test_passes_begin_when_what_they_need_is_there() -> None:
    (first, second) = ideal(
        [
            [Pass(("F", 0), 0, 1.0), Pass(("B", 0), 5, 2.0)],
            [Pass(("F", 0), 3, 2.0), Pass(("B", 0), 9, 4.0)],
        ],
        "1f1b",
    )
    assert [each.begin for each in first] == [0.0, 7.0]
    assert [each.begin for each in second] == [1.0, 3.0]


def test_as_it_ran_without_waits_and_other_steps() -> None:
    first = record(
        part(0, 9, "forward", 0, step=3),
        part(10, 11, "data"),
        part(11, 13, "forward", 0),
        part(13, 14, "boundary", 0),
        part(14, 17, "backward", 0),
        part(17, 18, "weights", 0),
        calls=[call(12, 13, peer=1, waited=1.0)],
    )
    second = record(part(10, 13, "boundary", 0), part(13, 15, "forward", 0), rank=1, stage=1)
    found = as_run(stages_in([second, first]), 4)
    assert found == [
        [Pass(("F", 0), 0.0, 1.0), Pass(("B", 0), 3.0, 3.0), Pass(("W", 0), 6.0, 1.0)],
        [Pass(("F", 0), 2.0, 2.0)],
    ]
    assert makespan(found) == 7.0 and idle_share(found) == 0.5


def test_of_one_replica_by_stage() -> None:
    other = record(rank=1)
    moved = [record(rank=2, stage=1), other, record(rank=0)]
    assert [each.rank for each in stages_in(moved, 0)] == [1, 0, 2]
    assert stages_in(moved, 1) == []
    assert makespan([]) == 0.0 and idle_share([[]]) == 0.0
