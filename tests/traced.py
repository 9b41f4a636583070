"""Traces in tests: records made by hand, and what must hold of a trace's file.

`trace_event_format.json` states Chrome's format as a JSON Schema, of which `faults_of` knows the
keywords that it uses; it refuses any other.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from yolods.trace.record import CallRecord, Part, RankRecord

SCHEMA = json.loads((Path(__file__).parent / "trace_event_format.json").read_text())
_TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": int | float,
}


def part(begin: float, end: float, phase: str, number: int | None = None, step: int = 4) -> Part:
    """A part of a step."""
    return Part(begin, end, phase, number, step)


def call(begin: float, end: float, group: str = "all", **more: Any) -> CallRecord:
    """A reduction of 100 bytes in which the rank stood still throughout, unless told otherwise."""
    given = {"kind": "reduce", "sent": 100.0, "peer": None, "held": ((begin, end),)}
    return CallRecord(group=group, begin=begin, end=end, **{**given, **more})


def record(*parts: Part, rank: int = 0, stage: int = 0, calls: Any = ()) -> RankRecord:
    """A rank's record."""
    return RankRecord(rank, "here", stage, 0, parts, tuple(calls))


def faults_of(value: Any, schema: Mapping[str, Any], where: str = "") -> list[str]:
    """Where a JSON value does not follow a schema."""
    faults = []
    for keyword, asked in schema.items():
        if keyword in ("$comment", "definitions"):
            continue
        if keyword == "$ref":
            faults += faults_of(value, SCHEMA["definitions"][asked], where)
        elif keyword == "oneOf":
            fitting = sum(not faults_of(value, each, where) for each in asked)
            faults += [f"{where}: {fitting} forms fit {value}"] if fitting != 1 else []
        elif keyword == "type":
            good = isinstance(value, _TYPES[asked]) and not isinstance(value, bool)
            if not good:
                return [f"{where}: no {asked}: {value}"]
        elif keyword == "enum":
            faults += [] if value in asked else [f"{where}: {value!r} is none of {asked}"]
        elif keyword == "minimum":
            faults += [] if value >= asked else [f"{where}: {value} < {asked}"]
        elif keyword == "minLength":
            faults += [] if len(value) >= asked else [f"{where}: too short"]
        elif keyword == "required":
            faults += [f"{where}: lacks {key}" for key in asked if key not in value]
        elif keyword == "properties":
            for key in value.keys() & asked.keys():
                faults += faults_of(value[key], asked[key], f"{where}/{key}")
        elif keyword == "items":
            for place, each in enumerate(value):
                faults += faults_of(each, asked, f"{where}/{place}")
        elif keyword == "additionalProperties":
            assert asked is False
            faults += [f"{where}: {key} unknown" for key in value.keys() - schema["properties"]]
        else:
            raise ValueError(f"the keyword {keyword} is not known here")
    return faults


def overlaps(document: Mapping[str, Any]) -> list[str]:
    """Neighbouring events of one track that overlap, compared in whole nanoseconds."""
    tracks = defaultdict(list)
    for event in complete(document):
        begin = round(event["ts"] * 1e3)
        tracks[event["pid"], event["tid"]].append((begin, begin + round(event["dur"] * 1e3), event))
    found = []
    for events in tracks.values():
        events.sort(key=lambda each: each[:2])
        found += [
            f"{one[2]} overlaps {other[2]}" for one, other in pairwise(events) if one[1] > other[0]
        ]
    return found


def complete(document: Mapping[str, Any], kind: str | None = None) -> Iterator[dict[str, Any]]:
    """The events with a duration, all or those of one category."""
    for event in document["traceEvents"]:
        if event["ph"] == "X" and kind in (None, event["cat"]):
            yield event


def covered(document: Mapping[str, Any]) -> dict[tuple[int, int], float]:
    """For each rank and step: the share of its wall time that its parts add up to."""
    parts: dict[tuple[int, int], float] = defaultdict(float)
    for event in complete(document, "part"):
        parts[event["pid"], event["args"]["step"]] += event["dur"]
    return {
        (event["pid"], event["args"]["step"]): parts[event["pid"], event["args"]["step"]]
        / event["dur"]
        for event in complete(document, "step")
    }


def tracks(document: Mapping[str, Any]) -> dict[tuple[int, int], str]:
    """Names of the threads by process and thread."""
    return {
        (event["pid"], event["tid"]): event["args"]["name"]
        for event in document["traceEvents"]
        if event["name"] == "thread_name"
    }
