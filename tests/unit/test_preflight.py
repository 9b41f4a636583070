"""What is refused of a run before a process starts: frozen layers, sizes, classes, and what val
does not take."""

from pathlib import Path

import pytest

from yolods.errors import UserError
from yolods.model.architecture.build import architecture, build, parse_name

HALVING = "  - [-1, 1, Conv, [64, 3, 2]]\n"
FOUR_LEVELS = f"""
scales: {{t: [0.1, 0.1, 1024]}}
backbone:
{HALVING * 6}head:
  - [[2, 3, 4, 5], 1, Detect, [nc]]
"""


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("--freeze backbone", "'backbone' names no layer or module of yolov5n"),
        ("--freeze 99", "nothing would be left to train, yolov5n has 25 layers"),
        (
            "--model crop6.yaml --imgsz 96",
            "--imgsz 96: this model needs a multiple of 64; use 64 or 128",
        ),
    ],
)
def test_it_is_refused_before_a_process_starts(tmp_path, monkeypatch, words, part):
    from yolods.commands.parsers import train_parser
    from yolods.training.checks.preflight import check_train

    monkeypatch.chdir(tmp_path)
    (tmp_path / "crop6.yaml").write_text(FOUR_LEVELS)
    args = train_parser().parse_args(["--data", "demo", *words.split()])
    args.model = args.model or "yolov5n"
    with pytest.raises(UserError) as caught:
        check_train(args, 2, "cpu")
    assert part in str(caught.value)


def test_classes_that_the_yaml_does_not_name_are_refused_before_a_process_starts(
    tmp_path, monkeypatch
):
    from tests.tiny import make_dataset
    from yolods.commands.parsers import train_parser
    from yolods.training.checks.preflight import check_train

    yaml = make_dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    args = train_parser().parse_args(["--data", str(yaml), "--set", "classes=0,2"])
    with pytest.raises(
        UserError, match=r"classes: 2 is no class of .*tiny\.yaml, which names 2 \(ids 0 to 1\)"
    ):
        check_train(args, 2, "cpu")


def test_val_takes_the_name_of_a_shipped_yaml(tmp_path, monkeypatch):
    from yolods.checkpoint.pt_file import write_pt
    from yolods.commands.parsers import val_parser
    from yolods.data.spec import read_spec
    from yolods.evaluation.validate import check_val_arguments

    monkeypatch.chdir(tmp_path)
    names = read_spec(Path("coco8.yaml")).names
    net = build(architecture(parse_name("yolov5[0.1,0.1]"), len(names), 3), names)
    write_pt(tmp_path / "a.pt", net, net.state_dict().items(), {})
    check_val_arguments(val_parser().parse_args(["--weights", "a.pt", "--data", "coco8.yaml"]))
    with pytest.raises(UserError, match=r"^--data coco9\.yaml: no such file"):
        check_val_arguments(val_parser().parse_args(["--weights", "a.pt", "--data", "coco9.yaml"]))
    with pytest.raises(
        UserError, match=r"^--set mosaic has no effect on val, which uses conf, iou, max_det"
    ):
        words = [
            "--weights",
            "a.pt",
            "--data",
            "coco8.yaml",
            "--set",
            "mosaic=0.5",
            "--set",
            "iou=0.6",
        ]
        check_val_arguments(val_parser().parse_args(words))
