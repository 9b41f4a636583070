"""Which tensors a model takes from a .pt; the judge is ultralytics' own `load`, with both models in
memory."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from yolods.checkpoint.pt_file import write_pt
from yolods.errors import UserError
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.initialise import initialise
from yolods.model.transfer import WeightTransfer
from yolods.model.weights import PtFile, read_pt

NAMES = ("cat", "dog", "cow")


def blueprint_of(
    names: tuple[str, ...] = NAMES, seed: int = 0, model: str = "yolov5[0.1,0.1]", channels: int = 3
) -> Blueprint:
    return Blueprint(architecture(parse_name(model), len(names), channels), names, seed)


def written(path: Path, blueprint: Blueprint) -> Path:
    net = blueprint.whole(None)[0]
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape))
    write_pt(path, net, net.state_dict().items(), {})
    return path


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    return written(tmp_path_factory.mktemp("weights") / "given.pt", blueprint_of(seed=7))


NUMBERS = ("0", "1", "2")
TARGETS = {
    "the same": blueprint_of(),
    "names in another order": blueprint_of((" Dog", "COW", "cat")),
    "fewer classes, one known": blueprint_of(("Dog ", "horse")),
    "more classes": blueprint_of(("horse", "cow", "x", "y", "cat")),
    "other classes": blueprint_of(("x", "y", "z")),
    "other classes, other number": blueprint_of(("x", "y")),
    "numbers": blueprint_of(NUMBERS),
    "deeper": blueprint_of(model="yolov5[0.67,0.1]"),
    "wider": blueprint_of(model="yolov5[0.1,0.2]"),
    "wider, other order": blueprint_of(("cow", "cat", "dog"), model="yolov5[0.1,0.2]"),
    "one channel": blueprint_of(channels=1),
    "four channels": blueprint_of(channels=4),
}


@pytest.mark.parametrize(
    ("name", "by_name"), [*((name, True) for name in TARGETS), ("names in another order", False)]
)
def test_the_result_is_that_of_ultralytics_own_load(given, name, by_name):
    blueprint = TARGETS[name]
    net, note = blueprint.whole(given, by_name=by_name)
    expected, source = deepcopy(net), read_pt(given)
    initialise(expected, blueprint.strides, len(blueprint.names), blueprint.seed)
    if not by_name:
        source.names = {}
    before = {key: tensor.clone() for key, tensor in expected.state_dict().items()}
    expected.load(source, verbose=False)
    expected = expected.state_dict()
    for key, tensor in net.state_dict().items():
        assert torch.equal(tensor, expected[key]), key
    theirs = source.state_dict()
    taken = [
        key
        for key, tensor in expected.items()
        if key in theirs
        and (tensor.shape == theirs[key].shape or not torch.equal(tensor, before[key]))
    ]
    assert note == f"Transferred {len(taken)}/{len(expected)} tensors from {given}"


def test_values_that_the_file_replaces_are_not_drawn(given, monkeypatch):
    from yolods.model import blueprint as module

    drawn = []
    real = module.initialise_layer
    monkeypatch.setattr(
        module, "initialise_layer", lambda name, *rest: (drawn.append(name), real(name, *rest))
    )
    blueprint_of().whole(given)
    assert drawn == []
    blueprint_of(("x", "y")).whole(given)
    assert drawn == [f"model.24.cv3.{level}.2" for level in range(3)]


def test_a_class_branch_of_another_width_starts_anew(tmp_path):
    """The published yolov5n has 80 classes and a class branch of 80 channels; a model of three
    classes has 64, and its checkpoints and .pt files are written for 64. ultralytics changes the
    model."""
    names = tuple(f"c{number}" for number in range(80))
    path = written(tmp_path / "n80.pt", blueprint_of(names, model="yolov5[0.33,0.25]"))
    blueprint = blueprint_of(("c5", "b", "c2"), model="yolov5[0.33,0.25]")
    net, note = blueprint.whole(path)
    shapes = {key: tensor.shape for key, tensor in net.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in blueprint.meta.state_dict().items()}
    blueprint.skeleton.load_state_dict(net.state_dict(), strict=True)
    initial, theirs = blueprint.whole(None)[0].state_dict(), read_pt(path).state_dict()
    branch = "model.24.cv3.0"
    assert torch.equal(
        net.state_dict()[f"{branch}.0.conv.weight"], initial[f"{branch}.0.conv.weight"]
    )
    # Rows of biases have no width.
    bias = net.state_dict()[f"{branch}.2.bias"]
    assert torch.equal(bias[[0, 2]], theirs[f"{branch}.2.bias"][[5, 2]])
    assert bias[1] == initial[f"{branch}.2.bias"][1]
    fits = sum(
        key in theirs and theirs[key].shape == shape
        for key, shape in shapes.items()
        if not key.endswith("2.bias")
    )
    assert f"Transferred {fits + 6}/{len(shapes)} tensors" in note


def test_a_model_that_shares_nothing_is_one_line(given, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "scale: ''\nbackbone: [[-1, 1, Conv, [24, 5, 8]]]\n"
        "head: [[-1, 1, Conv, [24, 5]], [[1], 1, Detect, [nc]]]\n"
    )
    target = blueprint_of(model=str(path))
    with pytest.raises(UserError, match="no tensor of the checkpoint fits this model"):
        WeightTransfer(target.meta, target.names, PtFile(given))
