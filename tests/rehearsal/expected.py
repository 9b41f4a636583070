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
    target: int


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
SET: Waits = {"deepspeed/runtime/zero/partition_parameters.py:_allgather_params_sequential": 1}
TRACED: Waits = {
    "deepspeed/runtime/zero/utils.py:assert_lst_len_same_as_other_ranks": MANY,
    "deepspeed/runtime/zero/utils.py:get_lst_from_rank0": MANY,
}
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
    "evaluation": Row(TALK | ANCHORS, 0),
    "checkpoint": Row(COPIED | FROZEN, 1),
    "load": Row(MOVED | THAWED, 1),
}
"""The last stage."""

OFFLOAD = ZERO | {
    "step": Row(STEP | {"yolods/stability/gradients.py:squares": 2} | OFFLOADED, 2),
    "evaluation": Row(TALK | ANCHORS | PUBLISHED, MANY),
    "load": Row(READ | THAWED | PUBLISHED, MANY),
    "roll-back": Row(READ | PUBLISHED, MANY),
}
"""Rank 0 of ZeRO-2 with its optimizer on the host: DeepSpeed waits for every gradient that it copies there."""

ZERO3 = ZERO | {
    "micro-batch": Row(ZERO["micro-batch"].today | REDUCED, 1),
    "step": Row(STEP | FETCHED, 2),
    "evaluated batch": Row(ZERO["evaluated batch"].today, 1),
    "evaluation": Row(TALK | ANCHORS | FETCHED | TRACED, MANY),
    "load": Row(MOVED | THAWED | FETCHED | SET, MANY),
    "roll-back": Row(MOVED | FETCHED, MANY),
    "export": Row(GATHERED | MASTERS, MANY),
}
"""Rank 0 of ZeRO-3."""
