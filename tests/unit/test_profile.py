"""Every node's forward and backward pass is timed, on a CPU too, whatever it returns and whoever reads it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from tests.unit.test_graph import layers_of, small
from yolods.model.graph import Graph, build_graph
from yolods.plan.profile import measure

CPU = torch.device("cpu")
_backward = torch.autograd.backward


def passes_of(graph: Graph, imgsz: int, precision: str = "fp32", repeats: int = 1) -> tuple[list[float], list[int]]:
    """Seconds of each node, and how many tensors each backward pass began from."""
    began: list[int] = []

    def count(tensors: list[torch.Tensor], *given: Any) -> None:
        began.append(len(tensors))
        _backward(tensors, *given)

    with mock.patch("torch.autograd.backward", count):
        return list(measure(graph, imgsz, 2, CPU, precision, repeats=repeats)), began


@pytest.mark.parametrize(
    ("layers", "imgsz"), [(layers_of("yolov5[0.33,0.1]"), 64), (layers_of("yolov5n6"), 64), (small(), 32)]
)
@pytest.mark.parametrize("split", [True, False])
def test_every_node_is_timed_forward_and_backward(layers, imgsz, split):
    graph = build_graph(layers, split=split)
    seconds, began = passes_of(graph, imgsz)
    assert len(seconds) == len(graph.nodes)
    assert all(value > 0 for value in seconds)
    # One pass that is not counted and one that is, each backward from all that the node computed.
    computed = {"open": 2, "detect": 2}
    expected = [computed.get(node.role, 1) for node in graph.nodes for _ in range(2)]
    assert began == expected


def test_the_fastest_of_several_passes_counts(monkeypatch):
    graph = build_graph(small())
    times = iter([9.0, 3.0, 2.0, 5.0] * len(graph.nodes))
    monkeypatch.setattr("yolods.plan.profile._pass", lambda *_: next(times))
    assert measure(graph, 32, 2, CPU, "fp32", repeats=3) == (2.0,) * len(graph.nodes)


def test_in_bf16():
    graph = build_graph(small())
    assert len(passes_of(graph, 32, "bf16")[0]) == len(graph.nodes)


def test_a_layer_that_nothing_reads_is_timed_and_let_go():
    layers = small()
    layers["head"].insert(0, [3, 1, "Conv", [8]])  # layer 5, and the layers behind it move on by one
    layers["head"][1:] = [
        [4, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3", [16, False]],
        [[8, 4], 1, "Detect", ["nc"]],
    ]
    graph = build_graph(layers)
    assert "5" not in graph.lifetimes
    seconds, _ = passes_of(graph, 32)
    assert len(seconds) == len(graph.nodes)
    assert all(value > 0 for value in seconds)
