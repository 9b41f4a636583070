"""The detector as a graph of nodes and values, which can be checked, cut and run in parts.

A YOLOv5 is a list of layers, but Concat and Detect read from far back, so one to four tensors cross
any cut between layers. Which ones is a pure function of the parsed layers; nothing here needs a
process group or a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolods.compat import without_compiler
from yolods.errors import Faults, UserError, reason_of
from yolods.model.architecture.arguments import NOT_BUILT, check_layers, failing_layer
from yolods.model.graph.hollow import MetaMode
from yolods.model.graph.nodes import IMAGE, OUT, Node, Role, nodes_of_layer, run_node

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

__all__ = [
    "IMAGE",
    "OUT",
    "Edge",
    "Graph",
    "Node",
    "Role",
    "build_graph",
    "draw_graph",
    "live",
    "meta_model",
    "modules_of",
    "run_node",
    "run_nodes",
]


@dataclass(frozen=True)
class Edge:
    """A value between the node that writes it and one node that reads it."""

    value: str
    """Name of the value."""
    source: int
    """Index of the writing node; -1 for the image."""
    target: int
    """Index of the reading node; for the loss, the number of nodes."""


@dataclass(frozen=True, eq=False)
class Graph:
    """All nodes in their order of execution.

    Compared and hashed by identity, because equal nodes may have different widths.
    """

    nodes: tuple[Node, ...]
    """In order of execution."""
    skeleton: nn.Module = field(repr=False)
    """Contains `model`, the layers on the meta device: shapes without memory."""
    channels: int
    """Number of channels of the image."""

    @cached_property
    def edges(self) -> tuple[Edge, ...]:
        """Every value with its writer and each of its readers, in the order of reading."""
        writers = self._writers
        reads = [(value, node.index) for node in self.nodes for value in node.reads] + [
            (OUT, len(self.nodes))
        ]
        return tuple(
            Edge(value, writers[value], reader) for value, reader in reads if value in writers
        )

    @cached_property
    def lifetimes(self) -> dict[str, tuple[int, int]]:
        """Writer and last reader of each value that is read, in order of writing; see `Edge`."""
        last = {edge.value: edge.target for edge in self.edges}
        return {
            value: (writer, last[value]) for value, writer in self._writers.items() if value in last
        }

    @property
    def _writers(self) -> dict[str, int]:
        return {IMAGE: -1} | {value: node.index for node in self.nodes for value in node.writes}

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Class name of each layer."""
        return tuple(type(layer).__name__ for layer in self.skeleton.model)

    def nodes_of(self, layer: int) -> range:
        """Indices of the nodes of a layer."""
        found = [node.index for node in self.nodes if node.layer == layer]
        return range(found[0], found[-1] + 1) if found else range(0)

    def verify(self) -> None:
        """Check the whole graph.

        Raises:
            UserError: all faults, one line each: values that are read before they are written,
                never written or written twice, modules that belong to two nodes or none, and a last
                layer other than a plain Detect head.
        """
        faults = Faults()
        _check_values(self.nodes, faults)
        _check_ownership(self.nodes, self.skeleton, faults)
        _check_head(self.skeleton.model, faults)
        faults.raise_if_any()


def _check_values(nodes: Sequence[Node], faults: Faults) -> None:
    """Check that each value is written once, before it is read, and that the last one is `OUT`."""
    existing = {IMAGE, *(value for node in nodes for value in node.writes)}
    written = {IMAGE}
    for node in nodes:
        for value in node.reads:
            if value not in existing:
                faults.add(f"model: node {node.name} reads {value!r}, which nothing writes")
            elif value not in written:
                faults.add(
                    f"model: node {node.name} reads {value!r} before it is written; a layer can "
                    "read only earlier ones"
                )
        for value in node.writes:
            if value in written:
                faults.add(f"model: node {node.name} writes {value!r}, which was written before")
            written.add(value)
    if OUT not in written:
        faults.add(f"model: nothing writes {OUT!r}; the last layer must be Detect")


def _check_ownership(nodes: Sequence[Node], skeleton: nn.Module, faults: Faults) -> None:
    # A cut gives each node's weights to one stage, so every weight must have one owner.
    owners: dict[str, list[str]] = {}
    for node in nodes:
        for module in node.modules:
            owners.setdefault(module, []).append(node.name)
    for name in skeleton.state_dict():
        parts = name.split(".")
        found = [
            owner for end in range(1, len(parts)) for owner in owners.get(".".join(parts[:end]), ())
        ]
        if len(found) != 1:
            faults.add(
                f"model: {name} belongs to {' and '.join(found) or 'no node'}, not to exactly one"
            )


def _check_head(layers: nn.Sequential, faults: Faults) -> None:
    from ultralytics.nn.modules.head import Detect

    heads = [index for index, layer in enumerate(layers) if isinstance(layer, Detect)]
    last = len(layers) - 1
    if heads != [last]:
        where = ", ".join(str(index) for index in heads) or "nowhere"
        faults.add(
            f"model: the last layer ({last}) must be the only Detect head, but Detect is at: "
            f"{where}"
        )
    elif type(layers[last]) is not Detect or getattr(layers[last], "one2one_cv2", None) is not None:
        faults.add(
            f"model: layer {last} is {type(layers[last]).__name__}, not the plain Detect head of "
            "YOLOv5u"
        )


def meta_model(layers: Mapping[str, Any]) -> DetectionModel:
    """The model of a yaml dictionary on the meta device.

    It has names, shapes and strides, but no memory for weights.

    Values that `DetectionModel` initialises are missing: the code that makes a layer real sets
    Detect's biases (`bias_init`) and the 0, 1, 2, ... of its `dfl`.

    Args:
        layers: what `yolods.model.architecture.build.architecture` returns; contains nc and
            channels.

    Returns:
        a DetectionModel with parameters and buffers on meta; `stride` (levels,) fp32 is a real
        tensor on the CPU.

    Raises:
        UserError: ultralytics cannot parse it, its shapes do not fit, or `Graph.verify` finds
            faults.
    """
    from ultralytics.nn.tasks import DetectionModel, parse_model
    from ultralytics.utils.torch_utils import initialize_weights

    faults = Faults()
    check_layers(layers, faults)
    faults.raise_if_any()
    # Without its __init__, which runs the model and so needs real tensors.
    net = DetectionModel.__new__(DetectionModel)
    nn.Module.__init__(net)
    net.yaml = deepcopy(dict(layers))
    try:
        with torch.device("meta"), without_compiler():
            net.model, net.save = parse_model(
                deepcopy(net.yaml), ch=layers["channels"], verbose=False
            )
    # A user's yaml can cause any kind of exception.
    except Exception as error:
        with torch.device("meta"):
            where = failing_layer(layers)
        raise UserError(f"{NOT_BUILT}: {where}{reason_of(error)}") from None
    # Sets BatchNorm's eps and momentum.
    initialize_weights(net)
    graph = build_graph(net)
    net.stride = _strides(graph)
    net.model[-1].stride = net.stride
    net.model[-1].inplace = net.inplace = net.yaml.get("inplace", True)
    net.nc = layers["nc"]
    net.names = {index: str(index) for index in range(net.nc)}
    return net


_UNFIT = (
    LookupError,
    TypeError,
    ValueError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    AttributeError,
)
"""What ultralytics and torch raise for values that do not fit a layer."""


def _strides(graph: Graph, size: int = 256) -> Tensor:
    """Pixels per cell of each level, from the shapes of a `size` x `size` image on meta.

    Raises:
        UserError: a layer does not accept the output of earlier layers.
    """
    # Two images, because BatchNorm refuses a single 1x1 pixel.
    values: dict[str, Any] = {IMAGE: torch.empty(2, graph.channels, size, size, device="meta")}
    modules = modules_of(graph.nodes, graph.skeleton)
    for node in graph.nodes:
        try:
            with without_compiler(), MetaMode():
                values |= run_node(node, modules, values)
        except _UNFIT as error:
            read = [values[name] for name in node.reads]
            shapes = " and ".join(
                str(tuple(value.shape[1:])) for value in read if isinstance(value, Tensor)
            )
            raise UserError(
                f"{NOT_BUILT}: layer {node.layer} ({graph.kinds[node.layer]}) does not accept "
                f"{shapes}, which earlier layers make of an image of {size} pixels: "
                f"{reason_of(error)}"
            ) from None
    return torch.tensor([size / level.shape[-2] for level in values[OUT]["feats"]])


def build_graph(net_or_layers: nn.Module | Mapping[str, Any], *, split: bool = True) -> Graph:
    """The nodes and edges of a detector.

    Args:
        net_or_layers: a DetectionModel (anything with ultralytics' `model` and `yaml`), or the yaml
            dictionary that `meta_model` accepts. It is neither changed nor kept: the graph contains
            only shapes.
        split: whether to split C3 into open, blocks and close, and Detect into levels. A C3 with a
            single bottleneck becomes three nodes too, which costs no time. If False, a node is a
            layer.

    Raises:
        UserError: the graph has faults; all of them, one per line.
    """
    if isinstance(net_or_layers, Mapping):
        net_or_layers = meta_model(net_or_layers)
    skeleton = _skeleton(net_or_layers)
    nodes = [node for layer in skeleton.model for node in nodes_of_layer(layer, split)]
    nodes = tuple(replace(node, index=index) for index, node in enumerate(nodes))
    graph = Graph(nodes, skeleton, getattr(net_or_layers, "yaml", {}).get("channels", 3))
    graph.verify()
    return graph


def _skeleton(net: nn.Module) -> nn.Module:
    """A copy of `net.model` on meta, in training mode."""
    # Replacements for deepcopy to use instead of each weight, so that it copies no memory.
    empty: dict[int, Tensor] = {}
    for tensor in (*net.model.parameters(), *net.model.buffers()):
        shape = torch.empty_like(tensor, device="meta", requires_grad=False)
        empty[id(tensor)] = (
            nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape
        )
    skeleton = nn.Module()
    skeleton.model = deepcopy(net.model, empty)
    return skeleton.train()


@lru_cache(maxsize=4096)
def live(graph: Graph, cut: int) -> tuple[str, ...]:
    """The values that cross a cut: written before node `cut`, and read at or after it.

    They are in the order of writing.

    Before the first node this is the image, after the last one what the loss reads.

    Raises:
        ValueError: `cut` is not in 0 .. the number of nodes.
    """
    if not 0 <= cut <= len(graph.nodes):
        raise ValueError(f"cut {cut} is not in 0..{len(graph.nodes)}")
    return tuple(
        value for value, (written, read) in graph.lifetimes.items() if written < cut <= read
    )


def modules_of(nodes: Sequence[Node], net: nn.Module) -> dict[str, nn.Module]:
    """The submodules that these nodes run, by dotted name.

    `net` needs to contain only these nodes' part of the model.
    """
    return {name: net.get_submodule(name) for node in nodes for name in node.modules}


def run_nodes(
    graph: Graph, start: int, stop: int, modules: Mapping[str, nn.Module], values: Mapping[str, Any]
) -> dict[str, Any]:
    """Run nodes start .. stop - 1.

    Args:
        graph: graph of the nodes.
        start: first node.
        stop: the node before which to end.
        modules: at least the nodes' submodules, by dotted name.
        values: at least `live(graph, start)`; not changed.

    Returns:
        exactly `live(graph, stop)`, in that order. Other values are freed as soon as nothing reads
        them.
    """
    held = {name: values[name] for name in live(graph, start)}
    for node in graph.nodes[start:stop]:
        written = run_node(node, modules, held)
        # A value that nothing reads has no lifetime and is dropped at once.
        held |= {name: value for name, value in written.items() if name in graph.lifetimes}
        for name in node.reads:
            if graph.lifetimes[name][1] == node.index:
                held.pop(name, None)
    return {name: held[name] for name in live(graph, stop)}


def draw_graph(graph: Graph, cuts: Sequence[int] = ()) -> str:
    """The graph as text: one row per layer, or per part of a cut layer, and skips as lines.

    A line starts at a value that any row other than the next one reads, and ends at its last
    reader. Each cut names the values that cross it.

    Args:
        graph: graph to draw.
        cuts: indices of nodes, ascending.
    """
    rows = _rows(graph, cuts)
    skips = _lanes(rows)
    names = [_span(graph, part) for part in rows]
    wide = max(len(name) for name in names)
    kinds = [graph.kinds[part[0].layer] for part in rows]
    lines = []
    for row, part in enumerate(rows):
        if part[0].index in cuts:
            stage = cuts.index(part[0].index) + 1
            lines.append(f"---- stage {stage}: {' '.join(live(graph, part[0].index))}")
        label = f"{names[row]:>{wide}}  {kinds[row]}"
        lines.append(f"{label:<{wide + 12}}{_strokes(row, part, skips)}".rstrip())
    return "\n".join(lines)


def _rows(graph: Graph, cuts: Sequence[int]) -> list[tuple[Node, ...]]:
    parts: list[tuple[Node, ...]] = []
    for node in graph.nodes:
        if parts and parts[-1][0].layer == node.layer and node.index not in cuts:
            parts[-1] += (node,)
        else:
            parts.append((node,))
    return parts


def _span(graph: Graph, part: tuple[Node, ...]) -> str:
    if len(part) == len(graph.nodes_of(part[0].layer)):
        return str(part[0].layer)
    return part[0].name if len(part) == 1 else f"{part[0].name}..{part[-1].name}"


def _lanes(rows: list[tuple[Node, ...]]) -> list[tuple[int, int, int, str]]:
    """(lane, first row, last row, value) of every value that passes a row without a reader."""
    born = {value: row for row, part in enumerate(rows) for node in part for value in node.writes}
    last = {value: row for row, part in enumerate(rows) for node in part for value in node.reads}
    lanes: list[tuple[int, int, int, str]] = []
    for value, start in born.items():
        end = last.get(value, start)
        if end > start + 1:
            # A lane is free again after the row of its last reader.
            taken = {lane for lane, _, until, _ in lanes if until >= start}
            lanes.append(
                (next(lane for lane in range(len(born)) if lane not in taken), start, end, value)
            )
    return lanes


def _strokes(row: int, part: tuple[Node, ...], skips: list[tuple[int, int, int, str]]) -> str:
    reads = {value for node in part for value in node.reads}
    strokes: dict[int, str] = {}
    for lane, start, end, value in skips:
        if start <= row <= end:
            strokes[lane] = (
                "┐" if row == start else "┘" if row == end else "┤" if value in reads else "│"
            )
    return " ".join(strokes.get(lane, " ") for lane in range(max(strokes, default=-1) + 1))
