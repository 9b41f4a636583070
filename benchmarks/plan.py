"""What `yolods plan` predicts, compared with what runs measure.

python benchmarks/plan.py --memory [--cases 40] [--seed 1] [--record benchmarks/plan_memory.md]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import plan_memory  # the path comes first


def main() -> int:
    """Run what the flags ask for; 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", action="store_true", help="peak memory of a step, by layout")
    parser.add_argument("--record", type=Path, help="write the results to this file")
    plan_memory.add_arguments(parser)
    args = parser.parse_args()
    if not args.memory:
        parser.error("say what to compare: --memory")
    return plan_memory.run(args)


if __name__ == "__main__":
    raise SystemExit(main())
