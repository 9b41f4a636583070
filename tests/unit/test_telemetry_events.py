"""stability.jsonl: whole events, in JSON that any reader takes, and the line that goes to the
screen."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yolods.stability.event import event_of, sentence
from yolods.stability.grad_stats import GradStats
from yolods.stability.guard import Verdict
from yolods.stability.record import StepRecord
from yolods.stats import LOSS_NAMES, StabilityEvent
from yolods.telemetry.events import EventFile

CULPRIT: dict[str, Any] = {
    **{"phase": "backward", "name": "model.20.m.0.cv2.conv", "layer": "model.20", "kind": "inf"},
    **{"rank": 3, "host": "gpu-2", "stage": 0, "replica": 3, "micro_batch": 1},
    **{"files": ("a.jpg", "b.jpg"), "single_images": False},
}
ONE_IMAGE: dict[str, Any] = {"files": ("a.jpg",), "single_images": True}


def event(**changed: Any) -> StabilityEvent:
    values: dict[str, Any] = {
        **{
            "step": 7,
            "epoch": 0,
            "position": 112,
            "action": "skip",
            "cause": "overflow",
            "loss": 3.5,
        },
        **{
            "grad_norm": math.inf,
            "usual": None,
            "loss_scale": 65536.0,
            "parameters": ("model.3.conv.weight",),
        },
        **{"culprits": (CULPRIT,), "remedy": "step skipped, loss scale 65536 -> 32768"},
    }
    return StabilityEvent(**{**values, **changed})


def test_each_event_is_a_line_of_strict_json(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "stability.jsonl")
    file.append(event())
    file.append(event(step=8, loss=math.nan))
    lines = (tmp_path / "stability.jsonl").read_text().splitlines()
    first, second = (
        json.loads(line, parse_constant=lambda word: pytest.fail(word)) for line in lines
    )
    assert (first["step"], first["grad_norm"], first["culprits"][0]["files"]) == (
        7,
        "inf",
        ["a.jpg", "b.jpg"],
    )
    assert second["loss"] == "nan"


def test_no_event_no_file(tmp_path: Path) -> None:
    EventFile(tmp_path / "stability.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_resume_drops_what_the_run_will_tell_again(tmp_path: Path) -> None:
    path = tmp_path / "stability.jsonl"
    before = EventFile(path)
    for step in (3, 7, 9):
        before.append(event(step=step))
    path.write_text(path.read_text() + '{"step": 11, "cut sh')
    after = EventFile(path)
    assert [told["step"] for told in after.keep(7)] == [3, 7]
    after.append(event(step=8))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [3, 7, 8]


def test_a_run_that_starts_afresh_leaves_no_earlier_ones_events(tmp_path: Path) -> None:
    path = tmp_path / "stability.jsonl"
    EventFile(path).append(event(step=3))
    assert EventFile(path).keep(0) == []
    assert not path.exists()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (
            {},
            "gradients overflow at loss scale 65536: inf in the backward pass of "
            "model.20.m.0.cv2.conv, rank 3 (gpu-2), micro-batch 1; step skipped, loss scale 65536 "
            "-> 32768",
        ),
        (
            {"culprits": (), "remedy": "step skipped"},
            "gradients overflow at loss scale 65536: model.3.conv.weight; step skipped",
        ),
        (
            {"cause": "backward", "loss_scale": None, "remedy": "step skipped"},
            "gradients are not finite, the loss is 3.5: inf in the backward pass of "
            "model.20.m.0.cv2.conv, rank 3 (gpu-2), micro-batch 1; step skipped",
        ),
        (
            {
                **{"cause": "forward", "loss": math.nan, "remedy": "step skipped"},
                "culprits": (
                    CULPRIT | {"phase": "forward", "kind": "nan", "stage": 2} | ONE_IMAGE,
                ),
            },
            "the loss is nan: nan in the forward pass of model.20.m.0.cv2.conv, rank 3 (gpu-2), "
            "stage 2, micro-batch 1, image a.jpg; step skipped",
        ),
        (
            {
                **{"cause": "forward", "loss": math.nan, "remedy": "step skipped"},
                "culprits": (CULPRIT | {"phase": "forward", "name": "input"} | ONE_IMAGE,),
            },
            "the loss is nan: inf in the images, rank 3 (gpu-2), micro-batch 1, image a.jpg; step "
            "skipped",
        ),
        (
            {
                **{
                    "cause": "gradient_spike",
                    "grad_norm": 1200.0,
                    "usual": 10.0,
                    "loss_scale": None,
                },
                **{"culprits": (CULPRIT | {"kind": "spike"},) * 2, "remedy": "step skipped"},
            },
            "gradient norm 1200, 120 times the usual 10: it grows in the backward pass of "
            "model.20.m.0.cv2.conv, rank 3 (gpu-2), micro-batch 1 (and 1 more micro-batch); step "
            "skipped",
        ),
        (
            {
                **{
                    "cause": "loss_spike",
                    "loss": 80.0,
                    "usual": 4.0,
                    "loss_scale": None,
                    "remedy": "step skipped",
                },
                "culprits": (CULPRIT | {"kind": "spike", "name": "loss", "phase": "forward"},),
            },
            "loss 80, 20 times the usual 4: largest, rank 3 (gpu-2), micro-batch 1; step skipped",
        ),
        (
            {
                **{
                    "cause": "vanishing",
                    "action": "report",
                    "culprits": (),
                    "remedy": "reported only",
                },
                "parameters": ("model.0.conv.weight", "model.1.conv.weight", "model.2.conv.weight"),
            },
            "gradients have vanished: model.0.conv.weight, model.1.conv.weight and 1 more; "
            "reported only",
        ),
    ],
)
def test_the_line_says_what_where_and_what_was_done(changed: dict[str, Any], line: str) -> None:
    assert sentence(event(**changed)) == line


def record_of(grad_stats: GradStats, verdict: Verdict, **more: Any) -> StepRecord:
    """The 500th step of a run, whose losses add up to 3."""
    loss = dict(zip(LOSS_NAMES, grad_stats.loss, strict=True))
    record = StepRecord(
        loss=loss, instances=4, grad_norm=1.0, verdict=verdict, grad_stats=grad_stats, **more
    )
    return record.placed(step=500, epoch=9, position=8000, samples=16, imgsz=64, seconds=1.0)


def test_an_event_says_where_the_run_stood_and_what_became_of_the_images() -> None:
    """Everything that a record knows of a step that overflowed, and the images that are left out
    from now on."""
    grad_stats = GradStats(("a", "b"), np.array((1.0, math.inf)), None, (1.0, 1.0, 1.0), 4, 8.0)
    record = record_of(
        grad_stats, Verdict("skip", "overflow", (1,)), loss_scale=8.0, next_scale=4.0
    )
    told = event_of(record, ["x.jpg"])
    assert (told.step, told.epoch, told.position, told.loss, told.grad_norm) == (
        500,
        9,
        8000,
        3.0,
        1.0,
    )
    assert (told.action, told.cause, told.parameters, told.loss_scale) == (
        "skip",
        "overflow",
        ("b",),
        8.0,
    )
    assert told.remedy == "step skipped, loss scale 8 -> 4, excluded from now on: x.jpg"


@pytest.mark.parametrize(("norms", "silent"), [((1.0, 0.0, 0.0), True), ((1.0, 1e-20, 0.0), False)])
def test_a_gradient_of_exactly_nothing_is_told_from_one_that_vanished(
    norms: tuple[float, ...], silent: bool
) -> None:
    grad_stats = GradStats(("a", "b", "c"), np.array(norms), None, (1.0, 1.0, 1.0), 4, 1.0)
    told = event_of(record_of(grad_stats, Verdict(vanished=(1, 2))))
    assert (told.action, told.cause, told.parameters) == ("report", "vanishing", ("b", "c"))
    assert ("exactly 0" in told.remedy) == silent


@pytest.mark.parametrize(
    ("names", "cause", "said"),
    [
        (
            ("model.24.cv2.2.0.bn.weight", "model.24.cv2.2.2.bias"),
            "unassigned",
            "too small for the boxes of level 2 of",
        ),
        (
            ("model.33.cv2.2.2.bias", "model.33.cv2.3.1.conv.weight"),
            "unassigned",
            "of level 2, 3 of the head",
        ),
        (("model.24.cv2.2.2.bias", "model.2.cv2.conv.weight"), "vanishing", "reported only"),
        (("model.24.cv3.2.2.bias",), "vanishing", "reported only"),
    ],
)
def test_boxes_that_no_object_is_assigned_to_are_no_vanished_gradients(names, cause, said):
    """In clean runs the largest cells' boxes get none: a fact about the data, which was told as a
    warning."""
    grad_stats = GradStats(names, np.zeros(len(names)), None, (1.0, 1.0, 1.0), 4, 1.0)
    told = event_of(record_of(grad_stats, Verdict(vanished=tuple(range(len(names))))))
    assert (told.action, told.cause) == ("report", cause)
    assert said in sentence(told)
