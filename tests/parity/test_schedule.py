"""The schedule against a re-enactment of ultralytics' training loop, batch by batch; no processes,
no model.

`_ultralytics_loop` follows engine/trainer.py (8.4.190): `_setup_scheduler`,
`_get_warmup_iterations` and the part of `_do_train` that sets accumulation, learning rates and
momentum and decides when the optimizer steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.parity.small import configure
from yolods.engine.build import plan_schedule
from yolods.optim.lr_schedule import Schedule
from yolods.optim.optimizers import OptimizerChoice

EPOCHS, BATCHES, BATCH = 6, 13, 4
SCHEDULE = Schedule(
    samples=BATCHES * BATCH,
    batch=BATCH,
    epochs=EPOCHS,
    accumulation=4,
    ramp=True,
    lr0=0.01,
    lrf=0.01,
    cos_lr=False,
    momentum=0.937,
    warmup_epochs=3.0,
    warmup_momentum=0.8,
    warmup_bias_lr=0.1,
)
CASES = {
    "linear": SCHEDULE,
    "cosine": replace(SCHEDULE, cos_lr=True, lrf=0.1),
    "no warm-up": replace(SCHEDULE, warmup_epochs=0.0),
    "part of an epoch": replace(SCHEDULE, warmup_epochs=0.3, accumulation=7),
    "longer than the run": replace(SCHEDULE, warmup_epochs=100.0),
    "every batch": replace(SCHEDULE, accumulation=1),
    "across epochs": replace(SCHEDULE, accumulation=16),
    "AdamW's": replace(SCHEDULE, lr0=0.001667, momentum=0.9, warmup_bias_lr=0.0),
}


@dataclass(frozen=True)
class Taken:
    """An optimizer step as ultralytics takes it."""

    batches: tuple[int, ...]
    epoch: int
    lr: tuple[float, ...]
    momentum: float


def _ultralytics_loop(run: Schedule) -> Iterator[Taken]:
    from ultralytics.utils.torch_utils import one_cycle

    args = SimpleNamespace(lrf=run.lrf, momentum=run.momentum, warmup_momentum=run.warmup_momentum)
    groups = [
        {"param_group": name, "lr": run.lr0, "initial_lr": run.lr0}
        for name in ("weight", "bn", "bias")
    ]
    nb = math.ceil(run.samples / run.batch)
    warmup = min(run.warmup_epochs, max(run.epochs - 1, 0))
    nw = round(warmup * nb) if warmup > 0 else 0
    if run.cos_lr:
        lf = one_cycle(1, args.lrf, run.epochs)
    else:
        # as it is written there
        lf = lambda x: max(1 - x / run.epochs, 0) * (1.0 - args.lrf) + args.lrf  # noqa: E731
    accumulate, acc0 = run.accumulation, run.accumulation
    momentum, last_opt_step, waiting = run.momentum, -1, []
    for epoch in range(run.epochs):
        for group in groups:  # scheduler.step()
            group["lr"] = group["initial_lr"] * lf(epoch)
        for i in range(nb):
            ni = i + nb * epoch
            if nw and ni <= nw:
                xi = [0, nw]
                accumulate = max(1, int(np.interp(ni, xi, [1, acc0]).round()))
                for group in groups:
                    start = run.warmup_bias_lr if group["param_group"] == "bias" else 0.0
                    group["lr"] = float(np.interp(ni, xi, [start, group["initial_lr"] * lf(epoch)]))
                momentum = float(np.interp(ni, xi, [args.warmup_momentum, args.momentum]))
            waiting.append(ni)  # forward and backward
            if ni - last_opt_step >= accumulate:
                yield Taken(tuple(waiting), epoch, tuple(group["lr"] for group in groups), momentum)
                last_opt_step, waiting = ni, []


def _steps(run: Schedule) -> Iterator[Taken]:
    position = 0
    while position < run.total_samples:
        step = run.step_at(position)
        yield Taken(
            tuple(range(step.first_batch, step.end_batch)), step.epoch, step.lr, step.momentum
        )
        position = step.end_batch * run.batch


@pytest.mark.parametrize("name", CASES)
def test_every_step_is_the_one_that_ultralytics_takes(name: str) -> None:
    run = CASES[name]
    theirs, mine = list(_ultralytics_loop(run)), list(_steps(run))
    # Batches that are left at the end of its last epoch ultralytics throws away; here they complete
    # a last full step.
    left = run.epochs * BATCHES - theirs[-1].batches[-1] - 1
    assert len(mine) == len(theirs) + (left > 0)
    for step, (expected, got) in enumerate(zip(theirs, mine, strict=False)):
        assert (got.batches, got.epoch) == (expected.batches, expected.epoch), step
        assert got.lr == pytest.approx(expected.lr, rel=1e-12), step
        assert got.momentum == pytest.approx(expected.momentum, rel=1e-12), step


def test_the_cases_reach_what_they_are_named_for() -> None:
    """So that a change of the numbers above cannot leave warm-up, ramp or an epoch's end
    untested."""
    linear = list(_steps(CASES["linear"]))
    assert [len(step.batches) for step in linear[:3]] == [1, 1, 1]
    assert len(linear[-2].batches) == 4
    assert linear[0].lr[2] > linear[0].lr[0] and linear[-2].lr[2] == linear[-2].lr[0]
    epochs_of = [
        {batch // BATCHES for batch in step.batches} for step in _steps(CASES["across epochs"])
    ]
    assert sum(len(epochs) > 1 for epochs in epochs_of) > 2
    assert len(list(_steps(CASES["every batch"]))) == EPOCHS * BATCHES


@pytest.mark.parametrize(("samples", "most"), [(1, 5), (3, 15), (7, 32)])
def test_no_accumulation_is_longer_than_the_run(samples: int, most: int) -> None:
    """Ten epochs of one image are five batches of two; by whole batches an epoch they would count
    as ten."""
    config = configure("zero0_fp32", 1, nbs=64)
    schedule = plan_schedule(config, OptimizerChoice("SGD", 0.01, 0.9, 0.1), samples)
    assert schedule.accumulation == most
    assert schedule.step_at(0).batches == min(most, 32)


@pytest.mark.parametrize("samples", [3, 5])
def test_the_batch_that_a_small_set_is_advised_gives_ultralytics_steps(samples: int) -> None:
    """ultralytics' loader makes a batch no larger than the set (data/build.py,
    `build_dataloader`)."""
    given = replace(SCHEDULE, samples=samples, batch=16, epochs=100)
    advised = replace(given, batch=samples)
    theirs, mine = list(_ultralytics_loop(given)), list(_steps(advised))
    assert [step.batches for step in mine[: len(theirs)]] == [step.batches for step in theirs]
    assert len(mine) - len(theirs) in (0, 1)


@pytest.mark.parametrize("name", CASES)
def test_a_step_depends_on_its_position_alone(name: str) -> None:
    """What a resumed run relies on: asking in the middle gives what walking there gives."""
    run = CASES[name]
    walked = {step.batches[0]: step for step in _steps(run)}
    for first in reversed(walked):
        again = run.step_at(first * run.batch)
        assert (again.first_batch, again.end_batch) == (first, walked[first].batches[-1] + 1)
        assert (again.lr, again.momentum) == (walked[first].lr, walked[first].momentum)
