"""What a step's gradients cost between reduction and optimizer: ours, stock DeepSpeed's, torch's, and one plain sum.

    python benchmarks/clipping.py --record benchmarks/clipping.md

Bytes, kernels and waits are counted on the meta device and take seconds; times are those of this
machine, on a GPU if it has one. One line a part while it goes on, then tables, which `--record`
writes together with the machine, the versions and the command. Exit status 1 if a target is missed.
Needs 10 GB and, on a core of its own, ten minutes.
"""  # noqa: E501

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.clipping_report import DTYPES, misses, tables
from benchmarks.hardware import describe
from yolods.errors import UserError
from yolods.launch.command import ALLOCATOR

SIZES = ("yolov5x", "yolov5[1.33,4]")
"""The largest of the zoo, and the same depth at 3.2 times the width: 0.995e9 parameters."""
ENVIRONMENT = {**ALLOCATOR, "KINETO_LOG_LEVEL": "5"}
"""As the launcher starts ranks on a CPU: glibc keeps what is freed, as a GPU's allocator does. And
a quiet profiler."""
QUICK_SIZES, QUICK_ROUNDS = ("yolov5n",), 2


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument(
        "--sizes",
        nargs="+",
        metavar="NAME",
        help=f"models whose gradients to take (default {' '.join(SIZES)})",
    )
    made.add_argument(
        "--dtype",
        nargs="+",
        choices=DTYPES,
        default=["fp16", "fp32"],
        help="of the gradients (default fp16 fp32)",
    )
    made.add_argument(
        "--rounds", type=int, metavar="N", help="that count of each way; 0: count, time nothing (5)"
    )
    made.add_argument("--threads", type=int, default=1, metavar="N", help="on a CPU (default 1)")
    made.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="where to take times (default: a GPU if there is one)",
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_SIZES[0]} and {QUICK_ROUNDS} rounds by default",
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write everything to this file")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Count and time as the command line says. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    rounds = (
        options.rounds if options.rounds is not None else (QUICK_ROUNDS if options.quick else 5)
    )
    if rounds < 0 or options.threads < 1:
        parser().error("--rounds has to be at least 0 and --threads at least 1")
    if options.record is not None and not options.record.parent.is_dir():
        parser().error(f"--record {options.record}: there is no folder {options.record.parent}")
    import torch

    from benchmarks.clipping_run import METHOD, case, place

    if options.device == "cuda" and not torch.cuda.is_available():
        parser().error(f"--device cuda: torch {torch.__version__} sees no GPU here")
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(options.threads)
    began, machine = (
        datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        describe([*range(options.threads)]),
    )
    try:
        cases = [case(size, dtype, rounds, device) for size in sizes for dtype in options.dtype]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    found = tables(cases)
    print("\n" + "\n".join(found))
    if options.record is not None:
        command = shlex.join(["python", "benchmarks/clipping.py", *words])
        head = [f"# Measuring and clipping gradients, {began}", "", f"    {command}", "", *machine]
        head += [f"- times: on {place(device, options.threads)}, {rounds} rounds", "", METHOD, ""]
        options.record.write_text("\n".join([*head, *found]).rstrip() + "\n", encoding="utf-8")
    return 1 if misses(cases) else 0


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    sys.exit(main())
