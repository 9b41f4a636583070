"""Predicted and measured memory of the detection loss, by boxes and classes."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.hardware import describe
from benchmarks.loss_memory import LiveBytes
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.loss.detection_loss import DetectionLoss
from yolods.plan.memory.boxes import box_counts
from yolods.plan.memory.loss_burst import loss_burst

EACH = 0.05
"""Target: largest error of a case."""
IMAGES = 2
CLASSES, BOXES, SIZES = (3, 80), (1, 5, 20, 100, 500), (320, 640)
_GAINS = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)


@dataclass(frozen=True)
class Burst:
    """The loss of one micro-batch, in bytes."""

    classes: int
    boxes: int
    """Per image."""
    imgsz: int
    exact: bool
    """Whether only slots that received a box are kept: what a CPU does. A GPU keeps all."""
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.measured - 1


def random_labels(boxes: int, images: int = IMAGES) -> dict[str, Tensor]:
    """Labels of a micro-batch as the loader returns them: boxes anywhere, most of them small."""
    generator = torch.Generator().manual_seed(boxes)
    total = images * boxes
    sides = 0.02 + 0.4 * torch.rand(total, 2, generator=generator) ** 2
    centres = sides / 2 + (1 - sides) * torch.rand(total, 2, generator=generator)
    return {
        "batch_idx": torch.arange(images).repeat_interleave(boxes).float(),
        "cls": torch.zeros(total, 1),
        "bboxes": torch.cat((centres, sides), 1),
    }


def real_burst(
    head: torch.nn.Module, outputs: dict[str, Any], batch: dict[str, Tensor], *, exact: bool
) -> int:
    """Bytes that the loss's operations allocate at most, forward and backward, on a CPU.

    Args:
        head: the Detect layer.
        outputs: of the head: `boxes`, `scores` and `feats`; their gradients are computed.
        exact: see `Burst`.
    """
    loss = DetectionLoss(head, torch.device("cpu"), _GAINS, exact=exact)
    leaves = {key: outputs[key].detach().requires_grad_() for key in ("boxes", "scores")}
    with LiveBytes() as live:
        total, _ = loss({**leaves, "feats": outputs["feats"]}, batch, len(outputs["boxes"]))
        total.backward()
    return live.peak


def compared(classes: int, imgsz: int, boxes: Sequence[int]) -> Iterator[Burst]:
    """Both ways of the loss for an untrained yolov5n that sees noise."""
    names = tuple(map(str, range(classes)))
    blueprint = Blueprint(architecture(parse_name("yolov5n"), classes, 3), names, seed=0)
    net, _ = blueprint.whole(None)
    net.train()
    noise = torch.rand(IMAGES, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = net(noise)
    for each, exact in itertools.product(boxes, (False, True)):
        batch = random_labels(each)
        areas = batch["bboxes"][:, 2:].prod(1).numpy()
        counts = box_counts(np.full(IMAGES, each), areas, mosaic=0)
        predicted = loss_burst(blueprint.head, counts, imgsz, IMAGES, torch.float32, on_host=exact)
        measured = real_burst(blueprint.head, outputs, batch, exact=exact)
        yield Burst(classes, each, imgsz, exact, predicted, measured)


def run(args: argparse.Namespace) -> int:
    """Compare all cases, and write the record; 1 if one is further off than the target."""
    header = describe(sorted(os.sched_getaffinity(0)))
    found = [
        burst
        for classes, imgsz in itertools.product(CLASSES, SIZES)
        for burst in compared(classes, imgsz, BOXES)
    ]
    lines = report(found, header)
    print("\n".join(lines[-len(found) - 4 :]))
    if args.record:
        args.record.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(not _met(found))


def _met(found: Sequence[Burst]) -> bool:
    return max(abs(each.error) for each in found) <= EACH


def report(found: Sequence[Burst], header: Sequence[str]) -> list[str]:
    """The record."""
    worst = max(abs(each.error) for each in found)
    return [
        "# Predicted and measured memory of the detection loss",
        "",
        "`python benchmarks/plan.py --burst --record benchmarks/plan_burst.md`, "
        f"{datetime.now(UTC):%Y-%m-%d}.",
        "",
        *header,
        "",
        *_METHOD,
        "",
        "| classes | boxes | imgsz | way | predicted KiB | measured KiB | error |",
        "| - | - | - | - | - | - | - |",
        *map(_row, found),
        "",
        f"Largest error {worst:.1%} (target {EACH:.0%}): {'met' if _met(found) else 'missed'}.",
    ]


_METHOD = (
    f"Measured: the product's own loss, forward and backward, for {IMAGES} images with boxes at",
    "random places and the outputs of an untrained yolov5n for noise, in fp32. Every storage that",
    "its operations make is followed (`benchmarks/loss_memory.py`). The GPU's way keeps a slot for",
    "every anchor that a box can have, so that nobody waits for the device; it runs on a CPU here.",
    "Predicted: from the number of boxes and their areas in sixteen parts. Not measured: a GPU,",
    "and a trained model.",
)


def _row(each: Burst) -> str:
    way = "CPU" if each.exact else "GPU"
    sizes = f"{each.predicted / 1024:.0f} | {each.measured / 1024:.0f}"
    return f"| {each.classes} | {each.boxes} | {each.imgsz} | {way} | {sizes} | {each.error:+.1%} |"
