"""Costs of every possible stage: seconds and bytes of nodes a .. b - 1 for all a and b at once.

Memory also depends on the stage's index: under 1F1B, stage s of P holds min(P - s, m) micro-batches
at once, under zero-bubble as many, or min(P, m) if it divides all backward passes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from yolods.model.graph.graph import live
from yolods.plan.cost import STATE_BYTES, Cost, Machine, node_seconds
from yolods.plan.zero_bubble import flying


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Conditions of a partition, in addition to the model and the resolution."""

    micro_batch: int = 1
    """Images per micro-batch."""
    micro_batches: int = 1
    """Micro-batches per step."""
    seconds: tuple[float, ...] | None = None
    """Measured seconds per micro-batch and node, forward and backward; None: from `machine`."""
    machine: Machine = field(default_factory=Machine)
    """Speeds for what was not measured; its `link` is always used."""
    memory_limit: float | None = None
    """Bytes that a stage may use.

    None: no limit, but `balanced` uses no more than the cut by FLOPs.
    """
    state_bytes: float = STATE_BYTES
    """Bytes per parameter: weight, gradient, optimizer.

    With ZeRO-1 over D replicas 4 + 12 / D, in fp32 8 + 12 / D.
    """
    recompute: int = 0
    """Nodes per segment that the backward pass recomputes; 0: none.

    Segments are counted from a stage's start.
    """
    schedule: str = "1f1b"
    """Order of the passes: 1f1b or zb."""
    slack: float = 0.01
    """For `balanced`: partitions slower than the best by up to this share are ties.

    Memory decides between them.
    """

    def flying(self, stages: int, stage: int) -> int:
        """Micro-batches whose activations a stage holds at once."""
        return flying(self.schedule, stages, stage, self.micro_batches)


DEFAULT = Terms()


class StageCosts:
    """Costs of every possible stage a .. b - 1.

    Each is an (n + 1, n + 1) fp64 matrix with row a and column b.
    """

    def __init__(self, cost: Cost, terms: Terms) -> None:
        self.cost, self.terms = cost, terms
        images, crossing = terms.micro_batch, np.array(cost.crossing, float)
        seconds = terms.seconds or node_seconds(
            cost, terms.machine, images, recompute=terms.recompute > 0
        )
        if len(seconds) != len(cost.nodes):
            raise ValueError(f"{len(seconds)} measured times for {len(cost.nodes)} nodes")
        self.flops = _sums([node.flops for node in cost.nodes])
        self.parameters = _sums([node.parameters for node in cost.nodes])
        self.activations, recomputed = (
            _recomputing(cost, terms.recompute) if terms.recompute else (_kept(cost), 0.0)
        )
        self.sent = np.broadcast_to(crossing, self.flops.shape)
        # Values cross both ends of a stage in forward, and as many bytes of gradients in backward.
        self.transfer = 2 * images * (crossing[:, None] + crossing) / terms.machine.link
        self.compute = _sums(seconds)
        self.seconds = self.compute + self.transfer
        self.passing = images * (crossing[:, None] + crossing + recomputed)

    def memory(self, stages: int, stage: int) -> np.ndarray:
        """Peak bytes of nodes a .. b - 1 as this stage.

        States, activations in flight, and what one backward pass adds.
        """
        images = self.terms.flying(stages, stage) * self.terms.micro_batch
        return self.parameters * self.terms.state_bytes + images * self.activations + self.passing


def _sums(weights: Sequence[float]) -> np.ndarray:
    total = np.concatenate(([0.0], np.cumsum(np.asarray(weights, float))))
    # Differences of prefix sums: entry (a, b) is the sum over a .. b - 1.
    return total - total[:, None]


@lru_cache(maxsize=32)
def _kept(cost: Cost) -> np.ndarray:
    """Bytes per image that nodes a .. b - 1 hold from forward to backward, each value once.

    These are the values that the nodes keep, those that the stage received (also those that it only
    passes on) and those that it sends.
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


@lru_cache(maxsize=32)
def _recomputing(cost: Cost, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory of nodes a .. b - 1 if the backward pass recomputes segments of `length` nodes.

    Returns:
        two (n + 1, n + 1) fp64 matrices of bytes per image. What is held from forward to backward:
        the inputs of each segment, and the values that the stage sends. And what exists in addition
        while the largest segment is recomputed.
    """
    alive = [live(cost.graph, cut) for cut in range(len(cost.nodes) + 1)]
    held, recomputed = np.zeros((len(alive), len(alive))), np.zeros((len(alive), len(alive)))
    for a in range(len(cost.nodes)):
        inputs, kept, inner = set[str](), set[str](), 0
        for b, node in enumerate(cost.nodes[a:], a + 1):
            # A new segment begins: its inputs are held, and its activations exist only while it
            # recomputes.
            if (b - 1 - a) % length == 0:
                inputs.update(alive[b - 1])
                kept, inner = set(), 0
            kept.update(node.keeps)
            inner += node.inner_bytes
            held[a, b] = _size(cost, inputs.union(alive[b]))
            segment = inner + _size(cost, kept - inputs)
            recomputed[a, b] = max(recomputed[a, b - 1], segment)
    return held, recomputed


def _size(cost: Cost, names: Set[str]) -> int:
    return sum(cost.values[name] for name in names)
