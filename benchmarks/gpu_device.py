"""The device that a part works on, a GPU or a CPU that pretends to be one; and the waits of the
host for it."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from benchmarks.gpu_job import ROOT, Job

OWN = ("benchmarks/gpu", "torch/", "warnings.py")
"""Files that are not to blame for a wait: whoever called them is."""
CALLERS = 3
"""Frames that a place names, from the innermost outwards."""


class Device:
    """A GPU."""

    name = "cuda"

    @contextmanager
    def waits(self) -> Iterator[Counter[str]]:
        """Within, every wait of the host is counted by `file:line` and those of its callers. See
        `places`.

        Torch warns of a call that waits where it is asked to (torch.cuda.set_sync_debug_mode), in
        the thread that called: waits in autograd's thread have the frames of that thread, which may
        be none.
        """
        found: Counter[str] = Counter()

        def note(message: Any, *_: Any, **__: Any) -> None:
            if "synchroniz" in str(message):
                found[places(sys._getframe(1))] += 1

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")


class Pretended(Device):
    """A CPU that pretends to be a GPU (tests/rehearsal); or, where that is not at hand, a CPU."""

    def __init__(self, world: Any = None) -> None:
        self.name = "cuda" if world else "cpu"
        self._world = world

    @contextmanager
    def waits(self) -> Iterator[Counter[str]]:
        """See `Device.waits`; nothing is counted on a CPU."""
        found: Counter[str] = Counter()
        if self._world is None:
            yield found
            return
        record = self._world.record
        record.waits.clear()
        yield found
        for sight, count in record.waits.items():
            found[sight.lines or sight.place] += count


@contextmanager
def device(job: Job) -> Iterator[Device]:
    """Within, the device of a part. Has to be entered before ranks are joined.

    Raises:
        RuntimeError: there is no GPU, and none was to be pretended.
    """
    if not job.pretend:
        if not torch.cuda.is_available():
            raise RuntimeError(
                f"torch {torch.__version__} sees no GPU; --pretend rehearses on a CPU"
            )
        yield Device()
        return
    try:
        from tests.rehearsal.pretended import pretended_device
    except ModuleNotFoundError:
        yield Pretended()
        return
    with pretended_device() as world:
        yield Pretended(world)


def places(frame: FrameType | None) -> str:
    """`file:line < file:line < ..`: the innermost frame that is not torch's, and its callers."""
    found: list[str] = []
    while frame is not None and len(found) < CALLERS:
        file = frame.f_code.co_filename.split("site-packages/")[-1].removeprefix(f"{ROOT}/")
        if not file.startswith(("<", "/")) and not (not found and file.startswith(OWN)):
            found.append(f"{file}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found) or "autograd's thread"
