"""Batch arithmetic: what the JSON leaves open, and what does not multiply out."""

from __future__ import annotations

import pytest

from yolods.config.deepspeed.batch import ACCUMULATION, MICRO, TRAIN, BatchPlan, plan_batches
from yolods.errors import Faults


def plan(
    block: dict,
    *,
    batch_size: int | None = None,
    ranks: int = 4,
    nbs: int = 64,
    before: BatchPlan | None = None,
):
    faults = Faults()
    made = plan_batches(
        block,
        batch_size=batch_size,
        said_by="--batch-size",
        dp_size=ranks,
        nbs=nbs,
        where="ds",
        faults=faults,
        before=before,
    )
    return made, list(faults)


@pytest.mark.parametrize(
    ("block", "batch_size", "expected"),
    [
        ({}, None, (4, 4)),  # 16 images a pass, 64 a step
        ({TRAIN: "auto", MICRO: "auto"}, 32, (8, 2)),
        ({}, 24, (6, 3)),  # 64 / 24 is nearer to 3 than to 2
        ({}, 256, (64, 1)),
        ({TRAIN: 48}, None, (12, 1)),  # as in DeepSpeed: one pass
        ({TRAIN: 48}, 16, (4, 3)),
        ({MICRO: 2}, None, (2, 8)),
        ({MICRO: 2, ACCUMULATION: 3}, None, (2, 3)),
        ({TRAIN: 48, ACCUMULATION: 3}, None, (4, 3)),
        ({TRAIN: 48, MICRO: 4}, None, (4, 3)),
        ({TRAIN: 48, MICRO: 4, ACCUMULATION: 3}, 16, (4, 3)),
    ],
)
def test_what_is_open_follows_from_the_rest(block, batch_size, expected):
    made, faults = plan(block, batch_size=batch_size)
    assert not faults
    assert (made.micro, made.accumulation) == expected
    assert made.train_batch == made.micro * made.accumulation * 4 == made.batch * made.accumulation
    assert made.accumulation_auto == all(
        block.get(key, "auto") == "auto" for key in (TRAIN, ACCUMULATION)
    )


@pytest.mark.parametrize(
    ("block", "batch_size", "fault"),
    [
        (
            {},
            18,
            "--batch-size 18 cannot be divided evenly among 4 ranks: 18 / 4 = 4.50; use 16 or 20",
        ),
        ({}, 3, "--batch-size 3 cannot be divided evenly among 4 ranks: 3 / 4 = 0.75; use 4"),
        ({MICRO: 2}, 16, f"ds: {MICRO} 2 x 4 ranks = 8, but --batch-size is 16; "),
        ({TRAIN: 50}, None, f"ds: {TRAIN} 50 / (4 ranks) = 12.50 is not an integer; use 48 or 52"),
        (
            {TRAIN: 50, ACCUMULATION: 2},
            None,
            f"ds: {TRAIN} 50 / ({ACCUMULATION} 2 x 4 ranks) = 6.25 is not an integer",
        ),
        (
            {TRAIN: 50, MICRO: 4, ACCUMULATION: 3},
            None,
            f"ds: {TRAIN} 50 != {MICRO} 4 x {ACCUMULATION} 3 x 4 ranks = 48",
        ),
        (
            {TRAIN: 64, ACCUMULATION: 2},
            16,
            f"ds: {TRAIN} 64 / {ACCUMULATION} 2 = 32 images per forward pass, but ",
        ),
    ],
)
def test_what_does_not_multiply_out_is_told_with_the_arithmetic(block, batch_size, fault):
    made, faults = plan(block, batch_size=batch_size)
    assert len(faults) == 1 and faults[0].startswith(fault)
    assert made.micro >= 1 and made.accumulation >= 1


BEFORE = BatchPlan(micro=4, accumulation=4, accumulation_auto=True, dp_size=4)


@pytest.mark.parametrize(
    ("ranks", "expected"), [(2, (4, 8)), (8, (4, 2)), (16, (4, 1)), (32, None)]
)
def test_a_run_that_is_resumed_on_other_ranks_keeps_its_images_per_step(ranks, expected):
    made, faults = plan({}, ranks=ranks, before=BEFORE)
    if expected is None:  # 16 images a pass do not reach 32 ranks
        assert faults and "cannot be divided evenly among 32 ranks" in faults[0]
    else:
        assert not faults and (made.micro, made.accumulation) == expected
        assert made.train_batch == BEFORE.train_batch
