"""ultralytics' detection loss, brought to the scale at which DeepSpeed's averaging gives ultralytics' gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class DetectionLoss:
    """Box, class and distribution focal loss of raw head outputs against the targets of a micro-batch."""

    def __init__(self, head: nn.Module, device: torch.device, gains: Any, class_weights: Tensor | None = None) -> None:
        """
        Args:
            head: the Detect layer, which tells strides, class count and reg_max; its weights are not read.
            device: where predictions and targets are.
            gains: namespace with `box`, `cls` and `dfl`.
            class_weights: (nc,) fp32 weights of the class loss, mean 1; None for none.
        """
        from ultralytics.utils.loss import v8DetectionLoss

        self._criterion = v8DetectionLoss(_Told(head, device, gains, class_weights))

    def __call__(self, predictions: dict[str, Any], batch: dict[str, Tensor], images: int) -> tuple[Tensor, Tensor]:
        """Score one micro-batch.

        ultralytics' trainer backpropagates loss x images of the micro-batch, summed over micro-batches and ranks, so
        the gradient of a step is sum_m b_m dL_m (U/engine/trainer.py: `loss *= world_size`; U/utils/loss.py:
        `loss * batch_size`). DeepSpeed averages over ranks, and is told to add up over micro-batches. With b images on
        each of R ranks, sum_m mean_r(L x images) = sum b L where `images` = b x R: so each loss is multiplied by the
        images of the batch over all ranks, and lr0 = 0.01 and a clip at 10.0 mean what users know.

        Args:
            predictions: `boxes` (N, 4 x reg_max, A), `scores` (N, nc, A), `feats` list of (N, C, H, W); any float.
            batch: `batch_idx` (T,) sorted, `cls` (T, 1), `bboxes` (T, 4) normalised xywh; fp32.
            images: images of the batch, over all ranks.

        Returns:
            the fp32 scalar to backpropagate, and the detached (3,) fp32 items box, cls, dfl that ultralytics reports.
        """
        criterion = self._criterion
        _, items, _ = criterion.get_assigned_targets_and_loss(as_float(predictions), batch)
        return items.sum() * images, items.detach()

    @torch.no_grad()
    def sums(self, predictions: dict[str, Any], batch: dict[str, Tensor]) -> Tensor:
        """The items of a batch before they are averaged, so that the parts of a batch add up to those of the whole.

        ultralytics' items are sums over the images, divided by the sum of the target scores or by 1, whichever is more.

        Returns:
            (4,) fp64: the sums of box, cls and dfl, with their gains; the sum of the target scores.
        """
        totals: list[Tensor] = []

        def note(_: nn.Module, given: tuple[Any, ...], assigned: tuple[Tensor, ...]) -> None:
            totals.append(assigned[2].sum())

        with self._criterion.assigner.register_forward_hook(note):
            _, items, _ = self._criterion.get_assigned_targets_and_loss(as_float(predictions), batch)
        (total,) = (each.double() for each in totals)
        return torch.cat((items.double() * total.clamp(min=1), total.view(1)))


def as_float(predictions: dict[str, Any]) -> dict[str, Any]:
    """Raw head outputs in fp32: losses and box decoding need more than 8 bits of mantissa."""
    return {
        "boxes": predictions["boxes"].float(),
        "scores": predictions["scores"].float(),
        "feats": [level.float() for level in predictions["feats"]],
    }


class _Told:
    """What v8DetectionLoss asks of a model. A stage of a pipeline has no whole model to show."""

    def __init__(self, head: nn.Module, device: torch.device, gains: Any, class_weights: Tensor | None) -> None:
        self.model, self.args, self.class_weights = [head], gains, class_weights
        self._device = device

    def parameters(self) -> Iterator[Tensor]:
        """The first one tells the device."""
        yield torch.empty(0, device=self._device)
