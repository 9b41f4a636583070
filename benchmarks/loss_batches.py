"""Random batches for the detection loss, and ultralytics' loss beside ours on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from yolods.model.loss.detection_loss import DetectionLoss, as_float

GAINS = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
CPU = torch.device("cpu")
STRIDES = (8.0, 16.0, 32.0)
SIDES = (64, 96, 160, 224, 320)
KINDS = (
    "mixed",
    "mixed",
    "small",
    "points",
    "outside",
    "duplicates",
    "whole image",
    "crowd",
    "none",
)


@dataclass(frozen=True, eq=False)
class Sample:
    """One micro-batch of head outputs and its labels."""

    kind: str
    """What its boxes are like."""
    predictions: dict[str, Any]
    """`boxes`, `scores`, `feats`."""
    batch: dict[str, Tensor]
    """`batch_idx`, `cls`, `bboxes`."""
    weights: Tensor | None
    """(nc,) of classes."""
    head: Any
    """What a loss asks of a Detect layer."""

    @property
    def most(self) -> int:
        """Boxes of the image that has the most."""
        numbers = self.batch["batch_idx"].long()
        return int(numbers.bincount().max()) if len(numbers) else 0


def head_of(classes: int, bins: int = 16, strides: tuple[float, ...] = STRIDES) -> Any:
    """What a loss asks of a Detect layer."""
    return SimpleNamespace(nc=classes, reg_max=bins, stride=torch.tensor(strides))


def outputs(
    images: int,
    classes: int,
    shape: tuple[int, int],
    spread: float = 1.0,
    dtype: torch.dtype = torch.float32,
    bins: int = 16,
    strides: tuple[float, ...] = STRIDES,
) -> dict[str, Any]:
    """Raw head outputs of images of `shape` pixels: distances of a few cells, scores around a low
    prior."""
    feats = [
        torch.zeros(images, 1, shape[0] // int(each), shape[1] // int(each)) for each in strides
    ]
    anchors = sum(level[0, 0].numel() for level in feats)
    peak = torch.arange(bins).repeat(4).view(1, -1, 1)
    boxes = torch.randn(images, 4 * bins, anchors) * spread - (peak - 3).abs() * 0.3
    scores = torch.randn(images, classes, anchors) * 2 * spread - 3
    return {
        "boxes": boxes.to(dtype).requires_grad_(),
        "scores": scores.to(dtype).requires_grad_(),
        "feats": [level.to(dtype) for level in feats],
    }


def labels(counts: list[int], classes: int, area: Callable[[int], Tensor]) -> dict[str, Tensor]:
    """Labels with so many boxes in each image; `area` gives (n, 4) normalised centre x, y, width,
    height."""
    total = sum(counts)
    return {
        "batch_idx": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).float(),
        "cls": torch.randint(classes, (total, 1)).float(),
        "bboxes": area(total),
    }


def plain(count: int) -> Tensor:
    """Boxes as data sets have them: sides from a hundredth to two thirds of the image, small ones
    the more frequent."""
    return torch.cat((torch.rand(count, 2), torch.exp(torch.rand(count, 2) * -4.2) * 0.66), 1)


def draw(seed: int) -> Sample:
    """The random batch with this number."""
    torch.manual_seed(seed)
    kind = KINDS[seed % len(KINDS)]
    images, classes = _upto(6), 1 if seed % 7 == 0 else _upto(80)
    shape = (_one_of(SIDES), _one_of(SIDES))
    most = _upto(300) if kind == "crowd" or seed % 5 == 0 else _upto(24)
    counts = [0 if kind == "none" or torch.rand(()) < 0.2 else _upto(most) for _ in range(images)]
    batch = labels(counts, classes, _AREAS[kind])
    dtype = torch.bfloat16 if seed % 3 == 0 else torch.float32
    predictions = outputs(images, classes, shape, float(torch.rand(()) * 2), dtype)
    weights = torch.rand(classes) * 2 if seed % 4 == 1 else None
    return Sample(kind, predictions, batch, weights, head_of(classes))


def _upto(most: int) -> int:
    return int(torch.randint(1, most + 1, ()))


def _one_of(values: tuple[int, ...]) -> int:
    return values[int(torch.randint(len(values), ()))]


def _small(count: int) -> Tensor:
    """Sides below most strides."""
    return torch.cat((torch.rand(count, 2), torch.rand(count, 2) * 0.1), 1)


def _points(count: int) -> Tensor:
    """Boxes without width, height or both, some on the corner of the image."""
    boxes = torch.cat((torch.rand(count, 2), torch.rand(count, 2) * 0.3), 1)
    boxes[:, 2] *= torch.rand(count) < 0.5
    boxes[:, 3] *= torch.rand(count) < 0.5
    boxes[::5] = 0
    return boxes


def _outside(count: int) -> Tensor:
    """Boxes beyond the borders, wholly or partly."""
    return torch.cat((torch.rand(count, 2) * 3 - 1, torch.rand(count, 2)), 1)


def _twice(count: int) -> Tensor:
    """The same few boxes many times."""
    return plain(count // 4 + 1).repeat(4, 1)[:count]


def _whole(count: int) -> Tensor:
    return torch.cat((0.5 + torch.rand(count, 2) * 0.05, 0.8 + torch.rand(count, 2) * 0.4), 1)


_AREAS = {
    "mixed": plain,
    "small": _small,
    "points": _points,
    "outside": _outside,
    "duplicates": _twice,
    "whole image": _whole,
    "crowd": plain,
    "none": plain,
}


class Theirs:
    """ultralytics' loss for a Detect layer: raw outputs and labels to its (3,) items, with a
    graph."""

    def __init__(self, head: Any, weights: Tensor | None = None) -> None:
        from ultralytics.utils.loss import v8DetectionLoss

        model = SimpleNamespace(
            model=[head],
            args=GAINS,
            class_weights=weights,
            parameters=lambda: iter([torch.zeros(1)]),
        )
        self.criterion = v8DetectionLoss(model)

    def __call__(self, predictions: dict[str, Any], batch: dict[str, Tensor]) -> Tensor:
        """Items of one batch."""
        return self.criterion.get_assigned_targets_and_loss(as_float(predictions), batch)[1]


def ours(head: Any, weights: Tensor | None = None, exact: bool | None = None) -> DetectionLoss:
    """Our loss for the same."""
    return DetectionLoss(head, CPU, GAINS, weights, exact=exact)


@dataclass(frozen=True)
class Apart:
    """How far two losses are from each other on one batch: largest difference over largest value, 0
    where all bits are equal."""

    items: float
    """Of box, cls, dfl."""
    boxes: float
    """Of the gradient of `boxes`."""
    scores: float
    """Of the gradient of `scores`."""

    @property
    def worst(self) -> float:
        """The largest of the three."""
        return max(self.items, self.boxes, self.scores)


def compare(sample: Sample, *, exact: bool | None = None) -> Apart:
    """Both losses and their gradients on one batch."""
    images = len(sample.predictions["boxes"])
    wrt = (sample.predictions["boxes"], sample.predictions["scores"])
    their_items = Theirs(sample.head, sample.weights)(sample.predictions, sample.batch)
    their_gradients = torch.autograd.grad(their_items.sum() * images, wrt)
    loss, items = ours(sample.head, sample.weights, exact)(sample.predictions, sample.batch, images)
    gradients = torch.autograd.grad(loss, wrt)
    pairs = zip((items, *gradients), (their_items.detach(), *their_gradients), strict=True)
    return Apart(*(_apart(mine, other) for mine, other in pairs))


def _apart(mine: Tensor, other: Tensor) -> float:
    assert mine.dtype == other.dtype and mine.shape == other.shape
    if mine.equal(other):
        return 0.0
    largest = other.double().abs().max().clamp(min=1e-30)
    return float((mine.double() - other.double()).abs().max() / largest)
