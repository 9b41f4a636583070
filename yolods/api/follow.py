"""Reads what a run tells, as it happens, from its telemetry.jsonl."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from yolods.telemetry.sinks.feed import FEED_FILE, lines_of


class Follower:
    """Hands on each line that the present start writes."""

    def __init__(self, told: Path, hear: Callable[[Path, Mapping[str, Any]], None]) -> None:
        """
        Args:
            told: the file in which the launcher names the run's folder and its start.
            hear: called with the run's folder and a line of telemetry.jsonl.
        """
        self.folder: Path | None = None
        """The run's folder, as soon as it is known."""
        self._told, self._hear = told, hear
        self._start, self._begun = "", False
        self._read = 0
        """Bytes of complete lines that were handed on."""

    def poll(self) -> None:
        """Hand on what is new; raises what `hear` raises."""
        if self.folder is None and self._told.is_file():
            folder, self._start = json.loads(self._told.read_text(encoding="utf-8"))
            self.folder = Path(folder)
        if self.folder is None:
            return
        try:
            with (self.folder / FEED_FILE).open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except OSError:  # not written yet, or on another host
            return
        # The rest of the last line comes with the next call.
        content = content[: content.rfind(b"\n") + 1]
        self._read += len(content)
        for line in lines_of(content):
            # The file of a resumed run has the lines of earlier starts.
            self._begun |= line["kind"] == "start" and line["start"] == self._start
            if self._begun:
                self._hear(self.folder, line)
