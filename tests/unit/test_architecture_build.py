"""Model names, and the models that ultralytics builds from them."""

import contextlib
import importlib.util
import io
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from yolods.errors import Faults, UserError
from yolods.model.architecture.arguments import check_layers
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.architecture.description import read_description
from yolods.model.graph.graph import meta_model

NAMES = ("a", "b", "c")


def layers_of(name: str, nc: int = 80) -> dict:
    return architecture(parse_name(name), nc, 3)


def parameters_without_memory(layers: dict) -> int:
    """Parameters of a model on the meta device, where DetectionModel itself cannot be made."""
    from ultralytics.nn.tasks import parse_model

    with torch.device("meta"), contextlib.redirect_stdout(io.StringIO()):
        net, _ = parse_model(deepcopy(layers), ch=3, verbose=False)
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("yolov5n", 2.65),
        ("yolov5s", 9.15),
        ("yolov5m", 25.11),
        ("yolov5x", 97.28),
        ("yolov5x6", 155.54),
        ("yolov5[2,2]", 321.3),
        ("yolov5[2.0, 2.0]6", 505.8),
    ],
)
def test_sizes(name, millions):
    assert parameters_without_memory(layers_of(name)) / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize(
    "alias", ["yolov5nu", "yolov5n.yaml", "yolov5nu.yaml", "yolov5[0.33,0.25]"]
)
def test_other_words_for_the_same_model(alias):
    assert parameters_without_memory(layers_of(alias)) == parameters_without_memory(
        layers_of("yolov5n")
    )


@pytest.mark.parametrize(
    ("name", "stride"),
    [
        ("yolov5n", 32),
        ("yolov5n6", 64),
        ("yolov5n-p6", 64),
        ("yolov5n6u", 64),
        ("yolov5[1,1]6", 64),
    ],
)
def test_largest_stride_is_known_before_building(name, stride):
    assert parse_name(name).stride == stride


@pytest.mark.parametrize(
    ("name", "strides"), [("yolov5n", [8, 16, 32]), ("yolov5[0.1,0.1]6", [8, 16, 32, 64])]
)
def test_a_built_model_has_the_users_classes(name, strides):
    net = build(layers_of(name, 3), NAMES)
    assert net.stride.tolist() == strides
    assert net.names == {0: "a", 1: "b", 2: "c"}
    assert net.nc == net.model[-1].nc == 3
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}


def test_torchs_generator_alone_decides_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return build(layers_of("yolov5[0.1,0.1]", 3), NAMES).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.0.conv.weight"], other["model.0.conv.weight"])


def test_channels_reach_the_first_convolution():
    layers = architecture(parse_name("yolov5[0.1,0.1]"), 3, 1)
    assert build(layers, NAMES).model[0].conv.in_channels == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (
            "yolov5k",
            "--model yolov5k: unknown model (did you mean 'yolov5x'?); use yolov5n, s, m, l, x "
            "(with 6 for four levels), yolov5[depth,width], or a model yaml",
        ),
        ("yolov5[0,1]", "--model yolov5[0,1]: depth 0 and width 1 must be in (0, 16]"),
        ("yolov5[1,99]", "--model yolov5[1,99]: depth 1 and width 99 must be in (0, 16]"),
        (
            "mine.yaml",
            "--model mine.yaml: no such file, and not a model of ultralytics (yolov5n.yaml .. "
            "yolov5x6.yaml)",
        ),
        (
            "best.pt",
            "--model best.pt: use --weights best.pt for weights; --model names an architecture",
        ),
    ],
)
def test_bad_names(name, line):
    with pytest.raises(UserError) as caught:
        parse_name(name)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    "name", ["yolov8n", "yolov5[1.2.3,1]", "yolov5[1]", "yolov5[,]", "", "yolov5[nan,1]"]
)
def test_other_bad_names_are_one_line_too(name):
    with pytest.raises(UserError) as caught:
        parse_name(name)
    assert str(caught.value).count("\n") == 0


OWN = """
nc: 80
scales: {{t: [0.33, 0.125, 1024], u: [0.33, 0.25, 1024]}}
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 1, Conv, [256, 3, 2]]
head:
  - [[2], 1, {head}, [nc{more}]]
"""


def test_a_users_own_yaml(tmp_path):
    path = tmp_path / "own model.yaml"
    path.write_text(OWN.format(head="Detect", more=""))
    net = build(architecture(parse_name(str(path)), 3, 3), NAMES)
    assert net.stride.tolist() == [8]
    assert net.model[0].conv.out_channels == 8  # the first of the yaml's sizes: 64 x 0.125


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (
            OWN.format(head="Segment", more=", 32, 256"),
            "the model must end in a plain Detect head (YOLOv5u)",
        ),
        (
            OWN.format(head="Detekt", more=""),
            "cannot be built: layer 3 is a 'Detekt', which ultralytics does not have (did you mean "
            "'Detect'?)",
        ),
        (
            OWN.format(head="nn.Detekt", more=""),
            "layer 3 is a 'nn.Detekt', which ultralytics does not have",
        ),
        (
            OWN.format(head="v10Detect", more=""),
            "the model must end in a plain Detect head (YOLOv5u)",
        ),
        ("backbone: []", "not a model yaml, it lacks head"),
        ("[1, 2]", "not a model yaml, it lacks backbone and head"),
        ("backbone: [", "not valid yaml"),
    ],
)
def test_bad_yamls(tmp_path, text, part):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        build(architecture(parse_name(str(path)), 3, 3), NAMES)
    assert part in str(caught.value)
    assert str(caught.value).count("\n") == 0


SOUND = (
    "backbone: [[-1, 1, Conv, [64, 3, 2]], [-1, 1, Conv, [64, 3, 2]]]\n"
    "head: [[[1], 1, Detect, [nc]]]\n"
)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (
            "[[1], 1,",
            "[[4], 1,",
            "layer 2 (head) is [[4], 1, 'Detect', ['nc']]: its input is 4, which is not an earlier "
            "layer",
        ),
        ("[[1], 1,", "[[2], 1,", "its input is 2, which is not an earlier layer"),
        ("[[1], 1,", "[[x], 1,", "its input is 'x', which is not an earlier layer"),
        (
            "[[1], 1,",
            "[[1], 1000000000,",
            "its repeats are 1000000000, but must be a whole number in [0, 1000]",
        ),
        ("[[1], 1,", "[[1], .inf,", "its repeats are inf, but must be a whole number in [0, 1000]"),
        ("[[1], 1, Detect,", "[[1], 1, 5,", "its module is 5, but must be a name"),
        ("Detect, [nc]", "Detect, nc", "its arguments are 'nc', but must be a list"),
        (
            "[[1], 1, Detect, [nc]]",
            "[[1], 1, Detect]",
            "it must be [from, repeats, module, [arguments]]",
        ),
        (
            "[[1], 1, Detect, [nc]]",
            "5",
            "layer 2 (head) is 5: it must be [from, repeats, module, [arguments]]",
        ),
        ("[[[1], 1, Detect, [nc]]]", "5", "head is 5: it must be a list of layers"),
        (
            "head",
            "scales: 5\nhead",
            "scales is 5: it must be {name: [depth, width, most channels]}",
        ),
        (
            "head",
            "scales: {t: 1}\nhead",
            "scales.t is 1: it must be [depth, width, most channels], three numbers above 0",
        ),
        (
            "head",
            "scale: s\nscales: {t: [1, 1, 9]}\nhead",
            "scale is 's', which is not among scales: t",
        ),
    ],
)
def test_a_fault_of_a_model_yaml_names_its_layer_and_is_not_pythons_words(
    tmp_path, before, after, line
):
    path = tmp_path / "own.yaml"
    path.write_text(SOUND)
    assert architecture(parse_name(str(path)), 3, 3)["scale"] == ""
    path.write_text(SOUND.replace(before, after))
    with pytest.raises(UserError) as caught:
        architecture(parse_name(str(path)), 3, 3)
    assert str(caught.value).startswith(f"--model {path}: ")
    assert str(caught.value).endswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        (
            "Conv, [64, 3, 2]], [",
            "Conv, [x, 3, 2]], [",
            "0 (Conv): its c2 is 'x': it must be a whole number of at",
        ),
        (
            "Conv, [64, 3, 2]], [",
            "Conv, [64, 0, 2]], [",
            "0 (Conv): its k is 0: it must be a whole number of at",
        ),
        (
            "Conv, [64, 3, 2]], [",
            "Conv, [64, 3, -2]], [",
            "0 (Conv): its s is -2: it must be a whole number of at",
        ),
        (
            "Conv, [64, 3, 2]], [",
            "Conv, [64, 3, 2, x]], [",
            "0 (Conv): its p is 'x': it must be a whole number of at",
        ),
        (
            "Conv, [64, 3, 2]], [",
            "Conv, []], [",
            "0 (Conv) lacks c2: its arguments are [c2, k, s, p, g, d, act]",
        ),
        (
            "[[1], 1, Detect",
            "[1, 1, C3, [64, 1]], [[2], 1, Detect",
            "2 (C3): its shortcut is 1: it must be true or",
        ),
        (
            "[[1], 1, Detect",
            "[1, 1, nn.Upsample, [None, 2, x]], [[2], 1, Detect",
            "2 (nn.Upsample): its mode is 'x'",
        ),
        (
            "[[1], 1, Detect",
            "[[0, 1], 1, Concat, [9]], [[2], 1, Detect",
            "2 (Concat): its dimension is 9: it must",
        ),
        ("Detect, [nc]", "Detect, []", "2 (Detect) lacks nc: its arguments are [nc]"),
        ("Detect, [nc]", "Detect, [nc, 16]", "2 (Detect) has 2 arguments, but takes 1: [nc]"),
        (
            "Conv, [64, 3, 2]], [",
            "Conv, [64, 3, 2, 1, 5]], [",
            "0 (Conv [64, 3, 2, 1, 5]): ValueError: in_channels",
        ),
    ],
)
def test_a_wrong_argument_of_a_layer_is_named_with_what_it_has_to_be(tmp_path, before, after, line):
    path = tmp_path / "own.yaml"
    path.write_text(SOUND.replace(before, after))
    for make in (lambda layers: build(layers, NAMES), meta_model):
        with pytest.raises(UserError) as caught:
            make(architecture(parse_name(str(path)), 3, 3))
        assert str(caught.value).startswith(f"the model cannot be built: layer {line}")
        assert "\n" not in str(caught.value)


def test_all_wrong_arguments_are_named_at_once(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        SOUND.replace("[64, 3, 2]], [", "[64, 0, x]], [").replace("Detect, [nc]", "Detekt, [nc]")
    )
    with pytest.raises(UserError) as caught:
        meta_model(architecture(parse_name(str(path)), 3, 3))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "layer 0 (Conv)",
        "layer 0 (Conv)",
        "layer 2 is a 'Detekt', which ultralytics does not have (did you mean 'Detect'?)",
    ]


def test_model_yamls_that_ultralytics_ships_have_no_fault():
    package = importlib.util.find_spec("ultralytics")
    assert package is not None and package.origin is not None
    files = sorted((Path(package.origin).parent / "cfg" / "models").glob("*/*.yaml"))
    assert len(files) > 20
    for file in files:
        faults = Faults()
        check_layers({**read_description(file), "nc": 80}, faults)
        assert not list(faults), file
