"""What every possible stage would take: seconds and bytes of nodes a .. b - 1 for all a and b at once.

Memory also depends on which stage it is, because under 1F1B stage s of P holds min(P - s, m) micro-batches at once.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from yolods.model.graph.graph import live
from yolods.plan.cost import STATE_BYTES, Cost, Machine, node_seconds
from yolods.plan.one_f_one_b import in_flight


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a partition is judged by, besides the model and the resolution."""

    micro_batch: int = 1
    """Images of a micro-batch."""
    micro_batches: int = 1
    """Micro-batches of a step."""
    seconds: tuple[float, ...] | None = None
    """Measured: forward and backward of one micro-batch through each node. None: worked out for `machine`."""
    machine: Machine = field(default_factory=Machine)
    """Speeds for what was not measured; its `link` counts in either case."""
    memory_limit: float | None = None
    """Bytes that a stage may take. None: no limit, but `balanced` takes no more than the cut by FLOPs would."""
    state_bytes: float = STATE_BYTES
    """Of a parameter: weight, gradient, optimizer. With ZeRO-1 over D replicas 4 + 12 / D, in fp32 8 + 12 / D."""
    recompute: int = 0
    """Nodes a segment whose activations are computed again in backward, from a stage's start on; 0: all are kept."""
    slack: float = 0.01
    """Of `balanced`: partitions up to this share slower than the best are ties, which memory decides."""


DEFAULT = Terms()


class StageCosts:
    """Seconds, bytes and FLOPs of every possible stage a .. b - 1: (n + 1, n + 1) fp64 matrices, row a, column b."""

    def __init__(self, cost: Cost, terms: Terms) -> None:
        self.cost, self.terms = cost, terms
        images, crossing = terms.micro_batch, np.array(cost.crossing, float)
        seconds = terms.seconds or node_seconds(cost, terms.machine, images, recompute=terms.recompute > 0)
        if len(seconds) != len(cost.nodes):
            raise ValueError(f"{len(seconds)} measured times for {len(cost.nodes)} nodes")
        self.flops = _sums([node.flops for node in cost.nodes])
        self.parameters = _sums([node.parameters for node in cost.nodes])
        self.activations, again = _checkpointed(cost, terms.recompute) if terms.recompute else (_kept(cost), 0.0)
        self.sent = np.broadcast_to(crossing, self.flops.shape)
        # Both ends of a stage are crossed by values in forward and by as many bytes of gradients in backward.
        self.transfer = 2 * images * (crossing[:, None] + crossing) / terms.machine.link
        self.compute = _sums(seconds)
        self.seconds = self.compute + self.transfer
        self.passing = images * (crossing[:, None] + crossing + again)

    def memory(self, stages: int, stage: int) -> np.ndarray:
        """Peak bytes of a .. b - 1 as this stage: model states, activations in flight, and what one backward adds."""
        images = in_flight(stages, stage, self.terms.micro_batches) * self.terms.micro_batch
        return self.parameters * self.terms.state_bytes + images * self.activations + self.passing


def _sums(weights: Sequence[float]) -> np.ndarray:
    total = np.concatenate(([0.0], np.cumsum(np.asarray(weights, float))))
    return total - total[:, None]


def _kept(cost: Cost) -> np.ndarray:
    """Bytes an image that a .. b - 1 holds from a forward to its backward, each value once.

    What its nodes keep, what it received (also what it only passes on) and what it sends.
    """
    alive = [live(cost.graph, cut) for cut in range(len(cost.nodes) + 1)]
    held = np.zeros((len(alive), len(alive)))
    for a, received in enumerate(alive):
        names, inner = set(received), 0
        for b, node in enumerate(cost.nodes[a:], a + 1):
            names.update(node.keeps)
            inner += node.inner_bytes
            held[a, b] = inner + _size(cost, names.union(alive[b]))
    return held


def _checkpointed(cost: Cost, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The same with segments of `length` nodes that are recomputed; and the most that one segment brings back.

    What crosses into each segment is held, and what the stage sends.
    """
    alive = [live(cost.graph, cut) for cut in range(len(cost.nodes) + 1)]
    held, again = np.zeros((len(alive), len(alive))), np.zeros((len(alive), len(alive)))
    for a in range(len(cost.nodes)):
        names, kept, inner = set[str](), set[str](), 0
        for b, node in enumerate(cost.nodes[a:], a + 1):
            if (b - 1 - a) % length == 0:
                names.update(alive[b - 1])
                kept, inner = set(), 0
            kept.update(node.keeps)
            inner += node.inner_bytes
            held[a, b] = _size(cost, names.union(alive[b]))
            again[a, b] = max(again[a, b - 1], inner + _size(cost, kept - names))
    return held, again


def _size(cost: Cost, names: Set[str]) -> int:
    return sum(cost.values[name] for name in names)
