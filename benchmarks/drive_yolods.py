"""Runs yolods by its own command line, with its launcher or without, and notes when things happen
in each rank.

Usage: drive_yolods.py [launch] train --data ... (the words of `python -m yolods`). The task comes
in the environment.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from benchmarks.observer import Task, Watch
from yolods import cli
from yolods.commands import running


def main() -> int:
    """Run the words."""
    words = sys.argv[1:]
    if words[0] == "launch":
        launch_this(__file__)
    else:
        watch_training(Task.from_environment())
    return cli.main(words)


def launch_this(file: str) -> None:
    """Have the launcher start ranks with a file in the place of `--module yolods`."""
    from yolods.launch import command as launch

    build = launch.launcher_command

    def build_for_this(*args: Any, **kwargs: Any) -> tuple[list[str], dict[str, str]]:
        command, variables = build(*args, **kwargs)
        place = command.index("--module")
        return [*command[:place], file, *command[place + 2 :]], variables

    launch.launcher_command = build_for_this


def watch_training(task: Task) -> None:
    """Put a watch on the training run that this process starts."""
    prepare = running.prepare_libraries

    def prepare_and_watch() -> None:
        # Not before: yolods.training.loop imports what the command line first has to prepare.
        prepare()
        from yolods.training.loop import Run

        fit = Run.fit

        def watched(run: Run) -> None:
            attend(run, Watch(task, run.engine.ranks.rank))
            fit(run)

        Run.fit = watched  # type: ignore[method-assign]

    running.prepare_libraries = prepare_and_watch


def attend(run: Any, watch: Watch) -> None:
    """Have a run call the watch; nothing that it computes is changed."""
    telemetry, samples = run.telemetry, run.schedule.samples
    begin, step, finish = telemetry.epoch_begin, telemetry.step, telemetry.finish
    closed = 0

    def epoch_begin(epoch: int) -> None:
        watch.epoch_began()
        begin(epoch)

    def stepped(record: Any) -> None:
        nonlocal closed
        step(record)
        watch.step_ended(record.samples)
        if record.position // samples > closed:
            closed = record.position // samples
            watch.epoch_ended()

    def finished(metrics: Any, seconds: float) -> None:
        finish(metrics, seconds)
        watch.finished({name: float(value) for name, value in (metrics or {}).items()})

    telemetry.epoch_begin, telemetry.step, telemetry.finish = epoch_begin, stepped, finished
    if watch.task.kind == "profile":
        time_parts(run, watch)


def time_parts(run: Any, watch: Watch) -> None:
    """Have each part of a step count for itself."""
    stopwatch, engine = watch.stopwatch, run.engine
    read = run.batches.read

    def timed_read(progress: Any) -> Iterator[Any]:
        return stopwatch.timed(read(progress), "data")

    run.batches.read = timed_read
    inputs = engine.inputs
    engine.inputs = SimpleNamespace(
        device=inputs.device, images=stopwatch.wrapped(inputs.images, "input")
    )
    engine._loss = stopwatch.wrapped(engine._loss, "loss")
    for owner, method, part in (
        (engine.deepspeed, "forward", "forward"),
        (engine.deepspeed, "backward", "backward"),
        (engine.deepspeed, "step", "optimizer and communication"),
        (engine.ema, "update", "EMA"),
        (run.telemetry, "step", "telemetry"),
    ):
        stopwatch.wrap(owner, method, part)


if __name__ == "__main__":
    sys.exit(main())
