"""Zero-bubble's schedule ZB-H1 as a pure function of (stages, stage, micro-batches).

Source: Qi et al., Zero Bubble Pipeline Parallelism, arXiv 2401.10241, section 2.2. A backward pass
has two parts: `B` computes the gradients of a stage's inputs, for which the previous stage waits,
and `W` those of its weights, for which nobody waits before the optimizer's step. Forwards and `B`
are in 1F1B's order. Stage s runs `W` of micro-batch k right after `B` of micro-batch k + s, and the
last s of them at the end. With 4 stages and 8 micro-batches, if all parts take the same time:

    time     0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26
    stage 0 F0 F1 F2 F3  .  .  . B0 W0 F4 B1 W1 F5 B2 W2 F6 B3 W3 F7 B4 W4 B5 W5 B6 W6 B7 W7
    stage 1  . F0 F1 F2  .  . B0 F3 B1 W0 F4 B2 W1 F5 B3 W2 F6 B4 W3 F7 B5 W4 B6 W5 B7 W6 W7
    stage 2  .  . F0 F1  . B0 F2 B1 F3 B2 W0 F4 B3 W1 F5 B4 W2 F6 B5 W3 F7 B6 W4 B7 W5 W6 W7
    stage 3  .  .  . F0 B0 F1 B1 F2 B2 F3 B3 W0 F4 B4 W1 F5 B5 W2 F6 B6 W3 F7 B7 W4 W5 W6 W7

1F1B takes 33 of these units. For equal stages, m >= P and W <= B, stages are idle for
(P - 1)(F + B - W) of m (F + B + W) + (P - 1)(F + B - W).
"""

from __future__ import annotations

from collections.abc import Sequence

from yolods.plan.one_f_one_b import Instruction, Simulation, in_flight, instructions, replay


def passes(stages: int, stage: int, micro_batches: int) -> tuple[Instruction, ...]:
    """All passes of a stage in one step, in order.

    Raises:
        ValueError: a number is below 1, or there is no such stage.
    """
    order: list[Instruction] = []
    for kind, number in instructions(stages, stage, micro_batches):
        order.append((kind, number))
        if kind == "B" and number >= stage:
            order.append(("W", number - stage))
    left = range(max(micro_batches - stage, 0), micro_batches)
    return (*order, *(("W", number) for number in left))


def most_held(stages: int, micro_batches: int) -> int:
    """Largest number of micro-batches between their F and the end of their W, on any stage.

    Stage s has at most P - s of them between F and B, as under 1F1B, and at most s between B and
    the end of W. Stage 0, which holds the most under 1F1B, holds no more.
    """
    return min(stages, micro_batches)


def flying(schedule: str, stages: int, stage: int, micro_batches: int) -> int:
    """Micro-batches whose activations a stage holds at once.

    Under zero-bubble those that wait for their weights' part count in full, although they have
    kept only part of their activations: the inputs and output gradients of convolutions.

    Args:
        schedule: 1f1b or zb.
    """
    if schedule == "zb":
        return most_held(stages, micro_batches)
    return in_flight(stages, stage, micro_batches)


def simulate_split(
    forward: Sequence[float],
    backward: Sequence[float],
    weights: Sequence[float],
    micro_batches: int,
    transfer: float | Sequence[float] = 0.0,
) -> Simulation:
    """Simulate one step of this schedule.

    Args:
        forward: seconds of F per micro-batch on each stage.
        backward: seconds of B likewise.
        weights: seconds of W likewise.
        micro_batches: number of micro-batches in the step.
        transfer: seconds between the end of a stage's F or B and the start of the next stage's; one
            number, or one per boundary. The sender continues meanwhile.

    Raises:
        ValueError: a number is below 1, a time is negative, or the numbers of times differ.
    """
    return replay(forward, backward, weights, micro_batches, transfer)
