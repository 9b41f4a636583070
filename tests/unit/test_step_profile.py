"""What a rank on a CPU measures of a step, and the words that ask for it."""

from __future__ import annotations

from typing import Any

import pytest

from tests import plans
from yolods.plan import step_profile
from yolods.plan.step_profile import TIMED, UNTIMED, StepProfile, StepsOf, measure_step


def test_every_part_of_a_step_takes_time() -> None:
    profile = measure_step(plans.blueprint(), plans.IMGSZ, 2, 3, "fp32")
    assert len(profile.forward) == len(plans.graph().nodes)
    parts = (*profile.forward, profile.backward, profile.loss, profile.reduction, profile.optimizer)
    assert all(part > 0 for part in parts)
    assert profile.total == pytest.approx(sum(parts))
    assert (profile.images, profile.imgsz, profile.precision) == (2, plans.IMGSZ, "fp32")


def test_medians_of_the_last_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = iter([[9.0] * 6] * UNTIMED + [[float(place)] * 6 for place in range(TIMED)])
    monkeypatch.setattr(step_profile._Step, "take", lambda *_: next(rows))
    profile = measure_step(plans.blueprint(), plans.IMGSZ, 1, 0, "bf16")
    middle = (TIMED - 1) / 2
    assert profile == StepProfile((middle,) * 2, *[middle] * 4, 1, plans.IMGSZ, "bf16")
    assert next(rows, None) is None


def test_a_large_model_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(step_profile, "ENOUGH", 0.0)
    monkeypatch.setattr(step_profile._Step, "take", lambda *_: calls.append(0) or [1.0] * 6)
    measure_step(plans.blueprint(), plans.IMGSZ, 1, 1, "fp32")
    assert len(calls) == 1


def test_words_say_what_to_measure() -> None:
    steps = StepsOf("yolov5[0.33,0.1]", 2, 3, 64, 4, 7, ("fp32", "bf16"))
    assert StepsOf.from_words(steps.words) == steps
    assert all(isinstance(word, str) for word in steps.words)
