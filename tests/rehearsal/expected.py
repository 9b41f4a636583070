"""The expected results of the rehearsal per kind of rank: waits by file and function, and peak
memory.

`MANY`: once per tensor. It is used for DeepSpeed, and for an export, which hands tensors over one
at a time; other waits in yolods are counted exactly.
"""

from __future__ import annotations

MANY = None
Waits = dict[str, int | None]
"""Number of waits by `file:function`."""
Rows = dict[str, Waits]
"""Waits by part of a run."""

READ: Waits = {"yolods/stability/controller.py:_read": 1}
"""The only wait of a step, for its numbers."""
GROUPS = 3
"""Parameter groups of the optimizer: biases, weights and BatchNorm's weights."""


def copied(times: int | None) -> Waits:
    """Copies of all tensors to the host."""
    return {"yolods/device/host_copy.py:_wait_for": times}


def published(times: int) -> Waits:
    """Copies of host masters into the model."""
    return {"deepspeed/runtime/zero/stage_1_and_2.py:update_lp_params": times * GROUPS}


FETCHED: Waits = {"deepspeed/runtime/zero/partition_parameters.py:_all_gather_dtype": MANY}
"""With parameters on the host, gathering ZeRO-3's small, unpartitioned ones after the masters
changed: each part's copy to the device."""
OFFLOADED: Waits = {"deepspeed/runtime/zero/stage_1_and_2.py:_wait_for_offload_copies": MANY}
REDUCED: Waits = {"deepspeed/runtime/zero/stage3.py:independent_gradient_partition_epilogue": 1}
SET: Waits = {"deepspeed/runtime/zero/partition_parameters.py:_allgather_params_sequential": 1}
SET_OFFLOADED: Waits = {
    "deepspeed/runtime/zero/partition_parameters.py:_allgather_params_sequential": 2,
    "deepspeed/runtime/zero/partition_parameters.py:_partition_param": 1,
}
"""Waits for setting the frozen weight."""

ZERO: Rows = {
    "micro-batch": {},
    "step": READ,
    "snapshot": copied(1),
    "evaluated batch": copied(1),
    "evaluation": {},
    "checkpoint": copied(2),  # frozen weights, and everything trained
    "load": {},
    "roll-back": {},
    "export": copied(MANY),
}
"""Rank 0 of ZeRO-0, 1 and 2."""

FIRST = ZERO | {
    "evaluated batch": {},
    "checkpoint": copied(1),
}
"""A stage of a pipeline but the last: it has no frozen weights and computes no metrics."""

OFFLOAD = ZERO | {
    "step": READ | OFFLOADED,
    "evaluation": published(2),  # the average, and back
    "load": published(1),
    "roll-back": published(1),
}
"""Rank 0 of ZeRO-2 with optimizer offload: DeepSpeed waits for each gradient's copy to the host."""

ZERO3 = ZERO | {
    "micro-batch": REDUCED,
    "load": SET,
}
"""Rank 0 of ZeRO-3."""

OFFLOAD3 = ZERO3 | {
    "step": READ | FETCHED,
    "evaluation": FETCHED,
    "load": FETCHED | SET_OFFLOADED,
    "roll-back": FETCHED,
}
"""Rank 0 of ZeRO-3 with optimizer and parameter offload."""

PEAKS: dict[str, tuple[int, ...]] = {
    "pipeline2_fp32": (1686528, 3104768),
    "pipeline4_zero1_bf16": (901632, 701952, 173056, 2975232),
    "pipeline4_zero1_fp16": (902656, 702976, 174080, 2976256),
    "zero0_bf16_autocast": (3661824, 3661824),
    "zero0_fp32": (4136448, 4136448),
    "zero1_bf16": (2309120, 2404864),
    "zero1_fp16": (2309120, 2404864),
    "zero1_fp32": (3492352, 3679232),
    "zero2_bf16": (2288128, 2404864),
    "zero2_bf16_autocast": (3118080, 3369472),
    "zero2_fp16": (2288128, 2404864),
    "zero2_fp32": (3422208, 3679232),
    "zero2_offload_fp32": (2577920, 2577920),
    "zero3_bf16": (2348544, 2348544),
    "zero3_fp16": (2348544, 2348544),
    "zero3_fp32": (3554816, 3554816),
    "zero3_offload_fp16": (1163776, 1163776),
}
"""Peak device memory in bytes in a step of four micro-batches, by rank. Under ZeRO-1 and 2 the last
rank owns the first buckets of a backward pass, and receives them from both while activations are
still held."""
SLACK = 4096
"""Bytes that more micro-batches, or a load, may add: each micro-batch's numbers are kept."""


def rows_of(name: str, rank: int, stages: int) -> Rows:
    """The expected waits of a rank of ds_configs/`name`.json, by part of a run."""
    rows = ZERO if stages == 1 or rank == stages - 1 else FIRST
    if "offload" in name or "zero3" in name:
        on_device, offloaded = (ZERO3, OFFLOAD3) if "zero3" in name else (ZERO, OFFLOAD)
        rows = offloaded if "offload" in name else on_device
    if stages == 1 and rank > 0:
        rows = rows | {"checkpoint": copied(1), "export": {}}
    return rows
