"""Loggers get each thing once, over a resume as well, and no fault of theirs ends anything."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from tests.unit.test_telemetry_run import epoch_stats, make_metrics, step_record
from yolods.config.loggers import LOGGERS
from yolods.stats import METRIC_NAMES
from yolods.telemetry.board.names import BY_IMAGES, board_tag
from yolods.telemetry.run import RunTelemetry
from yolods.telemetry.sinks import hub
from yolods.telemetry.sinks.feed import FEED_FILE, lines_of
from yolods.telemetry.sinks.hub import SINKS, Sinks
from yolods.telemetry.sinks.sink import RunFacts, Sink


class Fake(Sink):
    """Notes what it gets; `faulty` names a method that raises, `slow` is waited for."""

    calls: ClassVar[list[tuple[Any, ...]]] = []
    faulty: str = ""
    slow: threading.Event | None = None

    def __init__(self, facts: RunFacts) -> None:
        self.note("open", facts.run)

    def note(self, what: str, *content: Any) -> None:
        if self.slow is not None:
            self.slow.wait()
        self.calls.append((what, *content))
        if what == self.faulty:
            raise RuntimeError(f"no {what} today\nand more")

    def config(self, config: Mapping[str, Any]) -> None:
        self.note("config", dict(config))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.note("scalars", dict(values), step)

    def picture(self, tag: str, file: Path, step: int) -> None:
        self.note("picture", tag, file.name, step)

    def finish(self, metrics: Mapping[str, float], model: Path | None) -> None:
        self.note("finish", dict(metrics), model)

    def close(self) -> None:
        self.note("close")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    """A class of its own for each test, registered under the name `fake`."""
    kind = type("Fresh", (Fake,), {"calls": []})
    module = ModuleType("fake")
    module.Fresh = kind
    monkeypatch.setitem(sys.modules, "fake", module)
    monkeypatch.setitem(hub.SINKS, "fake", ("fake", "Fresh"))
    return kind


def start(folder: Path, *, epochs: range, step: int, ends: bool, steps: int = 3) -> None:
    """The calls of a training loop from a step to the end of the last epoch of the range."""
    facts = RunFacts("r" * 32, f"start{step}", folder)
    telemetry = RunTelemetry(
        folder,
        names={0: "disc", 1: "bar"},
        epochs=3,
        images_per_epoch=12,
        batch_size=4,
        start_epoch=epochs[0],
        start_step=step,
        plots=False,
        sinks=Sinks(["fake"], facts),
    )
    with telemetry:
        telemetry.start({"epochs": 3, "hyper": {"lr0": 0.1}}, "| layer |")
        for epoch in epochs:
            telemetry.epoch_begin(epoch)
            for number in range(max(epoch * steps, step), (epoch + 1) * steps):
                telemetry.step(step_record(number + 1, epoch))
            telemetry.ranks({0: 0.1, 1: 0.2})
            telemetry.val_end(make_metrics(), 2)
            telemetry.epoch_end(epoch_stats(epoch))
        if ends:
            telemetry.finish(dict.fromkeys(METRIC_NAMES, 0.5), 1.0)


def points(calls: list[tuple[Any, ...]]) -> list[tuple[str, int, float]]:
    return [
        (tag, step, value)
        for what, *content in calls
        if what == "scalars"
        for tag, value in content[0].items()
        for step in [content[1]]
    ]


def drawn(folder: Path) -> list[tuple[str, int, float]]:
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    board.Reload()
    return [
        (tag, event.step, pytest.approx(event.value))
        for tag in board.Tags()["scalars"]
        # The same points over images.
        if not tag.startswith(f"{BY_IMAGES}/")
        for event in board.Scalars(tag)
    ]


def by_place(found: list[tuple[str, int, float]]) -> list[tuple[str, int, float]]:
    return sorted(found, key=lambda point: point[:2])


@pytest.mark.slow
def test_every_scalar_arrives_once_over_a_resume_as_well(fake, tmp_path):
    start(tmp_path, epochs=range(2), step=0, ends=False)
    # Killed in epoch 3, resumed from a checkpoint in epoch 2: steps 5 and 6 are repeated.
    start(tmp_path, epochs=range(1, 3), step=4, ends=True)
    found = points(fake.calls)
    places = [(tag, step) for tag, step, _ in found]
    assert len(places) == len(set(places))
    named = [(board_tag(name), step, value) for name, step, value in found]
    assert by_place(named) == by_place(drawn(tmp_path)), "what TensorBoard shows"
    assert {step for tag, step, _ in found if tag == "train/box_loss"} == set(range(1, 10))
    words = [what for what, *_ in fake.calls]
    assert words.count("config") == 1 and words.count("finish") == 1
    assert words.count("open") == words.count("close") == 2
    assert words[-1] == "close"
    lines = list(lines_of((tmp_path / FEED_FILE).read_bytes()))
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [0, 1, 2]
    assert [line["start"] for line in lines if line["kind"] == "start"] == ["start0", "start4"]
    assert [line["first_epoch"] for line in lines if line["kind"] == "start"] == [0, 1]


@pytest.mark.parametrize("faulty", ["open", "config", "scalars", "finish", "close"])
def test_a_fault_is_one_warning_and_the_feed_goes_on(fake, tmp_path, caplog, faulty):
    fake.faulty = faulty
    with caplog.at_level(logging.WARNING):
        start(tmp_path, epochs=range(3), step=0, ends=True)
    (line,) = [each.getMessage() for each in caplog.records if "loggers" in each.getMessage()]
    assert line == f"--loggers fake: no {faulty} today; it gets nothing more of this run"
    lines = list(lines_of((tmp_path / FEED_FILE).read_bytes()))
    assert lines[-1]["kind"] == "finish" and lines[-1]["metrics"]["metrics/mAP50(B)"] == 0.5


def test_a_service_that_hangs_holds_up_neither_a_step_nor_the_end(
    fake, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(hub, "_FINISH_SECONDS", 0.2)
    fake.slow = threading.Event()
    start(tmp_path, epochs=range(1), step=0, ends=True)
    assert "fake has not taken everything within 0 s" in caplog.text
    assert fake.calls == []
    fake.slow.set()


def test_a_full_disk_is_one_warning(fake, tmp_path, caplog, monkeypatch):
    def full(*_: object, **__: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub.Feed, "add", full)
    start(tmp_path, epochs=range(1), step=0, ends=True)
    assert caplog.text.count("telemetry.jsonl could not be written") == 1


def test_pictures_are_passed_on(fake, tmp_path):
    (tmp_path / "labels.jpg").touch()
    sinks = Sinks(["fake"], RunFacts("r", "s", tmp_path))
    sinks.picture("train/labels", tmp_path / "labels.jpg", 3)
    sinks.close()
    assert ("picture", "train/labels", "labels.jpg", 3) in fake.calls


def test_the_names_are_those_of_the_flag():
    assert list(SINKS) == list(LOGGERS)


def test_without_loggers_nothing_is_written(tmp_path):
    sinks = Sinks()
    sinks.start({}, 1, 0)
    sinks.scalars({"a": 1.0}, 1)
    sinks.finish(None, None, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_the_feed_of_another_start_is_json(fake, tmp_path):
    start(tmp_path, epochs=range(1), step=0, ends=True)
    kinds = [json.loads(line)["kind"] for line in (tmp_path / FEED_FILE).read_text().splitlines()]
    assert kinds[0] == "start" and kinds[-1] == "finish" and "epoch" in kinds
