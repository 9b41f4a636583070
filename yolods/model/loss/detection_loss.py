"""The detection loss of ultralytics 8.4.190, without waits for the device.

Source: utils/loss.py, v8DetectionLoss.

It computes the same numbers, at the scale at which DeepSpeed's averaging gives ultralytics'
gradients. Labels are read on the host, so every tensor's size is known before the device has
computed anything. What ultralytics computes for all anchors and keeps for the backward pass is
computed here only for anchors that received a box, or in place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolods.model.anchors import Anchors, anchors_of
from yolods.model.loss.assigner import VECTOR, Assignment, assign
from yolods.model.loss.boxes import ciou, corners, distances
from yolods.model.loss.targets import Targets, targets_of

SCORES = 1 << 16
"""Scores per piece of the class loss, or a sixteenth of all if that is more; bounds memory."""


class DetectionLoss:
    """Box, class and distribution focal loss of a micro-batch's raw head outputs."""

    def __init__(
        self,
        head: nn.Module,
        device: torch.device,
        gains: Any,
        class_weights: Tensor | None = None,
        *,
        exact: bool | None = None,
    ) -> None:
        """
        Args:
            head: the Detect layer, for strides, class count and reg_max; its weights are not read.
            device: device of the predictions.
            gains: namespace with `box`, `cls` and `dfl`.
            class_weights: (nc,) fp32 weights of the class loss with mean 1; None for none.
            exact: whether to sum only over anchors with a box. Zeros of other anchors would change
                the order of the sum; without them, all bits are ultralytics' on one thread. The
                host must ask the device for the number of these anchors; None: exact on the CPU,
                where that costs nothing.
        """
        self._strides = tuple(head.stride.tolist())
        # utils/tal.py:60: shorter sides of boxes are extended to the second level's stride.
        self._smallest = self._strides[min(1, len(self._strides) - 1)]
        self._device, self._gains = device, gains
        self._bins = torch.arange(head.reg_max, dtype=torch.float32, device=device)
        self._class_weights = None if class_weights is None else class_weights.to(device)
        self._exact = device.type == "cpu" if exact is None else exact

    def __call__(
        self, predictions: dict[str, Any], batch: dict[str, Tensor], images: int
    ) -> tuple[Tensor, Tensor]:
        """The loss of one micro-batch.

        ultralytics' trainer backpropagates loss x images of the micro-batch, summed over
        micro-batches and ranks, so the gradient of a step is sum_m b_m dL_m (U/engine/trainer.py:
        `loss *= world_size`; U/utils/loss.py: `loss * batch_size`). DeepSpeed averages over ranks,
        and sums over micro-batches because it is told to. With b images on each of R ranks, sum_m
        mean_r(L x images) = sum b L if `images` = b x R. Therefore each loss is multiplied by the
        images of the batch over all ranks, and lr0 = 0.01 and clipping at 10.0 have the effect that
        users know.

        Args:
            predictions: `boxes` (N, 4 x reg_max, A), `scores` (N, nc, A), `feats` list of (N, C, H,
                W); any float dtype.
            batch: on the host, as the loader returns it: `batch_idx` (T,) ascending, `cls` (T, 1),
                `bboxes` (T, 4) normalised xywh; fp32.
            images: images of the batch, over all ranks.

        Returns:
            the fp32 scalar to backpropagate, and the detached (3,) fp32 items box, cls, dfl that
            ultralytics reports.

        Raises:
            ValueError: the labels are not on the host, or have a class beyond those of the head.
        """
        items, _ = self._items(predictions, batch)
        return items.sum() * images, items.detach()

    @torch.no_grad()
    def sums(self, predictions: dict[str, Any], batch: dict[str, Tensor]) -> Tensor:
        """The items of a batch before averaging, so that the parts of a batch add up to the whole.

        ultralytics' items are sums over the images, divided by the sum of the target scores, or by
        1 if that is larger.

        Returns:
            (4,) fp64: the sums of box, cls and dfl, with their gains; the sum of the target scores.
        """
        items, total = self._items(predictions, batch)
        total = total.double()
        return torch.cat((items.double() * total.clamp(min=1), total.view(1)))

    def _items(
        self, predictions: dict[str, Any], batch: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """(3,) fp32 items, and the sum of the target scores."""
        shapes = tuple((level.shape[2], level.shape[3]) for level in predictions["feats"])
        anchors = anchors_of(shapes, self._strides, self._device)
        targets = targets_of(
            batch, anchors, self._smallest, predictions["scores"].shape[1], self._device
        )
        assigned, cls, total = self._class_loss(predictions, anchors, targets)
        box, dfl = self._box_losses(predictions["boxes"], anchors, targets, assigned)
        gains, divisor = self._gains, total.clamp(min=1)
        items = (box / divisor * gains.box, cls / divisor * gains.cls, dfl / divisor * gains.dfl)
        return torch.stack(items), total

    def _class_loss(
        self, predictions: dict[str, Any], anchors: Anchors, targets: Targets
    ) -> tuple[Assignment, Tensor, Tensor]:
        """The assignment of boxes to slots, the class loss, and the sum of the target scores."""
        # First, because it needs memory for a while.
        boxes = self._boxes(predictions["boxes"], anchors)
        logits = _by_slot(predictions["scores"])
        probabilities = logits.sigmoid()
        assigned = assign(probabilities, boxes, anchors, targets, exact=self._exact)
        wanted = torch.zeros_like(logits)
        places = assigned.slot * logits.shape[1] + targets.labels.index_select(0, assigned.box)
        wanted.view(-1).scatter_(0, places, assigned.weight)
        total = wanted.sum()
        weighed = _Weighed(logits, probabilities, wanted, self._class_weights)
        return assigned, _ClassLoss.apply(predictions["scores"], weighed), total

    @torch.no_grad()
    def _boxes(self, raw: Tensor, anchors: Anchors) -> Tensor:
        """Corners of raw boxes (N, 4 x reg_max, A) in pixels: (4, S) fp32."""
        reach = self._reach(_by_slot(raw)).view(-1, anchors.count, 4)
        return (corners(reach, anchors.points) * anchors.strides).view(-1, 4).t().contiguous()

    def _reach(self, raw: Tensor) -> Tensor:
        """Distances (.., 4) in cells: each side's mean over its bins (GFL, 2006.04388, equation 5).

        With one bin, the raw numbers are the distances.
        """
        bins = len(self._bins)
        if bins == 1:
            return raw
        return raw.unflatten(-1, (4, bins)).softmax(-1).matmul(self._bins)

    def _box_losses(
        self, raw: Tensor, anchors: Anchors, targets: Targets, assigned: Assignment
    ) -> tuple[Tensor, Tensor]:
        """Summed losses of boxes and of distances over the assigned slots (utils/loss.py:122)."""
        image, anchor = assigned.slot // anchors.count, assigned.slot % anchors.count
        # Only assigned anchors: autograd would keep an fp32 copy of all boxes for the backward
        # pass.
        rows = raw.permute(0, 2, 1)[image, anchor].float()
        # Otherwise the gradient of a slot without a box could be nan.
        rows.masked_fill_(~assigned.real.view(-1, 1), 0)
        points, strides = (
            anchors.points.index_select(0, anchor),
            anchors.strides.index_select(0, anchor),
        )
        target = targets.corners.index_select(1, assigned.box).t() / strides
        weight = assigned.weight.view(-1, 1)
        found = corners(self._reach(rows), points)
        box = ((1.0 - ciou(found.chunk(4, -1), target.chunk(4, -1))) * weight).sum()
        wanted = distances(target, points)
        if len(self._bins) > 1:
            lost = _focal(rows.view(-1, len(self._bins)), wanted)
        else:
            lost = _relative(rows, strides, anchors) - _relative(wanted, strides, anchors)
            lost = lost.abs().mean(-1, keepdim=True)
        return box, (lost * weight).sum()


def as_float(predictions: dict[str, Any]) -> dict[str, Any]:
    """Raw head outputs in fp32: losses and box decoding need more than 8 bits of mantissa."""
    return {
        "boxes": predictions["boxes"].float(),
        "scores": predictions["scores"].float(),
        "feats": [level.float() for level in predictions["feats"]],
    }


@torch.no_grad()
def _by_slot(outputs: Tensor) -> Tensor:
    """A copy of (N, C, A) of any float dtype as (N x A, C) fp32."""
    images, channels, anchors = outputs.shape
    copy = torch.empty((images, anchors, channels), dtype=torch.float32, device=outputs.device)
    return copy.copy_(outputs.permute(0, 2, 1)).view(-1, channels)


def _focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Distribution focal loss (2006.04388, equation 6), the mean of the four sides.

    Source: utils/loss.py:105.

    Args:
        logits: (K x 4, bins).
        wanted: (K, 4) distances in cells.

    Returns:
        (K, 1).
    """
    wanted = wanted.clamp(0, logits.shape[1] - 1 - 0.01)
    left = wanted.long()
    right = left + 1
    to_left = right - wanted
    scores = F.log_softmax(logits, dim=1)
    left, right = (scores.gather(1, bins.view(-1, 1)).view(wanted.shape) for bins in (left, right))
    return -(left * to_left + right * (1 - to_left)).mean(-1, keepdim=True)


def _relative(distances: Tensor, strides: Tensor, anchors: Anchors) -> Tensor:
    """Convert distances (K, 4) from cells to fractions of the image's sides (utils/loss.py:151)."""
    return distances * strides / anchors.sides


@dataclass(frozen=True, eq=False)
class _Weighed:
    """Inputs of the class loss, which overwrites them."""

    logits: Tensor
    """(S, nc) fp32."""
    probabilities: Tensor
    """(S, nc) sigmoids of the logits."""
    wanted: Tensor
    """(S, nc) target scores."""
    weights: Tensor | None
    """(nc,) weights of the classes."""

    def lose(self) -> Tensor:
        """Binary cross entropy (S, nc), stored in the logits: (1 - z) x - log sigmoid(x)."""
        # In pieces, so that the temporary tensors stay small.
        step = max(SCORES, self.logits.numel() // (16 * VECTOR) * VECTOR)
        pieces = zip(
            self.logits.view(-1).split(step), self.wanted.view(-1).split(step), strict=True
        )
        for logits, wanted in pieces:
            certain = F.logsigmoid(logits)
            logits.mul_(1 - wanted).sub_(certain)
        return self.logits if self.weights is None else self.logits.mul_(self.weights)

    def slope(self) -> Tensor:
        """Its derivative (S, nc) without the class weights, stored in the probabilities."""
        return self.probabilities.sub_(self.wanted)


class _ClassLoss(torch.autograd.Function):
    """The summed binary cross entropy of the classes.

    Saves only the derivative for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weighed: _Weighed) -> Tensor:
        """Sum the loss.

        `scores` (N, nc, A) are those in `weighed`; autograd needs them as an input.
        """
        total = weighed.lose().sum()
        ctx.shape, ctx.dtype, ctx.weights = scores.shape, scores.dtype, weighed.weights
        # The derivative overwrites the probabilities, so it needs no memory of its own.
        ctx.save_for_backward(weighed.slope())
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """See torch.autograd.Function."""
        (slope,) = ctx.saved_tensors
        (gradient,) = gradients
        gradient = slope * (gradient if ctx.weights is None else gradient * ctx.weights)
        images, classes, anchors = ctx.shape
        return gradient.view(images, anchors, classes).permute(0, 2, 1).to(ctx.dtype), None
