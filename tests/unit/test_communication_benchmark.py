"""The arithmetic of benchmarks/communication.py."""

from __future__ import annotations

import pytest

from benchmarks.communication import by_kind, shares
from benchmarks.communication_layouts import LAYOUTS, Plan, case_of, on_the_wire, sizes_of

PLAN = Plan("yolov5n", 64, 2, 3, 2, ("", "100mbit"), "eth0", "{rank}.json")


def test_headers_by_what_was_measured() -> None:
    """100 bytes per call, and a twentieth of the payload."""
    known = {
        name: [100 + 1.05 * size for size, _ in sizes_of(name)]
        for name in ("all_reduce", "all_gather", "send")
    }
    known["receive"] = [10 + 0.02 * size for size, _ in sizes_of("receive")]
    sent, calls = {"reduce": 1e6, "boundary": 2e5, "ours": 0.0}, {"reduce": 3, "boundary": 4}
    assert on_the_wire(sent, {**calls, "ours": 1}, known) == pytest.approx(1.05 * 1.2e6 + 800)
    both = on_the_wire({"boundary": 1e6}, {"boundary": 2}, known, (5e5, 3))
    assert both == pytest.approx(1.05e6 + 200 + 1e4 + 30)


def test_kinds_of_a_steps_curves() -> None:
    curves = {
        "communication/sent_mb": 1.5,
        "communication/sent_mb_reduce": 1.5,
        "communication/calls": 2.0,
        "communication/calls_reduce": 2.0,
        "seconds": 0.1,
    }
    assert by_kind(curves) == ({"reduce": 1.5e6}, {"reduce": 2.0})


def test_what_a_slow_link_costs() -> None:
    """One second, then 2.5, of which the CPUs take a quarter of a second more."""

    def both(seconds: float, held: float, cpu: float) -> list[dict[str, float | None]]:
        told = {"seconds": seconds, "held": held, "cpu": cpu}
        return [told, {"seconds": seconds, "held": None, "cpu": cpu}]

    found = shares(both(1.0, 0.25, 0.5), both(2.5, 0.7, 0.75))
    assert (found.lost, found.share, found.busier) == (0.6, 0.7, 0.1)
    assert (found.apart, found.link_apart) == pytest.approx((10, 20))
    assert shares(both(1.0, 0.0, 0.5), both(2.5, 0.5, 0.75)).link_apart == pytest.approx(0)


def test_a_plan_survives_its_way_to_the_ranks() -> None:
    assert Plan.from_json(PLAN.as_json()) == PLAN


def test_every_layout_takes_its_micro_batches() -> None:
    found = {
        name: case_of(name).content(PLAN.micro, PLAN.task(name).accumulation) for name in LAYOUTS
    }
    assert found["ZeRO-2, accumulation 4"]["gradient_accumulation_steps"] == 4
    assert found["pipeline of 2"]["gradient_accumulation_steps"] == 4
    assert list(LAYOUTS)[-1] == "pipeline of 2"
