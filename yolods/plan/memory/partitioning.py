"""What a backward pass holds besides activations, moment by moment, to divide gradients.

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

By `zero.owned_reduction` and `zero.whole_reduction`:

- A bucket that is full is sent from a copy, while the next one fills. At most two are under way,
  under ZeRO-1 on gloo all: before the third is copied, the first is stored. On gloo the owner of a
  part receives it from all ranks at once and adds up in fp32: in the first one or, in 16 bits, in a
  copy of it and another.
- NCCL reduces each part where it is, in the copy.
- ZeRO-0 copies a bucket when its last gradient is complete, and keeps the copies until the backward
  pass is over.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from yolods.plan.layout import PERSISTENT, Layout
from yolods.plan.memory.timeline import Timeline

_UNDER_WAY = 2
"""As in `zero.owned_reduction`."""
_FP32 = 4


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


def exchanging_bytes(
    passes: Timeline, layout: Layout, bucket: int, size: int, *, gloo: bool
) -> np.ndarray:
    """(moments,) int64 bytes of the fullest replica under ZeRO-1 or 2, in a step's last pass.

    Args:
        passes: of one micro-batch.
        layout: the rank's; with several replicas.
        bucket: elements of the bucket.
        size: bytes of an element.
        gloo: whether ranks exchange parts, instead of reducing them in a chain.
    """
    waits = layout.offload_optimizer or not layout.overlapped
    sent = _sent(passes, bucket)
    total, ranks = int(passes.arrivals[:, 1].sum()), layout.replicas
    if not gloo:
        copies = [(moment, size * (last - first), 0) for moment, first, last in sent]
        return _held(passes, copies, _UNDER_WAY, waits=waits)
    most = _UNDER_WAY if layout.zero_stage == 2 else len(sent)
    found = np.zeros(len(passes.backward), np.int64)
    for rank in range(ranks):
        copies = []
        for moment, first, last in sent:
            mine = _owned(first, last, total, rank, ranks)
            parts = size * (last - first + ranks * mine)
            copies.append((moment, parts, (size < _FP32) * 2 * _FP32 * mine))
        found = np.maximum(found, _held(passes, copies, most, waits=waits))
    return found


def moved_elements(passes: Timeline, bucket: int) -> np.ndarray:
    """(moments,) int64 elements of the gradients that have moved into the bucket so far; one that
    is larger than the bucket stays where it is."""
    fits = passes.arrivals[passes.arrivals[:, 1] <= bucket]
    elements = np.zeros(len(passes.backward), np.int64)
    np.add.at(elements, fits[:, 0], fits[:, 1])
    return elements.cumsum()


def copied_elements(passes: Timeline, bucket: int) -> np.ndarray:
    """(moments,) int64 elements that ZeRO-0 has copied: those of the buckets that are complete."""
    elements = np.zeros(len(passes.backward), np.int64)
    filled = complete = 0
    for moment, found in passes.arrivals.tolist():
        if filled and filled + found > bucket:
            elements[complete] += filled
            filled = 0
        filled, complete = filled + found, moment
    elements[complete] += filled
    return elements.cumsum()


def _sent(passes: Timeline, bucket: int) -> list[tuple[int, int, int]]:
    """The moment at which each bucket is sent, its first element and the one after its last, as
    counted in the order of the arrivals."""
    found, first, last = [], 0, 0
    for moment, elements in passes.arrivals.tolist():
        if last > first and last - first + elements > bucket:
            found.append((moment - 1, first, last))  # before this gradient's own memory is free
            first = last
        last += elements
    return [*found, (passes.ended, first, last)]


def _owned(first: int, last: int, total: int, rank: int, ranks: int) -> int:
    """How many of the elements from `first` on a rank owns: the last rank owns the last layers,
    whose gradients come first."""
    place = ranks - 1 - rank
    return max(min(last, total * (place + 1) // ranks) - max(first, total * place // ranks), 0)


def _held(
    passes: Timeline, copies: list[tuple[int, int, int]], most: int, *, waits: bool
) -> np.ndarray:
    """(moments,) int64 bytes under way.

    Args:
        copies: of each bucket the moment at which it is sent, its bytes under way, and those in
            which it is added up.
        most: buckets under way.
        waits: whether each is stored at once.
    """
    held = np.zeros(len(passes.backward), np.int64)
    way: deque[tuple[int, int]] = deque()
    since = 0
    for moment, parts, adding in copies:
        before = sum(each for each, _ in way)
        held[since : moment + 1] = np.maximum(held[since : moment + 1], before)
        if len(way) == most:
            held[moment] = max(held[moment], before + way.popleft()[1])
        way.append((parts, adding))
        held[moment] = max(held[moment], sum(each for each, _ in way))
        since = moment + 1
        if waits:
            held[moment] = max(held[moment], parts + adding)
            way.clear()
    while way:
        held[passes.ended] = max(held[passes.ended], sum(each for each, _ in way) + way[0][1])
        way.popleft()
    return held
