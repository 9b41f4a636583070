"""What each node of a detector costs: FLOPs, parameters, activations kept for backward, bytes that it hands on.

Counted on the meta device by running the graph once: any model at any resolution, without its memory or time.
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
"""Of a parameter in mixed precision with Adam: weight 2, gradient 2, master 4, two moments 8 (ZeRO, 1910.02054)."""
BACKWARD = 2
"""FLOPs of a convolution's backward pass over those of its forward pass: the gradients of input and of weight."""
TRAFFIC = 6
"""Times that a kept activation goes through memory in one step, counted over a convolution, BatchNorm and SiLU that
keep three tensors of one size: forward reads 1 and writes 1, reads 2 and writes 1, reads 1 and writes 1; backward
reads 2 and writes 1 (SiLU), reads 4 and writes 1 (BatchNorm), reads 3 and writes 1 (convolution): 19 / 3."""
_IMAGES = 2  # BatchNorm refuses a single 1x1 pixel


@dataclass(frozen=True)
class NodeCost:
    """One node; everything but parameters is for one image."""

    flops: int
    """2 x multiply-adds of the forward pass's convolutions (and matrix products, where a layer has any)."""
    parameters: int
    """Numbers, frozen ones included."""
    inner_bytes: int
    """Activations kept for backward that no other node sees."""
    keeps: tuple[str, ...]
    """Values that this node keeps for its backward pass: most often its inputs. Kept once, however many keep them."""
    activation_bytes: int
    """`inner_bytes` and those values that no earlier node keeps: sums to the whole model's."""
    output_bytes: tuple[int, ...]
    """Of each value it writes, in the order of `Node.writes`; 0 for 'out', which is no single tensor."""


@dataclass(frozen=True, eq=False)
class Cost:
    """All nodes of a graph at one resolution and one precision."""

    graph: Graph
    """What was counted."""
    imgsz: int
    """Pixels a side."""
    dtype_bytes: int
    """Bytes of a floating-point activation."""
    nodes: tuple[NodeCost, ...]
    """In the order of execution."""
    values: dict[str, int]
    """Bytes an image of every value by name, the image's included."""
    crossing: tuple[int, ...]
    """Bytes an image that cross before node 0, 1, .. and after the last; 0 at both ends, where nothing is sent."""

    @property
    def flops(self) -> int:
        """Forward FLOPs of one image."""
        return sum(node.flops for node in self.nodes)

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(node.parameters for node in self.nodes)

    @property
    def activation_bytes(self) -> int:
        """Activations kept for backward of one image on one device."""
        return sum(node.activation_bytes for node in self.nodes)


@lru_cache(maxsize=32)
def cost(graph: Graph, imgsz: int, dtype_bytes: int = 2) -> Cost:
    """Count a graph's costs for square images.

    Counted as autograd saves it: each storage once, weights and the few bytes of BatchNorm's batch statistics left
    out, integers (max-pool's places) at their own size. What only lives during a kernel is not in it.

    Args:
        graph: of `build_graph`.
        imgsz: pixels a side, a multiple of the model's largest stride.
        dtype_bytes: 2 for bf16, fp16 and autocast, 4 for fp32.
    """
    modules = modules_of(graph.nodes, graph.skeleton)
    image = torch.empty(_IMAGES, graph.channels, imgsz, imgsz, device="meta")
    values: dict[str, Any] = {IMAGE: image}
    traces = []
    for node in graph.nodes:
        traces.append(_Trace(node, modules, values, dtype_bytes))
        values |= traces[-1].writes
    names = {storage_key(tensor): name for name, tensor in reversed(values.items()) if isinstance(tensor, Tensor)}
    sizes = {name: _bytes(value, dtype_bytes) for name, value in values.items()}
    nodes, kept = [], set()
    for trace in traces:
        nodes.append(_node_cost(trace, names, sizes, kept))
        kept.update(nodes[-1].keeps)
    crossing = [sum(sizes[value] for value in live(graph, cut)) for cut in range(1, len(nodes))]
    return Cost(graph, imgsz, dtype_bytes, tuple(nodes), sizes, (0, *crossing, 0))


@dataclass(frozen=True)
class Machine:
    """Speeds that costs are divided by where nothing was measured. The defaults are assumptions, not measurements."""

    flops: float = 1e14
    """Convolution FLOPs a second that a device reaches."""
    link: float = 1e11
    """Bytes a second from one stage to the next."""
    memory: float = math.inf
    """Bytes a second of a device's memory; infinite leaves the term out."""


def node_seconds(cost: Cost, machine: Machine, images: int = 1, *, recompute: bool = False) -> tuple[float, ...]:
    """Seconds for forward and backward of `images` images through each node.

    FLOPs of forward and backward (of one more forward with `recompute`) at the machine's rate, and `TRAFFIC` times the
    activations at its memory's rate: BatchNorm and SiLU compute next to nothing and wait for memory.
    """
    passes = 1 + BACKWARD + recompute
    return tuple(
        images * (passes * node.flops / machine.flops + TRAFFIC * node.activation_bytes / machine.memory)
        for node in cost.nodes
    )


class _Trace:
    """One node, run once on meta, and what it left behind."""

    def __init__(self, node: Node, modules: dict[str, nn.Module], values: dict[str, Any], dtype_bytes: int) -> None:
        self.node = node
        own = [parameter for name in node.modules for parameter in modules[name].parameters()]
        self.parameters = sum(parameter.numel() for parameter in own)
        weights = {storage_key(parameter) for parameter in own}
        self.saved: dict[int, int] = {}
        self.alive: list[Tensor] = []  # an identity may be given again to another storage once its own is freed

        def pack(tensor: Tensor) -> Tensor:
            self.alive.append(tensor)
            if tensor.dim() > 1 and storage_key(tensor) not in weights:
                self.saved[storage_key(tensor)] = _bytes(tensor, dtype_bytes)
            return tensor

        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(pack, lambda tensor: tensor):
            self.writes = run_node(node, modules, values)
        self.flops = counter.get_total_flops() // _IMAGES


def _node_cost(trace: _Trace, names: dict[int, str], sizes: dict[str, int], kept: set[str]) -> NodeCost:
    inner = sum(size for key, size in trace.saved.items() if key not in names)
    keeps = tuple(names[key] for key in trace.saved if key in names)
    first = sum(sizes[name] for name in keeps if name not in kept)
    outputs = tuple(sizes[name] for name in trace.node.writes)
    return NodeCost(trace.flops, trace.parameters, inner, keeps, inner + first, outputs)


def _bytes(value: Any, dtype_bytes: int) -> int:
    """Of one image's share of a batch; 0 for what is not a tensor."""
    if not isinstance(value, Tensor):
        return 0
    return value.numel() // _IMAGES * (dtype_bytes if value.is_floating_point() else value.element_size())
