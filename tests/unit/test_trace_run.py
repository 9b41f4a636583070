"""`yolods trace`: what a single process hands on, and what it refuses; real traces:
tests/dist/test_trace.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolods.commands import trace_run
from yolods.errors import UserError


def test_a_single_process_starts_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def launch(flags: Any, words: list[str]) -> None:
        seen.append((flags.num_gpus, words))
        raise SystemExit(0)

    monkeypatch.setattr(trace_run, "launch_trace", launch)
    with pytest.raises(SystemExit):
        trace_run.trace_command(["--num_gpus", "2", "runs/exp", "--steps", "3"])
    assert seen == [(2, ["runs/exp", "--steps", "3"])]


def test_a_run_that_is_not_there_is_refused_before_a_launcher_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        trace_run.trace_command([str(tmp_path / "nowhere")])
