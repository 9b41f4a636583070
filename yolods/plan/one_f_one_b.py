"""1F1B as a pure function of (stages, stage, micro-batches), its idle share and its makespan.

Time is divided into slots. In a slot, a stage runs one forward (`Fk`) or one backward (`Bk`) of
micro-batch k:

    forward  of micro-batch k on stage s of P: slot s + 2k
    backward of micro-batch k on stage s of P: slot 2P - 1 - s + 2k

A forward runs one slot after that of the previous stage, a backward one slot after that of the next
stage. A stage's forwards are in slots of its own parity and its backwards in the others. With 4
stages and 8 micro-batches:

    slot     0  1  2  3  4  5  6  7  8  9 10 11 12 13 14 15 16 17 18 19 20 21
    stage 0 F0  . F1  . F2  . F3 B0 F4 B1 F5 B2 F6 B3 F7 B4  . B5  . B6  . B7
    stage 1  . F0  . F1  . F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 F7 B5  . B6  . B7  .
    stage 2  .  . F0  . F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 F6 B5 F7 B6  . B7  .  .
    stage 3  .  .  . F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6 F7 B7  .  .  .

Stage s starts with P - s forwards and then alternates, so it holds the activations of at most P - s
micro-batches. Slots determine only the order of instructions: a stage starts each one as soon as it
is free and the input has arrived.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Instruction = tuple[Literal["F", "B", "W"], int]
"""A pass and its micro-batch. W, the weights' part of a divided backward pass, exists in
`zero_bubble`."""


@dataclass(frozen=True)
class Division:
    """Which backward passes of a stage are divided, and when it runs their weights' parts."""

    first: int
    """The first micro-batch whose pass is divided. Those of all later ones are, too."""
    lag: int
    """W of micro-batch k follows B of micro-batch k + lag; what is left follows the last B."""


def slots(stages: int, micro_batches: int) -> int:
    """Number of slots from the first forward to the last backward."""
    return 2 * (stages + micro_batches - 1)


def instruction(stages: int, stage: int, micro_batches: int, slot: int) -> Instruction | None:
    """A stage's instruction in a slot: ('F' or 'B', micro-batch), or None if it waits."""
    backward = (slot - stage) % 2
    micro_batch = (slot - (2 * stages - 1 - stage if backward else stage)) // 2
    return ("B" if backward else "F", micro_batch) if 0 <= micro_batch < micro_batches else None


def instructions(stages: int, stage: int, micro_batches: int) -> tuple[Instruction, ...]:
    """All instructions of a stage in one step, in order.

    Raises:
        ValueError: a number is below 1, or there is no such stage.
    """
    _check(stages, micro_batches)
    if not 0 <= stage < stages:
        raise ValueError(f"stage {stage} is not in 0..{stages - 1}")
    row = (
        instruction(stages, stage, micro_batches, slot)
        for slot in range(slots(stages, micro_batches))
    )
    return tuple(done for done in row if done is not None)


def in_flight(stages: int, stage: int, micro_batches: int) -> int:
    """Largest number of micro-batches whose activations a stage holds at once."""
    return min(stages - stage, micro_batches)


def bound(stages: int, micro_batches: int) -> float:
    """Idle share for equal stages and sends that take no time: (P - 1) / (m + P - 1)."""
    _check(stages, micro_batches)
    return (stages - 1) / (micro_batches + stages - 1)


def draw_schedule(stages: int, micro_batches: int) -> str:
    """The table in the module's docstring, for other numbers."""
    width = max(len(f"F{micro_batches - 1}"), len(str(slots(stages, micro_batches) - 1)))
    columns = range(slots(stages, micro_batches))
    label = len(f"stage {stages - 1}")
    lines = ["slot".ljust(label) + "".join(f" {slot:>{width}}" for slot in columns)]
    for stage in range(stages):
        row = [instruction(stages, stage, micro_batches, slot) for slot in columns]
        cells = ("." if done is None else f"{done[0]}{done[1]}" for done in row)
        lines.append(f"stage {stage}".ljust(label) + "".join(f" {cell:>{width}}" for cell in cells))
    return "\n".join(lines)


@dataclass(frozen=True)
class Simulation:
    """One step of a pipeline with the given times, without the optimizer's step."""

    makespan: float
    """Seconds from the start of the first forward to the end of the last backward."""
    busy: tuple[float, ...]
    """Seconds that each stage computes."""

    @property
    def idle(self) -> tuple[float, ...]:
        """Seconds that each stage waits."""
        return tuple(self.makespan - busy for busy in self.busy)

    @property
    def idle_share(self) -> float:
        """Share of time spent waiting; equals `bound` for equal stages without transfers."""
        return sum(self.idle) / (self.makespan * len(self.busy)) if self.makespan else 0.0


def simulate(
    forward: Sequence[float],
    backward: Sequence[float],
    micro_batches: int,
    transfer: float | Sequence[float] = 0.0,
) -> Simulation:
    """Simulate one step of 1F1B.

    All stages' instructions of a slot are computed at once, because they depend only on earlier
    slots.

    Args:
        forward: seconds per micro-batch on each stage.
        backward: seconds per micro-batch on each stage.
        micro_batches: number of micro-batches in the step.
        transfer: seconds between the end of a stage's pass and the start of the next stage's, in
            either direction; one number, or one per boundary. The sender continues meanwhile.

    Raises:
        ValueError: a number is below 1, a time is negative, or the numbers of times differ.
    """
    nothing = [0.0] * len(forward)
    whole = [Division(micro_batches, 0)] * len(forward)
    return replay(forward, backward, nothing, nothing, whole, micro_batches, transfer)


def replay(
    forward: Sequence[float],
    whole: Sequence[float],
    inputs: Sequence[float],
    weights: Sequence[float],
    divisions: Sequence[Division],
    micro_batches: int,
    transfer: float | Sequence[float],
) -> Simulation:
    """Simulate a step whose forward and backward passes are in 1F1B's order.

    Args:
        whole: seconds of an undivided backward pass on each stage.
        inputs: seconds of B, the part of a divided one for which the previous stage waits.
        weights: seconds of W, its other part.
        divisions: of each stage.

    The other arguments and errors are those of `simulate`.
    """
    stages = len(forward)
    _check(stages, micro_batches)
    times = np.stack([np.asarray(each, float) for each in (forward, whole, inputs, weights)])
    first, lag = np.array([(each.first, each.lag) for each in divisions]).T
    delay = np.broadcast_to(np.asarray(transfer, float), (stages - 1,))
    if (times < 0).any() or (delay < 0).any():
        raise ValueError("times must be at least 0 seconds")
    # When inputs arrive: for a forward, [0, s] is the arrival at stage s from s - 1; for a
    # backward, [1, s + 1] is the arrival at stage s from s + 1. [0, 0] and [1, P] stay 0, because
    # images and the loss's gradient are always available.
    arrived, free = np.zeros((2, stages + 1)), np.zeros(stages)
    # Seconds of sends to the next and to the previous stage; what the ends send, nobody reads.
    onward, back = np.append(delay, 0.0), np.insert(delay, 0, 0.0)
    divides, numbers = bool((first < micro_batches).any()), np.arange(stages)
    for slot in range(slots(stages, micro_batches)):
        # Forwards, then backwards; in one slot they are on different stages.
        at = _active(stages, micro_batches, slot, 0)
        end = np.maximum(free[at], arrived[0, at]) + times[0, at]
        free[at] = end
        arrived[0, 1:][at] = end + onward[at]
        at = _active(stages, micro_batches, slot, 1)
        begin = np.maximum(free[at], arrived[1, 1:][at])
        if divides:
            # Slot 2P - 1 - s + 2k is the backward of micro-batch k; this is k - first.
            after = (slot - 2 * stages + 1 + numbers[at]) // 2 - first[at]
            end = begin + np.where(after >= 0, times[2, at], times[1, at])
            free[at] = end + (after >= lag[at]) * times[3, at]
        else:
            end = begin + times[1, at]
            free[at] = end
        arrived[1, at] = end + back[at]
    divided = micro_batches - first
    free += times[3] * np.minimum(lag, divided)
    busy = micro_batches * times[0] + first * times[1] + divided * (times[2] + times[3])
    return Simulation(float(free.max()), tuple(busy.tolist()))


def _active(stages: int, micro_batches: int, slot: int, backward: int) -> slice:
    """The stages that run a forward (0) or a backward (1) of an existing micro-batch in a slot."""
    if backward:  # 0 <= slot - (2P - 1 - s) <= 2 (m - 1)
        low, high = 2 * stages - 1 - slot, 2 * stages - 1 - slot + 2 * (micro_batches - 1)
    else:  # 0 <= slot - s <= 2 (m - 1)
        low, high = slot - 2 * (micro_batches - 1), slot
    first = max(low, 0)
    # A stage runs forwards in slots of its own parity.
    first += (first - slot - backward) % 2
    return slice(first, max(min(high, stages - 1) + 1, first), 2)


def _check(stages: int, micro_batches: int) -> None:
    if stages < 1 or micro_batches < 1:
        raise ValueError(
            f"{stages} stages and {micro_batches} micro-batches: both must be at least 1"
        )
