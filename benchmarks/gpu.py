"""Everything that one GPU can tell about this code, in less than ten minutes: one JSON and one \
page of results.

    python benchmarks/gpu.py --out results            on a GPU; benchmarks/gpu.sh makes the
                                                      environment first
    python benchmarks/gpu.py --pretend --out results  a rehearsal of the script itself, on a CPU
                                                      with tiny sizes

Each part runs in a process of its own under a limit of its own, and results are written after each.
Exit status 1 where something is not as it should be, which the page begins with.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu_conductor import Part, Session, conduct, plan
from benchmarks.gpu_page import faults
from benchmarks.hardware import commit

MOST = 570.0
"""Seconds for all parts together: ten minutes, less what making the environment takes."""

PARTS = (
    Part("machine", "benchmarks.gpu_machine:machine", 20, "card and versions"),
    Part(
        "engines",
        "benchmarks.gpu_engines:engines",
        85,
        "engines of every configuration, with waits of the host by line",
    ),
    Part(
        "numbers",
        "benchmarks.gpu_numbers:numbers",
        45,
        "squares, BatchNorm, loss and gradients against a CPU",
    ),
    Part("bccd", "benchmarks.gpu_runs:bccd", 80, "BCCD in fp32, bf16 and fp16"),
    Part(
        "resume", "benchmarks.gpu_runs:resume", 65, "a stop and its resume against an unbroken run"
    ),
    Part(
        "speed",
        "benchmarks.gpu_speed:speed",
        95,
        "images a second beside ultralytics' trainer, and peak memory",
    ),
    Part("clipping", "benchmarks.gpu_clipping:clipping", 50, "clipping.md's table on the device"),
    Part(
        "offload",
        "benchmarks.gpu_runs:offload",
        80,
        "optimizers on the host, ZeRO-3's run with one",
    ),
    Part("cpu", "benchmarks.gpu_runs:on_the_cpu", 25, "DS_ACCELERATOR=cpu on a host with a GPU"),
    Part("ranks", "benchmarks.gpu_ranks:one_device", 25, "several ranks on one device"),
)
"""In this order: what a later part needs to be worth anything comes first."""


def main(
    argv: Sequence[str] | None = None, parts: Sequence[Part] = PARTS, title: str = "One GPU"
) -> int:
    """Do what the command line says. Returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("gpu-results"),
        metavar="DIR",
        help="for results.json and results.md",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="PART",
        choices=[part.name for part in parts],
        help="these parts alone",
    )
    parser.add_argument(
        "--data", type=Path, metavar="YAML", help="of BCCD (default: ../shared/data/bccd/bccd.yaml)"
    )
    parser.add_argument("--pretend", action="store_true", help="rehearse on a CPU, with tiny sizes")
    parser.add_argument(
        "--plan", action="store_true", help="print how long each part may take, and run nothing"
    )
    options = parser.parse_args(words)
    chosen = [part for part in parts if options.only is None or part.name in options.only]
    print("\n".join(plan(chosen)), flush=True)
    if options.plan:
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    began = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    about = {
        "title": title,
        "began": began,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words]),
    }
    about["machine"] = [f"yolods {commit() or 'outside a clone'}"]
    with tempfile.TemporaryDirectory(prefix="yolods-gpu-") as work:
        data = None if options.data is None else options.data.resolve()
        results = conduct(
            chosen, Session(options.out.resolve(), Path(work), options.pretend, data, about)
        )
    found = faults(results)
    print(
        "\n".join(
            [*found, f"{len(found)} things are not as they should be; {options.out / 'results.md'}"]
        )
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
