"""A command of yolods whose rank notes which images each of its steps has read.

python -m tests.dist.taped TAPE WORDS...    appends a line of JSON per step to TAPE.<rank>
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class TapedStep(NamedTuple):
    """A step of a rank."""

    position: int
    """Samples of the stream before the step."""
    images: list[str]
    """Identities, in the order of reading."""


def main() -> int:
    """Run the command."""
    from yolods import cli
    from yolods.engine.base import Engine

    tape, *words = sys.argv[1:]
    file = Path(f"{tape}.{os.environ['RANK']}")
    take_step = Engine.train_step

    def noting(engine: Engine, step: Any, batches: Iterator[Any], *rest: Any, **named: Any) -> Any:
        read: list[str] = []
        result = take_step(engine, step, _noted(batches, read), *rest, **named)
        batch = len(read) // step.batches * int(os.environ["WORLD_SIZE"])
        with file.open("a") as lines:
            lines.write(json.dumps([step.first_batch * batch, read]) + "\n")
        return result

    Engine.train_step = noting
    return cli.main(words)


def read_tape(tape: Path, rank: int) -> list[TapedStep]:
    """The steps of a rank so far."""
    file = Path(f"{tape}.{rank}")
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [TapedStep(*json.loads(line)) for line in lines if line.endswith("\n")]


def _noted(batches: Iterator[Any], read: list[str]) -> Iterator[Any]:
    for batch in batches:
        read += batch["im_file"]
        yield batch


if __name__ == "__main__":
    sys.exit(main())
