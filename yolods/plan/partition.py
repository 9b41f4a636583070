"""Where to cut a graph into stages: exact searches over all cuts, explicit cuts, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from yolods.config.deepspeed.pipeline import PARTITIONS
from yolods.errors import Faults, UserError, nearest
from yolods.model.graph.graph import Graph, live
from yolods.plan.cost import Cost
from yolods.plan.stage_costs import DEFAULT, StageCosts, Terms

MIB = 2**20


@dataclass(frozen=True)
class Partition:
    """The nodes of each stage."""

    cuts: tuple[int, ...]
    """Index of the first node of every stage except the first, ascending."""
    nodes: int
    """Number of nodes in the graph."""

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.cuts) + 1

    @property
    def bounds(self) -> tuple[int, ...]:
        """0, the cuts, and `nodes`: stage s runs nodes bounds[s] .. bounds[s + 1] - 1."""
        return (0, *self.cuts, self.nodes)

    def nodes_of(self, stage: int) -> range:
        """Indices of a stage's nodes."""
        return range(self.bounds[stage], self.bounds[stage + 1])


def partition(
    cost: Cost, stages: int, policy: str | Sequence[int | str] = "balanced", terms: Terms = DEFAULT
) -> Partition:
    """Choose where a graph is cut into stages.

    Four policies search all partitions within `terms.memory_limit` for the one whose largest stage
    is smallest, measured in

    * `balanced`: seconds of computation and transfers
    * `flops`, `activations`, `parameters`: these alone

    Ties go to the smaller peak memory, then to fewer bytes across the cuts. The others search
    nothing:

    * `uniform`: the same number of whole layers in every stage; a remainder goes to the first
      stages, one layer each
    * a list: the start of every stage except the first: 13 is layer 13, "4.m.1" the node of this
      name, "4.2" the node with index 2 in layer 4, "24.1" level 1 of the Detect head 24

    Args:
        cost: costs of the graph to cut, at the resolution of the training.
        stages: number of stages.
        policy: see above.
        terms: conditions of the run.

    Raises:
        UserError: unknown policy, more stages than nodes or layers, cuts that do not exist or do
            not ascend, or a stage above the memory limit, with the sum of its memory.
    """
    if not 1 <= stages <= len(cost.nodes):
        raise UserError(
            f"pipeline: {stages} stages, but there are {len(cost.nodes)} nodes to divide among them"
        )
    costs = StageCosts(cost, terms)
    if not isinstance(policy, str):
        chosen = _explicit(cost.graph, stages, policy)
    elif policy == "uniform":
        chosen = _uniform(cost.graph, stages)
    elif policy in PARTITIONS:
        chosen = _search(costs, stages, policy)
    else:
        known = ", ".join(PARTITIONS)
        raise UserError(
            f'pipeline: unknown partition "{policy}"{nearest(policy, PARTITIONS)}; use {known} or '
            "cuts"
        )
    # The searches, too, return a partition above the limit if there is none within it.
    _refuse_overfull(costs, chosen)
    return chosen


@lru_cache(maxsize=1024)
def nearest_within(cost: Cost, stages: int, terms: Terms) -> Partition:
    """As `partition` with "balanced", but without a refusal: if no partition is within the memory
    limit, the one with the smallest peak. Without a limit, memory is ignored.

    Args:
        stages: at most the number of nodes.
    """
    table = StageCosts(cost, terms)
    if terms.memory_limit is not None:
        return _search(table, stages, "balanced")
    any_fit = [np.ones(table.seconds.shape, bool)] * stages
    best = _smallest([table.seconds] * stages, any_fit)
    return Partition(_cuts(table.sent, [table.seconds <= best] * stages), len(cost.nodes))


def _search(table: StageCosts, stages: int, policy: str) -> Partition:
    """The best partition over all cuts by largest weight, then peak memory, then bytes across.

    If none is within the memory limit: the one with the smallest peak.
    """
    memory = [table.memory(stages, stage) for stage in range(stages)]
    limit = np.inf if table.terms.memory_limit is None else table.terms.memory_limit
    # Without a limit, the fastest partition could need far more memory than others, so the peak of
    # the cut by FLOPs is the limit.
    if policy == "balanced" and limit == np.inf:
        limit = _peak(table, _search(table, stages, "flops"))
    fits = [peak <= limit for peak in memory]
    weight = table.seconds if policy == "balanced" else getattr(table, policy)
    best = _smallest([weight] * stages, fits)
    if best < np.inf:
        # Times are estimates, so partitions within `slack` of the best are ties. Sums of FLOPs or
        # bytes are exact up to rounding.
        ties = best * (1 + (table.terms.slack if policy == "balanced" else 1e-9))
        fits = [fit & (weight <= ties) for fit in fits]
    else:
        fits = [np.ones_like(fit) for fit in fits]
    peak = _smallest(memory, fits)
    fits = [fit & (held <= peak) for fit, held in zip(fits, memory, strict=True)]
    return Partition(_cuts(table.sent, fits), len(table.cost.nodes))


def _smallest(weights: Sequence[np.ndarray], fits: Sequence[np.ndarray]) -> float:
    """Smallest possible largest weight of a stage; infinite if no partition fits.

    Args:
        weights: for each stage, its weight if it runs nodes a .. b - 1.
        fits: for each stage, whether it may run these.
    """
    best, some = np.full(len(weights[0]), np.inf), _not_empty(weights[0])
    best[0] = -np.inf
    # best[b]: smallest largest weight of the stages so far, if they run nodes 0 .. b - 1.
    for weight, fit in zip(weights, fits, strict=True):
        best = np.where(fit & some, np.maximum(best[:, None], weight), np.inf).min(0)
    return float(best[-1])


def _cuts(weight: np.ndarray, fits: Sequence[np.ndarray]) -> tuple[int, ...]:
    """The cuts with the smallest sum of weights; the earliest of equal ones."""
    best, origins, some = np.full(len(weight), np.inf), [], _not_empty(weight)
    best[0] = 0.0
    for fit in fits:
        sums = np.where(fit & some, best[:, None] + weight, np.inf)
        origins.append(sums.argmin(0))
        best = sums.min(0)
    bounds = [len(weight) - 1]
    # Back from the last node, along the cut that gave each best sum.
    for origin in reversed(origins):
        bounds.append(int(origin[bounds[-1]]))
    return tuple(reversed(bounds[1:-1]))


def _not_empty(weight: np.ndarray) -> np.ndarray:
    """Where b > a, because every stage has at least one node."""
    return np.triu(np.ones(weight.shape, bool), 1)


def _uniform(graph: Graph, stages: int) -> Partition:
    layers = len(graph.kinds)
    if stages > layers:
        raise UserError(
            f'pipeline: "uniform" divides whole layers, but {stages} stages > {layers} layers'
        )
    share, more = divmod(layers, stages)
    starts = [stage * share + min(stage, more) for stage in range(1, stages)]
    return Partition(tuple(graph.nodes_of(layer)[0] for layer in starts), len(graph.nodes))


def _explicit(graph: Graph, stages: int, cuts: Sequence[int | str]) -> Partition:
    faults = Faults()
    if len(cuts) != stages - 1:
        faults.add(
            f"pipeline: {len(cuts)} cuts make {len(cuts) + 1} stages, not {stages}: {list(cuts)}"
        )
    found = []
    for cut in cuts:
        node = _node_at(graph, cut)
        if node is None:
            faults.add(f"pipeline: cut {cut!r} names nothing; {_cuts_known(graph, cut)}")
        elif node == 0:
            faults.add(f"pipeline: cut {cut!r} leaves the first stage empty")
        elif found and node <= found[-1]:
            before, this = (graph.nodes[place].name for place in (found[-1], node))
            faults.add(
                f"pipeline: cuts must ascend, but {this} does not come after {before}: {list(cuts)}"
            )
        if node is not None:
            found.append(node)
    faults.raise_if_any()
    return Partition(tuple(found), len(graph.nodes))


def _node_at(graph: Graph, cut: int | str) -> int | None:
    """The first node that a cut's text denotes, or None."""
    if isinstance(cut, bool) or not isinstance(cut, int | str):
        return None
    text = str(cut)
    for node in graph.nodes:
        if node.name == text or node.name.startswith(f"{text}."):
            return node.index
    layer, _, place = text.partition(".")
    nodes = graph.nodes_of(int(layer)) if layer.isdecimal() and place.isdecimal() else range(0)
    # In the head, numbers denote levels.
    is_head = len(nodes) > 0 and graph.nodes[nodes[-1]].role == "detect"
    return nodes[int(place)] if nodes and int(place) < len(nodes) and not is_head else None


def _cuts_known(graph: Graph, cut: object) -> str:
    layer = str(cut).partition(".")[0]
    nodes = (
        graph.nodes_of(int(layer)) if layer.isdecimal() and not isinstance(cut, bool) else range(0)
    )
    # JSON turns 4.10 into 4.1, so a number cannot name a node.
    if isinstance(cut, float):
        return f'write it as a string, "{cut}"'
    if not nodes:
        return f"layers are 1 to {len(graph.kinds) - 1}"
    return f"layer {layer} consists of {', '.join(graph.nodes[node].name for node in nodes)}"


@dataclass(frozen=True)
class StageRow:
    """One stage of a partition, for messages and logs."""

    stage: int
    """Index of the stage, from 0."""
    first: str
    """Name of its first node."""
    last: str
    """Name of its last node."""
    compute: float
    """Seconds for forward and backward of a micro-batch."""
    transfer: float
    """Seconds per micro-batch for transfers at both ends, in both directions."""
    flops_share: float
    """Share of the model's FLOPs, in 0..1."""
    parameters: int
    """Number of parameters."""
    state_bytes: float
    """Bytes of weights, gradients and optimizer states."""
    activation_bytes: float
    """Bytes of activations held for backward, of all micro-batches in flight."""
    peak_bytes: float
    """Peak bytes: states, activations, and what one backward pass adds.

    It adds gradients at both ends and recomputed activations.
    """
    sent: tuple[str, ...]
    """Values sent to the next stage."""
    sent_bytes: int
    """Their bytes per micro-batch, forward; as many bytes of gradients come back."""


def table(found: Partition, cost: Cost, terms: Terms = DEFAULT) -> tuple[StageRow, ...]:
    """Costs of every stage of a partition, under the same terms as `partition`."""
    stages, graph = StageCosts(cost, terms), cost.graph
    rows = []
    for stage in range(found.stages):
        a, b = found.bounds[stage : stage + 2]
        states = float(stages.parameters[a, b]) * terms.state_bytes
        peak = float(stages.memory(found.stages, stage)[a, b])
        rows.append(
            StageRow(
                stage,
                graph.nodes[a].name,
                graph.nodes[b - 1].name,
                float(stages.compute[a, b]),
                float(stages.transfer[a, b]),
                float(stages.flops[a, b]) / max(cost.flops, 1),
                int(stages.parameters[a, b]),
                states,
                peak - states - float(stages.passing[a, b]),
                peak,
                live(graph, b) if b < found.nodes else (),
                cost.crossing[b] * terms.micro_batch,
            )
        )
    return tuple(rows)


def render(rows: Sequence[StageRow]) -> str:
    """The table as lines of text; docs/pipeline.md explains its columns."""
    spans = [f"{row.first}..{row.last}" for row in rows]
    wide = max(len("nodes"), *map(len, spans))
    lines = [
        f"stage  {'nodes':<{wide}}  {'ms':>8} {'+link':>7}  FLOPs  states MiB  acts MiB  peak MiB  "
        "across MiB"
    ]
    for row, span in zip(rows, spans, strict=True):
        across = f"{row.sent_bytes / MIB:10.1f}  {' '.join(row.sent)}" if row.sent else f"{'-':>10}"
        lines.append(
            f"{row.stage:5}  {span:<{wide}}  {row.compute * 1e3:8.2f} {row.transfer * 1e3:7.2f}  "
            f"{row.flops_share:5.1%}  {row.state_bytes / MIB:10.1f}  "
            f"{row.activation_bytes / MIB:8.1f}  {row.peak_bytes / MIB:8.1f}  {across}"
        )
    return "\n".join(lines)


def _peak(stages: StageCosts, found: Partition) -> float:
    ends = zip(found.bounds, found.bounds[1:], strict=False)
    return max(float(stages.memory(found.stages, stage)[end]) for stage, end in enumerate(ends))


def _refuse_overfull(stages: StageCosts, found: Partition) -> None:
    """Refuse a partition above the memory limit.

    Names every stage that exceeds it, what its memory consists of, and the smallest possible peak.
    """
    terms, faults = stages.terms, Faults()
    if terms.memory_limit is None or _peak(stages, found) <= terms.memory_limit:
        return
    for row in table(found, stages.cost, terms):
        if row.peak_bytes > terms.memory_limit:
            flying = terms.flying(found.stages, row.stage)
            image = row.activation_bytes / flying / terms.micro_batch
            faults.add(
                f"pipeline: stage {row.stage} ({row.first}..{row.last}) takes "
                f"{row.peak_bytes / MIB:.1f} MiB > {terms.memory_limit / MIB:.1f} MiB: "
                f"{row.parameters} parameters x {terms.state_bytes:g} B + {flying} micro-batches "
                f"in flight x {terms.micro_batch} images x {image / MIB:.1f} MiB + "
                f"{(row.peak_bytes - row.state_bytes - row.activation_bytes) / MIB:.1f} MiB that "
                "one backward pass adds"
            )
    memory = [stages.memory(found.stages, stage) for stage in range(found.stages)]
    least = _smallest(memory, [np.ones_like(peak, bool) for peak in memory])
    remedy = 'use "balanced"' if least <= terms.memory_limit else (
        "use more stages, fewer images per micro-batch, activation checkpointing or a smaller "
        "--imgsz"
    )  # fmt: skip
    faults.add(
        f"pipeline: the smallest peak with {found.stages} stages is {least / MIB:.1f} MiB; {remedy}"
    )
    faults.raise_if_any()
