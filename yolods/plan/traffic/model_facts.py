"""What of a model decides its ranks' traffic: the sizes of its parameters, by stage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from yolods.model.freezing import Frozen, is_frozen, marks_of
from yolods.model.graph.graph import Node, live
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
    ends, marks = [0, *cuts, len(costs.nodes)], marks_of(frozen)
    nodes = costs.graph.nodes
    return tuple(_stage(costs, nodes[begin:end], end, marks) for begin, end in pairwise(ends))


def uncut(net: nn.Module, frozen: Frozen = None) -> StageFacts:
    """A model that is not cut, without its costs: it sends nothing to a next stage."""
    marks, weights, norms = marks_of(frozen), [], []
    for name, module in net.named_modules():
        weights += _weights(name, module, marks)
        if isinstance(module, nn.BatchNorm2d) and not is_frozen(name, marks):
            norms.append(module.num_features)
    return StageFacts(tuple(weights), tuple(norms), 0, 0)


def _stage(costs: Cost, nodes: Iterable[Node], end: int, marks: list[str]) -> StageFacts:
    owned = {name for node in nodes for name in node.modules}
    weights, norms = [], []
    for name, module in costs.graph.skeleton.named_modules():
        parts = name.split(".")
        if owned.isdisjoint(".".join(parts[:count]) for count in range(1, len(parts) + 1)):
            continue
        weights += _weights(name, module, marks)
        if isinstance(module, nn.BatchNorm2d) and not is_frozen(name, marks):
            norms.append(module.num_features)
    crossing = () if end == len(costs.nodes) else live(costs.graph, end)
    sizes = [costs.values[value] for value in crossing]
    return StageFacts(tuple(weights), tuple(norms), sum(sizes), len(sizes))


def _weights(module_name: str, module: nn.Module, marks: list[str]) -> list[Weight]:
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
