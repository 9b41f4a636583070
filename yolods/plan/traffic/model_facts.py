"""What of a model decides its ranks' traffic: the sizes of its parameters, by stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from torch import nn

from yolods.model.freezing import Frozen, is_frozen, marks_of
from yolods.model.graph.graph import Graph, live
from yolods.plan.cost import Cost

_NORMS = tuple(kind for name, kind in vars(nn).items() if "Norm" in name and isinstance(kind, type))
_CASTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers whose gradients travel in autocast's type: DeepSpeed's default of
"lower_precision_safe_modules" (0.19.8, runtime/torch_autocast.py:15)."""


@dataclass(frozen=True)
class Weight:
    """One parameter."""

    elements: int
    trained: bool
    group: str
    """Its optimizer group: weight, bn or bias, as `optim.optimizers.parameter_groups` divides."""
    casts: bool
    """Whether autocast computes its layer in 16 bits."""


@dataclass(frozen=True)
class StageFacts:
    """One pipeline stage, or the whole model."""

    weights: tuple[Weight, ...]
    """In the model's order."""
    norms: tuple[int, ...]
    """Channels of each BatchNorm that computes batch statistics."""
    sent_bytes: int
    """Bytes per image of the values that it sends to the next stage; 0 for the last stage."""
    sent_values: int
    """Number of those values."""

    @property
    def trained(self) -> list[Weight]:
        """The parameters that have gradients."""
        return [weight for weight in self.weights if weight.trained]


def stages_of(
    costs: Cost, cuts: Sequence[int] = (), frozen: Frozen = None
) -> tuple[StageFacts, ...]:
    """The stages between `cuts`.

    Args:
        costs: of the model, at the image size and the precision of its activations.
        cuts: index of the first node of every stage except the first.
        frozen: the hyper-parameter `freeze`.
    """
    ends, parts = [0, *cuts, len(costs.nodes)], _parts(costs.graph, tuple(marks_of(frozen)))
    return tuple(_stage(costs, parts, begin, end) for begin, end in pairwise(ends))


def uncut(net: nn.Module, frozen: Frozen = None) -> StageFacts:
    """A model that is not cut, without its costs: it sends nothing to a next stage."""
    marks, weights, norms = marks_of(frozen), [], []
    for name, module in net.named_modules():
        weights += _weights(name, module, marks)
        if isinstance(module, nn.BatchNorm2d) and not is_frozen(name, marks):
            norms.append(module.num_features)
    return StageFacts(tuple(weights), tuple(norms), 0, 0)


@dataclass(frozen=True)
class _Part:
    """One layer of torch in the model."""

    node: int
    """Index of the node that runs it."""
    weights: tuple[Weight, ...]
    norms: tuple[int, ...]
    """Channels, if it is a BatchNorm that computes batch statistics."""


@lru_cache(maxsize=32)
def _parts(graph: Graph, marks: tuple[str, ...]) -> tuple[_Part, ...]:
    """All layers with weights or statistics, in the model's order."""
    owners = {name: node.index for node in graph.nodes for name in node.modules}
    found = []
    for name, module in graph.skeleton.named_modules():
        words = name.split(".")
        above = [".".join(words[:count]) for count in range(1, len(words) + 1)]
        owner = next((owners[each] for each in above if each in owners), None)
        if owner is None:
            continue
        counts = isinstance(module, nn.BatchNorm2d) and not is_frozen(name, marks)
        norms = (module.num_features,) if counts else ()
        weights = tuple(_weights(name, module, marks))
        if weights or norms:
            found.append(_Part(owner, weights, norms))
    return tuple(found)


def _stage(costs: Cost, parts: Iterable[_Part], begin: int, end: int) -> StageFacts:
    mine = [part for part in parts if begin <= part.node < end]
    crossing = () if end == len(costs.nodes) else live(costs.graph, end)
    sizes = [costs.values[value] for value in crossing]
    return StageFacts(
        tuple(weight for part in mine for weight in part.weights),
        tuple(channels for part in mine for channels in part.norms),
        sum(sizes),
        len(sizes),
    )


def _weights(module_name: str, module: nn.Module, marks: Sequence[str]) -> list[Weight]:
    found = []
    for own, parameter in module.named_parameters(recurse=False):
        name = f"{module_name}.{own}"
        group = "bias" if "bias" in name else "bn" if isinstance(module, _NORMS) else "weight"
        found.append(
            Weight(
                parameter.numel(),
                trained=not is_frozen(name, marks),
                group=group,
                casts=isinstance(module, _CASTS),
            )
        )
    return found
