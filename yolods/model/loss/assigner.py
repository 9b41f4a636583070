"""Assigns boxes to anchors: task-aligned assignment (TOOD, Feng et al., 2108.07755, section 3.2).

A box's metric at an anchor is score^ALPHA x overlap^BETA. Each box takes the TOPK anchors inside it
with the highest metric; an anchor that several boxes take goes to the one that it overlaps most.
The numbers are those of ultralytics 8.4.190 utils/tal.py (TaskAlignedAssigner). They are computed
only for pairs that exist, in pieces, and without waiting for the device: labels on the host
determine the sizes of all tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from yolods.model.anchors import Anchors
from yolods.model.loss.boxes import ciou
from yolods.model.loss.targets import Targets

TOPK = 10
ALPHA = 0.5
BETA = 6.0
METRIC_EPS = 1e-9
"""Prevents division by zero (utils/tal.py:40)."""
PAIRS = 1 << 14
"""Pairs computed at a time, or the number of slots if that is larger; bounds the memory."""
CELLS = 1 << 17
"""Elements per piece of the boxes x anchors table for topk, or 16 per slot if that is more."""
VECTOR = 64
"""Sizes of pieces are a multiple of this.

torch computes the last elements of a tensor, those that do not fill a vector register, with other
code than the rest, which rounds differently. As in ultralytics, these must be the last elements of
the whole tensor.
"""
_LAST = (1 << 31) - 1


@dataclass(frozen=True, eq=False)
class Assignment:
    """K slots in ascending order, and the box that each received."""

    slot: Tensor
    """(K,) int64, all different."""
    real: Tensor
    """(K,) bool: whether the slot received a box.

    Slots without one come last and fill the tensor up to a size that the labels determine.
    """
    box: Tensor
    """(K,) int64 index of the box."""
    weight: Tensor
    """(K,) fp32 target score; 0 if not real.

    The metric, scaled so that a box's best anchor gets its best overlap.
    """


@torch.no_grad()
def assign(
    probabilities: Tensor, boxes: Tensor, anchors: Anchors, targets: Targets, *, exact: bool
) -> Assignment:
    """Assign boxes to anchors.

    Args:
        probabilities: (S, nc) fp32 of all slots.
        boxes: (4, S) fp32 left, top, right, bottom in pixels.
        anchors: anchors of an image.
        targets: targets of the batch.
        exact: whether to return only slots that received a box. The host then waits for their
            number.
    """
    # At most this many slots receive a box; the host knows it without asking the device.
    room = min(targets.most(TOPK), len(probabilities))
    if not room:
        # All of these tensors are empty.
        return Assignment(targets.box, targets.box.bool(), targets.box, targets.box.float())
    metrics, overlaps, contest = _measure(probabilities, boxes, targets)
    highest = _highest(metrics, anchors.count, max(CELLS, 16 * len(probabilities)), targets)
    pair = _settle(highest, contest, targets)
    given = pair >= 0
    slot = given.nonzero().view(-1) if exact else _first(given, room)
    # Slots without a box point to an arbitrary pair; their values become 0 below.
    real, pair = (
        given.index_select(0, slot),
        pair.index_select(0, slot).clamp_(0, targets.pairs - 1),
    )
    box = targets.box.index_select(0, pair)
    metric, overlap = (
        each.index_select(0, pair).masked_fill_(~real, 0) for each in (metrics, overlaps)
    )
    return Assignment(slot, real, box, _scaled(metric, overlap, box, len(targets.labels)))


def _measure(
    probabilities: Tensor, boxes: Tensor, targets: Targets
) -> tuple[Tensor, Tensor, Tensor]:
    """(P,) metrics, (P,) overlaps, and (S,) int64 `_bid` of each slot's best overlap."""
    slots, classes = probabilities.shape
    metrics, overlaps = boxes.new_empty(targets.pairs), boxes.new_empty(targets.pairs)
    contest = targets.box.new_zeros(slots)
    step = max(PAIRS, slots - slots % VECTOR)
    for start in range(0, targets.pairs, step):
        span = slice(start, start + step)
        box = targets.box[span]
        slot = targets.cell[span] + targets.shift.index_select(0, box)
        wanted = slot * classes + targets.labels.index_select(0, box)
        score = probabilities.view(-1).index_select(0, wanted)
        overlap = ciou(targets.corners.index_select(1, box), boxes.index_select(1, slot)).clamp_(0)
        overlaps[span] = overlap
        metrics[span] = score.pow(ALPHA) * overlap.pow(BETA)
        contest.scatter_reduce_(0, slot, _bid(overlap, start), "amax")
    return metrics, overlaps, contest


def _bid(overlap: Tensor, start: int) -> Tensor:
    """(n,) int64 that increase with the overlap; among equal ones the first pair's is largest.

    The bits of a non-negative float, read as an integer, have the order of the floats. The lower 32
    bits hold the pair's number, counted down. So the largest bid identifies the pair, in one pass.
    """
    numbers = torch.arange(_LAST - start, _LAST - start - len(overlap), -1, device=overlap.device)
    return (overlap.abs().view(torch.int32).long() << 32).add_(numbers)


def _highest(metrics: Tensor, anchors: int, cells: int, targets: Targets) -> Tensor:
    """(T, TOPK) int64: cells of each box's highest metrics.

    The search covers all anchors, with 0 for those without a pair. If fewer than TOPK metrics are
    above 0, ultralytics fills up in torch's order of equal elements, and this search gives the same
    order. The table is built in pieces of about `cells` elements.
    """
    found = []
    boxes, step = len(targets.labels), max(cells // anchors, 1)
    for first in range(0, boxes, step):
        last = min(first + step, boxes)
        span = slice(targets.bounds[first], targets.bounds[last])
        table = metrics.new_zeros((last - first) * anchors)
        table.scatter_(0, targets.cell[span] - first * anchors, metrics[span])
        found.append(table.view(-1, anchors).topk(TOPK, dim=1).indices)
    starts = torch.arange(0, boxes * anchors, anchors, device=metrics.device)
    return torch.cat(found).add_(starts.view(-1, 1))


def _settle(highest: Tensor, contest: Tensor, targets: Targets) -> Tensor:
    """(S,) int64: the pair that wins each slot; -1 if none does."""
    slots, cell = len(contest), highest.view(-1)
    # Cells ascend from pair to pair, so a binary search finds the pair of each cell.
    pair = torch.searchsorted(targets.cell, cell).clamp_(max=targets.pairs - 1)
    outside = targets.cell.index_select(0, pair) != cell
    # Pairs outside their box go to an extra slot at the end, which is dropped.
    slot = (highest + targets.shift.view(-1, 1)).view(-1).masked_fill_(outside, slots)
    # The first and the last pair that take a slot. They differ if several do; then the bids decide.
    last = pair.new_full((slots + 1,), -1).scatter_reduce_(0, slot, pair, "amax")[:slots]
    first = pair.new_full((slots + 1,), targets.pairs).scatter_reduce_(0, slot, pair, "amin")[
        :slots
    ]
    return torch.where(first < last, _LAST - (contest & 0xFFFFFFFF), last)


def _first(given: Tensor, room: int) -> Tensor:
    """(room,) int64: the slots that received a box, followed by others."""
    everyone = torch.arange(len(given), device=given.device)
    upto = given.cumsum(0)
    # Those with a box keep their order at the front, and the others follow in theirs.
    place = torch.where(given, upto - 1, upto[-1:] + everyone - upto)
    return torch.empty_like(everyone).scatter_(0, place, everyone)[:room]


def _scaled(metric: Tensor, overlap: Tensor, box: Tensor, boxes: int) -> Tensor:
    """Target scores (utils/tal.py:192): metric x the box's best overlap / the box's best metric."""
    best_overlap, best_metric = (
        each.new_zeros(boxes).scatter_reduce_(0, box, each, "amax").index_select(0, box)
        for each in (overlap, metric)
    )
    return metric * best_overlap / (best_metric + METRIC_EPS)
