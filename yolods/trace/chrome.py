"""A trace as one JSON object in Chrome's Trace Event Format, which Perfetto reads as well.

Source: "Trace Event Format", Google, sections "JSON Object Format", "Complete Events" and "Metadata
Events". Every rank is a process, every track a thread. Only events with a duration (`X`) and names
(`M`) are written; those of one track do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from yolods.trace.clocks import RankClock
from yolods.trace.record import REST_TRACK, STEP_TRACK, TRACKS, CallRecord, RankRecord, halves

WAITING = "waits for others"
"""The track of what a rank waited for in calls."""
_OWN_TRACKS = (STEP_TRACK, *dict.fromkeys(TRACKS.values()), REST_TRACK, WAITING)
"""The tracks in their order; those of collectives follow."""

TraceEvent = dict[str, Any]
CallSpan = tuple[float, float, CallRecord]


def chrome_trace(
    records: Sequence[RankRecord], clocks: Sequence[RankClock], about: dict[str, Any]
) -> dict[str, Any]:
    """The whole document.

    Args:
        records: all ranks, on one clock.
        clocks: theirs, in the same order.
        about: what else the document says of the run.
    """
    start = min(record.parts[0].begin for record in records if record.parts)
    events: list[TraceEvent] = []
    for record in records:
        events += _names(record)
        events += _steps(record, start)
        events += _parts(record, start)
        events += _calls(record, start)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            **about,
            "clocks": [
                {
                    "rank": record.rank,
                    "host": record.host,
                    "error_us": round(clock.error * 1e6, 3),
                    "drift_us": round(clock.drift * 1e6, 3),
                }
                for record, clock in zip(records, clocks, strict=True)
            ],
        },
    }


def _names(record: RankRecord) -> Iterator[TraceEvent]:
    name = f"rank {record.rank} ({record.host}, stage {record.stage}, replica {record.replica})"
    yield _meta(record, "process_name", 0, name=name)
    yield _meta(record, "process_sort_index", 0, sort_index=record.rank)
    used = {STEP_TRACK, WAITING, *(part.track for part in record.parts)}
    for place, track in enumerate(_OWN_TRACKS):
        if track in used:
            yield from _thread(record, place, track)


def _thread(record: RankRecord, thread: int, name: str) -> Iterator[TraceEvent]:
    yield _meta(record, "thread_name", thread, name=name)
    yield _meta(record, "thread_sort_index", thread, sort_index=thread)


def _meta(record: RankRecord, what: str, thread: int, **args: Any) -> TraceEvent:
    return {"ph": "M", "name": what, "pid": record.rank, "tid": thread, "args": args}


def _steps(record: RankRecord, start: float) -> Iterator[TraceEvent]:
    for step in record.steps():
        yield _complete(record, 0, f"step {step}", "step", record.bounds(step), start, step=step)


def _parts(record: RankRecord, start: float) -> Iterator[TraceEvent]:
    for part in record.parts:
        number = {} if part.number is None else {"number": part.number}
        name = part.phase if part.number is None else f"{part.phase} {part.number}"
        thread = _OWN_TRACKS.index(part.track)
        span = part.begin, part.end
        yield _complete(record, thread, name, "part", span, start, step=part.step, **number)


def _calls(record: RankRecord, start: float) -> Iterator[TraceEvent]:
    """The calls, each kind on tracks of its own: two that overlap are on different ones."""
    waits = [(*span, call) for call in record.calls for span in halves(call)[0]]
    for begin, end, call in _apart(waits):
        thread, span = _OWN_TRACKS.index(WAITING), (begin, end)
        yield _complete(record, thread, call.kind, "wait", span, start, **_about(call))
    thread = len(_OWN_TRACKS)
    for kind in dict.fromkeys(call.kind for call in record.calls):
        spans = [span for call in record.calls if call.kind == kind for span in _under_way(call)]
        for place, lane in enumerate(_lanes(spans)):
            name = f"collectives: {kind}{f' ({place + 1})' if place else ''}"
            yield from _thread(record, thread, name)
            for begin, end, call in lane:
                span = begin, end
                yield _complete(record, thread, kind, "collective", span, start, **_about(call))
            thread += 1


def _under_way(call: CallRecord) -> list[CallSpan]:
    """When a call was under way; of a send or receive only where the rank stood still is known."""
    if call.peer is None:
        return [(call.begin, call.end, call)]
    return [(begin, end, call) for begin, end in call.held]


def _about(call: CallRecord) -> dict[str, Any]:
    held = sum(end - begin for begin, end in call.held)
    peer = {} if call.peer is None else {"peer": call.peer}
    return {
        "bytes": round(call.sent),
        "group": call.group,
        **peer,
        "still_us": round(held * 1e6, 3),
        "waited_us": round(call.waited * 1e6, 3),
    }


def _apart(spans: Iterable[CallSpan]) -> Iterator[CallSpan]:
    """Spans in order; of one that begins within an earlier one, what goes beyond it."""
    last = float("-inf")
    for begin, end, call in sorted(spans, key=lambda each: each[:2]):
        if end > max(begin, last):
            yield max(begin, last), end, call
            last = end


def _lanes(spans: Iterable[CallSpan]) -> list[list[CallSpan]]:
    """The spans on as few tracks as they need so that none overlap on one."""
    lanes: list[list[CallSpan]] = []
    for span in sorted(spans, key=lambda each: each[:2]):
        free = next((lane for lane in lanes if lane[-1][1] <= span[0]), None)
        if free is None:
            lanes.append([span])
        else:
            free.append(span)
    return lanes


def _complete(
    record: RankRecord,
    thread: int,
    name: str,
    kind: str,
    span: tuple[float, float],
    start: float,
    **args: Any,
) -> TraceEvent:
    # Whole nanoseconds before the format's microseconds, so that neighbours still meet exactly.
    begin, end = (round((seconds - start) * 1e9) for seconds in span)
    return {
        "ph": "X",
        "name": name,
        "cat": kind,
        "pid": record.rank,
        "tid": thread,
        "ts": begin / 1e3,
        "dur": (end - begin) / 1e3,
        "args": args,
    }
