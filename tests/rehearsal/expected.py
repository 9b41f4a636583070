"""What the rehearsal has to see of each kind of rank: its waits by file and function, and the device's peak.

`MANY`: as often as there are tensors, and in DeepSpeed only: what waits in yolods is counted.
"""

from __future__ import annotations

MANY = None
Waits = dict[str, int | None]
"""By `file:function`."""
Rows = dict[str, Waits]
"""By part of a run."""

READ: Waits = {"yolods/stability/step.py:_read": 1}
"""The wait of a step: for its numbers."""
GROUPS = 3
"""Of the optimizer's parameters: biases, weights and BatchNorm's."""


def copied(times: int) -> Waits:
    """All tensors to the host, so many times over."""
    return {"yolods/hostcopy.py:_wait_for": times}


def published(times: int) -> Waits:
    """Masters on the host into the model."""
    return {"deepspeed/runtime/zero/stage_1_and_2.py:update_lp_params": times * GROUPS}


def fetched(times: int | None) -> Waits:
    """ZeRO-3's small parameters, which stay whole on every rank, after the masters have changed."""
    return {"deepspeed/runtime/zero/partition_parameters.py:_allgather_params_coalesced": times}


OFFLOADED: Waits = {"deepspeed/runtime/zero/stage_1_and_2.py:_wait_for_offload_copies": MANY}
REDUCED: Waits = {"deepspeed/runtime/zero/stage3.py:independent_gradient_partition_epilogue": 1}
SET: Waits = {"deepspeed/runtime/zero/partition_parameters.py:_allgather_params_sequential": 1}
SET_OFFLOADED: Waits = {
    "deepspeed/runtime/zero/partition_parameters.py:_allgather_params_sequential": 2,
    "deepspeed/runtime/zero/partition_parameters.py:_partition_param": 1,
}
"""The frozen weight."""

ZERO: Rows = {
    "micro-batch": {},
    "step": READ,
    "snapshot": copied(1),
    "evaluated batch": copied(1),
    "evaluation": {},
    "checkpoint": copied(2),  # frozen weights, and all that trains
    "load": {},
    "roll-back": {},
    "export": copied(3),  # frozen weights, the others, and statistics
}
"""Rank 0 of ZeRO-0, 1 and 2."""

FIRST = ZERO | {
    "evaluated batch": {},
    "checkpoint": copied(1),
    "export": copied(2),
}
"""A stage of a pipeline, but the last: nothing of it is frozen, and it judges nothing."""

OFFLOAD = ZERO | {
    "step": READ | OFFLOADED,
    "evaluation": published(2),  # the average, and back
    "load": published(1),
    "roll-back": published(1),
}
"""Rank 0 of ZeRO-2 with its optimizer on the host: DeepSpeed waits for every gradient that it copies there."""

ZERO3 = ZERO | {
    "micro-batch": REDUCED,
    "step": READ | fetched(1),
    "evaluation": fetched(2),
    "load": fetched(1) | SET,
    "roll-back": fetched(1),
    "export": copied(2 + GROUPS),  # the others by groups of the optimizer
}
"""Rank 0 of ZeRO-3."""

OFFLOAD3 = ZERO3 | {
    "step": READ | fetched(MANY),
    "evaluation": fetched(MANY),
    "load": fetched(MANY) | SET_OFFLOADED,
    "roll-back": fetched(MANY),
}
"""Rank 0 of ZeRO-3 with optimizer and weights on the host."""
