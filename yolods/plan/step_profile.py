"""Measures what one rank on a CPU does in a step: passes of the whole model, loss and optimizer.

`profile` measures each node alone, which suits a GPU: its host prepares the next kernels and the
loss meanwhile. On a CPU nobody does, and a node alone finds its inputs and weights in the cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from yolods.config import Hyper
from yolods.config.names.model_name import parse_name
from yolods.model.architecture.build import architecture
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import IMAGE, OUT, build_graph, modules_of, run_nodes
from yolods.model.inputs import InputFormat
from yolods.model.layers import exchange_layers
from yolods.model.loss.detection_loss import DetectionLoss
from yolods.plan.memory.boxes import BoxCounts
from yolods.plan.memory.loss_burst import labels
from yolods.plan.profile import casting

UNTIMED, TIMED = 2, 5
"""Steps that allocate and let oneDNN choose, and steps that count."""
ENOUGH = 20.0
"""Seconds after which a large model gets no further step."""
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class StepProfile:
    """Seconds of one rank, while the other ranks of its host compute as well."""

    forward: tuple[float, ...]
    """Of each node's forward pass of a micro-batch."""
    backward: float
    """Of the whole model's backward pass."""
    loss: float
    """Of a micro-batch's loss and its gradients by the model's outputs."""
    reduction: float
    """Of copying all gradients into buckets and back, around a reduction."""
    optimizer: float
    """Of a step's norm, clipping, update and moving average of all parameters."""
    images: int
    """Images of the micro-batch."""
    imgsz: int
    """Side of the images in pixels."""
    precision: str
    """fp32, bf16 or fp16."""

    @property
    def total(self) -> float:
        """Seconds of a step of one micro-batch."""
        each = (self.backward, self.loss, self.reduction, self.optimizer)
        return sum(self.forward) + sum(each)


@dataclass(frozen=True)
class StepsOf:
    """What is measured, as words for ranks on other hosts."""

    model: str
    """As for --model."""
    classes: int
    channels: int
    imgsz: int
    images: int
    """Images of a micro-batch."""
    boxes: int
    """Boxes of an image."""
    precisions: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """For `from_words`."""
        *one, precisions = astuple(self)
        return (*map(str, one), *precisions)

    @classmethod
    def from_words(cls, words: Sequence[str]) -> StepsOf:
        """What `words` says."""
        model, *numbers = words[:6]
        return cls(model, *map(int, numbers), precisions=tuple(words[6:]))

    def measure(self, precision: str) -> StepProfile:
        """Take the steps in this process."""
        layers = architecture(parse_name(self.model), self.classes, self.channels)
        blueprint = Blueprint(layers, tuple(map(str, range(self.classes))), 0)
        return measure_step(blueprint, self.imgsz, self.images, self.boxes, precision)


def measure_step(
    blueprint: Blueprint, imgsz: int, images: int, boxes: int, precision: str
) -> StepProfile:
    """Take a few steps of one micro-batch on this process's threads; medians.

    Args:
        blueprint: the model.
        imgsz: side of the images in pixels.
        images: images of the micro-batch.
        boxes: boxes of each image.
        precision: fp32, bf16 or fp16, as autocast over fp32 weights.
    """
    step = _Step(blueprint, precision)
    noise = torch.randint(0, 256, (images, step.graph.channels, imgsz, imgsz), dtype=torch.uint8)
    batch = {"img": noise, **labels(BoxCounts(boxes, boxes), images)}
    until, rows = time.perf_counter() + ENOUGH, [step.take(batch)]
    while len(rows) < UNTIMED + TIMED and time.perf_counter() < until:
        rows.append(step.take(batch))
    *forward, backward, loss, reduction, optimizer = np.median(rows[-TIMED:], 0).tolist()
    parts = (tuple(forward), backward, loss, reduction, optimizer)
    return StepProfile(*parts, images, imgsz, precision)


class _Step:
    """A model with all that a step needs."""

    def __init__(self, blueprint: Blueprint, precision: str) -> None:
        net, _ = blueprint.whole(None)
        # The layers of a run (engine/build.py).
        exchange_layers(net, low_precision=False, sync_bn=False, pointwise=precision == "fp32")
        net.train()
        self.graph = build_graph(blueprint.meta)
        self._modules = modules_of(self.graph.nodes, net)
        self._loss = DetectionLoss(net.model[-1], _CPU, Hyper())
        self._weights = [each for each in net.parameters() if each.requires_grad]
        # A rate of 0 takes as long as any other.
        self._optimizer = torch.optim.SGD(self._weights, lr=0.0, momentum=0.9, nesterov=True)
        self._average = [each.detach().clone() for each in self._weights]
        self._precision = precision

    def take(self, batch: dict[str, Tensor]) -> list[float]:
        """Seconds of each node's forward pass, and of the other parts of a `StepProfile`."""
        marks = [time.perf_counter()]
        images = InputFormat(_CPU, torch.float32, channels_last=True).images(batch["img"])
        values: dict[str, Any] = {IMAGE: images}
        with casting(self._precision, _CPU):
            for node in self.graph.nodes:
                values = run_nodes(self.graph, node.index, node.index + 1, self._modules, values)
                marks.append(time.perf_counter())
        computed = {name: values[OUT][name] for name in ("boxes", "scores")}
        outputs = {name: value.detach().requires_grad_() for name, value in computed.items()}
        loss, _ = self._loss({**values[OUT], **outputs}, batch, len(batch["img"]))
        loss.backward()
        marks.append(time.perf_counter())
        torch.autograd.backward(list(computed.values()), [each.grad for each in outputs.values()])
        marks.append(time.perf_counter())
        self._reduce()
        marks.append(time.perf_counter())
        self._update()
        marks.append(time.perf_counter())
        *forward, lost, backward, reduction, optimizer = np.diff(marks).tolist()
        return [*forward, backward, lost, reduction, optimizer]

    @torch.no_grad()
    def _reduce(self) -> None:
        """What `zero.whole_reduction` does besides the all-reduce."""
        gradients = [each.grad for each in self._weights if each.grad is not None]
        flat = torch.cat([each.reshape(-1) for each in gradients])
        flat.mul_(0.5)
        parts = flat.split([each.numel() for each in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view(gradient.shape))

    @torch.no_grad()
    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self._weights, 10.0)
        self._optimizer.step()
        torch._foreach_lerp_(self._average, self._weights, 1e-4)
        self._optimizer.zero_grad()
