"""DeepSpeed's throughput timer: off unless asked for, and told where it slows a GPU down."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from yolods.config.deepspeed.timers import resolved_timers, timer_costs


def layout(
    throughput: dict | None, *, device: str = "cuda", pipelined: bool = False
) -> SimpleNamespace:
    sound = {} if throughput is None else {"timers": {"throughput": throughput}}
    return SimpleNamespace(sound=sound, device=device, pipelined=pipelined)


@pytest.mark.parametrize("sound", [{}, {"timers": None}, {"timers": {"throughput": None}}])
def test_what_is_not_given_is_off(sound):
    assert resolved_timers(sound) == {"throughput": {"enabled": False}}


def test_what_is_given_stays():
    given = {"throughput": {"enabled": True, "synchronized": False}}
    assert resolved_timers({"timers": given}) == given


@pytest.mark.parametrize(
    ("throughput", "place", "told"),
    [
        ({"enabled": True}, {}, True),
        ({"synchronized": True}, {}, True),
        (None, {}, False),
        ({"enabled": False}, {}, False),
        ({"enabled": True, "synchronized": False}, {}, False),
        ({"enabled": True}, {"device": "cpu"}, False),
        ({"enabled": True}, {"pipelined": True}, False),
    ],
)
def test_a_wait_for_the_gpu_is_told_where_there_is_one(throughput, place, told):
    lines = timer_costs(layout(throughput, **place), "ds.json")
    assert len(lines) == told
    assert all(line.startswith('ds.json: "timers".throughput: the host waits') for line in lines)
