"""yolods' own run against ultralytics' own trainer, from the same weights on the same batches, to
the files they leave.

A short form of `python benchmarks/trainer_parity.py`, which takes 60 steps, AdamW and `auto`, and
yolods' batches too.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.trainer_parity import CASES, LAYOUTS, Case, Compared, Lab, compare, faults_of, table
from benchmarks.trainer_trace import STATES, Noted, Trace, apart, differences, first_fault

HYPER = {
    "optimizer": "SGD",
    "epochs": 2,
    "warmup_epochs": 1,
    "close_mosaic": 1,
    "nbs": 12,
    "val": True,
}
"""Eight batches, four an epoch: warm-up ends within the third step, which ends in the second epoch;
two batches are left."""
MARKED = (1, 3)
"""Steps whose weights are compared."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("trainers"), images=16)


@pytest.fixture(scope="module", params=LAYOUTS)
def compared(request: pytest.FixtureRequest, lab: Lab) -> Compared:
    # An evaluation after the first epoch averages the statistics of ranks, which training goes on
    # with.
    switched = ("rounding", "last step", "statistics")
    return compare(lab, Case(request.param, "theirs", HYPER, switched), marks=MARKED, quick=True)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_step_and_file_is_that_of_ultralytics_trainer(compared: Compared) -> None:
    assert faults_of(compared) == []


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_where_both_round_alike_every_bit_is_theirs(compared: Compared) -> None:
    """Not to a limit: both walk the same way, and anything that one does and the other does not
    shows."""
    for step in MARKED:
        mine, theirs = (
            trace.steps[step - 1].states for trace in (compared.alike[0], compared.first)
        )
        for key in STATES:
            differing = [
                name for name, each in theirs[key].items() if not mine[key][name].equal(each)
            ]
            assert not differing, (step, key, differing[:3])
    for name, state in compared.first.files.items():
        assert apart(compared.alike[0].files[name], state) == 0, name


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_run_goes_through_what_it_is_for(compared: Compared) -> None:
    first, mine = compared.first, compared.alike[0]
    assert [step.batches for step in first.steps] == [1, 2, 3]
    assert [step.epoch for step in first.steps] == [0, 0, 1]
    assert len(mine.steps) == 4, "nothing was left for a last step"
    assert (first.closed, mine.closed) == (1, 1)
    assert max(step.norm for step in first.steps) > 10, "nothing was clipped"
    assert first.steps[0].lr[0] == 0 < first.steps[0].lr[2]
    assert {"best.pt", "last.pt"} == set(first.files) == set(mine.files)
    assert apart(first.steps[-1].states["average"], first.steps[-1].states["weights"]) > 1e-6
    assert all(set(STATES) <= set(first.steps[step - 1].states) for step in MARKED)


# ---- what says so


def noted(**changes: object) -> Noted:
    values = {
        "batches": 2,
        "images": 8,
        "epoch": 1,
        "lr": (0.1, 0.1, 0.2),
        "decay": (0.5, 0.0, 0.0),
        "momentum": 0.9,
    }
    values |= {"items": (1.0, 2.0, 3.0), "norm": 12.0, "updates": 7}
    return Noted(**{**values, "states": {key: {"a": torch.ones(2)} for key in STATES}, **changes})


def trace(*steps: Noted) -> Trace:
    files = {name: {"a": torch.ones(2)} for name in ("best.pt", "last.pt")}
    return Trace(
        list(steps), start={"a": torch.zeros(2)}, closed=3, judged={"a": torch.ones(2)}, files=files
    )


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"batches": 3}, "batches"),
        ({"images": 4}, "images"),
        ({"epoch": 2}, "epoch"),
        ({"updates": 6}, "updates"),
        ({"lr": (0.1, 0.1, 0.1)}, "lr"),
        ({"decay": (0.4, 0.0, 0.0)}, "decay"),
        ({"momentum": 0.937}, "momentum"),
    ],
)
def test_a_step_that_differs_is_named(change: dict[str, object], key: str) -> None:
    mine, other = trace(noted(), noted(**change)), trace(noted(), noted())
    compared = Compared(CASES[0], other, other, [mine], [mine])
    assert any(f"step 2: {key}" in fault for fault in faults_of(compared))
    assert first_fault(mine, other, 1e-6, (key,)).startswith(f"step 2: {key}")
    assert differences(mine, other, 0)[key] == 0


def test_later_steps_may_be_as_far_apart_as_two_of_ultralytics_and_the_first_may_not() -> None:
    first, off = trace(noted(), noted()), noted(norm=12.1)
    second = trace(noted(norm=13.0), noted(norm=12.001))
    late, early = trace(noted(), off), trace(off, noted())
    assert faults_of(Compared(CASES[0], first, second, [late], [late])) == []
    assert len(faults_of(Compared(CASES[0], first, second, [early], [early]))) == 1
    moved = noted(states={**off.states, "average": {"a": torch.zeros(2)}})
    worse = trace(noted(), noted(norm=15.0)), trace(noted(), moved)
    for mine in worse:
        assert len(faults_of(Compared(CASES[0], first, second, [mine], [mine]))) == 1
    assert "8.3e-03" in table(Compared(CASES[0], first, second, [early], [first]))[2]


def test_files_and_closing_and_lost_steps_count() -> None:
    first, mine = trace(noted(), noted()), trace(noted())
    mine.closed, mine.files = 2, {**mine.files, "best.pt": {"a": torch.full((2,), 1.5)}}
    text = " ".join(faults_of(Compared(CASES[0], first, first, [mine], [mine])))
    for words in (
        "1 steps, ultralytics 2",
        "mosaic closed in epoch 2, ultralytics 3",
        "best.pt: apart by 5.0e-01",
    ):
        assert words in text
