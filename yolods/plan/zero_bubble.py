"""Zero-bubble's schedule ZB-H1, and which of its backward passes are divided.

Source: Qi et al., Zero Bubble Pipeline Parallelism, arXiv 2401.10241, section 2.2. A backward pass
has two parts: `B` computes the gradients of a stage's inputs, for which the previous stage waits,
and `W` those of its weights, for which nobody waits before the optimizer's step. Forwards and `B`
are in 1F1B's order. Stage s runs `W` of micro-batch k right after `B` of micro-batch k + s, and the
last s of them at the end. Nobody waits for stage 0, whose passes stay whole. With 4 stages and 8
micro-batches, if F, B and W take the same time (a whole pass takes two units):

    time     0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26
    stage 0 F0 F1 F2 F3  .  .  . B0 B0 F4 B1 B1 F5 B2 B2 F6 B3 B3 F7 B4 B4 B5 B5 B6 B6 B7 B7
    stage 1  . F0 F1 F2  .  . B0 F3 B1 W0 F4 B2 W1 F5 B3 W2 F6 B4 W3 F7 B5 W4 B6 W5 B7 W6 W7
    stage 2  .  . F0 F1  . B0 F2 B1 F3 B2 W0 F4 B3 W1 F5 B4 W2 F6 B5 W3 F7 B6 W4 B7 W5 W6 W7
    stage 3  .  .  . F0 B0 F1 B1 F2 B2 F3 B3 W0 F4 B4 W1 F5 B5 W2 F6 B6 W3 F7 B7 W4 W5 W6 W7

1F1B takes 33 of these units. ZB-H1 takes 2 (P - 1) fewer: half of them because stage 0 gets its
first gradient earlier, half because it gets its last one earlier. To keep the first half, all
stages stay ahead in every pass, so all passes are divided; but a divided pass takes longer than a
whole one, by `COST`. The second half needs the passes after a stage's last F alone, of which each W
follows its B. With 2 stages and 8 micro-batches:

    time     0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25
    stage 0 F0 F1  .  . B0 B0 F2 B1 B1 F3 B2 B2 F4 B3 B3 F5 B4 B4 F6 B5 B5 F7 B6 B6 B7 B7
    stage 1  . F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3 F4 B4 B4 F5 B5 B5 F6 B6 B6 F7 B7 W7  .

1F1B takes 27. In units of F = B = W and for m >= P, a step takes

    3 (m + P - 1)                                1F1B
    3 (m + P - 1) -     (P - 1) + (P - 2) COST   if only the passes after the last F are divided
    3 (m + P - 1) - 2 (P - 1)   +    m    COST   if all are

so dividing all pays if P - 1 > (m - P + 2) COST. No other choice of passes takes less
(tests/unit/test_zero_bubble.py tries all of them on up to 3 stages and few micro-batches). From 6
stages on, some of the divided passes after the last F save less than they cost.
"""

from __future__ import annotations

from collections.abc import Sequence

from yolods.plan.one_f_one_b import (
    Division,
    Instruction,
    Simulation,
    in_flight,
    instructions,
    replay,
)

COST = 0.3
"""How much longer a divided pass takes than a whole one, as a share of its W.

On an EPYC 0.16 (benchmarks/zero_bubble.md); on a Xeon 0.31, where F, B and W of 93, 81 and 76 ms
replaced 88 and 138 ms. The larger one is assumed, because what too few divided passes lose does
not grow with m, and what too many lose does. On GPUs it was not measured.
"""


def all_divided(stages: int, micro_batches: int) -> bool:
    """Whether dividing all passes pays, or only of those after a stage's last F."""
    return stages - 1 > COST * (micro_batches - stages + 2)


def division(stages: int, stage: int, micro_batches: int) -> Division:
    """The passes that a stage divides."""
    after_last_forward = in_flight(stages, stage, micro_batches)
    if stage == 0:
        return Division(micro_batches, 0)
    if all_divided(stages, micro_batches):
        # s, if there are that many: a stage then holds what stage 0 does.
        return Division(0, in_flight(stages, 0, micro_batches) - after_last_forward)
    return Division(micro_batches - after_last_forward, 0)


def passes(stages: int, stage: int, micro_batches: int) -> tuple[Instruction, ...]:
    """All passes of a stage in one step, in order; B without a W is a whole backward pass.

    Raises:
        ValueError: a number is below 1, or there is no such stage.
    """
    ordered = instructions(stages, stage, micro_batches)
    divided = division(stages, stage, micro_batches)
    order: list[Instruction] = []
    for kind, number in ordered:
        order.append((kind, number))
        if kind == "B" and number - divided.lag >= divided.first:
            order.append(("W", number - divided.lag))
    left = range(max(micro_batches - divided.lag, divided.first), micro_batches)
    return (*order, *(("W", number) for number in left))


def flying(schedule: str, stages: int, stage: int, micro_batches: int) -> int:
    """Micro-batches whose activations a stage holds at once.

    Under zero-bubble those that wait for their weights' part count in full, although they have
    kept only part of their activations: the inputs and output gradients of convolutions.

    Args:
        schedule: 1f1b or zb.
    """
    held = in_flight(stages, stage, micro_batches)
    return held + division(stages, stage, micro_batches).lag if schedule == "zb" else held


def simulate_split(
    forward: Sequence[float],
    backward: Sequence[float],
    weights: Sequence[float],
    micro_batches: int,
    transfer: float | Sequence[float] = 0.0,
    cost: float = 0.0,
) -> Simulation:
    """Simulate one step of this schedule.

    Args:
        forward: seconds of F per micro-batch on each stage.
        backward: seconds of B likewise.
        weights: seconds of W likewise. A whole pass takes B + W.
        micro_batches: number of micro-batches in the step.
        transfer: seconds between the end of a stage's F or B and the start of the next stage's; one
            number, or one per boundary. The sender continues meanwhile.
        cost: share of W by which W of a divided pass takes longer.

    Raises:
        ValueError: a number is below 1, a time is negative, or the numbers of times differ.
    """
    stages = len(forward)
    return replay(
        forward,
        [inputs + each for inputs, each in zip(backward, weights, strict=True)],
        backward,
        [(1 + cost) * each for each in weights],
        [division(stages, stage, micro_batches) for stage in range(stages)],
        micro_batches,
        transfer,
    )
