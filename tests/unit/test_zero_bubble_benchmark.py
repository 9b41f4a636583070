"""The arithmetic and the record of the zero-bubble benchmark."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.zero_bubble import PARTS, recorded
from benchmarks.zero_bubble_report import (
    SCHEDULES,
    Step,
    gradient_table,
    idle_table,
    misses,
    played,
    step_tables,
)
from yolods.plan.one_f_one_b import simulate
from yolods.plan.zero_bubble import division, simulate_split


def step(
    schedule: str,
    *,
    count: int = 4,
    divided: int = 0,
    number: int = 0,
    wall: float = 1.0,
    **changes: Any,
) -> Step:
    """A step whose forward passes take 1 s and whose backward passes take 3 s, 1 s of them for the
    weights' part."""
    values = {
        "forwards": [1.0] * count,
        "backwards": [3.0] * (count - divided) + [2.0] * divided,
        "weights": [1.0] * divided,
        "loss": 3.0,
        "norm": 2.0,
        **changes,
    }
    return Step(
        schedule=schedule, micro_batches=count, round=number, step=wall, cpu=5.0, **values
    )  # fmt: skip


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_equal_passes_take_as_long_as_the_simulations_say(stages: int, count: int):
    plain = played([step("1f1b", count=count)] * stages)
    assert plain == pytest.approx(simulate([1.0] * stages, [3.0] * stages, count).makespan)
    firsts = [division(stages, stage, count).first for stage in range(stages)]
    split = played([step("zb", count=count, divided=count - first) for first in firsts])
    expected = simulate_split([1.0] * stages, [2.0] * stages, [1.0] * stages, count)
    assert split == pytest.approx(expected.makespan)


def test_a_single_long_pass_is_played_where_it_is():
    """The last stage's first inputs' part takes 5 s longer, and both stages wait for it."""
    first, last = step("zb", count=2), step("zb", count=2, divided=2)
    slow = step("zb", count=2, divided=2, backwards=[7.0, 2.0])
    assert played([first, slow]) == played([first, last]) + 5


def test_whole_and_divided_passes_are_told_apart():
    pair = [step("zb"), step("zb", divided=1)]
    rows = step_tables([[step("1f1b"), each] for each in pair])
    assert rows[2].endswith("| 1000 / 1000 | 3000 / 3000 | - / - | - / - |")
    assert rows[3].endswith("| 1000 / 1000 | 3000 / 3000 | - / 2000 | - / 1000 |")


def taken(walls: dict[str, tuple[float, float]]) -> list[list[Step]]:
    """Two rounds on two stages."""
    return [
        [
            step(
                schedule,
                number=number,
                wall=walls[schedule][number],
                divided=stage if schedule == "zb" else 0,
            )
            for number in range(2)
            for schedule in SCHEDULES
        ]
        for stage in range(2)
    ]


def test_ratios_are_taken_round_by_round_and_a_slower_schedule_misses():
    slower = taken({"1f1b": (1.0, 2.0), "zb": (1.5, 2.2)})
    assert misses(slower) == ["m = 4: a step takes 1.300 of 1F1B's"]
    assert any("1.300 (1.100..1.500)" in row for row in step_tables(slower))
    assert not misses(taken({"1f1b": (1.0, 2.0), "zb": (0.9, 1.6)}))


def test_schedules_that_disagree_on_the_loss_miss():
    ranks = taken({"1f1b": (1.0, 2.0), "zb": (0.9, 1.6)})
    ranks[1][1] = step("zb", loss=3.1)
    assert misses(ranks)[0].startswith("m = 4: losses from 3.0 to 3.1")


def test_four_stages_and_eight_micro_batches_meet_the_target():
    rows, missed = idle_table()
    assert not missed and any(row.startswith("| 4 | 8 | 1, 1, 1 | 27.3% | 11.1% ") for row in rows)


def test_the_worst_cut_is_named_and_what_is_beyond_the_limit():
    good = {"gradient": (0.0, "a"), "loss": (0.0, "b"), "statistic": (0.0, "c"), "equal": True}
    bad = {**good, "gradient": (2e-6, "model.3"), "equal": False}
    rows, missed = gradient_table({"cuts": [("cut 1", [good, good]), ("cut 4", [good, bad])]}, 1e-6)
    assert rows[-1] == "| cuts | 2 | 2.0e-06 | model.3, cut 4 | 0.0e+00 | 0.0e+00 | 1 |"
    assert missed == ["gradient of model.3 at cut 4 is 2.0e-06 apart"]


def test_a_part_that_is_measured_again_replaces_its_section_alone():
    sections = {name: f"## {name.capitalize()}\n\nold {name}\n" for name in PARTS}
    whole = recorded("", sections)
    again = recorded(whole, {"steps": "## Steps\n\nnew\n"})
    assert again == whole.replace("old steps", "new")
    assert recorded(again, {}) == again
