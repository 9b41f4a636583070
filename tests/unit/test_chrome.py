"""The document follows Chrome's format, and its tracks have no overlaps."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from tests.traced import (
    SCHEMA,
    call,
    complete,
    covered,
    faults_of,
    overlaps,
    part,
    record,
    tracks,
)
from yolods.trace.chrome import chrome_trace
from yolods.trace.clocks import RankClock, Reading

CLOCK = RankClock(Reading(0.0, 0.0, 2e-6), Reading(9.0, 1e-6, 3e-6))


def document() -> dict[str, Any]:
    first = record(
        part(100.0, 101.0, "data", 0),
        part(101.0, 103.0, "forward", 0),
        part(103.0, 104.1, "the screen"),
        part(104.1, 105.0, "data", 0, step=5),
        calls=[
            call(101.5, 103.5, held=((101.5, 101.6), (103.0, 103.5)), waited=0.3),
            call(102.0, 103.2, held=((103.1, 103.2),), waited=0.1),
            call(103.6, 104.0, peer=1, kind="boundary", waited=0.4),
        ],
    )
    second = record(part(100.25, 104.0, "backward"), rank=1, stage=1)
    return chrome_trace([first, second], [CLOCK, CLOCK], {"ranks": 2})


def test_it_is_valid_and_json() -> None:
    found = document()
    assert json.loads(json.dumps(found)) == found
    assert faults_of(found, SCHEMA) == []
    assert overlaps(found) == []
    assert covered(found) == pytest.approx({(0, 4): 1.0, (0, 5): 1.0, (1, 4): 1.0})


def test_events_have_their_places_and_facts() -> None:
    found = document()
    names = tracks(found)
    parts = {
        (event["name"], names[event["pid"], event["tid"]]): (event["ts"], event["dur"])
        for event in complete(found)
        if event["pid"] == 0
    }
    assert parts["data 0", "loader"] == (4.1e6, 0.9e6)
    assert parts["the screen", "between steps"] == (3e6, 1.1e6)
    assert parts["step 4", "steps"] == (0.0, 4.1e6)
    assert parts["reduce", "collectives: reduce"] == (1.5e6, 2e6)
    assert parts["reduce", "collectives: reduce (2)"] == (2e6, 1.2e6)
    assert parts["boundary", "waits for others"] == (3.6e6, 0.4e6)
    (one,) = (e for e in complete(found, "collective") if e["args"].get("peer") == 1)
    assert one["args"]["bytes"] == 100 and one["args"]["waited_us"] == 4e5
    assert found["otherData"]["ranks"] == 2
    assert found["otherData"]["clocks"][1] == {
        "rank": 1,
        "host": "here",
        "error_us": 3.0,
        "drift_us": 1.0,
    }


def test_neighbours_meet_after_rounding() -> None:
    cuts = [100 + each / 7e5 for each in range(400)]
    parts = [part(*pair, "data") for pair in pairwise(cuts)]
    found = chrome_trace([record(*parts)], [CLOCK], {})
    assert overlaps(found) == [] and covered(found)[0, 4] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ph": "X", "name": "a", "cat": "b", "pid": 0, "tid": 0, "ts": 1},
        {"ph": "X", "name": "a", "cat": "b", "pid": 0, "tid": 0, "ts": 1, "dur": -1},
        {"ph": "X", "name": "a", "cat": "b", "pid": "0", "tid": 0, "ts": 1, "dur": 1},
        {"ph": "X", "name": "a", "cat": "b", "pid": 0, "tid": 0, "ts": True, "dur": 1},
        {"ph": "X", "name": "", "cat": "b", "pid": 0, "tid": 0, "ts": 1, "dur": 1},
        {"ph": "?", "name": "a", "cat": "b", "pid": 0, "tid": 0, "ts": 1, "dur": 1},
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": 0, "args": {"sort_index": 1}},
        {"ph": "M", "name": "a name", "pid": 0, "tid": 0, "args": {"name": "b"}},
        "an event",
    ],
)
def test_the_checker_can_refuse(wrong: Any) -> None:
    assert faults_of({"traceEvents": [wrong]}, SCHEMA)


def test_the_checker_sees_overlaps_and_gaps() -> None:
    found = document()
    parts = list(complete(found, "part"))
    parts[0]["dur"] *= 0.5
    parts[-1]["dur"] *= 2
    parts[-1]["tid"] = parts[1]["tid"]
    parts[-1]["pid"], parts[-1]["args"]["step"] = 0, 5
    assert covered(found)[0, 4] < 0.98 and overlaps(found)
    assert faults_of({"traceEvents": [], "more": 1}, SCHEMA) and faults_of({}, SCHEMA)
    with pytest.raises(ValueError, match="pattern"):
        faults_of("a", {"pattern": "b"})
