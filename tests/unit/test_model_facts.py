"""What of a model decides its traffic: every parameter once, with its group."""

from __future__ import annotations

from functools import lru_cache

from torch import nn

from yolods.model.architecture.build import architecture, parse_name
from yolods.model.graph.graph import build_graph
from yolods.optim.optimizers import freeze, parameter_groups
from yolods.plan.cost import Cost, cost
from yolods.plan.traffic.model_facts import stages_of


@lru_cache
def costs_of() -> Cost:
    return cost(build_graph(architecture(parse_name("yolov5n"), 3, 3), split=True), 64, 4)


def test_groups_are_those_of_the_optimizer() -> None:
    (facts,) = stages_of(costs_of())
    graph = build_graph(architecture(parse_name("yolov5n"), 3, 3), split=True)
    freeze(graph.skeleton, None)
    for group in parameter_groups(graph.skeleton, 0.0):
        expected = [parameter.numel() for parameter in group["params"]]
        own = [each.elements for each in facts.trained if each.group == group["param_group"]]
        assert own == expected, group["param_group"]


def test_stages_divide_parameters_and_layers() -> None:
    costs = costs_of()
    (whole,) = stages_of(costs)
    cuts = (costs.graph.nodes_of(6).start, costs.graph.nodes_of(13).start)
    stages = stages_of(costs, cuts)
    assert sum(len(stage.weights) for stage in stages) == len(whole.weights)
    assert sum(each.elements for each in whole.weights) == costs.parameters
    norms = [each for each in costs.graph.skeleton.modules() if isinstance(each, nn.BatchNorm2d)]
    assert sum(len(stage.norms) for stage in stages) == len(whole.norms) == len(norms)
    assert [stage.sent_bytes for stage in stages] == [*(costs.crossing[cut] for cut in cuts), 0]
    assert whole.sent_values == 0 and stages[1].sent_values == 3


def test_frozen_layers_have_parameters_but_neither_gradients_nor_statistics() -> None:
    (whole,), (frozen,) = stages_of(costs_of()), stages_of(costs_of(), frozen=10)
    assert len(frozen.weights) == len(whole.weights)
    assert len(frozen.trained) < len(whole.trained) and len(frozen.norms) < len(whole.norms)
