"""A yaml's layers beside what ultralytics' modules take: each fault with its layer, and none of a
sound model."""

from __future__ import annotations

from typing import Any

import pytest

from yolods.errors import Faults
from yolods.model.architecture.arguments import check_layers, failing_layer
from yolods.model.architecture.build import architecture, parse_name

START = "the model cannot be built: layer 1 "


def layers(*rows: list[Any], **further: Any) -> dict[str, Any]:
    """A backbone of a convolution and these rows."""
    backbone = [[-1, 1, "Conv", [16, 3, 2]], *([-1, 1, *row] for row in rows)]
    return {"nc": 3, "channels": 3, "backbone": backbone, "head": [], **further}


def faults_of(*rows: list[Any], **further: Any) -> list[str]:
    faults = Faults()
    check_layers(layers(*rows, **further), faults)
    return list(faults)


@pytest.mark.parametrize("name", ["yolov5n", "yolov5n6", "yolov5[0.1,0.1]"])
def test_the_models_of_the_zoo_have_no_fault(name):
    faults, sound = Faults(), architecture(parse_name(name), 80, 3)
    check_layers(sound, faults)
    assert list(faults) == [] and failing_layer(sound) == ""


def test_a_module_that_is_none_is_named_with_the_nearest():
    assert faults_of(["Convv", [16]]) == [
        f"{START}is a 'Convv', which ultralytics does not have (did you mean 'Conv'?)"
    ]
    assert faults_of(["nn.Upsampel", [None, 2]])[0].startswith(f"{START}is a 'nn.Upsampel'")
    assert faults_of(["torch", []])[0].startswith(f"{START}is a 'torch', which"), (
        "a name, and no module"
    )


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (["Conv", []], "(Conv) lacks c2: its arguments are [c2, k, s, p, g, d, act]"),
        (["C3", [16, True, 1, 0.5, 7]], "(C3) has 5 arguments, but takes 4: [c2, shortcut, g, e]"),
        (["Conv", [16, 0]], "(Conv): its k is 0: "),
        (["Conv", [16, 3, "x"]], "(Conv): its s is 'x': "),
        (["C3", [16, 1]], "(C3): its shortcut is 1: "),
        (["nn.Upsample", [None, 2, "cubic"]], "(nn.Upsample): its mode is 'cubic': "),
        (["Concat", [4]], "(Concat): its dimension is 4: "),
    ],
)
def test_arguments_that_a_module_cannot_take_are_refused_by_name(row, line):
    (told,) = faults_of(row)
    assert told.startswith(START + line)


@pytest.mark.parametrize(
    "row",
    [
        ["Conv", [16, [3, 1]]],
        ["Conv", [16, 3, 1, None, 1, 1, "nn.ReLU()"]],  # ultralytics judges what is no number
        ["nn.Upsample", ["None", 2, "nearest"]],
        ["C3", [16, "False"]],
        ["nn.ConvTranspose2d", [16, 4, 2, 1]],
    ],
)
def test_what_ultralytics_takes_is_left_alone(row):
    assert faults_of(row) == []


def test_a_name_of_the_yaml_s_own_stands_for_its_value():
    assert faults_of(["Conv", ["scale"]], scale=32) == []
    (told,) = faults_of(["Conv", ["scale"]], scale=0)
    assert "its c2 is 0" in told


def test_every_fault_of_every_layer_is_told_at_once():
    assert len(faults_of(["Conv", []], ["Concatt", [1]], ["Conv", [16, 0, 0]])) == 4


def test_the_layer_that_cannot_be_made_is_the_first_such():
    broken = layers(
        ["Conv", [16, 3]], ["nn.Upsample", ["x", 2, "nearest", "y", 1, 2, 3]], ["Nothing", []]
    )
    assert failing_layer(broken) == "layer 2 (nn.Upsample ['x', 2, 'nearest', 'y', 1, 2, 3]): "
