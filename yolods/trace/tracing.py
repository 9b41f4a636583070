"""Traces a few steps of a run: what the loop calls before each step, and the files at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from yolods.distributed.phases import slowly
from yolods.distributed.world import Ranks
from yolods.system.files import replace_text
from yolods.system.humanize import plural
from yolods.trace.chrome import chrome_trace
from yolods.trace.clocks import RankClock, Reading, compare_clocks
from yolods.trace.picture import draw_trace, typical_step
from yolods.trace.record import RankRecord, with_waits
from yolods.trace.recorder import Recorder
from yolods.trace.schedule import as_run, ideal, idle_share, stages_in
from yolods.trace.table import trace_lines
from yolods.traffic.meter import NoMeter
from yolods.traffic.moments import moments_of

WARM_UP = 3
"""Steps of a start before the traced ones: the first ones allocate, compile and connect."""
TRACE_FILE, TRACE_PICTURE = "trace.json", "trace.png"
"""What a trace leaves in its folder."""


@dataclass(frozen=True)
class TracedPlace:
    """Where a rank stands in its layout."""

    stage: int
    """Its stage of a pipeline."""
    replica: int
    """Its replica of the model."""
    schedule: str | None = None
    """The order of a pipeline's passes, "1f1b" or "zb"; None: there is no pipeline."""


class NoTracing:
    """Traces nothing."""

    def before_step(self, step: int) -> None:
        """A step is about to begin. A collective.

        Args:
            step: its number, from 1.
        """

    def finish(self) -> None:
        """No step follows: write what was traced, unless that is done. A collective."""

    def drop(self) -> None:
        """Forget what was traced, because the run ends otherwise. Local."""


class Tracing(NoTracing):
    """Traces steps of this rank, and on rank 0 writes the files of all of them."""

    def __init__(
        self,
        steps: int,
        folder: Path,
        ranks: Ranks,
        place: TracedPlace,
        meter: NoMeter,
        tell: Callable[[str], object],
    ) -> None:
        """
        Args:
            steps: number of steps, from 1.
            folder: where rank 0 writes; it exists.
            meter: this rank's.
            tell: receives lines for the user, on rank 0.
        """
        self._steps, self._folder, self._ranks = steps, folder, ranks
        self._place, self._meter, self._tell = place, meter, tell
        self._began = 0
        """Steps of this start that have begun."""
        self._readings: list[Reading] = []
        self._recorder: Recorder | None = None
        self._over = False

    def before_step(self, step: int) -> None:
        """See `NoTracing.before_step`."""
        if self._over:
            return
        self._began += 1
        if self._began == WARM_UP + 1:
            self._start()
        elif self._began == WARM_UP + self._steps + 1:
            self.finish()

    def finish(self) -> None:
        """See `NoTracing.finish`."""
        if self._over:
            return
        self._over, recorder = True, self._recorder
        if recorder is None:
            if self._ranks.is_main:
                self._tell(
                    f"no trace: the first {WARM_UP} steps of a start are never traced, and it had "
                    f"{plural(self._began, 'step')}"
                )
            return
        recorder.stop()
        with slowly("the trace"):
            after = compare_clocks(self._ranks)
            parts, calls = recorder.read()
            ranks, place = self._ranks, self._place
            record = RankRecord(ranks.rank, ranks.host, place.stage, place.replica, parts, calls)
            records = ranks.to_main(record)
            self._recorder = None
            if ranks.is_main:
                clocks = [RankClock(*each) for each in zip(self._readings, after, strict=True)]
                self._write(records, clocks)
            # Otherwise the other ranks would wait within their next step, and its share of waiting
            # would tell about the drawing.
            ranks.barrier()

    def drop(self) -> None:
        """See `NoTracing.drop`."""
        self._over = True
        if self._recorder is not None:
            self._recorder.stop()

    def _start(self) -> None:
        device = self._ranks.device
        settle = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        self._recorder = Recorder(moments_of(device), self._meter, settle=settle)
        with slowly("the trace"):
            self._readings = compare_clocks(self._ranks)
        self._recorder.start()

    def _write(self, records: Sequence[RankRecord], clocks: Sequence[RankClock]) -> None:
        """Write the files, and tell about them."""
        moved = [clock.move(each) for clock, each in zip(clocks, records, strict=True)]
        for line in write_trace(self._folder, with_waits(moved), clocks, self._place.schedule):
            self._tell(line)


def write_trace(
    folder: Path, records: Sequence[RankRecord], clocks: Sequence[RankClock], schedule: str | None
) -> list[str]:
    """Write trace.json and trace.png, each as a whole; returns the lines about them.

    Args:
        folder: exists.
        records: all ranks, on one clock.
        clocks: theirs.
        schedule: the order of a pipeline's passes; None: there is no pipeline.
    """
    step, count = typical_step(records), len(records[0].steps())
    stages = stages_in(records) if schedule else []
    plan = ideal(as_run(stages, step), schedule) if schedule else []
    error = max(clock.error for clock in clocks)
    about = {"steps": count, "ranks": len(records), "schedule": schedule or "none"}
    file, picture = folder / TRACE_FILE, folder / TRACE_PICTURE

    def write_file() -> None:
        document = chrome_trace(records, clocks, about)
        replace_text(file, json.dumps(document, separators=(",", ":")))

    def draw() -> None:
        title = f"step {step}, {plural(len(records), 'rank')}"
        draw_trace(picture, records, step, title, stages, plan)

    return [
        *trace_lines(records, idle_share(plan) if schedule else None),
        _written(
            file,
            write_file,
            "open it at https://ui.perfetto.dev or chrome://tracing; clocks of the ranks agree to "
            f"{error * 1e6:.0f} us",
        ),
        _written(picture, draw, f"step {step} as a picture"),
    ]


def _written(file: Path, write: Callable[[], object], what: str) -> str:
    """Write a file; the line about it. Whatever fails costs the file, and not the run."""
    try:
        write()
    except Exception as fault:
        reason = str(fault).strip() or type(fault).__name__
        return f"{file} could not be written: {reason.splitlines()[0]}"
    return f"{file}: {what}"
