"""stability.jsonl: every step that was not applied, whole, one JSON object a line."""

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
    """Appends; each line is on the disk before the next step begins, so that a killed run has told of its last."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def keep(self, step: int) -> list[dict[str, Any]]:
        """Drop what an earlier start wrote of later steps than `step`: they are taken again. Returns what stays.

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
        """Write an event; the file is made with the first one.

        Raises:
            OSError: it cannot be written.
        """
        with self._file.open("a", encoding="utf-8") as file:
            told = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **asdict(event)}
            file.write(json.dumps(_plain(told)) + "\n")


def _step_of(line: str) -> float:
    """The step of a line; of one that a kill cut short, none that is kept."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _plain(value: Any) -> Any:
    """JSON has no inf and no nan: they become their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
