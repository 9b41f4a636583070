"""A detector in two stages on two cores: a step beside its 1F1B bound, and beside DeepSpeed's way \
of going back.

    python benchmarks/pipeline.py --record benchmarks/pipeline.md

One line a step while it goes on; then tables, which `--record` writes together with the machine,
the versions and the command. Exit status 1 if a target is missed. Needs two cores that nothing else
uses, and about ten minutes.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from benchmarks.pipeline_report import (
    BOXES,
    DEEPSPEED,
    MARK,
    OURS,
    STOCK,
    WAYS,
    Results,
    Seen,
    Task,
    tables,
)
from benchmarks.throughput import available
from yolods.launch.command import ALLOCATOR, free_port

HERE = Path(__file__).resolve().parent
STAGES = 2
LIMIT = 3600.0
"""Seconds after which the ranks count as hung."""
POLL = 0.5
"""Seconds between looks at the ranks, which share their cores with this process."""

METHOD = f"""\
Two ranks, a core and a thread each, as the launcher starts them (its settings for glibc's \
allocator included). The cut
is the one that makes the stages most even by rank 0's profile of every node, taken just before. \
Learning rates are 0:
every step starts from the same weights, and the ways have to agree on its loss. Ways take turns, \
each round begins with
another one, and a step of each that is not counted comes first.

- *{OURS}* is the engine that trains. *{STOCK}* is the same engine, going back through the first \
stage once
  for each tensor that crossed the cut, as DeepSpeed does (runtime/pipe/engine.py, \
`_exec_backward_pass`).
  *{DEEPSPEED}* is DeepSpeed's own, on the same layers, optimizer and micro-batches. It sends \
contiguous
  tensors only, so values are channels-first between its stages, and channels-last within as in \
ours.
- *step*: the whole optimizer step, with clipping, optimizer and moving average (DeepSpeed's has \
none). *1F1B*: of it,
  the part from the first forward pass to the end of the last backward pass.
- *bound*: `yolods.plan.one_f_one_b.simulate` on the mean forward and backward pass of each stage \
in that step, with
  no time for sending. *bound / step* and *bound / 1F1B* fall when stages wait longer than 1F1B \
makes them, and by all
  that happens around the passes.
- *own passes*: the same bound with every pass as long as it was, over 1F1B. Less than 1 is what \
the engine loses; a
  difference to *bound / 1F1B* comes from passes that differ.
- *F, B*: a micro-batch's forward and backward pass on the stages 0 / 1, with {BOXES} objects an \
image in the loss.
- *around*: CPU time a micro-batch that the stages 0 / 1 take outside of their passes, gloo's \
threads included.
- *core busy*: CPU time over wall time of the passes, the least of all rounds and stages."""


class Ranks:
    """The processes of a task; leaving the context ends them and everything they started."""

    def __init__(self, task: Task, work: Path) -> None:
        shared = {
            **{"WORLD_SIZE": str(STAGES), "LOCAL_WORLD_SIZE": str(STAGES)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
            **{"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""},
            **ALLOCATOR,
            **task.environment(),
        }
        self._logs = [work / f"rank{rank}.log" for rank in range(STAGES)]
        self._processes = [self._start(rank, log, shared) for rank, log in enumerate(self._logs)]
        self._told = 0

    def _start(self, rank: int, log: Path, shared: dict[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as sink:
            return subprocess.Popen(
                [sys.executable, str(HERE / "pipeline_ranks.py")],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Pass on what rank 0 says until all are done.

        Raises:
            RuntimeError: a rank failed or hung; with the end of what it printed.
        """
        until = time.monotonic() + LIMIT
        while None in (states := [process.poll() for process in self._processes]) and not any(
            states
        ):
            if time.monotonic() > until:
                raise RuntimeError(
                    f"the ranks were not done after {LIMIT:.0f} s; {self._end_of(0)}"
                )
            time.sleep(POLL)
            self._tell()
        self._tell()
        for rank, state in enumerate(states):
            if state:
                raise RuntimeError(f"rank {rank} ended with {state}; {self._end_of(rank)}")

    def _tell(self) -> None:
        lines = self._logs[0].read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        for line in lines[self._told :]:
            if line.startswith(MARK):
                print(line.removeprefix(MARK), flush=True)
        self._told = len(lines)

    def _end_of(self, rank: int, lines: int = 25) -> str:
        text = self._logs[rank].read_text(encoding="utf-8", errors="replace")
        return "it printed last:\n" + "\n".join(text.splitlines()[-lines:])

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--model", default="yolov5s", metavar="NAME", help="of the zoo (default yolov5s)"
    )
    made.add_argument(
        "--imgsz", type=int, default=320, metavar="PX", help="image size (default 320)"
    )
    made.add_argument(
        "--images", type=int, default=2, metavar="N", help="images a micro-batch (default 2)"
    )
    made.add_argument(
        "--micro-batches",
        type=int,
        nargs="+",
        default=[8, 16],
        metavar="M",
        help="of a step (default 8 16)",
    )
    made.add_argument(
        "--rounds",
        type=int,
        default=7,
        metavar="N",
        help="steps that count of each way (default 7)",
    )
    made.add_argument(
        "--cut",
        metavar="NODE",
        help="what stage 1 begins with (default: the fastest, by a profile)",
    )
    made.add_argument(
        "--no-deepspeed", action="store_true", help="leave DeepSpeed's own engine out"
    )
    made.add_argument("--cores", metavar="A,B", help="cores to use (default: the first two)")
    made.add_argument("--record", type=Path, metavar="MD", help="write everything to this file")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    cores = (
        [int(part) for part in options.cores.split(",")] if options.cores else available()[:STAGES]
    )
    if len(cores) != STAGES:
        parser().error(f"{STAGES} stages need {STAGES} cores, and there are {len(cores)}")
    if min(options.rounds, options.images, *options.micro_batches) < 1:
        parser().error("--rounds, --images and --micro-batches have to be at least 1")
    if options.record is not None and not options.record.parent.is_dir():
        parser().error(f"--record {options.record}: there is no folder {options.record.parent}")
    # Ranks live in sessions of their own: whoever ends this process ends them only if it leaves
    # their context.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    began, machine = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), describe(cores)
    try:
        results = Results(measure(options, cores))
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    command = shlex.join(["python", "benchmarks/pipeline.py", *words])
    workload = (
        f"- workload: {options.model} at {options.imgsz} px, {options.images} images a "
        f"micro-batch, fp32, {STAGES} stages, one thread each, {options.rounds} rounds; medians "
        "(min..max)"
    )
    head = [
        f"# A pipeline's step, {began}",
        "",
        f"    {command}",
        "",
        *machine,
        workload,
        "",
        METHOD,
        "",
    ]
    found = tables(results)
    print("\n" + "\n".join(found))
    if options.record is not None:
        options.record.write_text("\n".join([*head, *found]).rstrip() + "\n", encoding="utf-8")
    return 1 if results.misses() else 0


def measure(options: argparse.Namespace, cores: Sequence[int]) -> Seen:
    """Have the ranks take every step.

    Raises:
        RuntimeError: as `Ranks.wait`.
    """
    ways = [way for way in WAYS if way != DEEPSPEED or not options.no_deepspeed]
    with tempfile.TemporaryDirectory(prefix="yolods-pipeline-") as folder:
        task = Task(
            out=f"{folder}/seen.json",
            model=options.model,
            imgsz=options.imgsz,
            images=options.images,
            micro_batches=tuple(options.micro_batches),
            rounds=options.rounds,
            ways=tuple(ways),
            cut=options.cut,
            cores=tuple(cores),
        )
        steps = len(ways) * len(options.micro_batches) * (options.rounds + 1)
        print(f"{steps} steps, one line each, after a profile of the model's nodes", flush=True)
        with Ranks(task, Path(folder)) as ranks:
            ranks.wait()
        return Seen.read(Path(task.out))


if __name__ == "__main__":
    sys.exit(main())
