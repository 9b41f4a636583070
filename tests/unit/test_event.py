"""A step that went bad, in one line."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from yolods.stability.attribution import INPUT, LOSS, Culprit
from yolods.stability.event import event_of, sentence
from yolods.stability.grad_stats import GradStats
from yolods.stability.guard import Verdict
from yolods.stability.record import StepRecord

NAMES = ("model.1.conv.weight", "model.2.conv.weight", "model.24.cv2.1.0.conv.weight")


def line(verdict: Verdict, *culprits: Culprit, **settings) -> str:
    norms = settings.pop("norms", (1.0, 1.0, 1.0))
    reading = GradStats(NAMES, np.array(norms), None, (1.0,), 3, 1.0)
    given = {"loss": 2.0, "grad_norm": 30.0, "excluded": ()} | settings
    loss, excluded = {"box_loss": given.pop("loss")}, given.pop("excluded")
    record = StepRecord(
        loss=loss, instances=1, verdict=verdict, culprits=culprits, grad_stats=reading, **given
    )
    return sentence(
        event_of(
            record.placed(step=5, epoch=1, position=2, samples=4, imgsz=64, seconds=1.0), excluded
        )
    )


def culprit(name: str, kind: str = "nan", phase: str = "forward", **settings) -> Culprit:
    return Culprit(
        phase, name, kind, rank=1, host="h", stage=0, replica=1, micro_batch=2, **settings
    )


@pytest.mark.parametrize(
    ("verdict", "settings", "expected"),
    [
        (
            Verdict("skip", "overflow", (0,)),
            {"loss_scale": 65536.0, "next_scale": 32768.0},
            "gradients overflow at loss scale 65536: model.1.conv.weight; step skipped, loss scale "
            "65536 -> 32768",
        ),
        (Verdict("skip", "forward"), {"loss": math.nan}, "the loss is nan; step skipped"),
        (
            Verdict("rollback", "backward", (0, 1, 2)),
            {},
            "gradients are not finite, the loss is 2: model.1.conv.weight, model.2.conv.weight and "
            "1 more; returned to the last snapshot, continuing after these images",
        ),
        (
            Verdict("stop", "gradient_spike", usual=3.0),
            {},
            "gradient norm 30, 10 times the usual 3; stopped: the steps did not recover",
        ),
        (
            Verdict("skip", "loss_spike", usual=0.5),
            {"excluded": ("a.jpg",)},
            "loss 2, 4 times the usual 0.5; step skipped, excluded from now on: a.jpg",
        ),
        (Verdict(vanished=(0,)), {}, "gradients have vanished: model.1.conv.weight; reported only"),
        (
            Verdict(vanished=(0,)),
            {"norms": (0.0, 1.0, 1.0)},
            "gradients have vanished: model.1.conv.weight; reported only: they are exactly 0, as "
            "for a layer that is disconnected from the loss",
        ),
    ],
)
def test_the_line_says_what_happened_where_and_what_was_done(verdict, settings, expected):
    assert line(verdict, **settings) == expected


def test_boxes_of_a_level_that_no_object_fits_are_nothing_wrong():
    told = line(Verdict(vanished=(2,)))
    assert told.startswith(
        "no object has been assigned to some boxes for a long time: model.24.cv2.1.0.conv.weight"
    )
    assert "too small for the boxes of level 1 of the head" in told


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (culprit(INPUT), "nan in the images, rank 1 (h), micro-batch 2"),
        (culprit(LOSS), "nan in the loss itself, rank 1 (h), micro-batch 2"),
        (
            culprit("model.3.conv"),
            "nan in the forward pass of model.3.conv, rank 1 (h), micro-batch 2",
        ),
        (
            culprit("m", "spike", "backward"),
            "it grows in the backward pass of m, rank 1 (h), micro-batch 2",
        ),
        (
            culprit("m", files=("a", "b", "c", "d"), single_images=True),
            "nan in the forward pass of m, rank 1 (h), micro-batch 2, image a, b, c and 1 more",
        ),
    ],
)
def test_the_first_culprit_is_told_in_full(one, expected):
    assert line(Verdict("skip", "forward"), one) == f"the loss is 2: {expected}; step skipped"
    assert (
        line(Verdict("skip", "forward"), one, one)
        == f"the loss is 2: {expected} (and 1 more micro-batch); step skipped"
    )


def test_the_record_names_the_layer_and_has_no_usual_where_there_is_none():
    reading = GradStats(NAMES, np.ones(3), None, (1.0,), 3, 1.0)
    verdict = Verdict("skip", "forward", (1,))
    record = StepRecord(
        loss={"box_loss": 2.0}, instances=1, grad_norm=None, verdict=verdict, grad_stats=reading
    )
    record = replace(record, culprits=(culprit("model.3.conv.bn"),))
    made = event_of(record.placed(step=5, epoch=1, position=2, samples=4, imgsz=64, seconds=1.0))
    assert made.usual is None and made.parameters == ("model.2.conv.weight",)
    assert made.culprits[0]["layer"] == "model.3"
