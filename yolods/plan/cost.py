"""Costs per node of a detector: FLOPs, parameters, activations kept for backward, output bytes.

The graph runs once on the meta device, which counts any model at any resolution without its memory
or time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from yolods.compat import storage_key, without_compiler
from yolods.model.graph.graph import IMAGE, Graph, Node, live, modules_of, run_node
from yolods.model.graph.hollow import run_on_meta

STATE_BYTES = 16
"""Bytes per parameter in mixed precision with Adam (ZeRO, 1910.02054).

Weight 2, gradient 2, master 4, two moments 8.
"""
BACKWARD = 2
"""FLOPs of a convolution's backward relative to its forward: gradients of input and weight."""
TRAFFIC = 6
"""How often a kept activation passes through memory in one step.

Counted for a convolution, BatchNorm and SiLU, which keep three tensors of one size. Forward: reads
1 and writes 1, reads 2 and writes 1, reads 1 and writes 1. Backward: reads 2 and writes 1 (SiLU),
reads 4 and writes 1 (BatchNorm), reads 3 and writes 1 (convolution). That is 19 / 3.
"""
# BatchNorm refuses a single 1x1 pixel.
_IMAGES = 2


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node; everything except parameters is per image."""

    flops: int
    """2 x multiply-adds of the forward pass, in convolutions and matrix products."""
    parameters: int
    """Number of parameters, frozen ones included."""
    inner_bytes: int
    """Activations kept for backward that no other node reads."""
    keeps: tuple[str, ...]
    """Values kept for this node's backward pass, usually its inputs.

    Several nodes may keep a value, which is still stored only once.
    """
    activation_bytes: int
    """`inner_bytes` plus values that no earlier node keeps; adds up to the whole model's."""
    output_bytes: tuple[int, ...]
    """Bytes of each value in `Node.writes`, in that order; 0 for 'out', which is no tensor."""


@dataclass(frozen=True, eq=False)
class Cost:
    """Costs of all nodes of a graph at one resolution and precision."""

    graph: Graph
    """The counted graph."""
    imgsz: int
    """Side of the image in pixels."""
    dtype_bytes: int
    """Bytes of a floating-point activation."""
    nodes: tuple[NodeCost, ...]
    """In order of execution."""
    values: dict[str, int]
    """Bytes per image of every value by name, including the image's."""
    crossing: tuple[int, ...]
    """Bytes per image that cross before node 0, 1, ... and after the last; 0 at both ends."""

    @property
    def flops(self) -> int:
        """Forward FLOPs per image."""
        return sum(node.flops for node in self.nodes)

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(node.parameters for node in self.nodes)

    @property
    def activation_bytes(self) -> int:
        """Activations kept for backward per image, on one device."""
        return sum(node.activation_bytes for node in self.nodes)


@lru_cache(maxsize=32)
def cost(graph: Graph, imgsz: int, dtype_bytes: int = 2) -> Cost:
    """Count a graph's costs for square images.

    Counts what autograd saves: each storage once, integers (indices of max-pooling) at their own
    size. Weights and the few bytes of BatchNorm's batch statistics are omitted, and so is memory
    that only exists during a kernel.

    Args:
        graph: result of `build_graph`.
        imgsz: side of the image in pixels, a multiple of the model's largest stride.
        dtype_bytes: 2 for bf16, fp16 and autocast, 4 for fp32.
    """
    counts, values = _counted(graph, imgsz)
    sizes = {name: size.bytes(dtype_bytes) for name, size in values.items()}
    nodes, kept = [], set[str]()
    for node, count in zip(graph.nodes, counts, strict=True):
        inner = count.inner.bytes(dtype_bytes)
        # A value that an earlier node keeps needs no further memory.
        first = sum(sizes[name] for name in count.keeps if name not in kept)
        kept.update(count.keeps)
        outputs = tuple(sizes[name] for name in node.writes)
        nodes.append(
            NodeCost(count.flops, count.parameters, inner, count.keeps, inner + first, outputs)
        )
    crossing = [sum(sizes[value] for value in live(graph, cut)) for cut in range(1, len(nodes))]
    return Cost(graph, imgsz, dtype_bytes, tuple(nodes), sizes, (0, *crossing, 0))


@dataclass(frozen=True)
class Machine:
    """Speeds for costs that were not measured. The defaults are assumptions, not measurements."""

    flops: float = 1e14
    """Convolution FLOPs per second of a device."""
    link: float = 1e11
    """Bytes per second from one stage to the next."""
    memory: float = math.inf
    """Bytes per second of a device's memory; infinity omits the term."""


def node_seconds(
    cost: Cost, machine: Machine, images: int = 1, *, recompute: bool = False
) -> tuple[float, ...]:
    """Seconds per node for forward and backward of `images` images.

    The sum of two terms: FLOPs of forward and backward (and of another forward with `recompute`) at
    the machine's rate, and `TRAFFIC` times the activations at the rate of its memory. BatchNorm and
    SiLU compute almost nothing and wait for memory.
    """
    passes = 1 + BACKWARD + recompute
    return tuple(
        images
        * (passes * node.flops / machine.flops + TRAFFIC * node.activation_bytes / machine.memory)
        for node in cost.nodes
    )


@dataclass(frozen=True)
class _Size:
    """Of tensors, for one image."""

    floats: int = 0
    """Elements of floating-point types."""
    others: int = 0
    """Bytes of other types."""

    def bytes(self, dtype_bytes: int) -> int:
        """Bytes, if a floating-point element has so many."""
        return self.floats * dtype_bytes + self.others

    def __add__(self, other: _Size) -> _Size:
        return _Size(self.floats + other.floats, self.others + other.others)


@dataclass(frozen=True)
class _Count:
    """What `NodeCost` is computed from, at any precision."""

    flops: int
    parameters: int
    inner: _Size
    keeps: tuple[str, ...]


@lru_cache(maxsize=32)
def _counted(graph: Graph, imgsz: int) -> tuple[tuple[_Count, ...], dict[str, _Size]]:
    """The counts of every node, and the size of every value."""
    modules = modules_of(graph.nodes, graph.skeleton)
    image = torch.empty(_IMAGES, graph.channels, imgsz, imgsz, device="meta")
    values: dict[str, Any] = {IMAGE: image}
    traces = []
    for node in graph.nodes:
        traces.append(_Trace(node, modules, values))
        values |= traces[-1].writes
    # Reversed, so that a storage that several values share gets the name of the first.
    names = {
        storage_key(tensor): name
        for name, tensor in reversed(values.items())
        if isinstance(tensor, Tensor)
    }
    sizes = {name: _size(value) for name, value in values.items()}
    return tuple(trace.count(names) for trace in traces), sizes


class _Trace:
    """One node, run once on meta, and what autograd saved."""

    def __init__(self, node: Node, modules: dict[str, nn.Module], values: dict[str, Any]) -> None:
        own = [parameter for name in node.modules for parameter in modules[name].parameters()]
        self._parameters = sum(parameter.numel() for parameter in own)
        weights = {storage_key(parameter) for parameter in own}
        self._saved: dict[int, _Size] = {}
        # Keeps the tensors alive: the key of a freed storage may be given to another one.
        self._alive: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            self._alive.append(tensor)
            # One-dimensional tensors are BatchNorm's batch statistics.
            if tensor.dim() > 1 and storage_key(tensor) not in weights:
                self._saved[storage_key(tensor)] = _size(tensor)
            return tensor

        hooks = saved_tensors_hooks(pack, lambda tensor: tensor)
        with without_compiler(), _FlopCounter() as counter, hooks:
            self.writes = run_node(node, modules, values)
        self._flops = counter.flops // _IMAGES

    def count(self, names: dict[int, str]) -> _Count:
        """What it counted.

        Args:
            names: of the values, by the keys of their storages.
        """
        inner = sum((size for key, size in self._saved.items() if key not in names), _Size())
        keeps = tuple(names[key] for key in self._saved if key in names)
        return _Count(self._flops, self._parameters, inner, keeps)


class _FlopCounter(TorchDispatchMode):
    """Within: operations run without memory, and their FLOPs are added up."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        """Those of the operations that torch has a formula for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count it."""
        kwargs = kwargs or {}
        result = run_on_meta(func, args, kwargs)
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)
        return result


def _size(value: Any) -> _Size:
    """One image's share of a batch; nothing if the value is not a tensor."""
    if not isinstance(value, Tensor):
        return _Size()
    elements = value.numel() // _IMAGES
    if value.is_floating_point():
        return _Size(floats=elements)
    return _Size(others=elements * value.element_size())
