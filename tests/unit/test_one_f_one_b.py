"""1F1B against literal tables, and its makespan against another way of working it out."""

from __future__ import annotations

import random
import time

import pytest

from yolods.plan import one_f_one_b
from yolods.plan.one_f_one_b import bound, draw_schedule, in_flight, instructions, simulate, slots


def words(stages: int, stage: int, micro_batches: int) -> str:
    return " ".join(
        f"{kind}{number}" for kind, number in instructions(stages, stage, micro_batches)
    )


@pytest.mark.parametrize(
    ("stages", "micro_batches", "rows"),
    [
        (1, 3, ["F0 B0 F1 B1 F2 B2"]),
        (2, 1, ["F0 B0", "F0 B0"]),
        (2, 4, ["F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"]),
        (3, 2, ["F0 F1 B0 B1", "F0 F1 B0 B1", "F0 B0 F1 B1"]),
        (
            4,
            8,
            [
                "F0 F1 F2 F3 B0 F4 B1 F5 B2 F6 B3 F7 B4 B5 B6 B7",
                "F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 B5 B6 B7",
                "F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 F6 B5 F7 B6 B7",
                "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 F7 B7",
            ],
        ),
    ],
)
def test_what_each_stage_does_in_order(stages, micro_batches, rows):
    assert [words(stages, stage, micro_batches) for stage in range(stages)] == rows


def test_the_table_in_the_docstring_is_the_schedule():
    drawn = draw_schedule(4, 8).splitlines()
    assert all(f"    {line}" in one_f_one_b.__doc__.splitlines() for line in drawn)
    assert drawn[1] == "stage 0 F0  . F1  . F2  . F3 B0 F4 B1 F5 B2 F6 B3 F7 B4  . B5  . B6  . B7"


@pytest.mark.parametrize("stages", [1, 2, 5])
@pytest.mark.parametrize("micro_batches", [1, 3, 7])
def test_every_micro_batch_goes_forward_and_back_once_on_every_stage(stages, micro_batches):
    for stage in range(stages):
        done = instructions(stages, stage, micro_batches)
        assert sorted(done) == sorted((kind, k) for kind in "FB" for k in range(micro_batches))
        held = most = 0
        for kind, _ in done:
            held += 1 if kind == "F" else -1
            most = max(most, held)
        assert most == in_flight(stages, stage, micro_batches)


def test_micro_batches_in_flight():
    assert [in_flight(4, stage, 8) for stage in range(4)] == [4, 3, 2, 1]
    assert [in_flight(4, stage, 2) for stage in range(4)] == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("stages", "micro_batches", "share"),
    [(4, 8, 3 / 11), (4, 32, 3 / 35), (8, 32, 7 / 39), (1, 5, 0)],
)
def test_equal_stages_are_idle_for_the_bound(stages, micro_batches, share):
    assert bound(stages, micro_batches) == pytest.approx(share)
    played = simulate([1.0] * stages, [2.0] * stages, micro_batches)
    assert played.makespan == 3 * (micro_batches + stages - 1)
    assert played.idle_share == pytest.approx(share)
    assert slots(stages, micro_batches) == 2 * (micro_batches + stages - 1)


def played_one_by_one(forward, backward, micro_batches, delay) -> float:
    """The end of the last instruction, by asking each for the ends of those that it waits for."""
    stages = len(forward)
    queues = [list(instructions(stages, stage, micro_batches)) for stage in range(stages)]
    ends, free = {}, [0.0] * stages
    while any(queues):
        for stage, queue in enumerate(queues):
            if not queue:
                continue
            kind, k = queue[0]
            source = (stage - 1 if kind == "F" else stage + 1, kind, k)
            outside = not 0 <= source[0] < stages
            if not outside and source not in ends:
                continue
            arrives = 0.0 if outside else ends[source] + delay[min(stage, source[0])]
            free[stage] = max(free[stage], arrives) + (forward if kind == "F" else backward)[stage]
            ends[stage, kind, k] = free[stage]
            queue.pop(0)
    return max(free)


@pytest.mark.parametrize("seed", range(6))
def test_unequal_stages_and_transfers(seed):
    rng = random.Random(seed)
    stages, micro_batches = rng.randint(1, 6), rng.randint(1, 9)
    forward, backward = ([rng.uniform(0.1, 2) for _ in range(stages)] for _ in range(2))
    delay = [rng.uniform(0, 1) for _ in range(stages - 1)]
    played = simulate(forward, backward, micro_batches, delay)
    assert played.makespan == pytest.approx(
        played_one_by_one(forward, backward, micro_batches, delay)
    )
    assert played.busy == pytest.approx(
        [micro_batches * (f + b) for f, b in zip(forward, backward, strict=True)]
    )
    assert played.idle == pytest.approx([played.makespan - busy for busy in played.busy])


def test_a_literal_makespan():
    # stage 0: F0 0-1, F1 1-2, then waits for B0 of stage 1 (F0 1-4, B0 4-5): B0 5-6, B1 after F1
    # 5-8, B1 8-9: 9-10
    assert simulate([1.0, 3.0], [1.0, 1.0], 2).makespan == 10
    # each of the two handovers on the way of micro-batch 1 adds its half second, and so do those of
    # micro-batch 0
    assert simulate([1.0, 3.0], [1.0, 1.0], 2, 0.5).makespan == 11


def test_thousands_of_stages_and_micro_batches():
    start = time.process_time()
    played = simulate([1.0] * 2048, [2.0] * 2048, 4096)
    assert time.process_time() - start < 10
    assert played.idle_share == pytest.approx(bound(2048, 4096))
    assert words(4096, 4095, 2) == "F0 B0 F1 B1"


def test_nonsense_is_refused():
    for call in (
        lambda: simulate([], [], 1),
        lambda: simulate([1.0], [1.0], 0),
        lambda: simulate([1.0], [-1.0], 1),
        lambda: simulate([1.0, 1.0], [1.0], 1),
        lambda: simulate([1.0, 1.0], [1.0, 1.0], 1, [0.1, 0.1]),
        lambda: instructions(2, 2, 1),
        lambda: bound(0, 1),
    ):
        with pytest.raises(ValueError):
            call()
