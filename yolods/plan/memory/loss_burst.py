"""The memory that the detection loss needs between the forward and the backward pass.

The product's own loss runs on the meta device, with labels that have as many boxes as the data.
The sizes of all its tensors follow from the labels (see `DetectionLoss`), so nothing has to be
computed:

- the number of scores, images x anchors x classes, decides the tables of logits, probabilities and
  target scores;
- the number of pairs of a box and an anchor inside it, which grows with the boxes' areas, decides
  what the assigner keeps;
- ten slots per box, if the boxes hold so many anchors, decide the losses of boxes and distances.

The last is an upper estimate: several boxes may take the same slot, which a host does not know in
advance, so on a GPU the tensors have this size all the same. On a CPU they are as large as what was
found. The loss then runs on real tensors, whose scores say nothing; a trained model's boxes may
take a few slots more or fewer.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from yolods.model.loss.detection_loss import DetectionLoss
from yolods.plan.memory.boxes import BoxCounts
from yolods.plan.memory.storage_log import StorageLog

_STEPS = (0.754877666, 0.569840291)
"""Of the additive sequence that fills a square most evenly (Roberts 2018, the plastic number)."""


def loss_burst(
    head: nn.Module,
    boxes: BoxCounts,
    imgsz: int,
    images: int,
    dtype: torch.dtype,
    *,
    on_host: bool = False,
) -> int:
    """Bytes that the loss needs at most beyond the head's outputs, its backward pass included.

    Args:
        head: the Detect layer, for strides, class count and reg_max.
        boxes: of the data set.
        imgsz: side of the images in pixels.
        images: of the micro-batch.
        dtype: of the head's outputs.
        on_host: whether the loss is computed on a CPU, which needs its time and memory here.
    """
    device = torch.device("cpu" if on_host else "meta")
    gains = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    loss = DetectionLoss(head, device, gains)
    sides = [int(imgsz // stride) for stride in head.stride.tolist()]
    anchors = sum(side * side for side in sides)

    def outputs(channels: int) -> Tensor:
        shape = (images, channels, anchors)
        return torch.zeros(shape, dtype=dtype, device=device).requires_grad_()

    predictions = {
        "boxes": outputs(4 * head.reg_max),
        "scores": outputs(head.nc),
        "feats": [torch.empty(images, 1, side, side, device=device) for side in sides],
    }
    batch = labels(boxes, images)
    log = StorageLog(device=device.type)
    with log:
        total, _ = loss(predictions, batch, images)
        total.backward()
        del total
    return int(log.held().max(initial=0))


def labels(boxes: BoxCounts, images: int) -> dict[str, Tensor]:
    """Labels of a full micro-batch as the loader returns them: squares, evenly over the images."""
    count = boxes.in_batch(images)
    numbers = np.arange(count)[:, None]
    sides = np.sqrt(np.array(boxes.areas))[numbers % len(boxes.areas)]
    centres = sides / 2 + (1 - sides) * ((numbers + 1) * np.array(_STEPS) % 1)
    return {
        "batch_idx": torch.arange(count).mul(images).div(max(count, 1)).floor(),
        "cls": torch.zeros(count, 1),
        "bboxes": torch.from_numpy(np.hstack((centres, sides, sides))).float(),
    }
