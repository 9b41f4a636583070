"""When a run's steps are traced, and what is written: in one process, with the real tracker."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.traced import SCHEMA, complete, covered, faults_of, overlaps, part, record
from yolods.distributed.phases import PHASES, mark
from yolods.distributed.world import Ranks
from yolods.trace import tracing as module
from yolods.trace.clocks import RankClock, Reading
from yolods.trace.tracing import WARM_UP, NoTracing, TracedPlace, Tracing, write_trace
from yolods.traffic.meter import NoMeter

ALONE = Ranks(0, 1, 0, "here", torch.device("cpu"))
CLOCK = RankClock(Reading(0.0, 0.0, 0.0), Reading(9.0, 0.0, 0.0))


@pytest.fixture(autouse=True)
def nobody_hears() -> Iterator[None]:
    yield
    PHASES.hear(None)


def traced(folder: Path, steps: int, lines: list[str]) -> Tracing:
    return Tracing(steps, folder, ALONE, TracedPlace(0, 0), NoMeter(), lines.append)


def take(tracing: NoTracing, steps: int, first: int = 1) -> None:
    for step in range(first, first + steps):
        tracing.before_step(step)
        mark("between steps", step=step)
        mark("data", 0)
        mark("forward", 0)
        mark("between steps")


def test_the_steps_after_the_warm_up_are_traced(tmp_path: Path) -> None:
    lines: list[str] = []
    tracing = traced(tmp_path, 2, lines)
    take(tracing, WARM_UP + 2, first=11)
    assert not list(tmp_path.iterdir()) and not lines
    take(tracing, 3, first=16)
    document = json.loads((tmp_path / "trace.json").read_text())
    assert faults_of(document, SCHEMA) == [] and overlaps(document) == []
    assert set(covered(document)) == {(0, 14), (0, 15)}
    assert {event["name"] for event in complete(document, "part")} >= {"data 0", "forward 0"}
    assert (tmp_path / "trace.png").stat().st_size > 1000
    assert sorted(each.name for each in tmp_path.iterdir()) == ["trace.json", "trace.png"]
    assert lines[0].startswith("traced steps 14 to 15") and "agree to 0 us" in lines[-2]
    told = len(lines)
    tracing.finish()
    assert len(lines) == told and PHASES._listener is None


def test_a_run_that_ends_before_has_fewer_steps_or_says_why_none(tmp_path: Path) -> None:
    lines: list[str] = []
    tracing = traced(tmp_path, 50, lines)
    take(tracing, WARM_UP + 1)
    tracing.finish()
    assert json.loads((tmp_path / "trace.json").read_text())["otherData"]["steps"] == 1
    short, lines = tmp_path / "short", []
    tracing = traced(short, 1, lines)
    take(tracing, 2)
    tracing.finish()
    assert lines == ["no trace: the first 3 steps of a start are never traced, and it had 2 steps"]
    assert not short.exists()


def test_a_run_that_stops_leaves_nothing(tmp_path: Path) -> None:
    tracing = traced(tmp_path, 5, [])
    tracing.drop()
    tracing = traced(tmp_path, 5, [])
    take(tracing, WARM_UP + 2)
    tracing.drop()
    tracing.finish()
    take(tracing, 9)
    assert not list(tmp_path.iterdir()) and PHASES._listener is None


@pytest.mark.parametrize(
    ("broken", "left"), [("replace_text", "trace.png"), ("draw_trace", "trace.json")]
)
def test_what_cannot_be_written_costs_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str, left: str
) -> None:
    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, broken, full)
    lines = write_trace(tmp_path, [record(part(0, 1, "forward"))], [CLOCK], None)
    (told,) = (line for line in lines if "could not be written" in line)
    assert told.endswith("could not be written: [Errno 28] No space left on device")
    assert [each.name for each in tmp_path.iterdir()] == [left]


def test_of_a_pipeline_the_schedule_is_drawn_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    monkeypatch.setattr(
        module, "draw_trace", lambda *given: drawn.append((len(given[4]), len(given[5])))
    )
    stages = [
        record(part(0, 1, "forward", 0), part(1, 4, "backward", 0), rank=rank, stage=rank)
        for rank in range(2)
    ]
    write_trace(tmp_path, stages, [CLOCK, CLOCK], "1f1b")
    write_trace(tmp_path, stages, [CLOCK, CLOCK], None)
    assert drawn == [(2, 2), (0, 0)]


def test_nothing_is_traced_unless_asked(tmp_path: Path) -> None:
    tracing = NoTracing()
    take(tracing, 9)
    tracing.finish()
    tracing.drop()
    assert PHASES._listener is None
