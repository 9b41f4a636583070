"""Every node's forward and backward pass is timed, on a CPU too, whatever it returns and whoever
reads it."""

from __future__ import annotations

import weakref
from typing import Any
from unittest import mock

import pytest
import torch

from tests.unit.test_graph import layers_of, small
from yolods.model.architecture.build import build
from yolods.model.graph.graph import IMAGE, Graph, build_graph, modules_of, run_nodes
from yolods.plan.profile import measure

CPU = torch.device("cpu")
_backward = torch.autograd.backward


def passes_of(
    graph: Graph, imgsz: int, precision: str = "fp32", repeats: int = 1
) -> tuple[list[float], list[int]]:
    """Seconds of each node, and how many tensors each backward pass began from."""
    began: list[int] = []

    def count(tensors: list[torch.Tensor], *given: Any) -> None:
        began.append(len(tensors))
        _backward(tensors, *given)

    with mock.patch("torch.autograd.backward", count):
        return list(measure(graph, imgsz, 2, CPU, precision, repeats=repeats)), began


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "imgsz"),
    [(layers_of("yolov5[0.33,0.1]"), 64), (layers_of("yolov5n6"), 64), (small(), 32)],
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


def with_an_unread_layer() -> dict[str, Any]:
    """Layer 5 writes what nothing reads, as a yaml of the user's own may have it."""
    layers = small()
    layers["head"] = [
        [3, 1, "Conv", [8]],
        [4, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 2], 1, "Concat", [1]],
        [-1, 1, "C3", [16, False]],
        [[8, 4], 1, "Detect", ["nc"]],
    ]
    return layers


def test_a_layer_that_nothing_reads_is_timed():
    graph = build_graph(with_an_unread_layer())
    assert "5" not in graph.lifetimes
    seconds, _ = passes_of(graph, 32)
    assert len(seconds) == len(graph.nodes)
    assert all(value > 0 for value in seconds)


def test_what_nothing_reads_is_let_go_at_once():
    net = build(with_an_unread_layer(), ("a", "b", "c"))
    graph = build_graph(net)
    seen, alive = [], []
    net.model[5].register_forward_hook(
        lambda module, given, written: seen.append(weakref.ref(written))
    )
    net.model[7].register_forward_hook(
        lambda module, given, written: alive.append(seen[0]() is not None)
    )
    with torch.no_grad():
        run_nodes(
            graph,
            0,
            len(graph.nodes),
            modules_of(graph.nodes, net),
            {IMAGE: torch.rand(2, 3, 32, 32)},
        )
    assert alive == [False]
