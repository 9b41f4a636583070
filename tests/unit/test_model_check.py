"""What is refused of a model and a run's settings together, on paper: image sizes, batches, frozen
layers."""

from types import SimpleNamespace

import pytest
import torch

from yolods.errors import UserError
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.check import blueprint_of
from yolods.model.freezing import is_frozen, marks_of, told

FOUR_LEVELS = """
scales: {t: [0.1, 0.1, 1024]}
backbone:
  - [-1, 1, Conv, [64, 6, 2, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [64, 3, 2]]
head:
  - [[2, 3, 4, 5], 1, Detect, [nc]]
"""


def config(
    model="yolov5n", *, imgsz=64, micro=2, freeze=None, multi_scale=0.0, sync_bn=False, ranks=1
):
    hyper = SimpleNamespace(freeze=freeze, multi_scale=multi_scale, sync_bn=sync_bn)
    layout = SimpleNamespace(micro_batch=micro, dp_size=ranks)
    return SimpleNamespace(model=model, imgsz=imgsz, seed=0, hyper=hyper, deepspeed=layout)


def fault_of(*given, **settings) -> str:
    with pytest.raises(UserError) as caught:
        blueprint_of(config(*given, **settings), ("a", "b"), 3)
    return str(caught.value)


def test_a_users_yaml_tells_its_largest_stride_itself_whatever_it_is_called(tmp_path):
    for name in ("crop6.yaml", "plain.yaml"):
        (tmp_path / name).write_text(FOUR_LEVELS)
        line = fault_of(str(tmp_path / name), imgsz=96)
        assert line == "--imgsz 96: this model needs a multiple of 64; use 64 or 128"
    three = FOUR_LEVELS.replace("  - [-1, 1, Conv, [64, 3, 2]]\nhead", "head").replace(
        "[2, 3, 4, 5]", "[2, 3, 4]"
    )
    (tmp_path / "crop6.yaml").write_text(three)
    assert blueprint_of(config(str(tmp_path / "crop6.yaml"), imgsz=96), ("a",), 3).grid == 32


@pytest.mark.parametrize(
    ("name", "imgsz", "line"),
    [
        ("yolov5n", 100, "--imgsz 100: this model needs a multiple of 32; use 96 or 128"),
        ("yolov5n", 20, "--imgsz 20: this model needs a multiple of 32; use 32 or 64"),
        ("yolov5n6", 96, "--imgsz 96: this model needs a multiple of 64; use 64 or 128"),
    ],
)
def test_image_sizes_are_multiples_of_the_largest_stride(name, imgsz, line):
    assert fault_of(name, imgsz=imgsz) == line
    assert blueprint_of(config(name, imgsz=640), ("a",), 3).grid == (
        64 if name.endswith("6") else 32
    )


def test_one_image_of_one_cell_is_refused_where_batchnorm_would_be():
    line = fault_of(imgsz=32, micro=1)
    assert line.startswith("--imgsz 32: 1 image per rank x (32 / 32)^2 cells = 1 value per channel")
    assert "down to 32" in fault_of(imgsz=64, micro=1, multi_scale=0.5)
    blueprint_of(config(imgsz=32, micro=1, sync_bn=True, ranks=2), ("a",), 3)
    net = build(architecture(parse_name("yolov5n"), 2, 3), ("a", "b")).train()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        net(torch.rand(1, 3, 32, 32))
    net(torch.rand(2, 3, 32, 32))


def test_a_users_yaml_with_smaller_strides_has_more_cells_than_its_image_size_says(tmp_path):
    shallow = FOUR_LEVELS.replace("  - [-1, 1, Conv, [64, 3, 2]]\n" * 2 + "head", "head").replace(
        "[2, 3, 4, 5]", "[2, 3]"
    )
    (tmp_path / "shallow.yaml").write_text(shallow)
    found = blueprint_of(config(str(tmp_path / "shallow.yaml"), imgsz=32, micro=1), ("a",), 3)
    assert found.strides.tolist() == [8, 16]


@pytest.mark.parametrize(
    ("freeze", "part"),
    [
        (
            ("backbone",),
            "'backbone' names no layer or module of yolov5n that has weights; the backbone is the "
            "first",
        ),
        (
            ("head",),
            "'head' names no layer or module of yolov5n that has weights; the head is the layers "
            "10 to 24",
        ),
        (("24.cv9",), "(did you mean '24.cv"),
        ((99,), "99 names no layer or module"),
        ((11,), "11 names no layer or module of yolov5n that has weights"),
        (("model.0", "typo"), "'typo' names no layer"),
        (25, "nothing would be left to train, yolov5n has 25 layers; freeze fewer"),
        (99, "nothing would be left to train, yolov5n has 25 layers; freeze fewer"),
    ],
)
def test_a_name_that_freezes_nothing_is_refused_with_what_would(freeze, part):
    line = fault_of(freeze=freeze)
    assert part in line and line.count("\n") == 0


def test_every_word_that_freezes_nothing_is_named():
    assert fault_of(freeze=("backbone", "x")).count("\n") == 1


@pytest.mark.parametrize(
    ("freeze", "same"),
    [
        (("model.0",), (0,)),
        (("model.0.",), (0,)),
        (("0",), (0,)),
        (("model.24.cv2",), ("24.cv2",)),
        (10, range(10)),
    ],
)
def test_the_models_own_spelling_of_a_layer_is_understood(freeze, same):
    names = [
        name for name, _ in blueprint_of(config(freeze=freeze), ("a",), 3).meta.named_parameters()
    ]
    expected = {name for name in names if is_frozen(name, marks_of(list(same)))}
    assert {name for name in names if is_frozen(name, marks_of(freeze))} == expected
    assert 1 < len(expected) < len(names)


def test_a_single_parameter_can_be_frozen():
    names = ["model.0.conv.weight", "model.0.bn.weight", "model.10.conv.weight"]
    assert [is_frozen(name, marks_of(["0.conv.weight"])) for name in names] == [True, False, False]


def test_how_much_is_frozen_is_said():
    names = [name for name, _ in blueprint_of(config(), ("a",), 3).meta.named_parameters()]
    assert told(None, names) is None
    assert told(10, names).endswith(
        "weight tensors are not trained, in 10 of 19 layers that have weights"
    )
    assert told(10, names).startswith("freeze 10: 99 of 219 ")
    assert ": 3 of " in told(("model.0",), names) and "in 1 of 19 layers" in told(
        ("model.0",), names
    )
    assert told(0, names).endswith("(0 means the first 0 layers; layer 0 alone is [0])")
