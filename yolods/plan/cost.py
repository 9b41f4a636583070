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
from torch.utils.flop_counter import FlopCounterMode

from yolods.compat import storage_key
from yolods.model.graph.graph import IMAGE, Graph, Node, live, modules_of, run_node

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
    modules = modules_of(graph.nodes, graph.skeleton)
    image = torch.empty(_IMAGES, graph.channels, imgsz, imgsz, device="meta")
    values: dict[str, Any] = {IMAGE: image}
    traces = []
    for node in graph.nodes:
        traces.append(_Trace(node, modules, values, dtype_bytes))
        values |= traces[-1].writes
    # Reversed, so that a storage that several values share gets the name of the first.
    names = {
        storage_key(tensor): name
        for name, tensor in reversed(values.items())
        if isinstance(tensor, Tensor)
    }
    sizes = {name: _bytes(value, dtype_bytes) for name, value in values.items()}
    nodes, kept = [], set()
    for trace in traces:
        nodes.append(_node_cost(trace, names, sizes, kept))
        kept.update(nodes[-1].keeps)
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


class _Trace:
    """One node, run once on meta, and what autograd saved."""

    def __init__(
        self, node: Node, modules: dict[str, nn.Module], values: dict[str, Any], dtype_bytes: int
    ) -> None:
        self.node = node
        own = [parameter for name in node.modules for parameter in modules[name].parameters()]
        self.parameters = sum(parameter.numel() for parameter in own)
        weights = {storage_key(parameter) for parameter in own}
        self.saved: dict[int, int] = {}
        # Keeps the tensors alive: the key of a freed storage may be given to another one.
        self.alive: list[Tensor] = []

        def pack(tensor: Tensor) -> Tensor:
            self.alive.append(tensor)
            # One-dimensional tensors are BatchNorm's batch statistics.
            if tensor.dim() > 1 and storage_key(tensor) not in weights:
                self.saved[storage_key(tensor)] = _bytes(tensor, dtype_bytes)
            return tensor

        with (
            FlopCounterMode(display=False) as counter,
            saved_tensors_hooks(pack, lambda tensor: tensor),
        ):
            self.writes = run_node(node, modules, values)
        self.flops = counter.get_total_flops() // _IMAGES


def _node_cost(
    trace: _Trace, names: dict[int, str], sizes: dict[str, int], kept: set[str]
) -> NodeCost:
    inner = sum(size for key, size in trace.saved.items() if key not in names)
    keeps = tuple(names[key] for key in trace.saved if key in names)
    # A value that an earlier node keeps needs no further memory.
    first = sum(sizes[name] for name in keeps if name not in kept)
    outputs = tuple(sizes[name] for name in trace.node.writes)
    return NodeCost(trace.flops, trace.parameters, inner, keeps, inner + first, outputs)


def _bytes(value: Any, dtype_bytes: int) -> int:
    """Bytes of one image's share of a batch; 0 if the value is not a tensor."""
    if not isinstance(value, Tensor):
        return 0
    return (
        value.numel()
        // _IMAGES
        * (dtype_bytes if value.is_floating_point() else value.element_size())
    )
