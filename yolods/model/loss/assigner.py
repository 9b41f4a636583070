"""Which anchor answers for which box: task-aligned assignment (TOOD, Feng et al., 2108.07755, section 3.2).

A box's metric at an anchor is score^ALPHA x overlap^BETA. Each box takes the TOPK anchors inside it with the highest
metric; an anchor taken by several goes to the one it overlaps most. The numbers are those of ultralytics 8.4.190
utils/tal.py (TaskAlignedAssigner), computed for the pairs that exist and in pieces, and without asking the device for
anything: its tensors have sizes that the labels give.
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
"""Against division by zero (utils/tal.py:40)."""
PAIRS = 1 << 14
"""Pairs measured at a time, or as many as there are slots where that is more; which bounds memory."""
CELLS = 1 << 17
"""Numbers in a piece of the table of boxes x anchors that the highest are looked for in, or 16 for each slot."""
VECTOR = 64
"""What pieces are a multiple of. torch rounds the last elements of a tensor, those that do not fill a vector register,
by other code than the rest, and they are to be the last ones of all, as in ultralytics."""
_LAST = (1 << 31) - 1


@dataclass(frozen=True, eq=False)
class Assignment:
    """K slots, in rising order, and the box that each was given."""

    slot: Tensor
    """(K,) int64, all different."""
    real: Tensor
    """(K,) bool: whether the slot was given a box. The others come last and fill up to a size that labels give."""
    box: Tensor
    """(K,) int64."""
    weight: Tensor
    """(K,) fp32 target score: the metric, scaled so that a box's best anchor has its best overlap; 0 if not real."""


@torch.no_grad()
def assign(probabilities: Tensor, boxes: Tensor, anchors: Anchors, targets: Targets, *, exact: bool) -> Assignment:
    """Give anchors to boxes.

    Args:
        probabilities: (S, nc) fp32 of all slots.
        boxes: (4, S) fp32 left, top, right, bottom in pixels.
        anchors: of an image.
        targets: of the batch.
        exact: ask how many slots were given a box, and return no others. The host has to wait for the answer.
    """
    room = min(targets.most(TOPK), len(probabilities))
    if not room:
        return Assignment(targets.box, targets.box.bool(), targets.box, targets.box.float())  # all of them empty
    metrics, overlaps, contest = _measure(probabilities, boxes, targets)
    highest = _highest(metrics, anchors.count, max(CELLS, 16 * len(probabilities)), targets)
    pair = _settle(highest, contest, targets)
    given = pair >= 0
    slot = given.nonzero().view(-1) if exact else _first(given, room)
    real, pair = given.index_select(0, slot), pair.index_select(0, slot).clamp_(0, targets.pairs - 1)
    box = targets.box.index_select(0, pair)
    metric, overlap = (each.index_select(0, pair).masked_fill_(~real, 0) for each in (metrics, overlaps))
    return Assignment(slot, real, box, _scaled(metric, overlap, box, len(targets.labels)))


def _measure(probabilities: Tensor, boxes: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
    """(P,) metrics, (P,) overlaps, and (S,) int64: a number for each slot's pair of the highest overlap, see `_bid`."""
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
    """(n,) int64 that rises with the overlap, and from the last pair to the first among equals.

    The bits of a float that is not negative, read as an integer, are in the order of the floats; below them is the
    pair's number, counted down. The largest of these tells the pair, and asks for one pass only.
    """
    numbers = torch.arange(_LAST - start, _LAST - start - len(overlap), -1, device=overlap.device)
    return (overlap.abs().view(torch.int32).long() << 32).add_(numbers)


def _highest(metrics: Tensor, anchors: int, cells: int, targets: Targets) -> Tensor:
    """(T, TOPK) int64 cells of each box's highest metrics.

    They are looked for among all anchors, with 0 where there is no pair: where fewer than TOPK are above 0, it is by
    torch's order among equals that ultralytics takes the rest, and with it these come out the same. The table is made
    in pieces of about so many `cells`.
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
    """(S,) int64: the pair by which each slot is given to a box; -1 where it is given to none."""
    slots, cell = len(contest), highest.view(-1)
    pair = torch.searchsorted(targets.cell, cell).clamp_(max=targets.pairs - 1)
    outside = targets.cell.index_select(0, pair) != cell
    slot = (highest + targets.shift.view(-1, 1)).view(-1).masked_fill_(outside, slots)
    # Of the pairs that want a slot, the first and the last: apart where there are several.
    last = pair.new_full((slots + 1,), -1).scatter_reduce_(0, slot, pair, "amax")[:slots]
    first = pair.new_full((slots + 1,), targets.pairs).scatter_reduce_(0, slot, pair, "amin")[:slots]
    return torch.where(first < last, _LAST - (contest & 0xFFFFFFFF), last)


def _first(given: Tensor, room: int) -> Tensor:
    """(room,) int64: the slots that were given a box, then others."""
    everyone = torch.arange(len(given), device=given.device)
    upto = given.cumsum(0)
    place = torch.where(given, upto - 1, upto[-1:] + everyone - upto)
    return torch.empty_like(everyone).scatter_(0, place, everyone)[:room]


def _scaled(metric: Tensor, overlap: Tensor, box: Tensor, boxes: int) -> Tensor:
    """Target scores (utils/tal.py:192): metric x the box's best overlap / the box's best metric."""
    best_overlap, best_metric = (
        each.new_zeros(boxes).scatter_reduce_(0, box, each, "amax").index_select(0, box) for each in (overlap, metric)
    )
    return metric * best_overlap / (best_metric + METRIC_EPS)
