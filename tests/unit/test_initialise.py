"""Initial weights: the same for a seed however the model is cut, and distributed as ultralytics has
them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import build_graph
from yolods.model.graph.stage import Stage
from yolods.model.initialise import initialise

NAMES = ("cat", "dog", "fish")


def blueprint_of(name: str, seed: int = 0) -> Blueprint:
    return Blueprint(architecture(parse_name(name), len(NAMES), 3), NAMES, seed)


def initial(root: nn.Module, blueprint: Blueprint) -> dict[str, torch.Tensor]:
    initialise(root, blueprint.strides, len(NAMES), blueprint.seed)
    return root.state_dict()


@pytest.mark.parametrize(
    ("name", "bounds"), [("yolov5n", (0, 7, 23, 41)), ("yolov5n6", (0, 30, 60))]
)
def test_stages_start_with_the_whole_models_weights_whatever_was_built_before(name, bounds):
    blueprint = blueprint_of(name, seed=3)
    whole = blueprint.whole(None)[0].state_dict()
    graph = build_graph(blueprint.meta)
    ends = [*bounds, len(graph.nodes)]
    found = {}
    for start, stop in reversed(list(pairwise(ends))):
        torch.manual_seed(stop)
        found |= initial(Stage(graph, start, stop), blueprint)
    assert found.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(found[key], value), key


def test_nothing_is_left_as_it_lay_in_memory():
    blueprint = blueprint_of("yolov5n")
    graph = build_graph(blueprint.meta)
    stage = Stage(graph, 0, len(graph.nodes))
    with torch.no_grad():
        for tensor in (*stage.parameters(), *stage.buffers()):
            tensor.fill_(12345)
    assert not [name for name, value in initial(stage, blueprint).items() if (value == 12345).any()]


def test_another_seed_and_another_name_give_other_numbers():
    one, two = (
        initial(blueprint_of("yolov5n", seed).whole(None)[0], blueprint_of("yolov5n", seed))
        for seed in (0, 1)
    )
    assert not torch.equal(one["model.1.conv.weight"], two["model.1.conv.weight"])
    blocks = [one[f"model.4.m.{place}.cv2.conv.weight"] for place in (0, 1)]
    assert blocks[0].shape == blocks[1].shape and not torch.equal(*blocks)


def test_the_generators_of_the_process_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    blueprint = blueprint_of("yolov5[0.33,0.1]")
    stage = Stage(build_graph(blueprint.meta), 0, 5)
    initialise(stage, blueprint.strides, 3, 0)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n6"])
def test_distributions_are_those_of_ultralytics_constructor(name):
    blueprint = blueprint_of(name)
    torch.manual_seed(0)
    theirs = build(
        blueprint.layers, NAMES
    )  # ultralytics' DetectionModel as its constructor leaves it
    ours = blueprint.whole(None)[0]
    other = dict(theirs.named_modules())
    convolutions = 0
    for key, module in ours.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            for mine, its in zip(
                module.state_dict().values(),
                nn.BatchNorm2d(module.num_features).state_dict().values(),
                strict=True,
            ):
                assert torch.equal(mine, its)
            assert (module.eps, module.momentum) == (other[key].eps, other[key].momentum)
        elif isinstance(module, nn.Conv2d):
            convolutions += 1
            _compare(key, module, other[key])
    assert convolutions > 50


def _compare(name: str, mine: nn.Conv2d, other: nn.Conv2d) -> None:
    if ".dfl" in name:
        assert torch.equal(mine.weight, other.weight)
        return
    reach = 1 / math.sqrt(mine.weight[0].numel())
    assert mine.weight.abs().max() <= reach
    count = mine.weight.numel()
    # Mean and spread of a uniform distribution in +-reach, each within five standard errors: theirs
    # are too.
    for weight in (mine.weight.detach(), other.weight.detach()):
        assert abs(weight.mean()) < 5 * reach / math.sqrt(3 * count), name
        assert abs(weight.std() * math.sqrt(3) / reach - 1) < 5 / math.sqrt(count), name
    assert (mine.bias is None) == (other.bias is None)
    if mine.bias is not None and name.count(".") == 4 and name.endswith(".2"):
        torch.testing.assert_close(
            mine.bias, other.bias, rtol=1e-6, atol=0
        )  # 2 for boxes, by stride for classes
