"""Which parameters a word of `freeze` means."""

from __future__ import annotations

import pytest

from yolods.errors import Faults
from yolods.model.freezing import check_frozen, is_frozen, marks_of, told

NAMES = (
    *("model.0.conv.weight", "model.1.conv.weight", "model.10.conv.weight"),
    *("model.24.cv2.0.weight", "model.24.cv3.0.weight", "model.24.dfl.conv.weight"),
)
LAYERS = {"backbone": [None] * 10, "head": [None] * 15}


def frozen(what) -> list[str]:
    return [name for name in NAMES if is_frozen(name, marks_of(what))]


ALWAYS = "model.24.dfl.conv.weight"


@pytest.mark.parametrize(
    ("what", "found"),
    [
        (None, []),
        (0, []),
        (1, ["model.0.conv.weight"]),
        ((1,), ["model.1.conv.weight"]),  # and not layer 10
        (("24.cv2",), ["model.24.cv2.0.weight"]),
        (("model.24.cv2.",), ["model.24.cv2.0.weight"]),
        (("24.cv2.0.weight",), ["model.24.cv2.0.weight"]),
    ],
)
def test_a_word_means_whole_layers_and_modules_and_the_bins_are_always_frozen(what, found):
    assert frozen(what) == [*found, ALWAYS]


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        (("24.cv2x",), "(did you mean '24.cv2'?)"),
        (("backbone",), "; the backbone is the first 10 layers: --freeze 10"),
        (("head",), "; the head is the layers 10 to 24"),
        ((7,), ""),
    ],
)
def test_a_word_that_freezes_nothing_is_refused_with_what_may_have_been_meant(what, hint):
    faults = Faults()
    check_frozen(what, NAMES, LAYERS, "yolov5n", faults)
    (line,) = faults
    assert line.startswith(
        f"freeze: {what[0]!r} names no layer or module of yolov5n that has weights"
    )
    assert hint in line


def test_a_run_that_would_train_nothing_is_refused():
    faults = Faults()
    check_frozen(25, NAMES, LAYERS, "yolov5n", faults)
    assert list(faults) == [
        "freeze=25: nothing would be left to train, yolov5n has 25 layers; freeze fewer"
    ]


def test_what_trains_something_is_no_fault():
    faults = Faults()
    check_frozen((0, "24.cv2"), NAMES, LAYERS, "yolov5n", faults)
    check_frozen(None, NAMES, LAYERS, "yolov5n", faults)
    assert not faults


def test_how_much_is_frozen_is_told_where_it_was_asked_for():
    assert told(None, NAMES) is None
    assert told(2, NAMES) == (
        "freeze 2: 2 of 5 weight tensors are not trained, in 2 of 4 layers that have weights"
    )
    assert told(0, NAMES).endswith("(0 means the first 0 layers; layer 0 alone is [0])")
