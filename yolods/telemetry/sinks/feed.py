"""telemetry.jsonl: everything that loggers are told, one JSON object per line, each thing once.

    kind         keys besides `time`
    start        start, loggers, epochs, step (steps that the run continues from), first_epoch (from
                 0, the epoch that it continues in; `epochs` if none is left)
    epoch_begin  epoch (from 0)
    scalars      step, values (by name: losses and metrics as in results.csv)
    epoch        epoch, step, seconds, train_loss, val_loss, metrics, fitness, lr, is_best,
                 images_per_second
    finish       metrics, model, seconds

The file is also the memory of what has been told: a resumed run repeats the steps after its
checkpoint, and what the file has of them is not told again. So it only grows, except for a line
that a kill has cut short.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

FEED_FILE = "telemetry.jsonl"


class Feed:
    """The file of one run, opened by rank 0."""

    def __init__(self, file: Path) -> None:
        """Read what has been told, and remove a line that is not complete.

        Raises:
            OSError: the file cannot be read or written.
        """
        self._file = file
        self._steps: dict[str, int] = {}
        """The last step told, by curve."""
        self._epochs: dict[str, int] = {}
        """The last epoch told, by kind of line."""
        self.loggers: set[str] = set()
        """Loggers of earlier starts, which have the configuration."""
        content = file.read_bytes() if file.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with file.open("r+b") as cut:
                cut.truncate(len(whole))
        for line in lines_of(whole):
            self._note(line)

    def fresh(self, values: Mapping[str, float], step: int) -> dict[str, float]:
        """The values that have not been told of this step, or of a later one."""
        return {tag: value for tag, value in values.items() if step > self._steps.get(tag, -1)}

    def add(self, kind: str, **content: Any) -> bool:
        """Write a line; False if an earlier start has told that of this epoch.

        Raises:
            OSError: the file cannot be written.
        """
        if "epoch" in content and content["epoch"] <= self._epochs.get(kind, -1):
            return False
        line = {"kind": kind, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **content}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line)) + "\n")
        self._note(line)
        return True

    def _note(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "scalars":
            self._steps |= dict.fromkeys(line["values"], line["step"])
        elif line["kind"] == "start":
            self.loggers |= set(line["loggers"])
        elif "epoch" in line:
            self._epochs[line["kind"]] = line["epoch"]


def lines_of(content: bytes) -> Iterator[dict[str, Any]]:
    """The objects of complete lines; a line that is none, after a crash of the host, is skipped."""
    for line in content.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and "kind" in found:
            yield found


def _finite(value: Any) -> Any:
    """Numbers of numpy, which JSON does not know, as Python's, and inf and nan as null."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
