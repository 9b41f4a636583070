"""What a backward pass under ZeRO-2 and 3 holds besides activations, moment by moment.

By deepspeed 0.19.8, runtime/zero/stage3.py (Z3) and stage_1_and_2.py (Z12):

- A complete gradient is copied into the bucket, which exists from the start. One that is larger
  than the bucket stays where it is (Z3:1627).
- When the next gradient does not fit, and once at the end, the bucket's gradients are divided among
  the ranks (Z3:1587, Z3:1407). `reduce_scatter_coalesced` joins the parts of all ranks in a flat
  copy (runtime/comm/coalesced_collectives.py:122), unless there is a single gradient without
  padding. torch's gloo copies that once more (ProcessGroupGloo::reduce_scatter_tensor_coalesced,
  torch 2.13); NCCL reduces it where it is. ZeRO-2 joins the parts too, unless there is one rank
  only, and reduces the copy where it is (Z12:2367).
- A gathered parameter is let go of after its last use in the step, which is the backward pass of
  its layer (partitioned_param_coordinator.py, `__params_to_release`, with the default distance of
  1e9 elements).
"""

from __future__ import annotations

import numpy as np

from yolods.plan.layout import PERSISTENT
from yolods.plan.memory.timeline import Timeline


def dividing_elements(
    passes: Timeline, bucket: int, replicas: int, *, gloo: bool = False, joins: bool = True
) -> np.ndarray:
    """(moments,) int64 elements of gradients beside the bucket, of them and of their copies.

    Args:
        passes: of one micro-batch.
        bucket: elements of the bucket.
        replicas: ranks among which gradients are divided.
        gloo: whether the backend copies what it reduces.
        joins: whether several gradients are joined in a copy.
    """
    held = np.zeros(len(passes.backward), np.int64)
    filled = count = since = 0

    def divide(until: int) -> None:
        copies = gloo + (joins and (count > 1 or filled % replicas > 0))
        # A gradient beside the bucket for a while, and copies at the end.
        held[since:until] += filled * (filled > bucket)
        held[until - 1] += copies * filled

    for moment, elements in passes.arrivals.tolist():
        if filled and filled + elements > bucket:
            divide(moment)  # before this gradient's own memory is free
            filled = count = 0
        if not filled:
            since = moment
        filled, count = filled + elements, count + 1
    if filled:
        divide(passes.ended + 1)
    return held


def released_elements(passes: Timeline) -> np.ndarray:
    """(moments,) int64 elements of gathered parameters that have been let go of."""
    large = passes.arrivals[passes.arrivals[:, 1] > PERSISTENT]
    elements = np.zeros(len(passes.backward), np.int64)
    np.add.at(elements, large[:, 0], large[:, 1])
    return elements.cumsum()
