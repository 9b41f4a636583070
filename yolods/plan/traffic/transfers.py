"""Stand-in: what a rank of every stage sends in one step."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from yolods.plan.cost import Cost
from yolods.plan.layout import Layout

_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Transfer:
    """One kind of message of a rank in one step."""

    kind: str
    """gradients, parameters or activations."""
    operation: str
    """all_reduce, reduce_scatter, all_gather or send."""
    bytes: int
    """Bytes of the whole tensors, of all calls."""
    calls: int
    """Number of calls."""
    ranks: int
    """Ranks that take part."""


def sent_bytes(transfer: Transfer) -> float:
    """Bytes that a rank sends for it, by rings."""
    share = (transfer.ranks - 1) / transfer.ranks
    passes = {"all_reduce": 2 * share, "reduce_scatter": share, "all_gather": share, "send": 1.0}
    return transfer.bytes * passes[transfer.operation]


def transfers(costs: Cost, layout: Layout) -> tuple[tuple[Transfer, ...], ...]:
    """What a rank of every stage sends in one step."""
    bounds = (0, *layout.cuts, len(costs.nodes))
    total, sums = 0, [0]
    for node in costs.nodes:
        total += node.parameters
        sums.append(total)
    return tuple(
        _of_stage(costs, layout, sums[bounds[s + 1]] - sums[bounds[s]], bounds, s)
        for s in range(layout.stages)
    )


def _of_stage(
    costs: Cost, layout: Layout, parameters: int, bounds: tuple[int, ...], stage: int
) -> tuple[Transfer, ...]:
    size = parameters * _BYTES[layout.precision]
    buckets, n = ceil(parameters / layout.reduce_bucket), layout.replicas
    found = []
    if n > 1:
        times = layout.accumulation if layout.zero_stage > 1 else 1
        operation = "reduce_scatter" if layout.zero_stage > 1 else "all_reduce"
        found.append(Transfer("gradients", operation, size * times, buckets * times, n))
    if n > 1 and layout.zero_stage:
        times = 2 * layout.accumulation if layout.zero_stage == 3 else 1
        found.append(Transfer("parameters", "all_gather", size * times, buckets * times, n))
    for place in (bounds[stage], bounds[stage + 1]):
        if 0 < place < bounds[-1]:
            images = layout.micro_batch * layout.accumulation
            sent = costs.crossing[place] * images
            found.append(Transfer("activations", "send", sent, layout.accumulation, 2))
    return tuple(found)
