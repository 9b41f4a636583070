"""A stage holds its own nodes' weights under the whole model's names, and stages in a row are the
model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.parity.small import plain_model
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.graph.graph import IMAGE, OUT, build_graph
from yolods.model.graph.stage import Stage, attach

CUTS = {"yolov5n": ("4.m.1", "13", "24.0.cls1"), "yolov5n6": ("10.close", "23", "33.2.box")}


@pytest.fixture(scope="module", params=CUTS)
def cut_model(request: pytest.FixtureRequest) -> SimpleNamespace:
    """A plain model in training mode, and its stages with its weights in them."""
    net = plain_model(model=request.param)
    graph = build_graph(architecture(parse_name(request.param), 3, 3))
    names = [node.name for node in graph.nodes]
    starts = [
        names.index(name) if name in names else graph.nodes_of(int(name))[0]
        for name in CUTS[request.param]
    ]
    bounds = [0, *starts, len(names)]
    return SimpleNamespace(
        net=net, graph=graph, bounds=bounds, size=128 if "6" in request.param else 64
    )


def stages_of(cut: SimpleNamespace, recompute: int = 0) -> list[Stage]:
    ends = zip(cut.bounds, cut.bounds[1:], strict=False)
    stages = [Stage(cut.graph, start, stop, recompute=recompute) for start, stop in ends]
    given = cut.net.state_dict()
    for stage in stages:
        stage.load_state_dict({name: given[name].clone() for name in stage.state_dict()})
        for name, parameter in stage.named_parameters():
            parameter.requires_grad = ".dfl" not in name
    return [stage.train() for stage in stages]


def test_names_and_shapes_are_the_whole_models(cut_model):
    stages = stages_of(cut_model)
    held = {name: value.shape for stage in stages for name, value in stage.state_dict().items()}
    assert held == {name: value.shape for name, value in cut_model.net.state_dict().items()}
    assert sum(len(stage.state_dict()) for stage in stages) == len(held), (
        "a weight is in two stages"
    )


def test_a_stage_holds_its_own_nodes_and_nothing_else(cut_model):
    for stage in stages_of(cut_model):
        nodes = cut_model.graph.nodes[stage.start : stage.stop]
        own = tuple(f"{name}." for node in nodes for name in node.modules)
        assert all(name.startswith(own) for name in stage.state_dict())
        assert {tensor.device.type for tensor in stage.state_dict().values()} == {"cpu"}
    assert {tensor.device.type for tensor in cut_model.graph.skeleton.state_dict().values()} == {
        "meta"
    }


@pytest.mark.parametrize("recompute", [0, 1, 3, 1000])
def test_stages_in_a_row_are_the_model(cut_model, recompute):
    net, stages = (
        plain_model(model="yolov5n6" if cut_model.size == 128 else "yolov5n"),
        stages_of(cut_model, recompute),
    )
    images = torch.rand(
        2, 3, cut_model.size, cut_model.size, generator=torch.Generator().manual_seed(0)
    )
    expected = net(images)
    values = {IMAGE: images}
    for stage in stages:
        values = stage(values)
    assert torch.equal(values[OUT]["boxes"], expected["boxes"])
    assert torch.equal(values[OUT]["scores"], expected["scores"])
    for out in (values[OUT], expected):
        (out["boxes"].square().mean() + out["scores"].square().mean()).backward()
    plain = dict(net.named_parameters())
    for name, mine in ((name, each) for stage in stages for name, each in stage.named_parameters()):
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, plain[name].grad, rtol=1e-5, atol=1e-6, msg=name)
    buffers = dict(net.named_buffers())
    for name, mine in ((name, each) for stage in stages for name, each in stage.named_buffers()):
        assert torch.equal(mine, buffers[name]), name  # also how often BatchNorm counted


@pytest.mark.slow
def test_recomputing_keeps_no_activations_within_a_segment(cut_model):
    def kept(recompute: int) -> int:
        saved: list[int] = []
        stage = stages_of(cut_model, recompute)[0]
        with torch.autograd.graph.saved_tensors_hooks(
            lambda each: saved.append(each.nbytes) or each, lambda each: each
        ):
            values = stage({IMAGE: torch.rand(2, 3, cut_model.size, cut_model.size)})
        assert values
        return sum(saved)

    assert kept(0) > 3 * kept(1000)


def test_evaluation_is_not_recomputed(cut_model, monkeypatch):
    stage = stages_of(cut_model, 1)[0].eval()
    monkeypatch.setattr(
        "yolods.model.graph.stage.checkpoint", lambda *_, **__: pytest.fail("recomputed")
    )
    with torch.no_grad():
        assert stage({IMAGE: torch.rand(1, 3, 64, 64)})


def test_attaching_makes_the_modules_on_the_way():
    root, conv = nn.Module(), nn.Conv2d(1, 1, 1)
    attach(root, "model.4.m.0", conv)
    attach(root, "model.4.cv3", nn.Conv2d(1, 2, 1))
    assert root.get_submodule("model.4.m.0") is conv
    names = [f"model.4.{part}.{each}" for part in ("m.0", "cv3") for each in ("weight", "bias")]
    assert list(root.state_dict()) == names
