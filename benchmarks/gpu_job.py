"""What a part of a GPU session is given: its time, its folder, and a place for its notes."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class Skip(Exception):
    """An item cannot be looked at here; the message says why."""


@dataclass
class Item:
    """One thing that a part has looked at."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    """What was found, as JSON takes it, in the order of the page."""
    doubts: list[str] = field(default_factory=list)
    """Sentences about what is not as it should be."""

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note a doubt where something does not hold."""
        if not holds:
            self.doubts.append(otherwise)


@dataclass
class Job:
    """One part's task."""

    notes: Path
    """File of JSON lines, one an item."""
    work: Path
    """Folder of its own."""
    seconds: float
    """The most that it may take from `began` on; then it is ended."""
    pretend: bool
    """Tiny sizes on a CPU."""
    data: Path | None
    """The data yaml of BCCD, where it is there."""
    began: float
    """Of time.monotonic()."""

    @property
    def left(self) -> float:
        """Seconds until the part is ended."""
        return self.began + self.seconds - time.monotonic()

    @contextmanager
    def item(self, name: str) -> Iterator[Item]:
        """Within: look at one thing. It is noted at the end, whatever happens; a fault in it is a
        note as well."""
        item, began = Item(name), time.monotonic()
        entry: dict[str, Any] = {"name": name}
        try:
            yield item
        except Skip as reason:
            entry["skipped"] = str(reason)
        except Exception as error:
            traceback.print_exc()
            entry["failed"] = f"{type(error).__name__}: {error}"[:600]
        entry |= {"seconds": time.monotonic() - began, "facts": item.facts, "doubts": item.doubts}
        with self.notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, default=str) + "\n")
        print(f"{name}: {entry['seconds']:.1f} s {entry.get('failed', '')}", flush=True)
