"""telemetry.jsonl: what has been told is remembered, and a line that was cut short goes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from yolods.telemetry.sinks.feed import Feed, lines_of


def test_it_remembers_what_it_has_told(tmp_path: Path) -> None:
    file = tmp_path / "feed.jsonl"
    feed = Feed(file)
    assert feed.add("start", loggers=["wandb"], start="a", step=0)
    assert feed.add("scalars", step=2, values={"a": 1.0, "b": 2.0})
    assert feed.add("scalars", step=3, values={"a": 1.5})
    assert feed.add("epoch", epoch=0, metrics=None)
    again = Feed(file)
    assert again.loggers == {"wandb"}
    assert again.fresh({"a": 1.0, "b": 2.0, "c": 0.0}, 3) == {"b": 2.0, "c": 0.0}
    assert not again.add("epoch", epoch=0, metrics=None)
    assert again.add("epoch_begin", epoch=0)
    assert again.add("epoch", epoch=1, metrics=None)


def test_a_line_that_a_kill_cut_short_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "feed.jsonl"
    file.write_text('{"kind": "scalars", "step": 1, "values": {"a": 1.0}}\n{"kind": "sca')
    feed = Feed(file)
    feed.add("scalars", step=2, values={"a": 2.0})
    assert [line["step"] for line in lines_of(file.read_bytes())] == [1, 2]


def test_what_json_lacks_is_null_and_what_is_no_line_is_skipped(tmp_path: Path) -> None:
    file = tmp_path / "feed.jsonl"
    metrics = {"a": math.nan, "b": np.float32(0.5), "c": np.float32(math.nan)}
    Feed(file).add("epoch", epoch=0, metrics=metrics, fitness=math.inf, is_best=np.bool_(True))
    line = json.loads(file.read_text())
    assert line["metrics"] == {"a": None, "b": 0.5, "c": None}
    assert line["fitness"] is None and line["is_best"] is True
    assert list(lines_of(b'\xff\n[1]\n{"kind": "x"}\n')) == [{"kind": "x"}]
