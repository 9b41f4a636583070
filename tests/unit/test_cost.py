"""Costs counted on the meta device against the published sizes, and against what autograd really
keeps."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.graph.graph import IMAGE, build_graph, live, modules_of, run_nodes
from yolods.plan.cost import TRAFFIC, Machine, cost, node_seconds
from yolods.plan.stage_costs import StageCosts, Terms


def graph_of(name: str, nc: int = 80, split: bool = True):
    return build_graph(architecture(parse_name(name), nc, 3), split=split)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions", "gflops", "mib"),
    [
        ("yolov5n", 2.65, (7.7, 30.9), (88, 353)),
        ("yolov5s", 9.15, (24.0, 96.0), (165, 660)),
        ("yolov5m", 25.11, (64.2, 256.8), (300, 1198)),
        ("yolov5x", 97.28, (246.4, 985.6), (683, 2730)),
        ("yolov5x6", 155.54, (250.7, 1002.8), (693, 2771)),
        ("yolov5[2,2]6", 505.8, (827.3, 3309.3), (1415, 5657)),
    ],
)
def test_totals_at_640_and_1280(name, millions, gflops, mib):
    graph = graph_of(name)
    for size, flops, kept in zip((640, 1280), gflops, mib, strict=True):
        found = cost(graph, size)
        assert found.parameters / 1e6 == pytest.approx(millions, abs=0.05)
        assert found.flops / 1e9 == pytest.approx(flops, abs=0.05)
        assert found.activation_bytes / 2**20 == pytest.approx(kept, rel=0.01)


def kept_by_autograd(net, graph, start, stop, values) -> int:
    """Bytes of every storage of a real run that stays until backward: kept, received or sent;
    weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in values.values()
    }

    def pack(tensor):
        if tensor.dim() > 1 and tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sent = run_nodes(graph, start, stop, modules_of(graph.nodes, net), values)
    if stop < len(graph.nodes):
        kept |= {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for value in sent.values()
        }
    return sum(kept.values())


@pytest.fixture(scope="module")
def tiny():
    net = build(architecture(parse_name("yolov5[0.33,0.1]"), 3, 3), ("a", "b", "c"))
    return net, build_graph(net)


def test_the_whole_model_keeps_what_autograd_keeps(tiny):
    net, graph = tiny
    image = torch.rand(3, 3, 64, 64)
    real = kept_by_autograd(net, graph, 0, len(graph.nodes), {IMAGE: image})
    assert 3 * cost(graph, 64, 4).activation_bytes == real


def test_a_stage_holds_what_autograd_keeps_and_what_crosses(tiny):
    net, graph = tiny
    table = StageCosts(cost(graph, 64, 4), Terms())
    bounds = [0, 5, 6, 17, 30, 41, len(graph.nodes)]
    values = {IMAGE: torch.rand(2, 3, 64, 64)}
    for start, stop in itertools.pairwise(bounds):
        assert (
            kept_by_autograd(net, graph, start, stop, values) == 2 * table.activations[start, stop]
        )
        with torch.no_grad():
            values = run_nodes(graph, start, stop, modules_of(graph.nodes, net), values)
        values = {
            name: value.detach()
            for name, value in values.items()
            if isinstance(value, torch.Tensor)
        }


def test_bytes_of_values_and_of_cuts(tiny):
    net, graph = tiny
    found = cost(graph, 64, 2)
    with torch.no_grad():
        for cut in range(1, len(graph.nodes), 7):
            crossing = run_nodes(
                graph, 0, cut, modules_of(graph.nodes, net), {IMAGE: torch.rand(1, 3, 64, 64)}
            )
            assert {name: 2 * value.numel() for name, value in crossing.items()} == {
                name: found.values[name] for name in live(graph, cut)
            }
            assert found.crossing[cut] == sum(2 * value.numel() for value in crossing.values())
    assert found.crossing[0] == found.crossing[-1] == found.values["out"] == 0


def test_precision_scales_numbers_but_not_the_places_of_max_pooling(tiny):
    graph = tiny[1]
    half, full = cost(graph, 64, 2), cost(graph, 64, 4)
    places = 3 * 8 * (graph.skeleton.model[9].cv1.conv.out_channels * 2 * 2)
    assert full.activation_bytes - places == 2 * (half.activation_bytes - places)
    assert half.flops == full.flops


def test_layers_or_parts_of_layers_cost_the_same():
    split, whole = (cost(graph_of("yolov5n", split=split), 320) for split in (True, False))
    assert (split.flops, split.parameters) == (whole.flops, whole.parameters)
    assert split.activation_bytes == whole.activation_bytes


def test_most_of_it_scales_with_the_pixels():
    graph = graph_of("yolov5n")
    assert cost(graph, 640).flops == 4 * cost(graph, 320).flops
    assert cost(graph, 640).parameters == cost(graph, 320).parameters
    assert cost(graph, 640).activation_bytes == 4 * cost(graph, 320).activation_bytes


def test_each_value_is_counted_at_its_first_keeper():
    found = cost(graph_of("yolov5n"), 320)
    by_name = {
        node.name: node_cost for node, node_cost in zip(found.graph.nodes, found.nodes, strict=True)
    }
    assert "4" in by_name["5"].keeps
    assert by_name["4.m.0"].keeps == ("4.h",)
    assert by_name["16"].keeps == ()  # a concatenation keeps nothing: its reader keeps the result
    assert by_name["17.open"].keeps == ("16",)
    first, second = by_name["24.0.box"], by_name["24.0.cls0"]
    assert first.keeps == second.keeps == ("17",)
    assert second.activation_bytes == second.inner_bytes
    assert by_name["18"].activation_bytes == by_name["18"].inner_bytes + found.values["17"]


def test_counting_twice_is_free():
    graph = graph_of("yolov5n")
    assert cost(graph, 320) is cost(graph, 320)
    assert cost(graph, 320) is not cost(graph_of("yolov5n"), 320)


def test_seconds_from_flops_and_from_memory():
    found = cost(graph_of("yolov5n"), 320)
    plain = node_seconds(found, Machine(flops=1e12), 4)
    assert sum(plain) == pytest.approx(4 * 3 * found.flops / 1e12)
    assert sum(node_seconds(found, Machine(flops=1e12), 4, recompute=True)) == pytest.approx(
        sum(plain) * 4 / 3
    )
    slow = node_seconds(found, Machine(flops=math.inf, memory=1e9))
    assert sum(slow) == pytest.approx(TRAFFIC * found.activation_bytes / 1e9)
