"""Runs yolods' own training, and makes a step of it go bad every so often: the ranks of
benchmarks/faulted.py.

Usage: drive_faulted.py [launch] train --data ...; FAULT_EVERY in the environment says how many
steps lie between two faults, 0 for none.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from benchmarks.drive_yolods import launch_this
from yolods import cli
from yolods.commands import running

EVERY = "FAULT_EVERY"


def main() -> int:
    """Run the words."""
    words = sys.argv[1:]
    if words[0] == "launch":
        launch_this(__file__)
    elif int(os.environ.get(EVERY, "0")):
        disturb_training(int(os.environ[EVERY]))
    return cli.main(words)


def disturb_training(every: int) -> None:
    """Put faults into the training run that this process starts."""
    prepare = running.prepare_libraries

    def prepare_and_disturb() -> None:
        # Not before: yolods.training.loop imports what the command line first has to prepare.
        prepare()
        from yolods.training.loop import Run

        fit = Run.fit

        def disturbed(run: Run) -> None:
            disturb(run, every)
            fit(run)

        Run.fit = disturbed  # type: ignore[method-assign]

    running.prepare_libraries = prepare_and_disturb


def disturb(run: Any, every: int) -> None:
    """Give every `every`-th step the next fault of a tape."""
    from tests.faults.tape import Injector, convolutions, draw

    engine = run.engine
    injector = Injector(engine)
    tape = iter(draw(10_000, 1, convolutions(engine), engine.ranks.size, micro_batches=1))
    take = engine.train_step
    count = 0

    def take_disturbed(step: Any, *rest: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        injector.begin(next(tape) if count % every == 0 else None, step.batches)
        return take(step, *rest, **named)

    engine.train_step = take_disturbed


if __name__ == "__main__":
    sys.exit(main())
