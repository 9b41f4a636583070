"""What a rehearsal has seen: waits of the host, mix-ups of devices, collectives of host tensors and
races, each with the place in the code that it comes from."""

from __future__ import annotations

import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).resolve().parents[3]
SITE = "site-packages/"
_SILENT = (
    *("torch/", "numpy/", "typing_extensions.py", "tests/rehearsal/pretended/"),
    *("deepspeed/accelerator/", "deepspeed/comm/", "deepspeed/utils/nvtx.py"),
    "yolods/distributed/collective_waits.py",
)
"""Whoever calls these is to blame."""
_NAMELESS = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>", "<lambda>")
"""They are their function's."""
_LIBRARY = sysconfig.get_paths()["stdlib"]
_DEPTH = 3
"""Callers that a report names."""


@dataclass(frozen=True)
class Sight:
    """Something that was seen, once or more often."""

    what: str
    """The operation."""
    place: str
    """`file:function`, the innermost that is neither torch's nor the standard library's."""
    lines: str
    """`file:line` of it and of its callers, for whoever has to look."""

    def __str__(self) -> str:
        return f"{self.what} at {self.place} ({self.lines})"


@dataclass
class Record:
    """What one process has seen since the record was made, or cleared."""

    waits: Counter[Sight] = field(default_factory=Counter)
    """The host stood still until the device had done all, or some, of its work."""
    mixups: Counter[Sight] = field(default_factory=Counter)
    """An operation was given tensors of both, which CUDA refuses."""
    host_collectives: Counter[Sight] = field(default_factory=Counter)
    """NCCL was given a tensor that is not on the device."""
    races: Counter[Sight] = field(default_factory=Counter)
    """Two streams, or a stream and the host, used the same memory, and nothing says which comes
    first."""
    kernels: int = 0
    """Operations that were launched on the device."""
    _deaf: int = 0

    def clear(self) -> None:
        """Forget everything."""
        for seen in (self.waits, self.mixups, self.host_collectives, self.races):
            seen.clear()
        self.kernels = 0

    def wait(self, what: str) -> None:
        """Note a wait of the host."""
        if not self._deaf:
            self.waits[sight(what)] += 1

    def mixup(self, what: str) -> None:
        """Note that an operation was given tensors of both."""
        self.mixups[sight(what)] += 1

    @contextmanager
    def deaf(self) -> Iterator[None]:
        """Within, no wait is noted: what reads all of a tensor's values has noted its one."""
        self._deaf += 1
        try:
            yield
        finally:
            self._deaf -= 1

    def waits_by_place(self) -> dict[str, int]:
        """How often the host waited, by `file:function`."""
        found: Counter[str] = Counter()
        for seen, count in self.waits.items():
            found[seen.place] += count
        return dict(sorted(found.items()))

    def faults(self) -> list[str]:
        """A line for each mix-up, collective of a host tensor and race; none where a device would
        have been content."""
        kinds = {
            "mix-up": self.mixups,
            "host collective": self.host_collectives,
            "race": self.races,
        }
        return [
            f"{kind}, {count} x: {seen}"
            for kind, each in kinds.items()
            for seen, count in each.most_common()
        ]

    def told(self) -> list[str]:
        """A line for each wait."""
        return [f"{count} x {seen}" for seen, count in self.waits.most_common()]


def sight(what: str) -> Sight:
    """What is being done, with the place where the caller stands."""
    place, lines = "", []
    frame = sys._getframe(1)
    while frame is not None and len(lines) < _DEPTH:
        name = _name_of(frame.f_code)
        if name is not None:
            if not place and frame.f_code.co_name not in _NAMELESS:
                place = f"{name}:{frame.f_code.co_name}"
            lines.append(f"{name}:{frame.f_lineno}")
        frame = frame.f_back
    return Sight(what, place, " < ".join(lines))


@cache
def _name_of(code: CodeType) -> str | None:
    """The file as a report names it; None for one that is not to blame."""
    file = code.co_filename
    if SITE in file:
        name = file.split(SITE)[-1]
    elif file.startswith("<") or file.startswith(_LIBRARY):
        return None
    else:
        path = Path(file)
        name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return None if name.startswith(_SILENT) else name
