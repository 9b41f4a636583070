"""What flags become hyper-parameters, which are refused with a remedy, and what foreign words are
called here."""

from __future__ import annotations

import argparse

import pytest

from yolods.config.flags import (
    HYPER_FLAGS,
    add_train_arguments,
    add_val_arguments,
    foreign,
    foreign_to_val,
    hyper_flags,
)
from yolods.parsing.command_line import RefusedFlag


def train(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    return parser.parse_args(words)


def given(*words: str) -> dict[str, object]:
    return {each.key: each.value for each in hyper_flags(train(*words))}


def test_only_flags_that_were_typed_are_given_and_each_says_by_what() -> None:
    assert hyper_flags(train("--data", "d.yaml", "--epochs", "3")) == []
    (found,) = hyper_flags(train("--noval"))
    assert found == ("val", False, "--noval")
    assert given("--seed", "0", "--patience", "0") == {"seed": 0, "patience": 0}, "0 is a value"


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (("10",), 10),
        (("3", "4"), [3, 4]),
        (("backbone",), ["backbone"]),
        (("0", "23.cv2"), [0, "23.cv2"]),
    ],
)
def test_one_number_freezes_so_many_layers_and_several_words_those(
    words: tuple[str, ...], value: object
) -> None:
    assert given("--freeze", *words) == {"freeze": value}


def test_flags_without_a_value_stand_for_one() -> None:
    found = given("--cache", "--multi-scale", "--cos-lr", "--noplots")
    assert found == {"cache": "ram", "multi_scale": 0.5, "cos_lr": True, "plots": False}
    assert train("--resume").resume is True and train("--resume", "runs/exp").resume == "runs/exp"


def test_every_hyper_parameter_with_a_flag_can_be_typed() -> None:
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    typed = {word: action.dest for action in parser._actions for word in action.option_strings}
    assert {key: typed.get(flag) for key, flag in HYPER_FLAGS.items()} == {
        key: key for key in HYPER_FLAGS
    }


@pytest.mark.parametrize(
    ("add", "flag"), [(add_train_arguments, "--rect"), (add_val_arguments, "--device")]
)
def test_a_flag_of_yolov5_is_refused_with_what_to_do_whatever_stands_behind_it(
    add, flag: str
) -> None:
    parser = argparse.ArgumentParser()
    add(parser)
    for words in ([flag], [flag, "0", "1"]):
        with pytest.raises(RefusedFlag, match=f"^{flag} is not supported: .{{20}}"):
            parser.parse_args(words)


@pytest.mark.parametrize(
    ("name", "for_train", "for_val"),
    [
        ("conf_thres", "write --set conf=VALUE", "write --set conf=VALUE"),
        (
            "half",
            "set the precision in the DeepSpeed JSON: --deepspeed_config zero1_bf16",
            "an evaluation runs in fp32",
        ),
        ("optimizer", "write --optimizer or --set optimizer=VALUE", "a flag of train, not of val"),
        ("iou", "write --set iou=VALUE", "write --set iou=VALUE"),
        ("epochs", "write --epochs", "a flag of train, not of val"),
        (
            "cfg",
            "not supported: use --hyp for the file",
            "the model is in the .pt; write --weights PT",
        ),
        ("save_json", "not supported: use YOLO(", "write --save-json"),
        ("imgsz", "write --imgsz", "write --imgsz"),
        (
            "agnostic_mns",
            "did you mean the hyper-parameter",
            "did you mean the hyper-parameter 'agnostic_nms'",
        ),
        ("xyzzy", None, None),
    ],
)
def test_a_foreign_word_is_answered_by_what_its_command_takes(
    name: str, for_train: str | None, for_val: str | None
) -> None:
    for answer, expected in ((foreign(name), for_train), (foreign_to_val(name), for_val)):
        assert answer is None if expected is None else expected in (answer or "")
