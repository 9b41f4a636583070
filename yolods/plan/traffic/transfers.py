"""What a rank sends in one step: the collectives of DeepSpeed and of yolods, with their bytes.

    kind        operation            when                        on what
    reduce      all_reduce           ZeRO 0: per step            all gradients
                exchange             ZeRO 1: per step            all gradients
                                     ZeRO 2: the same, or per micro-batch (`Layout.once`)
                reduce_scatter       ZeRO 3: per micro-batch     all gradients, padded
    gather      all_gather           ZeRO 1, 2: per step         updated parameters, padded
                                     ZeRO 3: per micro-batch     parameters above 100,000 elements
                                             and per step        the smaller ones
    boundary    send                 per micro-batch             activations, gradients, labels
    ours        all_reduce           per step                    losses and norms
                                     per BatchNorm and pass      sums of `sync_bn`

Sources, DeepSpeed 0.19.8 in deepspeed/runtime:

    engine.py:3073                     ZeRO 0 and 1 reduce only at the end of accumulation, 2 and 3
                                       after every backward pass
    engine.py:3828                     ZeRO 0: buckets of 500,000,000 elements, unless yolods
                                       reduces within the backward pass (`zero.whole_reduction`)
    zero/stage_1_and_2.py:1422, 1695   a bucket is reduced before it would overflow, all-reduced
                                       where the JSON asks for DeepSpeed's own way; otherwise
                                       `zero.owned_reduction` exchanges the parts
    zero/stage_1_and_2.py:441          a group is padded to a multiple of 2 x ranks
    utils.py:1008                      one all-gather per group; "allgather_bucket_size" has no
                                       effect where torch has all_gather_into_tensor
    zero/stage3.py:1912                reduce-scatter; a gradient is padded to a multiple of ranks
    zero/stage3.py:2841                parameters that stay whole are gathered after the step, by
                                       `zero.resident` in one call
    zero/partitioned_param_coordinator.py:634
                                       a parameter is gathered again for the backward pass
                                       only if more than "stage3_max_reuse_distance" elements are
                                       used between
    engine.py:2038                     the broadcasts at the start belong to no step

Settings that `Layout` does not have are DeepSpeed's defaults. Offloading moves data between a host
and its device and changes nothing between ranks. tests/dist/test_transfers.py compares all this
with the calls that torch.distributed gets.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from yolods.model.freezing import Frozen
from yolods.plan.cost import Cost
from yolods.plan.layout import BUCKET, PERSISTENT, PREFETCHED, Layout
from yolods.plan.traffic.model_facts import StageFacts, Weight, stages_of

REUSE = 1_000_000_000
"""Elements between two uses beyond which ZeRO-3 gathers again ("stage3_max_reuse_distance")."""
SUMS = 5
"""Numbers of a step besides the norms: three losses, boxes, and the request to stop."""
HEADER_BYTES = 64 * 8
"""Of the shapes that precede a message of varying shape (`distributed.p2p`)."""
LABEL_BYTES = 6 * 4
"""Of a box with its image and its class (`engine.pipeline.engine`)."""

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Transfer:
    """Equal operations of one rank in one step."""

    kind: str
    """What for: reduce, gather, boundary or ours."""
    operation: str
    """all_reduce, exchange (each part to its owner), reduce_scatter, all_gather or send."""
    bytes: int
    """Bytes of the whole tensors over all calls: what is reduced, what is gathered, or what this
    rank sends."""
    calls: int
    """Number of operations."""
    ranks: int
    """Ranks of the group; 2 for a send."""


def transfers(
    costs: Cost, layout: Layout, *, boxes: float = 0.0, frozen: Frozen = None
) -> tuple[tuple[Transfer, ...], ...]:
    """What a rank of each stage sends in one step; () for a stage that sends nothing.

    Args:
        costs: of the model, at the layout's image size and the precision of its activations.
        boxes: mean number of boxes per training sample.
        frozen: the hyper-parameter `freeze`.
    """
    cuts = layout.cuts
    stages = _stages(costs, cuts) if frozen is None else stages_of(costs, cuts, frozen)
    names = sum(len(stage.trained) for stage in stages)
    numbers = Transfer("ours", "all_reduce", 4 * (SUMS + names), 1, layout.ranks)
    found = []
    for place, stage in enumerate(stages):
        own = [*_reduces(stage, layout), *_gathers(stage, layout), *_statistics(stage, layout)]
        own += _boundaries(stages, place, layout, boxes)
        found.append(tuple(each for each in (*own, numbers) if each.ranks > 1 and each.bytes))
    return tuple(found)


@lru_cache(maxsize=256)
def _stages(costs: Cost, cuts: tuple[int, ...]) -> tuple[StageFacts, ...]:
    """`stages_of`, kept, because a plan asks for the same cuts hundreds of times."""
    return tuple(stages_of(costs, cuts, None))


def sent_bytes(transfer: Transfer, *, backend: str = "nccl") -> float:
    """Bytes that leave a rank, without headers.

    Rings, in which each of N ranks sends 1 / N of the tensor in each of its rounds (see `rounds`).
    For NCCL these are the factors of nccl-tests (doc/PERFORMANCE.md); NCCL's trees send as much.

    Args:
        backend: nccl, or gloo, whose reduce_scatter is an all_reduce (torch 2.13,
            ProcessGroupGloo::reduce_scatter_tensor_coalesced).
    """
    return rounds(transfer, backend=backend) * transfer.bytes / _parts(transfer)


def rounds(transfer: Transfer, *, backend: str = "nccl") -> int:
    """Messages that a rank sends one after the other in one operation."""
    twice = transfer.operation == "all_reduce" or (
        transfer.operation == "reduce_scatter" and backend == "gloo"
    )
    return (1 + twice) * (transfer.ranks - 1)


def _parts(transfer: Transfer) -> int:
    return 1 if transfer.operation == "send" else transfer.ranks


def _reduces(stage: StageFacts, layout: Layout) -> list[Transfer]:
    """The reduction of the gradients over the replicas."""
    ranks, level = layout.replicas, layout.zero_stage
    if level == 0:
        sizes = [weight.elements for weight in stage.trained]
        volume = sum(sizes) * _BYTES[layout.precision]
        early = layout.overlapped and layout.stages == 1
        calls = _fills(sizes[::-1], layout.bucket(sum(sizes))) if early else _fills_whole(sizes)
        return [Transfer("reduce", "all_reduce", volume, calls, ranks)]
    each_pass = level == 3 or (level == 2 and not (layout.once and layout.owned))
    times = layout.accumulation if each_pass else 1
    bucket = layout.bucket(sum(weight.elements for weight in stage.trained))
    found = []
    for size, weights in _by_size(_in_order(stage, layout), layout):
        elements = [weight.elements for weight in weights]
        calls = times * _fills(elements, bucket)
        if level == 3:
            elements = [_padded(count, ranks) for count in elements]
        flat = "exchange" if layout.owned else "all_reduce"
        operation = "reduce_scatter" if level == 3 else flat
        found.append(Transfer("reduce", operation, times * size * sum(elements), calls, ranks))
    return found


def _in_order(stage: StageFacts, layout: Layout) -> list[Weight]:
    """The gradients in the order in which they enter the buckets: that of the backward pass, or
    that of the optimizer's groups where ZeRO-1 reduces after it."""
    if layout.zero_stage == 1 and (layout.stages > 1 or not layout.overlapped or not layout.owned):
        return [weight for group in _groups(stage) for weight in group]
    return stage.trained[::-1]


def _groups(stage: StageFacts) -> list[list[Weight]]:
    kinds = ("weight", "bn", "bias")
    groups = [[weight for weight in stage.trained if weight.group == kind] for kind in kinds]
    return [group for group in groups if group]


def _by_size(weights: Sequence[Weight], layout: Layout) -> Iterable[tuple[int, list[Weight]]]:
    """The bytes of an element and the gradients that travel in so many.

    Under autocast the gradients of convolutions do so in 16 bits, those of BatchNorm in 32
    (base_optimizer.py:393).
    """
    whole = _BYTES[layout.precision]
    if layout.autocast is None:
        return [(whole, list(weights))]
    cast = [weight for weight in weights if weight.casts]
    others = [weight for weight in weights if not weight.casts]
    return [(size, part) for size, part in ((2, cast), (whole, others)) if part]


def _gathers(stage: StageFacts, layout: Layout) -> list[Transfer]:
    """The collection of parameters that are updated, or kept, in parts."""
    ranks, level, size = layout.replicas, layout.zero_stage, _BYTES[layout.precision]
    if level == 0:
        return []
    if level < 3:
        sizes = [sum(weight.elements for weight in group) for group in _groups(stage)]
        padded = sum(_padded(count, 2 * ranks) for count in sizes)
        return [Transfer("gather", "all_gather", size * padded, len(sizes), ranks)]
    small = [each.elements for each in stage.weights if each.elements <= PERSISTENT]
    kept = sum(_padded(count, ranks) for count in small)
    large = _gathered(stage, ranks)
    calls = layout.accumulation * math.ceil(large / PREFETCHED)
    return [
        Transfer("gather", "all_gather", layout.accumulation * size * large, calls, ranks),
        Transfer("gather", "all_gather", size * kept, min(len(small), 1), ranks),
    ]


def _gathered(stage: StageFacts, ranks: int) -> int:
    """Elements that ZeRO-3 gathers in one forward and backward pass."""
    total, behind = 0, 0
    for weight in reversed(stage.weights):
        if weight.elements > PERSISTENT:
            # Everything behind it is used twice, in the forward and in the backward pass.
            total += _padded(weight.elements, ranks) * (2 if 2 * behind >= REUSE else 1)
        behind += weight.elements
    return total


def _statistics(stage: StageFacts, layout: Layout) -> list[Transfer]:
    """What `sync_bn` sums: two moments per channel and the count, and their gradients."""
    if not layout.sync_bn:
        return []
    passes = layout.accumulation * (3 if layout.recompute else 2)
    volume = sum(4 * (2 * channels + 1) for channels in stage.norms)
    calls = passes * len(stage.norms)
    return [Transfer("ours", "all_reduce", passes * volume, calls, layout.replicas)]


def _boundaries(
    stages: Sequence[StageFacts], place: int, layout: Layout, boxes: float
) -> list[Transfer]:
    """What a pipeline's stage sends to its neighbours, and the first one to the last."""
    images, times, found = layout.micro_batch, layout.accumulation, []
    # Activations go to the next stage, and gradients of the same shapes to the previous one.
    for stage in (stages[place], *(stages[place - 1 : place] if place else ())):
        volume = times * images * stage.sent_bytes
        found.append(Transfer("boundary", "send", volume, times * stage.sent_values, 2))
    if place == 0 and len(stages) > 1:
        labels = HEADER_BYTES + round(LABEL_BYTES * boxes * images)
        calls = 2 * times if boxes else times
        found.append(Transfer("boundary", "send", times * labels, calls, 2))
    return found


def _padded(elements: int, multiple: int) -> int:
    return -(-elements // multiple) * multiple


def _fills(elements: Iterable[int], bucket: int) -> int:
    """How many buckets these gradients fill, if one is reduced before it would overflow."""
    filled = flushed = 0
    for count in elements:
        if filled and filled + count > bucket:
            flushed, filled = flushed + 1, 0
        filled += count
    return flushed + (filled > 0)


def _fills_whole(elements: Iterable[int]) -> int:
    """The same, if one is reduced after it has overflown."""
    filled = flushed = 0
    for count in elements:
        filled += count
        if filled > BUCKET:
            flushed, filled = flushed + 1, 0
    return flushed + (filled > 0)
