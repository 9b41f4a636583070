"""How one layer falls apart into nodes, and that its nodes compute what it does. Whole models:
test_graph.py."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from ultralytics.nn.modules import C3, C3TR, SPPF, C3x, Concat, Conv, Detect

from yolods.model.graph.nodes import IMAGE, OUT, Node, nodes_of_layer, run_node


def placed(layer: nn.Module, index: int, reads: int | list[int]) -> nn.Module:
    """As ultralytics' parser numbers a layer and its inputs."""
    layer.i, layer.f = index, reads
    return layer.train()


def by_nodes(
    layer: nn.Module, values: dict[str, Tensor], *, split: bool = True
) -> tuple[list[Node], dict[str, Any]]:
    """What a layer's nodes write, one after the other, each from what it reads alone."""
    root = {f"model.{layer.i}": layer} | {
        f"model.{layer.i}.{name}": each for name, each in layer.named_modules()
    }
    found, nodes = dict(values), list(nodes_of_layer(layer, split))
    for node in nodes:
        given = {name: found[name] for name in node.reads}
        written = run_node(node, {name: root[name] for name in node.modules}, given)
        assert tuple(written) == node.writes
        found |= written
    return nodes, found


def noise(channels: int, size: int = 8) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(channels))


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("kind", [C3, C3x])
def test_a_c3_opens_runs_its_blocks_and_closes(kind, blocks):
    layer = placed(kind(8, 12, blocks), 4, -1)
    expected = deepcopy(layer)(noise(8))
    nodes, found = by_nodes(layer, {"3": noise(8)})
    assert [node.name for node in nodes] == [
        "4.open",
        *(f"4.m.{number}" for number in range(blocks)),
        "4.close",
    ]
    assert torch.equal(found["4"], expected)
    carried = found[f"4.h{blocks}"].shape[1] + found["4.b"].shape[1]
    assert carried == layer.cv3.conv.in_channels, "what crosses a cut within it"


@pytest.mark.parametrize("layer", [C3TR(8, 8, 1), SPPF(8, 8, 5)], ids=["C3TR", "SPPF"])
def test_a_layer_that_is_no_list_of_blocks_stays_whole(layer):
    layer = placed(layer, 4, -1)
    expected = deepcopy(layer)(noise(8))
    nodes, found = by_nodes(layer, {"3": noise(8)})
    assert [(node.role, node.modules) for node in nodes] == [("layer", ("model.4",))]
    assert torch.equal(found["4"], expected)


def test_inputs_are_named_by_the_layer_that_wrote_them_and_the_first_is_the_image():
    first, join = placed(Conv(3, 4), 0, -1), placed(Concat(1), 7, [-1, 4, 0])
    ((node,), (joined,)) = (list(nodes_of_layer(layer, True)) for layer in (first, join))
    assert node.reads == (IMAGE,)
    assert joined.reads == ("6", "4", "0")
    values = {"6": noise(2), "4": noise(3), "0": noise(1)}
    assert torch.equal(by_nodes(join, values)[1]["7"], torch.cat([noise(2), noise(3), noise(1)], 1))


@pytest.fixture
def head() -> Detect:
    torch.manual_seed(0)
    made = placed(Detect(nc=3, ch=(8, 16)), 24, [17, 23])
    made.stride = torch.tensor([8.0, 16.0])
    return made


@pytest.mark.parametrize("training", [True, False])
def test_a_head_in_parts_predicts_what_the_whole_one_does(head, training):
    levels = {"17": noise(8), "23": noise(16, 4)}
    head.train(training)
    whole, (parts, (single,)) = (
        by_nodes(deepcopy(head), levels, split=False)[1][OUT],
        (by_nodes(head, levels)[0], by_nodes(head, levels, split=False)[0]),
    )
    out = by_nodes(head, levels)[1][OUT]
    assert single.name == "24" and parts[-1].name == "24.detect"
    assert [node.name for node in parts if node.layer == 24 and ".0." in node.name] == [
        *("24.0.box", "24.0.cls0", "24.0.cls1", "24.0.cat"),
    ]
    if not training:  # BatchNorm's statistics have moved between the two
        assert torch.equal(out["boxes"], whole["boxes"]) and torch.equal(
            out["scores"], whole["scores"]
        )
    assert out["boxes"].shape == (2, 4 * head.reg_max, 80) and out["scores"].shape == (2, 3, 80)
    assert [level.shape[2:] for level in out["feats"]] == [(8, 8), (4, 4)]


def test_a_level_s_input_is_read_last_by_the_first_part_of_its_class_head(head):
    """So that it need not cross the cuts behind it."""
    parts = list(nodes_of_layer(head, True))
    readers = [node.name for node in parts if "17" in node.reads]
    assert readers == ["24.0.box", "24.0.cls0"]
    assert parts.index(next(node for node in parts if node.name == "24.0.cls0")) == 1
