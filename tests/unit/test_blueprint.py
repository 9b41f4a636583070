"""A model on paper: shapes without memory, and whole models from a seed or from given weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from yolods.checkpoint.pt_file import write_pt
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint

NAMES = ("cat", "dog", "fish")


def blueprint_of(name: str, names: tuple[str, ...] = NAMES, seed: int = 0) -> Blueprint:
    return Blueprint(architecture(parse_name(name), len(names), 3), names, seed)


@pytest.mark.parametrize(
    ("name", "strides"), [("yolov5n", [8, 16, 32]), ("yolov5n6", [8, 16, 32, 64])]
)
def test_what_is_known_without_memory(name, strides):
    blueprint = blueprint_of(name)
    assert {each.device.type for each in blueprint.meta.state_dict().values()} == {"meta"}
    assert blueprint.strides.tolist() == strides
    assert blueprint.head is blueprint.meta.model[-1]
    assert (blueprint.head.nc, blueprint.head.reg_max) == (3, 16)
    whole, note = blueprint.whole(None)
    assert note == ""
    assert blueprint.parameters == sum(each.numel() for each in whole.parameters())
    shapes = [
        {key: each.shape for key, each in net.state_dict().items()}
        for net in (blueprint.meta, whole)
    ]
    assert shapes[0] == shapes[1]
    assert torch.equal(blueprint.strides, whole.stride)


@pytest.mark.slow
def test_a_model_larger_than_any_host_fits_on_paper():
    assert blueprint_of("yolov5[8,16]6").parameters * 4 > 2**38


@pytest.mark.parametrize(("name", "grid"), [("yolov5n", 32), ("yolov5n6", 64)])
def test_the_grid_of_image_sizes_is_the_largest_stride(name, grid):
    assert blueprint_of(name).grid == grid


def test_a_whole_model_follows_from_the_seed_alone():
    torch.manual_seed(5)
    first = blueprint_of("yolov5n").whole(None)[0].state_dict()
    torch.manual_seed(6)
    again = blueprint_of("yolov5n").whole(None)[0].state_dict()
    other = blueprint_of("yolov5n", seed=1).whole(None)[0].state_dict()
    assert all(torch.equal(again[name], value) for name, value in first.items())
    assert not torch.equal(other["model.0.conv.weight"], first["model.0.conv.weight"])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A .pt of other classes, in another order."""
    source = blueprint_of("yolov5n", ("dog", "bird", "cat"), seed=7)
    net = source.whole(None)[0]
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("2.bias"):
                parameter.copy_(torch.arange(parameter.numel()))
    write_pt(tmp_path / "given.pt", net, net.state_dict().items(), {}, half=False)
    return tmp_path / "given.pt"


@pytest.mark.parametrize(("by_name", "rows"), [(True, (2, 0, None)), (False, (0, 1, 2))])
def test_given_weights_are_taken_over(weights, by_name, rows):
    blueprint = blueprint_of("yolov5n")
    net, note = blueprint.whole(weights, by_name=by_name)
    given = torch.load(weights, weights_only=False)["model"].state_dict()
    state, initial = net.state_dict(), blueprint.whole(None)[0].state_dict()
    assert note.startswith("Transferred ") and str(weights) in note
    assert torch.equal(state["model.0.conv.weight"], given["model.0.conv.weight"])
    head = "model.24.cv3.0.2.weight"
    for row, came in enumerate(rows):
        expected = initial[head][row] if came is None else given[head][came]
        assert torch.equal(state[head][row], expected), row


def test_the_skeleton_for_files_is_made_once():
    blueprint = blueprint_of("yolov5[0.33,0.1]")
    assert blueprint.skeleton is blueprint.skeleton
    assert blueprint.skeleton.names == {0: "cat", 1: "dog", 2: "fish"}
    assert {each.device.type for each in blueprint.skeleton.parameters()} == {"meta"}
