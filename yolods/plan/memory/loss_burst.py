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
found: the loss then runs on real tensors, unless they are very large, for boxes in random places
and outputs as scattered as an untrained model's. Boxes that are spread evenly would hardly ever
want the same slot, and equal outputs would let each box take the slots around its centre: both find
too many slots. A trained model's boxes may take a few more or fewer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from yolods.compat import without_compiler
from yolods.config import Hyper
from yolods.model.anchors import anchors_of
from yolods.model.loss.detection_loss import DetectionLoss
from yolods.plan.memory.boxes import BoxCounts
from yolods.plan.memory.storage_log import StorageLog

_SCATTER = 0.5
"""Standard deviation of the outputs; an untrained yolov5n's boxes have 0.35, its scores 0.8."""
_OBLONG = 2.0
"""Largest ratio of a box's sides: an assumption."""
_COMPUTED = 256 << 20
"""Bytes in fp32 of the largest outputs whose loss is computed. It needs about five times as much,
and a plan also asks for layouts that fit no host."""


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
        on_host: whether the loss is computed on a CPU. Up to a size it then is computed here as
            well; a larger one is estimated as on a GPU.
    """
    sides = [int(imgsz // stride) for stride in head.stride.tolist()]
    anchors = sum(side * side for side in sides)
    on_host = on_host and 4 * images * anchors * (head.nc + 4 * head.reg_max) <= _COMPUTED
    device = torch.device("cpu" if on_host else "meta")
    loss = DetectionLoss(head, device, Hyper())

    random = torch.Generator().manual_seed(0)

    def outputs(channels: int) -> Tensor:
        shape = (images, channels, anchors)
        if not on_host:
            return torch.empty(shape, dtype=dtype, device=device).requires_grad_()
        scattered = _SCATTER * torch.randn(shape, generator=random)
        return scattered.to(dtype).requires_grad_()

    predictions = {
        "boxes": outputs(4 * head.reg_max),
        "scores": outputs(head.nc),
        "feats": [torch.empty(images, 1, side, side, device=device) for side in sides],
    }
    batch = labels(boxes, images)
    # A run keeps them from its first step on. Only the first loss of this process would make them.
    kept = anchors_of(tuple((side, side) for side in sides), tuple(head.stride.tolist()), device)
    log = StorageLog(device=device.type)
    with without_compiler(), log:
        total, _ = loss(predictions, batch, images)
        total.backward()
        del total
    return int(log.held().max(initial=0)) + kept.points.nbytes + kept.strides.nbytes


def labels(boxes: BoxCounts, images: int) -> dict[str, Tensor]:
    """Labels of a full micro-batch as the loader returns them, evenly over the images.

    The boxes are at random places, but always the same for the same arguments.

    Returns:
        of n boxes, "batch_idx" (n,), the index of each box's image; "cls" (n, 1), all 0; and
        "bboxes" (n, 4) fp32, centre, width and height as shares of the image.
    """
    count, random = boxes.in_batch(images), np.random.default_rng(0)
    areas = np.resize(np.array(boxes.areas), (count, 1))
    ratios = _OBLONG ** random.uniform(-1, 1, (count, 1))
    sides = np.sqrt(np.hstack((areas * ratios, areas / ratios))).clip(max=1)
    centres = sides / 2 + (1 - sides) * random.random((count, 2))
    return {
        "batch_idx": torch.arange(count).mul(images).div(max(count, 1)).floor(),
        "cls": torch.zeros(count, 1),
        "bboxes": torch.from_numpy(np.hstack((centres, sides))).float(),
    }
