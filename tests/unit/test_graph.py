"""The graph computes what ultralytics' own model computes, and says what crosses every cut."""

from __future__ import annotations

import weakref
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from yolods.errors import UserError
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.graph.graph import (
    IMAGE,
    OUT,
    build_graph,
    draw_graph,
    live,
    meta_model,
    modules_of,
    run_node,
    run_nodes,
)
from yolods.model.loss.detection_loss import DetectionLoss

NAMES = ("a", "b", "c")


def layers_of(name: str, nc: int = 3) -> dict:
    return architecture(parse_name(name), nc, 3)


def small(head: str = "Detect") -> dict:
    """Nine layers: C3 of one, two and no shortcut, a skip, two levels; not a model of the zoo."""
    return {
        "nc": 3,
        "channels": 3,
        "backbone": [
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 1, "Conv", [16, 3, 2]],
            [-1, 2, "C3", [16]],
            [-1, 1, "Conv", [32, 3, 2]],
            [-1, 1, "SPPF", [32, 5]],
        ],
        "head": [
            [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
            [[-1, 2], 1, "Concat", [1]],
            [-1, 1, "C3", [16, False]],
            [[7, 4], 1, head, ["nc"]],
        ],
    }


def built(layers: dict):
    torch.manual_seed(0)
    return build(layers, NAMES)


def images(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def score(out: dict) -> torch.Tensor:
    """Some scalar to which every raw prediction contributes differently."""
    parts = [out[key].flatten() for key in ("boxes", "scores")]
    return sum((part * torch.linspace(-1, 1, part.numel())).sum() for part in parts)


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize(
    ("layers", "size"),
    [
        (layers_of("yolov5n"), (64, 64)),
        (layers_of("yolov5n6"), (128, 64)),
        (layers_of("yolov5[0.33,0.25]"), (96, 64)),
        (layers_of("yolov5[1.0,0.1]"), (64, 64)),
        (small(), (40, 24)),
    ],
    ids=["n", "n6", "custom", "deep", "own"],
)
def test_values_and_gradients_are_the_models_own(layers, size, split):
    net = built(layers)
    twin = deepcopy(net)
    graph = build_graph(net, split=split)
    x, y = images(*size).requires_grad_(), images(*size).requires_grad_()
    expected = twin(y)
    out = run_nodes(graph, 0, len(graph.nodes), modules_of(graph.nodes, net), {IMAGE: x})[OUT]
    assert list(out) == ["boxes", "scores", "feats"]
    assert torch.equal(out["boxes"], expected["boxes"])
    assert torch.equal(out["scores"], expected["scores"])
    assert [level.shape[2:] for level in out["feats"]] == [
        level.shape[2:] for level in expected["feats"]
    ]
    score(out).backward()
    score(expected).backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-5, atol=1e-5 * y.grad.abs().max().item())
    for (name, ours), theirs in zip(net.named_parameters(), twin.parameters(), strict=True):
        if theirs.requires_grad:
            torch.testing.assert_close(
                ours.grad, theirs.grad, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers(), strict=True))


def test_evaluation_gives_the_same_raw_predictions_split_or_not():
    net = built(layers_of("yolov5n")).eval()
    for split in (True, False):
        graph = build_graph(net, split=split)
        with torch.no_grad():
            out = run_nodes(
                graph, 0, len(graph.nodes), modules_of(graph.nodes, net), {IMAGE: images(64, 64)}
            )[OUT]
            _, expected = net(images(64, 64))
        assert torch.equal(out["boxes"], expected["boxes"])
        assert torch.equal(out["scores"], expected["scores"])


def test_the_loss_needs_no_more_of_the_levels_than_their_grid():
    net = built(layers_of("yolov5n"))
    loss = DetectionLoss(
        net.model[-1], torch.device("cpu"), SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    )
    batch = {
        "batch_idx": torch.tensor([0.0, 1.0]),
        "cls": torch.tensor([[0.0], [2.0]]),
        "bboxes": torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.2]]),
    }
    graph = build_graph(net)
    out = run_nodes(
        graph, 0, len(graph.nodes), modules_of(graph.nodes, net), {IMAGE: images(64, 96)}
    )[OUT]
    assert torch.equal(loss(out, batch, 2)[1], loss(net(images(64, 96)), batch, 2)[1])


def test_any_cut_runs_in_two_parts_that_exchange_live_values_only():
    net = built(small())
    graph = build_graph(net)
    modules, end = modules_of(graph.nodes, net), len(graph.nodes)
    x = images(32, 32)
    whole = run_nodes(graph, 0, end, modules, {IMAGE: x})[OUT]
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(score(whole), parameters)
    for cut in range(1, end):
        before = run_nodes(graph, 0, cut, modules, {IMAGE: x})
        assert tuple(before) == live(graph, cut)
        crossed = {name: value.detach().requires_grad_() for name, value in before.items()}
        out = run_nodes(graph, cut, end, modules, crossed)[OUT]
        assert torch.equal(out["boxes"], whole["boxes"])
        score(out).backward()
        torch.autograd.backward(list(before.values()), [value.grad for value in crossed.values()])
        for parameter, gradient in zip(parameters, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-4)
        net.zero_grad()


def test_what_crosses_between_the_layers_of_yolov5():
    graph = build_graph(layers_of("yolov5n"), split=False)
    skips = {
        5: "4",
        6: "4 5",
        7: "4 6",
        10: "4 6 9",
        11: "4 6 10",
        13: "4 10 12",
        15: "4 10 14",
        17: "10 14 16",
    }
    skips |= {
        18: "10 14 17",
        20: "10 17 19",
        21: "10 17 20",
        23: "17 20 22",
        24: "17 20 23",
        25: "out",
    }
    assert {cut: " ".join(live(graph, cut)) for cut in skips} == skips
    assert live(graph, 0) == (IMAGE,)
    assert all(live(graph, cut) == (str(cut - 1),) for cut in range(1, 5))
    with pytest.raises(ValueError, match=r"cut 26 is not in 0\.\.25"):
        live(graph, 26)


def test_what_crosses_inside_a_c3_and_inside_the_head():
    graph = build_graph(layers_of("yolov5n"))
    at = {node.name: live(graph, node.index) for node in graph.nodes}
    assert at["4.open"] == ("3",)
    assert at["4.m.0"] == ("4.h", "4.b")
    assert at["4.m.1"] == ("4.b", "4.h1")
    assert at["4.close"] == ("4.b", "4.h2")
    assert at["24.0.cls0"] == ("17", "20", "23", "24.0.box")
    assert at["24.0.cat"] == ("20", "23", "24.0.box", "24.0.cls1")
    assert at["24.detect"] == ("24.0", "24.1", "24.2")


def test_nodes_say_what_they_are():
    graph = build_graph(layers_of("yolov5n"))
    c3 = [graph.nodes[index] for index in graph.nodes_of(4)]
    assert [node.role for node in c3] == ["open", "block", "block", "close"]
    assert [node.modules for node in c3] == [
        ("model.4.cv1", "model.4.cv2"),
        ("model.4.m.0",),
        ("model.4.m.1",),
        ("model.4.cv3",),
    ]
    assert [node.index for node in graph.nodes] == list(range(len(graph.nodes)))
    assert {edge.target for edge in graph.edges if edge.value == "4"} == {
        graph.nodes_of(k)[0] for k in (5, 16)
    }


def test_half_as_many_channels_cross_twice_between_two_blocks():
    net = built(layers_of("yolov5n"))
    graph = build_graph(net)
    cut = next(node.index for node in graph.nodes if node.name == "4.m.1")
    with torch.no_grad():
        crossing = run_nodes(graph, 0, cut, modules_of(graph.nodes, net), {IMAGE: images(64, 64)})
    assert sum(value.shape[1] for value in crossing.values()) == net.model[4].cv3.conv.out_channels


def test_a_value_is_let_go_after_its_last_reader():
    net = built(small())
    graph = build_graph(net)
    seen, alive = [], []
    for layer in net.model:
        layer.register_forward_hook(
            lambda m, i, o: seen.append(weakref.ref(o)) if m.i < 2 else None
        )
    net.model[3].register_forward_hook(
        lambda m, i, o: alive.extend(ref() is not None for ref in seen)
    )
    with torch.no_grad():
        run_nodes(graph, 0, len(graph.nodes), modules_of(graph.nodes, net), {IMAGE: images(32, 32)})
    assert alive == [False, False]


def test_run_node_leaves_its_inputs_alone():
    graph = build_graph(small())
    net = built(small())
    values = {IMAGE: images(32, 32)}
    assert list(run_node(graph.nodes[0], {"model.0": net.model[0]}, values)) == ["0"]
    assert list(values) == [IMAGE]


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n6", "yolov5[0.33,0.1]"])
def test_a_meta_model_has_the_names_shapes_and_strides_of_the_real_one(name):
    meta, real = meta_model(layers_of(name)), built(layers_of(name))
    theirs = {key: (value.shape, value.dtype) for key, value in real.state_dict().items()}
    assert {key: (value.shape, value.dtype) for key, value in meta.state_dict().items()} == theirs
    assert {tensor.device.type for tensor in meta.state_dict().values()} == {"meta"}
    assert torch.equal(meta.stride, real.stride)
    assert torch.equal(meta.model[-1].stride, real.stride)
    for ours, other in zip(meta.modules(), real.modules(), strict=True):
        assert [getattr(ours, key, None) for key in ("eps", "momentum", "i", "f")] == [
            getattr(other, key, None) for key in ("eps", "momentum", "i", "f")
        ]


@pytest.mark.slow
def test_a_model_larger_than_any_host_is_described():
    net = meta_model(layers_of("yolov5[8,16]6"))
    assert sum(parameter.numel() for parameter in net.parameters()) * 4 > 2**38
    assert len(build_graph(net, split=False).nodes) == 34


def test_building_a_graph_keeps_nothing_of_the_net():
    net = built(small())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    graph = build_graph(net)
    assert {value.device.type for value in graph.skeleton.state_dict().values()} == {"meta"}
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    gone = weakref.ref(net)
    del net
    assert gone() is None


@pytest.mark.parametrize(
    ("kind", "role"), [("C3x", "open"), ("C3Ghost", "open"), ("C3TR", "layer"), ("C2f", "layer")]
)
def test_other_layers_split_only_where_they_compute_what_c3_does(kind, role):
    layers = small()
    layers["backbone"][2] = [-1, 2, kind, [64]]  # C3TR needs 32 channels a head
    net = built(layers)
    graph = build_graph(net)
    assert graph.nodes[graph.nodes_of(2)[0]].role == role
    out = run_nodes(
        graph, 0, len(graph.nodes), modules_of(graph.nodes, net.eval()), {IMAGE: images(32, 32)}
    )[OUT]
    torch.testing.assert_close(out["boxes"], net(images(32, 32))[1]["boxes"])


def test_all_faults_of_a_graph_are_said_at_once():
    graph = build_graph(small(), split=False)
    nodes = list(graph.nodes)
    nodes[1] = replace(nodes[1], reads=("nowhere",))
    nodes[2] = replace(nodes[2], reads=("6",), modules=("model.3",))
    nodes[4] = replace(nodes[4], writes=("3",))
    with pytest.raises(UserError) as caught:
        replace(graph, nodes=tuple(nodes)).verify()
    lines = str(caught.value).splitlines()
    assert "model: node 1 reads 'nowhere', which nothing writes" in lines
    assert (
        "model: node 2 reads '6' before it is written; a layer can read only earlier ones" in lines
    )
    assert "model: node 4 writes '3', which was written before" in lines
    assert "model: model.3.conv.weight belongs to 2 and 3, not to exactly one" in lines
    assert "model: model.2.cv1.conv.weight belongs to no node, not to exactly one" in lines


def test_a_model_has_to_end_in_a_plain_detect_head():
    with pytest.raises(UserError, match="layer 8 is v10Detect, not the plain Detect head"):
        build_graph(small(head="v10Detect"))
    headless = small()
    headless["head"].pop()
    with pytest.raises(
        UserError,
        match=r"the last layer \(7\) must be the only Detect head, but Detect is at: nowh",
    ):
        build_graph(headless)
    last = small()
    last["head"].append([7, 1, "Conv", [8]])
    with pytest.raises(UserError, match="Detect is at: 8"):
        build_graph(last)


@pytest.mark.parametrize(
    ("layer", "entry", "said"),
    [
        (
            6,
            [[-1, 0], 1, "Concat", [1]],
            r"layer 6 \(Concat\) does not accept \(32, .*: RuntimeError: Sizes of tensors",
        ),
        (6, [[-1, 40], 1, "Concat", [1]], r"layer 6 \(Concat \[1\]\): IndexError"),
        (3, [-1, 1, "Nonesuch", [1]], "layer 3 is a 'Nonesuch', which ultralytics does not have"),
    ],
)
def test_a_yaml_that_cannot_be_built_is_a_users_mistake(layer, entry, said):
    layers = small()
    part = layers["backbone"] if layer < 5 else layers["head"]
    part[layer if layer < 5 else layer - 5] = entry
    with pytest.raises(UserError, match=f"the model cannot be built: {said}"):
        meta_model(layers)


def test_the_drawing_shows_skips_and_what_crosses():
    graph = build_graph(small())
    cut = next(node.index for node in graph.nodes if node.name == "7.close")
    drawn = draw_graph(graph, (graph.nodes_of(4)[0], cut))
    assert drawn.splitlines() == [
        "            0  Conv",
        "            1  Conv",
        "            2  C3        ┐",
        "            3  Conv      ┤",
        "---- stage 1: 2 3",
        "            4  SPPF      │ ┐",
        "            5  Upsample  │ ┤",
        "            6  Concat    ┘ │",
        "7.open..7.m.0  C3          │",
        "---- stage 2: 4 7.b 7.h1",
        "      7.close  C3          │",
        "            8  Detect      ┘",
    ]


def test_the_drawing_in_the_documentation_is_yolov5():
    graph = build_graph(layers_of("yolov5n"))
    text = (Path(__file__).parents[2] / "docs" / "pipeline.md").read_text(encoding="utf-8")
    assert f"```\n{draw_graph(graph, (graph.nodes_of(13)[0],))}\n```" in text
