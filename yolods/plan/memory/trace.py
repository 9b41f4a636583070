"""Follows every storage that a micro-batch's passes allocate, on hollow tensors.

The product's own layers run forward and backward once, without memory or arithmetic. What remains
is a list of storages with the moments at which each begins and ends, from which `timeline` computes
the memory of a stage without another run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from yolods.compat import next_backward, running_backward, without_compiler
from yolods.model.graph.graph import IMAGE, OUT, Graph, live, modules_of, run_node
from yolods.model.graph.hollow import HollowMode, MetaMode, run_hollow
from yolods.model.graph.stage import Stage
from yolods.model.inputs import InputFormat
from yolods.model.layers import SyncBatchNormFloat32, exchange_layers
from yolods.plan.memory.storage_log import StorageLog

IMAGES = 1009
"""Images of the traced micro-batch. A prime: the bytes of a storage that holds something of every
image are a multiple of it, and those of weights are not, because no layer has as many channels."""
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.bfloat16}
_COPIES = {
    torch.ops.aten.convolution.default: (1, 2),
    torch.ops.aten.convolution_backward.default: (2, 3),
}
"""By operation: the place of the weight among its arguments, and the copies of it."""
_BF16_BUFFER = 200_000
_SMALL = 20480
"""Most elements of an image for which torch takes its own kernels."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """How layers compute: what their storages depend on besides the model and the images."""

    precision: str
    """Data type of the parameters: fp32, bf16 or fp16."""
    autocast: str | None = None
    """bf16, fp16 or None: off."""
    sync_bn: bool = False
    """Whether BatchNorm computes its statistics over several replicas."""
    on_host: bool = False
    """Whether the kernels are those of a CPU."""

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the parameters, as far as it concerns memory.

        Hollow tensors are those of a CPU, where BatchNorm copies fp16 to fp32; with bf16 in its
        place it does what it does on a GPU.
        """
        return _DTYPES[self.precision]

    @property
    def computes(self) -> torch.dtype:
        """Data type of the convolutions."""
        return _DTYPES[self.autocast or self.precision]


# Wide: one field for each thing that is known about the passes.
@dataclass(frozen=True, eq=False)
class Trace:
    """Forward and backward of one micro-batch, without the loss between them.

    Storages are in the order of their beginnings. A moment is a number from 0 to `length`.
    """

    fixed: np.ndarray
    """(storages,) int64 bytes of storages that do not depend on the number of images; else 0."""
    each: np.ndarray
    """(storages,) int64 bytes per image; else 0."""
    for_several: np.ndarray
    """(storages,) bool: which of them a micro-batch of one image does not have."""
    born: np.ndarray
    """(storages,) int64 moments."""
    dead: np.ndarray
    """(storages,) int64 moments."""
    turn: int
    """The moment between forward and backward."""
    ended: int
    """The last moment of the backward pass, at which the engine still holds the outputs."""
    length: int
    """The moment after everything."""
    arrivals: np.ndarray
    """(parameters, 2) int64: the moment at which a parameter's gradient is complete, and its
    elements; in the order of the moments."""
    forward: tuple[int, ...]
    """The moment at which each node's forward pass begins, and that at which the last one's ends;
    () if the passes do not run node by node."""
    backward: tuple[int, ...]
    """The moment at which each node's backward pass ends, and that at which the last one's begins:
    node i has backward[i + 1] to backward[i]."""


def trace_detector(net: nn.Module, way: Way, imgsz: int) -> Trace:
    """A whole detector as `build_engine` wraps it, without recomputation.

    Args:
        net: the DetectionModel on the meta device; not changed.
        way: how it computes.
        imgsz: side of the images in pixels.
    """
    net = deepcopy(net)
    run = _Run(way, net)
    return run.trace(lambda: run.image(imgsz), lambda image: net(image), keep=True)


def trace_recomputed(graph: Graph, length: int, way: Way, imgsz: int) -> Trace:
    """A whole detector whose backward pass recomputes segments of `length` nodes.

    Args: see `trace_detector`.
    """
    stage = Stage(graph, 0, len(graph.nodes), recompute=length, device="meta")
    run = _Run(way, stage)
    return run.trace(lambda: run.image(imgsz), lambda image: stage({IMAGE: image})[OUT], keep=True)


def trace_stage(
    graph: Graph,
    nodes: range,
    shapes: dict[str, tuple[int, ...]],
    length: int,
    way: Way,
    imgsz: int,
) -> Trace:
    """A pipeline stage whose backward pass recomputes segments of `length` nodes.

    What it receives and what it sends are left out, except the image.

    Args:
        nodes: the stage's.
        shapes: (C, H, W) of the values that enter it.
        For the others see `trace_detector`.
    """
    stage = Stage(graph, nodes.start, nodes.stop, recompute=length, device="meta")
    run = _Run(way, stage)
    last = nodes.stop == len(graph.nodes)
    # Referred to until the end, because the engine holds them and so their gradients.
    received: dict[str, Tensor] = {}

    def enter() -> dict[str, Tensor]:
        if nodes.start == 0:
            return {IMAGE: run.image(imgsz)}
        for name in live(graph, nodes.start):
            received[name] = run.empty(shapes[name]).requires_grad_()
        run.log.leave_out(*received.values())
        return received

    def forward(values: dict[str, Tensor]) -> Any:
        outputs = stage(values)
        return outputs[OUT] if last else outputs

    return run.trace(enter, forward, keep=not last)


def trace_nodes(graph: Graph, way: Way, imgsz: int) -> Trace:
    """All nodes one after the other, with the moments between them. Args: see `trace_detector`."""
    stage = Stage(graph, 0, len(graph.nodes), device="meta")
    run = _Run(way, stage)
    modules = modules_of(graph.nodes, stage)

    def forward(image: Tensor) -> Any:
        held: dict[str, Any] = {IMAGE: image}
        del image
        for node in graph.nodes:
            run.enter_node()
            held |= run_node(node, modules, held)
            for name in node.reads:
                if graph.lifetimes[name][1] == node.index:
                    held.pop(name, None)
        run.enter_node()
        return held[OUT]

    return run.trace(lambda: run.image(imgsz), forward)


def shapes_of(graph: Graph, imgsz: int) -> dict[str, tuple[int, ...]]:
    """Shape without the images, (C, H, W), of every value that is a tensor."""
    modules = modules_of(graph.nodes, graph.skeleton)
    # Two images, because BatchNorm refuses a single 1x1 pixel.
    values: dict[str, Any] = {IMAGE: torch.empty(2, graph.channels, imgsz, imgsz, device="meta")}
    with without_compiler(), MetaMode():
        for node in graph.nodes:
            values |= run_node(node, modules, values)
    return {
        name: tuple(value.shape[1:]) for name, value in values.items() if isinstance(value, Tensor)
    }


class _Run:
    """A module on hollow tensors, which runs once."""

    def __init__(self, way: Way, module: nn.Module) -> None:
        self._way, self._module = way, module
        workspace = _workspace if way.on_host else None
        self.log = StorageLog(self._at, workspace, device="meta", run=run_hollow)
        self._arrivals: list[tuple[int, int]] = []
        self._forward: list[int] = []
        self._sequence: list[int] = []
        self._backward: list[int] = []

    def trace(
        self, enter: Callable[[], Any], forward: Callable[[Any], Any], *, keep: bool = False
    ) -> Trace:
        """Trace both passes.

        Args:
            keep: whether the engine holds the outputs until the backward pass has ended.
            enter: makes what the forward pass gets.
            forward: returns what the loss reads, or what the next stage gets: tensors in
                dictionaries.
        """
        with without_compiler(), HollowMode():
            self._prepare()
        with without_compiler(), self.log:
            with self._precision():
                outputs = forward(enter())
            seed = _seed(outputs)
            if not keep:
                outputs = None
            turn = self.log.now
            if self._forward:
                self._backward = [turn]
            seed.backward()
            ended = self.log.now - 1
            del seed, outputs
        return self._result(turn, ended)

    def _prepare(self) -> None:
        """Give the module hollow tensors, in place."""
        way, module = self._way, self._module
        for part in module.modules():
            for name, weight in list(part.named_parameters(recurse=False)):
                empty = self.empty(weight.shape, way.dtype)
                setattr(part, name, nn.Parameter(empty, weight.requires_grad))
            for name, buffer in list(part.named_buffers(recurse=False)):
                setattr(part, name, self.empty(buffer.shape, buffer.dtype))
        exchange_layers(
            module,
            low_precision=way.precision != "fp32",
            sync_bn=way.sync_bn,
            pointwise=way.on_host and way.computes == torch.float32,
        )
        for part in module.modules():
            if type(part) is SyncBatchNormFloat32:
                part.__class__ = _LoneSyncBatchNorm
        module.train()
        self.log.leave_out(*module.parameters(), *module.buffers())
        for weight in module.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(self._arrived)

    def empty(self, shape: Any, dtype: torch.dtype | None = None) -> Tensor:
        """A hollow tensor; without a data type a value (C, H, W) of all images, channels-last, as
        the engine receives it: its layout decides which gradients autograd copies."""
        if dtype is not None:
            return torch.empty(tuple(shape), dtype=dtype)
        last = torch.channels_last if len(shape) == 3 else torch.contiguous_format
        return torch.empty((IMAGES, *shape), dtype=self._way.computes, memory_format=last)

    def image(self, imgsz: int) -> Tensor:
        """The images as `InputFormat` makes them."""
        raw = self.empty((IMAGES, 3, imgsz, imgsz), torch.uint8)
        # The loader's tensor on the host.
        self.log.leave_out(raw)
        form = InputFormat(torch.device("cpu"), self._way.dtype, channels_last=True)
        return form.images(raw)

    def _precision(self) -> Any:
        cast = self._way.autocast
        return nullcontext() if cast is None else torch.autocast("cpu", _DTYPES[cast])

    def enter_node(self) -> None:
        """The next node's forward pass begins; after the last one, it has ended."""
        self._forward.append(self.log.now)
        self._sequence.append(next_backward())

    def _arrived(self, weight: Tensor) -> None:
        # Let go of at once; `gradients` knows what a layout keeps.
        self._arrivals.append((self.log.now, weight.numel()))
        nn.ParameterList([weight]).zero_grad()

    def _at(self) -> None:
        """Before every operation: note which node's backward pass this is."""
        # autograd runs what was recorded last first, so nodes end in the reverse order.
        number = running_backward() if self._backward else None
        if number is None or number >= self._sequence[-1]:
            return
        node = bisect_right(self._sequence, number) - 1
        while len(self._sequence) - 1 - len(self._backward) > node:
            self._backward.append(self.log.now)

    def _result(self, turn: int, ended: int) -> Trace:
        log = self.log
        sizes = np.array(log.sizes, np.int64)
        dead = np.array(log.dead, np.int64)
        per_image = sizes % IMAGES == 0
        nodes = len(self._forward) - 1
        # Nodes without an operation in the backward pass end with those before them.
        backward = [*self._backward, *[log.now] * (nodes + 1 - len(self._backward))]
        return Trace(
            fixed=np.where(per_image, 0, sizes),
            each=np.where(per_image, sizes // IMAGES, 0),
            for_several=np.isin(np.arange(len(sizes)), log.for_several),
            born=np.array(log.born, np.int64),
            dead=np.where(dead < 0, log.now, dead),
            turn=turn,
            ended=ended,
            length=log.now,
            arrivals=np.array(self._arrivals, np.int64).reshape(-1, 2),
            forward=tuple(self._forward),
            backward=tuple(reversed(backward)) if self._forward else (),
        )


def _workspace(operation: Any, arguments: tuple[Any, ...]) -> tuple[int, int]:
    """Bytes that a convolution on a CPU allocates for itself, and more of them for several images.

    For channels-last images oneDNN copies a weight that is not channels-last, and reorders it: two
    copies at once in the forward pass, and three in the backward pass, in addition to its gradient
    (torch 2.13, read from the allocator's events). In bf16 it has another buffer, whose size
    changes little. A single small image in fp32 does not go to oneDNN (ATen/native/Convolution.cpp,
    `use_mkldnn`), and torch's own kernels make one copy in either pass. On a GPU this is cuDNN's
    choice, which nobody knows without it.
    """
    copies = _COPIES.get(operation)
    if copies is None:
        return 0, 0
    images, weight = arguments[copies[0] - 1 : copies[0] + 1]
    buffer = 0 if weight.dtype == torch.float32 else _BF16_BUFFER
    if weight[0, 0].numel() == 1:
        return buffer, 0
    copy = weight.numel() * weight.element_size()
    own = weight.dtype == torch.float32 and images[0].numel() <= _SMALL and weight.shape[-1] <= 3
    return (copy, (copies[1] - 1) * copy) if own else (copies[1] * copy + buffer, 0)


def _seed(outputs: dict[str, Any]) -> Tensor:
    """A scalar whose backward pass begins with the gradients of a stage's outputs."""
    read = ("boxes", "scores") if "boxes" in outputs else outputs
    tensors = [outputs[name] for name in read]
    return _Seed.apply(*(each for each in tensors if each.requires_grad))


class _Seed(torch.autograd.Function):
    """A scalar of several tensors, whose gradients exist only from the backward pass on."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        """See the class."""
        ctx.like = [(each.shape, each.dtype, each.device) for each in tensors]
        return torch.empty((), device=tensors[0].device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        """A gradient of each tensor's shape."""
        return tuple(torch.empty(shape, dtype=kind, device=at) for shape, kind, at in ctx.like)


class _LoneSyncBatchNorm(SyncBatchNormFloat32):
    """The layer in a process that has no other ranks."""

    def _joined(self) -> bool:
        return True

    def _over_ranks(self, sums: Tensor) -> Tensor:
        return sums.clone()
