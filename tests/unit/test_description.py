"""Faults in a user's model yaml, by the numbers of its layers."""

from __future__ import annotations

import pytest

from yolods.errors import UserError
from yolods.model.architecture.description import read_description

SOUND = """
nc: 3
scales: {n: [0.33, 0.25, 1024], s: [0.33, 0.5, 1024]}
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 3, C3, [64]]
head:
  - [[0, 1], 1, Detect, [nc]]
"""


def described(tmp_path, text: str) -> dict:
    file = tmp_path / "model.yaml"
    file.write_text(text)
    return read_description(file)


def faults(tmp_path, text: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        described(tmp_path, text)
    start = f"--model {tmp_path / 'model.yaml'}"
    lines = str(caught.value).splitlines()
    assert all(line.startswith(start) for line in lines)
    return [line.removeprefix(start).lstrip(": ") for line in lines]


def test_a_sound_one_takes_its_first_scale(tmp_path):
    assert described(tmp_path, SOUND)["scale"] == "n"
    assert described(tmp_path, SOUND + "scale: s\n")["scale"] == "s"


def test_what_is_no_model_lacks_its_parts(tmp_path):
    assert faults(tmp_path, "nc: 3\nhead: []\n") == ["not a model yaml, it lacks backbone"]
    assert faults(tmp_path, "- 1\n") == ["not a model yaml, it lacks backbone and head"]
    assert "not valid yaml" in faults(tmp_path, "a: [1\n")[0]


@pytest.mark.parametrize(
    ("layer", "fault"),
    [
        ("[-1, 1, Conv]", "it must be [from, repeats, module, [arguments]]"),
        ("[2, 1, Conv, [64]]", "its input is 2, which is not an earlier layer"),
        ("[[0, -5], 1, Conv, [64]]", "its input is -5, which is not an earlier layer"),
        ("[true, 1, Conv, [64]]", "its input is true, which is not an earlier layer"),
        (
            "[-1, many, Conv, [64]]",
            "its repeats are 'many', but must be a whole number in [0, 1000]",
        ),
        ("[-1, 1001, Conv, [64]]", "its repeats are 1001, but must be a whole number in [0, 1000]"),
        ("[-1, 1, 7, [64]]", "its module is 7, but must be a name"),
        ("[-1, 1, Conv, 64]", "its arguments are 64, but must be a list"),
    ],
)
def test_a_layer_is_named_by_its_number(tmp_path, layer, fault):
    (line,) = faults(tmp_path, SOUND.replace("[[0, 1], 1, Detect, [nc]]", layer))
    assert line.startswith("layer 2 (head) is ") and line.endswith(fault)


def test_all_faults_are_told_at_once(tmp_path):
    text = SOUND.replace("[64]]", "64]").replace("[0.33, 0.5, 1024]", "[0.33]") + "scale: x\n"
    assert faults(tmp_path, text) == [
        "layer 1 (backbone) is [-1, 3, 'C3', 64]: its arguments are 64, but must be a list",
        "scales.s is [0.33]: it must be [depth, width, most channels], three numbers above 0",
        "scale is 'x', which is not among scales: n, s",
    ]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_description(tmp_path / "none.yaml")
