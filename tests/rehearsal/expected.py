"""What the rehearsal has to see of each kind of rank: its waits by file and function, and the device's peak.

Each row holds what is so today, and how many waits in all there are to be. `MANY`: as often as there are tensors, or
ranks to talk to.
"""

from __future__ import annotations

from typing import NamedTuple

MANY = None
Waits = dict[str, int | None]
"""By `file:function`."""


class Row(NamedTuple):
    """Waits of one part of a run."""

    today: Waits
    target: int | None
    """MANY: ours 1, and DeepSpeed's as they are listed."""


LOSS: Waits = {
    "ultralytics/utils/loss.py:forward": 1,
    "ultralytics/utils/loss.py:get_assigned_targets_and_loss": 2,
    "ultralytics/utils/loss.py:preprocess": 2,
    "ultralytics/utils/tal.py:get_box_metrics": 1,
    "ultralytics/utils/tal.py:make_anchors": 4,
    "ultralytics/utils/tal.py:select_candidates_in_gts": 1,
}
JUDGE: Waits = LOSS | {
    "ultralytics/utils/nms.py:non_max_suppression": 2,
    "ultralytics/utils/tal.py:make_anchors": 10,
    "yolods/engine/base.py:targets_of": 3,
    "yolods/evaluate.py:__call__": 1,
    "yolods/evaluate.py:_suppress": 2,
}
START: Waits = {"deepspeed/utils/timer.py:start": 1}
STOP: Waits = {"deepspeed/utils/timer.py:stop": 1}
LOST: Waits = {"yolods/engine/base.py:_lost": 1}
STEP: Waits = {"yolods/engine/base.py:train_step": 1, "yolods/stability/step.py:_read": 1}
SEND: Waits = {"yolods/engine/link.py:send": 1}
RECEIVE: Waits = {"yolods/engine/link.py:receive": 1}
IMAGES: Waits = {"yolods/model/inputs.py:images": 1}
TALK: Waits = {"yolods/cluster/ranks.py:from_main": MANY, "yolods/cluster/ranks.py:to_main": MANY}
FROZEN: Waits = {"yolods/engine/base.py:_frozen_weights": 1}
COPIED: Waits = {"yolods/checkpoint/state.py:take": 1}
MOVED: Waits = {
    "yolods/engine/base.py:_load_moving": MANY,
    "yolods/engine/ema.py:load_state_dict": MANY,
    "yolods/engine/masters.py:_placed": MANY,
}
THAWED: Waits = {"yolods/engine/base.py:load_state": 1}
SNAPSHOT: Waits = {"yolods/engine/recovery.py:_copied": MANY}
GATHERED: Waits = {"yolods/engine/base.py:full_weights": MANY}
PICKLED: Waits = {"yolods/cluster/ranks.py:to_main": MANY}
READ: Waits = {"yolods/engine/base.py:_load_moving": MANY, "yolods/engine/ema.py:load_state_dict": MANY}
OFFLOADED: Waits = {"deepspeed/runtime/zero/stage_1_and_2.py:_wait_for_offload_copies": MANY}
PUBLISHED: Waits = {"deepspeed/runtime/zero/stage_1_and_2.py:update_lp_params": MANY}
REDUCED: Waits = {"deepspeed/runtime/zero/stage3.py:independent_gradient_partition_epilogue": 1}
FETCHED: Waits = {"deepspeed/runtime/zero/partition_parameters.py:_allgather_params_coalesced": 1}
FETCHED_OFTEN: Waits = dict.fromkeys(FETCHED, MANY)
SQUARES: Waits = {"yolods/stability/gradients.py:squares": 2}
SET_OFFLOADED: Waits = {
    "deepspeed/runtime/zero/partition_parameters.py:_allgather_params_sequential": 2,
    "deepspeed/runtime/zero/partition_parameters.py:_partition_param": MANY,
}
MASTERS_OFFLOADED: Waits = {"deepspeed/runtime/zero/stage3.py:get_full_hp_param": MANY}
SET: Waits = {"deepspeed/runtime/zero/partition_parameters.py:_allgather_params_sequential": 1}
MASTERS: Waits = {"deepspeed/runtime/zero/stage3.py:_get_fp32_opt_state_partition": MANY}
ANCHORS: Waits = {"ultralytics/utils/tal.py:make_anchors": 6}

ZERO = {
    "micro-batch": Row(LOSS | START | STOP | LOST, 0),
    "step": Row(STEP, 1),
    "snapshot": Row(SNAPSHOT, 1),
    "evaluated batch": Row(JUDGE | START | IMAGES, 1),
    "evaluation": Row(TALK | ANCHORS, 0),
    "checkpoint": Row(COPIED | FROZEN, 1),
    "load": Row(MOVED | THAWED, 1),
    "roll-back": Row(MOVED, 1),
    "export": Row(GATHERED, 1),
}
"""Rank 0 of ZeRO-0, 1 and 2."""

FIRST = {
    "micro-batch": Row(START | SEND, 0),
    "step": Row(STEP | STOP, 1),
    "snapshot": Row(SNAPSHOT, 1),
    "evaluated batch": Row(START | SEND | IMAGES, 0),
    "evaluation": Row(TALK, 0),
    "checkpoint": Row(COPIED, 1),
    "load": Row(MOVED, 1),
    "roll-back": Row(MOVED, 1),
    "export": Row(GATHERED | PICKLED, 1),
}
"""The first stage of a pipeline."""

MIDDLE = FIRST | {
    "micro-batch": Row(START, 0),
    "evaluated batch": Row(START | SEND | RECEIVE, 0),
}
"""A stage between two."""

LAST = FIRST | {
    "micro-batch": Row(LOSS | START | LOST | RECEIVE, 0),
    "evaluated batch": Row(JUDGE | START | RECEIVE, 1),
    "checkpoint": Row(COPIED | FROZEN, 1),
    "load": Row(MOVED | THAWED, 1),
}
"""The last stage."""

OFFLOAD = ZERO | {
    "step": Row(STEP | SQUARES | OFFLOADED, MANY),
    "evaluation": Row(TALK | ANCHORS | PUBLISHED, MANY),
    "load": Row(READ | THAWED | PUBLISHED, MANY),
    "roll-back": Row(READ | PUBLISHED, MANY),
}
"""Rank 0 of ZeRO-2 with its optimizer on the host: DeepSpeed waits for every gradient that it copies there."""

ZERO3 = ZERO | {
    "micro-batch": Row(ZERO["micro-batch"].today | REDUCED, 1),
    "step": Row(STEP | FETCHED, 2),
    "evaluated batch": Row(ZERO["evaluated batch"].today, 1),
    "evaluation": Row(TALK | ANCHORS | FETCHED_OFTEN, MANY),
    "load": Row(MOVED | THAWED | FETCHED | SET, MANY),
    "roll-back": Row(MOVED | FETCHED, MANY),
    "export": Row(GATHERED | MASTERS, MANY),
}
"""Rank 0 of ZeRO-3."""

OFFLOAD3 = ZERO3 | {
    "step": Row(STEP | SQUARES | FETCHED_OFTEN, MANY),
    "load": Row(READ | THAWED | FETCHED_OFTEN | SET_OFFLOADED, MANY),
    "roll-back": Row(READ | FETCHED_OFTEN, MANY),
    "export": Row(GATHERED | MASTERS | MASTERS_OFFLOADED, MANY),
}
"""Rank 0 of ZeRO-3 with optimizer and weights on the host."""

PEAKS: dict[str, tuple[int, ...]] = {
    "pipeline2_fp32": (1708544, 3175936),
    "pipeline4_zero1_bf16": (907264, 707584, 197120, 2975744),
    "pipeline4_zero1_fp16": (907264, 707584, 197120, 2975744),
    "zero0_bf16_autocast": (3739136, 3727360),
    "zero0_fp32": (4037632, 4037632),
    "zero1_bf16": (2426880, 2415104),
    "zero1_fp16": (2427904, 2415104),
    "zero1_fp32": (3462656, 3462656),
    "zero2_bf16": (2258432, 2333696),
    "zero2_bf16_autocast": (2966528, 3179520),
    "zero2_fp16": (2259456, 2333696),
    "zero2_fp32": (3288064, 3559424),
    "zero2_offload_fp32": (2223616, 2223616),
    "zero3_bf16": (2428416, 2422784),
    "zero3_fp16": (2429440, 2422784),
    "zero3_fp32": (3553792, 3553792),
    "zero3_offload_fp16": (1216512, 1210880),
}
"""Bytes of the device that are claimed at most in a step of four micro-batches, by rank."""
SLACK = 4096
"""Bytes that a step of eight micro-batches may hold more than one of four: numbers of each are kept for a diagnosis."""


def rows_of(name: str, rank: int, stages: int) -> dict[str, Row]:
    """What a rank of ds_configs/`name`.json is expected to wait for, by part of a run."""
    if stages > 1:
        return FIRST if rank == 0 else LAST if rank == stages - 1 else MIDDLE
    on_device, offloaded = (ZERO3, OFFLOAD3) if "zero3" in name else (ZERO, OFFLOAD)
    kind = offloaded if "offload" in name else on_device
    if rank == 0:
        return kind
    waits, target = kind["export"]
    return kind | {"export": Row({place: count for place, count in waits.items() if place not in GATHERED}, target)}


def grows(stages: int) -> list[bool]:
    """Of each stage, whether its peak grows with the micro-batches of a step. None is to.

    Today the last of four grows as well, but peaks where the optimizer steps.
    """
    return [stage < 3 for stage in range(stages)]
