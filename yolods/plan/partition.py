"""Where to cut a graph into stages: exact searches over all cuts, the user's own cuts, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from yolods.config.deepspeed.pipeline import PARTITIONS
from yolods.errors import Faults, UserError, nearest
from yolods.model.graph.graph import Graph, live
from yolods.plan.cost import Cost
from yolods.plan.one_f_one_b import in_flight
from yolods.plan.stage_costs import DEFAULT, StageCosts, Terms

MIB = 2**20


@dataclass(frozen=True)
class Partition:
    """Which nodes each stage runs."""

    cuts: tuple[int, ...]
    """Index of the first node of every stage but the first, rising."""
    nodes: int
    """Nodes of the graph."""

    @property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.cuts) + 1

    @property
    def bounds(self) -> tuple[int, ...]:
        """0, the cuts, and the number of nodes: stage s runs nodes bounds[s] .. bounds[s + 1] - 1."""
        return (0, *self.cuts, self.nodes)

    def nodes_of(self, stage: int) -> range:
        """Indices of a stage's nodes."""
        return range(self.bounds[stage], self.bounds[stage + 1])


def partition(
    cost: Cost, stages: int, policy: str | Sequence[int | str] = "balanced", terms: Terms = DEFAULT
) -> Partition:
    """Choose the cuts.

    Policies, each with the smallest possible largest stage; ties go to the smaller peak memory, then to fewer bytes
    across. The first four leave out what does not fit `terms.memory_limit`.

    * `balanced`: seconds of a stage, of computing and of what crosses
    * `flops`, `activations`, `parameters`: these alone
    * `uniform`: the same number of whole layers, one more in the first stages where it does not divide
    * a list: what each stage but the first begins with: 13 is layer 13, "4.m.1" the node of this name, "4.2" the node
      at place 2 of layer 4, "24.1" level 1 of the Detect head 24

    Args:
        cost: of the graph to cut, at the resolution to be trained.
        stages: how many.
        policy: see above.
        terms: conditions.

    Raises:
        UserError: unknown policy, more stages than nodes or layers, cuts that name nothing or do not rise, or no
            partition that fits the memory limit; with the arithmetic.
    """
    if not 1 <= stages <= len(cost.nodes):
        raise UserError(f"pipeline: {stages} stages, but there are {len(cost.nodes)} nodes to share out among them")
    table = StageCosts(cost, terms)
    if not isinstance(policy, str):
        found = _explicit(cost.graph, stages, policy)
    elif policy == "uniform":
        found = _uniform(cost.graph, stages)
    elif policy in PARTITIONS:
        found = _search(table, stages, policy)
    else:
        known = ", ".join(PARTITIONS)
        raise UserError(f'pipeline: unknown partition "{policy}"{nearest(policy, PARTITIONS)}; use {known} or cuts')
    _refuse_overfull(table, found)
    return found


def _search(table: StageCosts, stages: int, policy: str) -> Partition:
    """The best partition by (largest weight, peak memory, bytes across), one after the other, over all cuts.

    Where none fits the limit: the one with the smallest peak.
    """
    memory = [table.memory(stages, stage) for stage in range(stages)]
    limit = np.inf if table.terms.memory_limit is None else table.terms.memory_limit
    if policy == "balanced" and limit == np.inf:
        limit = _peak(table, _search(table, stages, "flops"))
    fits = [peak <= limit for peak in memory]
    weight = table.seconds if policy == "balanced" else getattr(table, policy)
    best = _smallest([weight] * stages, fits)
    if best < np.inf:
        ties = best * (1 + (table.terms.slack if policy == "balanced" else 1e-9))
        fits = [fit & (weight <= ties) for fit in fits]
    else:
        fits = [np.ones_like(fit) for fit in fits]
    peak = _smallest(memory, fits)
    fits = [fit & (held <= peak) for fit, held in zip(fits, memory, strict=True)]
    return Partition(_cuts(table.sent, fits), len(table.cost.nodes))


def _smallest(weights: Sequence[np.ndarray], fits: Sequence[np.ndarray]) -> float:
    """Smallest possible largest weight of a stage; infinite where no partition fits.

    Args:
        weights: for each stage, of a .. b - 1 as this stage.
        fits: likewise, whether it may be.
    """
    best = np.full(len(weights[0]), np.inf)
    best[0] = -np.inf
    for weight, fit in zip(weights, fits, strict=True):
        best = np.where(np.triu(fit, 1), np.maximum(best[:, None], weight), np.inf).min(0)
    return float(best[-1])


def _cuts(weight: np.ndarray, fits: Sequence[np.ndarray]) -> tuple[int, ...]:
    """The cuts with the smallest sum of weights, the earliest among equals."""
    best, origins = np.full(len(weight), np.inf), []
    best[0] = 0.0
    for fit in fits:
        sums = np.where(np.triu(fit, 1), best[:, None] + weight, np.inf)
        origins.append(sums.argmin(0))
        best = sums.min(0)
    bounds = [len(weight) - 1]
    for origin in reversed(origins):
        bounds.append(int(origin[bounds[-1]]))
    return tuple(reversed(bounds[1:-1]))


def _uniform(graph: Graph, stages: int) -> Partition:
    layers = len(graph.kinds)
    if stages > layers:
        raise UserError(f'pipeline: "uniform" shares out whole layers, and {stages} stages > {layers} layers')
    share, more = divmod(layers, stages)
    starts = [stage * share + min(stage, more) for stage in range(1, stages)]
    return Partition(tuple(graph.nodes_of(layer)[0] for layer in starts), len(graph.nodes))


def _explicit(graph: Graph, stages: int, cuts: Sequence[int | str]) -> Partition:
    faults = Faults()
    if len(cuts) != stages - 1:
        faults.add(f"pipeline: {len(cuts)} cuts make {len(cuts) + 1} stages, not {stages}: {list(cuts)}")
    found = []
    for cut in cuts:
        node = _node_at(graph, cut)
        if node is None:
            faults.add(f"pipeline: cut {cut!r} names nothing; {_cuts_known(graph, cut)}")
        elif node == 0:
            faults.add(f"pipeline: cut {cut!r} leaves the first stage empty")
        elif found and node <= found[-1]:
            before, this = (graph.nodes[place].name for place in (found[-1], node))
            faults.add(f"pipeline: cuts have to rise, and {this} does not come after {before}: {list(cuts)}")
        if node is not None:
            found.append(node)
    faults.raise_if_any()
    return Partition(tuple(found), len(graph.nodes))


def _node_at(graph: Graph, cut: int | str) -> int | None:
    """The first node that a cut's text means, or None."""
    if isinstance(cut, bool) or not isinstance(cut, int | str):
        return None
    text = str(cut)
    for node in graph.nodes:
        if node.name == text or node.name.startswith(f"{text}."):
            return node.index
    layer, _, place = text.partition(".")
    nodes = graph.nodes_of(int(layer)) if layer.isdecimal() and place.isdecimal() else range(0)
    is_head = len(nodes) > 0 and graph.nodes[nodes[-1]].role == "detect"  # numbers there are levels
    return nodes[int(place)] if nodes and int(place) < len(nodes) and not is_head else None


def _cuts_known(graph: Graph, cut: object) -> str:
    layer = str(cut).partition(".")[0]
    nodes = graph.nodes_of(int(layer)) if layer.isdecimal() and not isinstance(cut, bool) else range(0)
    if isinstance(cut, float):
        return f'write it as a string, "{cut}"'
    if not nodes:
        return f"layers are 1 to {len(graph.kinds) - 1}"
    return f"layer {layer} is made of {', '.join(graph.nodes[node].name for node in nodes)}"


@dataclass(frozen=True)
class StageRow:
    """One stage of a partition, for people and logs."""

    stage: int
    """From 0."""
    first: str
    """Name of its first node."""
    last: str
    """Name of its last node."""
    compute: float
    """Seconds of forward and backward of a micro-batch."""
    transfer: float
    """Seconds for what crosses both its ends, both ways, for a micro-batch."""
    flops_share: float
    """Of the model's FLOPs, in 0..1."""
    parameters: int
    """Numbers."""
    state_bytes: float
    """Weights, gradients and optimizer states."""
    activation_bytes: float
    """Held for backward, of all micro-batches in flight."""
    peak_bytes: float
    """States, activations, and what one backward pass adds: gradients at both ends, recomputed activations."""
    sent: tuple[str, ...]
    """Values that go on to the next stage."""
    sent_bytes: int
    """Their bytes for a micro-batch, forward; as many come back."""


def table(found: Partition, cost: Cost, terms: Terms = DEFAULT) -> tuple[StageRow, ...]:
    """What every stage of a partition takes, under the same terms that `partition` was given."""
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
    """The table as lines of text; its columns are explained in docs/pipeline.md."""
    spans = [f"{row.first}..{row.last}" for row in rows]
    wide = max(len("nodes"), *map(len, spans))
    lines = [f"stage  {'nodes':<{wide}}  {'ms':>8} {'+link':>7}  FLOPs  states MiB  acts MiB  peak MiB  across MiB"]
    for row, span in zip(rows, spans, strict=True):
        across = f"{row.sent_bytes / MIB:10.1f}  {' '.join(row.sent)}" if row.sent else f"{'-':>10}"
        lines.append(
            f"{row.stage:5}  {span:<{wide}}  {row.compute * 1e3:8.2f} {row.transfer * 1e3:7.2f}  {row.flops_share:5.1%}"
            f"  {row.state_bytes / MIB:10.1f}  {row.activation_bytes / MIB:8.1f}  {row.peak_bytes / MIB:8.1f}  {across}"
        )
    return "\n".join(lines)


def _peak(stages: StageCosts, found: Partition) -> float:
    ends = zip(found.bounds, found.bounds[1:], strict=False)
    return max(float(stages.memory(found.stages, stage)[end]) for stage, end in enumerate(ends))


def _refuse_overfull(stages: StageCosts, found: Partition) -> None:
    """Name every stage that does not fit the limit, with what it is made of, and the smallest peak that is possible."""
    terms, faults = stages.terms, Faults()
    if terms.memory_limit is None or _peak(stages, found) <= terms.memory_limit:
        return
    for row in table(found, stages.cost, terms):
        if row.peak_bytes > terms.memory_limit:
            flying = in_flight(found.stages, row.stage, terms.micro_batches)
            image = row.activation_bytes / flying / terms.micro_batch
            faults.add(
                f"pipeline: stage {row.stage} ({row.first}..{row.last}) takes {row.peak_bytes / MIB:.1f} MiB > "
                f"{terms.memory_limit / MIB:.1f} MiB: {row.parameters} parameters x {terms.state_bytes:g} B + {flying} "
                f"micro-batches in flight x {terms.micro_batch} images x {image / MIB:.1f} MiB + "
                f"{(row.peak_bytes - row.state_bytes - row.activation_bytes) / MIB:.1f} MiB that one backward pass adds"
            )
    memory = [stages.memory(found.stages, stage) for stage in range(found.stages)]
    least = _smallest(memory, [np.ones_like(peak, bool) for peak in memory])
    remedy = 'use "balanced"' if least <= terms.memory_limit else (
        "use more stages, fewer images a micro-batch, activation checkpointing or a smaller --imgsz"
    )  # fmt: skip
    faults.add(f"pipeline: the smallest peak with {found.stages} stages is {least / MIB:.1f} MiB; {remedy}")
    faults.raise_if_any()
