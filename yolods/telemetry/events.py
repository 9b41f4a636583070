"""stability.jsonl: every step that was not applied, with one JSON object per line."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from yolods.stats import StabilityEvent
from yolods.system.files import replace_text

STABILITY_FILE = "stability.jsonl"


class EventFile:
    """Appends events, each before the next step, so that a killed run has its last one."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def keep(self, step: int) -> list[dict[str, Any]]:
        """Remove events of steps after `step`, which the run repeats; returns the remaining events.

        Raises:
            OSError: the file cannot be read or written.
        """
        if not self._file.is_file():
            return []
        lines = self._file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= step]
        if not kept:
            self._file.unlink()
        elif len(kept) < len(lines):
            replace_text(self._file, "".join(kept))
        return [json.loads(line) for line in kept]

    def append(self, event: StabilityEvent) -> None:
        """Write an event; the first one creates the file.

        Raises:
            OSError: the file cannot be written.
        """
        with self._file.open("a", encoding="utf-8") as file:
            told = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **asdict(event)}
            file.write(json.dumps(_plain(told)) + "\n")


def _step_of(line: str) -> float:
    """The step of a line; inf for a line that a kill truncated, so that it is removed."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _plain(value: Any) -> Any:
    """Replace inf and nan, which JSON lacks, by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
