"""Traced storages agree with the costs of the graph, and with each other."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import Graph, build_graph, live
from yolods.plan.cost import cost
from yolods.plan.memory.timeline import stage_timeline, whole_timeline
from yolods.plan.memory.trace import (
    Way,
    shapes_of,
    trace_detector,
    trace_nodes,
    trace_recomputed,
    trace_stage,
)

SIZE, IMAGES = 64, 4
FP32 = Way(precision="fp32")
OUTPUTS = 2 * (4 * 16 + 3)
"""Numbers per anchor: of boxes and of 3 classes, level by level and joined."""


@lru_cache
def blueprint() -> Blueprint:
    return Blueprint(architecture(parse_name("yolov5n"), 3, 3), ("a", "b", "c"), seed=0)


@lru_cache
def graph() -> Graph:
    return build_graph(blueprint().meta)


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_a_forward_pass_keeps_what_the_costs_say(precision: str, size: int) -> None:
    kept = whole_timeline(
        trace_detector(blueprint().meta, Way(precision=precision), SIZE), IMAGES
    ).kept
    counted = cost(graph(), SIZE, size).activation_bytes * IMAGES
    # Besides what autograd keeps there are the head's outputs.
    assert counted < kept < 1.05 * counted


def test_every_gradient_arrives_once_and_nothing_is_left() -> None:
    trace = trace_detector(blueprint().meta, FP32, SIZE)
    trained = [each for each in blueprint().meta.parameters() if each.requires_grad]
    assert sorted(trace.arrivals[:, 1]) == sorted(each.numel() for each in trained)
    assert whole_timeline(trace, IMAGES).backward[-1] == 0


def test_memory_is_linear_in_the_images() -> None:
    trace = trace_detector(blueprint().meta, FP32, SIZE)
    one, two, three = (whole_timeline(trace, images).kept for images in (1, 2, 3))
    assert three - two == two - one > 0


def test_recomputation_keeps_less_and_returns_the_same_gradients() -> None:
    trace = trace_recomputed(graph(), 8, FP32, SIZE)
    plain = trace_detector(blueprint().meta, FP32, SIZE)
    assert whole_timeline(trace, IMAGES).kept < 0.3 * whole_timeline(plain, IMAGES).kept
    assert trace.arrivals[:, 1].sum() == plain.arrivals[:, 1].sum()


def test_synchronised_statistics_in_bf16_cost_memory_for_a_moment() -> None:
    peaks = [
        int(whole_timeline(trace_detector(blueprint().meta, way, SIZE), IMAGES).backward.max())
        for way in (Way(precision="bf16"), Way(precision="bf16", sync_bn=True))
    ]
    assert peaks[0] < peaks[1] < 1.5 * peaks[0]


def test_autocast_halves_activations_of_fp32_weights() -> None:
    cast = whole_timeline(
        trace_detector(blueprint().meta, Way(precision="fp32", autocast="bf16"), 256), 64
    )
    plain = whole_timeline(trace_detector(blueprint().meta, FP32, 256), 64)
    assert 0.5 < cast.kept / plain.kept < 0.6


@pytest.mark.parametrize("nodes", [range(0, 20), range(20, 41), range(41, 56)])
def test_a_window_is_what_the_stage_alone_has(nodes: range) -> None:
    assert len(graph().nodes) == 56
    shapes = shapes_of(graph(), SIZE)

    def crossing(cut: int) -> int:
        inner = 0 < cut < len(graph().nodes)
        sizes = [np.prod(shapes[name]) for name in live(graph(), cut)] if inner else []
        return int(4 * IMAGES * sum(sizes))

    received, sent = crossing(nodes.start), crossing(nodes.stop)
    mine = stage_timeline(trace_nodes(graph(), FP32, SIZE), nodes, IMAGES, received, sent)
    alone = whole_timeline(trace_stage(graph(), nodes, shapes, 0, FP32, SIZE), IMAGES)
    # While the loss is computed, the engine still holds the outputs that it reads.
    last = nodes.stop == len(graph().nodes)
    read = 4 * IMAGES * sum((SIZE // side) ** 2 for side in (8, 16, 32)) * OUTPUTS if last else 0
    assert mine.kept == pytest.approx(alone.kept + received + read, rel=0.01)
    assert mine.forward.max() == pytest.approx(alone.forward.max() + received, rel=0.01)
    assert mine.backward.max() == pytest.approx(alone.backward.max() + received + sent, rel=0.04)
    assert mine.arrived[-1] == alone.arrived[-1]
