"""What both drivers note about a training run, and the clocks they note it with: the same ones for
either trainer.

A driver runs a trainer as it is, calls a `Watch` at the same moments, and stops when the watch says
that it has seen enough. What was seen goes into one JSON file, which `throughput.py` reads.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

VARIABLE = "YOLODS_BENCHMARK"
"""Environment variable by which a driver is told its task."""

WARM_STEPS, TIMED_STEPS, TRACED_STEPS = 3, 5, 5
"""Optimizer steps of a profile: not looked at, timed part by part, traced operator by operator."""

TOP_OPERATORS = 15


@dataclass(frozen=True)
class Task:
    """What a driver is to do."""

    out: str
    """JSON file for what was seen; a rank above 0 writes beside it."""
    started: float
    """time.time() just before the process was started."""
    kind: str
    """rate: time the epochs and stop; profile: take a few steps apart and stop; map: train to the
    end."""
    epochs: int
    """Epochs of the run."""
    threads: int
    """Threads a rank computes with."""

    @classmethod
    def from_environment(cls) -> Task:
        """The task that `throughput.py` put into this process's environment."""
        return cls(**json.loads(os.environ[VARIABLE]))

    def environment(self) -> dict[str, str]:
        """The variable that hands this task to a driver."""
        return {VARIABLE: json.dumps(asdict(self))}


@dataclass
class Seen:
    """What a driver writes."""

    first_step: float | None = None
    """Seconds from the start of the process to the end of the first optimizer step."""
    epochs: list[dict[str, float]] = field(default_factory=list)
    """For each epoch `seconds` and `cpu_seconds` from its start to the end of its last step, and
    `images`."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Final metrics of best.pt, where the run was trained to its end."""
    split: dict[str, float] = field(default_factory=dict)
    """Milliseconds an image by part of a step, and `total`."""
    operators: list[dict[str, Any]] = field(default_factory=list)
    """The most expensive operators: `name`, `calls` a step, `ms` an image, `share` of all
    operators."""

    @classmethod
    def read(cls, path: Path) -> Seen:
        """What a driver wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path) -> None:
        """Put it down, whole or not at all."""
        partial = path.with_suffix(".part")
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        partial.replace(path)


class Stopwatch:
    """Seconds by part of a step. Parts may nest: a second counts for the innermost alone."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._open: list[str] = []
        self._since: float | None = clock()
        self.totals: defaultdict[str, float] = defaultdict(float)

    def restart(self) -> None:
        """Forget what was measured; parts that are open stay open."""
        self.totals.clear()
        self._since = self._clock()

    def lap(self) -> None:
        """Count the time since the last change for the part that is open, `rest` outside of all."""
        if self._since is None:
            return
        now = self._clock()
        self.totals[self._open[-1] if self._open else "rest"] += now - self._since
        self._since = now

    def pause(self) -> None:
        """Count nothing until `resume`."""
        self.lap()
        self._since = None

    def resume(self) -> None:
        """Count again."""
        self._since = self._clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within: time counts for `name`."""
        self.lap()
        self._open.append(name)
        try:
            yield
        finally:
            self.lap()
            self._open.pop()

    def wrapped(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`function`, whose time counts for `name`."""

        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Let the time in a method of `owner` count for `name`."""
        setattr(owner, attribute, self.wrapped(getattr(owner, attribute), name))

    def timed(self, items: Iterator[Any], name: str) -> Iterator[Any]:
        """The same items; the time that it takes to get each counts for `name`. Closing it closes
        `items`."""
        try:
            while True:
                with self.part(name):
                    try:
                        item = next(items)
                    except StopIteration:
                        return
                yield item
        finally:
            if hasattr(items, "close"):
                items.close()


class Watch:
    """Follows one run. The driver calls `epoch_began`, `step_ended` and `epoch_ended` where they
    happen."""

    def __init__(self, task: Task, rank: int = 0) -> None:
        self.task, self.seen, self.stopwatch = task, Seen(), Stopwatch()
        self._out = Path(task.out) if rank == 0 else Path(f"{task.out}.rank{rank}")
        self._began = (0.0, 0.0)
        self._steps = self._images = 0
        self._timed_images = 0
        self._tracer: Any = None

    def epoch_began(self) -> None:
        """Before an epoch's first batch is loaded."""
        self._images = 0
        self._began = _clocks()
        self.stopwatch.resume()
        self._trace(True)

    def step_ended(self, images: int) -> None:
        """An optimizer step over `images` images of all ranks is done. Ends the process when a
        profile is complete."""
        if self.seen.first_step is None:
            self.seen.first_step = time.time() - self.task.started
        self._steps += 1
        self._images += images
        if self.task.kind == "profile":
            self._profile(images)

    def epoch_ended(self, images: int | None = None) -> None:
        """After an epoch's last step, before it is evaluated. Ends the process after the last where
        that is the task.

        Args:
            images: how many it had; those of its steps by default.
        """
        self.stopwatch.pause()
        self._trace(False)
        seconds, cpu = (now - then for now, then in zip(_clocks(), self._began, strict=True))
        images = self._images if images is None else images
        self.seen.epochs.append({"seconds": seconds, "cpu_seconds": cpu, "images": images})
        if self.task.kind == "rate" and len(self.seen.epochs) == self.task.epochs:
            self.end()

    def finished(self, metrics: dict[str, float]) -> None:
        """The run is over: write its metrics."""
        self.seen.metrics = metrics
        self.seen.write(self._out)

    def end(self) -> None:
        """Write what was seen and leave the trainer, on every rank at the same step."""
        self.seen.write(self._out)
        raise SystemExit(0)

    def _trace(self, on: bool) -> None:
        """Leave what happens between epochs, evaluation and saving, out of the trace."""
        if self._tracer is not None:
            from torch.profiler import ProfilerActivity

            self._tracer.toggle_collection_dynamic(on, [ProfilerActivity.CPU])

    def _profile(self, images: int) -> None:
        if self._steps == WARM_STEPS:
            self.stopwatch.restart()
        elif self._steps <= WARM_STEPS + TIMED_STEPS:
            self._timed_images += images
        if self._steps == WARM_STEPS + TIMED_STEPS:
            self.stopwatch.lap()
            self.seen.split = per_image(self.stopwatch.totals, self._timed_images)
            self._tracer = _start_tracer()
        elif self._steps == WARM_STEPS + TIMED_STEPS + TRACED_STEPS:
            self._tracer.stop()
            self.seen.operators = _operators(self._tracer, TRACED_STEPS, TRACED_STEPS * images)
            self.end()


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def per_image(seconds: dict[str, float], images: int) -> dict[str, float]:
    """Milliseconds an image by part, with their sum as `total`."""
    each = {part: 1000 * value / images for part, value in seconds.items()}
    return {**each, "total": sum(each.values())}


def _start_tracer() -> Any:
    from torch.profiler import ProfilerActivity, profile

    tracer = profile(activities=[ProfilerActivity.CPU])
    tracer.start()
    return tracer


def _operators(tracer: Any, steps: int, images: int) -> list[dict[str, Any]]:
    events = sorted(
        tracer.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True
    )
    total = sum(event.self_cpu_time_total for event in events)
    return [
        {
            "name": event.key,
            "calls": event.count / steps,
            "ms": event.self_cpu_time_total / 1000 / images,
            "share": event.self_cpu_time_total / total,
        }
        for event in events[:TOP_OPERATORS]
    ]
