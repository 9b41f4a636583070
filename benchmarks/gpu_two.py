"""What two GPUs can tell beyond one, in less than ten minutes: NCCL, ZeRO and a pipeline over two
ranks, and a death.

    python benchmarks/gpu_two.py --out results
        on a machine with two GPUs
    python benchmarks/gpu_two.py --pretend --out results
        a rehearsal of the script itself, on two CPU ranks

The same in shape as gpu.py, which see.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu import main
from benchmarks.gpu_conductor import Part

PARTS = (
    Part("machine", "benchmarks.gpu_machine:machine", 25, "cards and versions"),
    Part(
        "nccl", "benchmarks.gpu_ranks:nccl", 60, "NCCL's first use, and every collective of 256 MiB"
    ),
    Part(
        "pipeline", "benchmarks.gpu_ranks:pipeline", 130, "two stages: waits of a step, and a run"
    ),
    Part(
        "zero",
        "benchmarks.gpu_ranks:zero",
        170,
        "ZeRO-1, 2 and 3 on two ranks against ultralytics' model on a CPU",
    ),
    Part(
        "death",
        "benchmarks.gpu_ranks:death",
        180,
        "a rank is killed: what is said, and when the others are gone",
    ),
)

if __name__ == "__main__":
    sys.exit(main(parts=PARTS, title="Two GPUs"))
