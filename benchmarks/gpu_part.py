"""Carries out one part of a GPU session: `python -m benchmarks.gpu_part MODULE:FUNCTION --notes \
FILE ...`.

Started by `gpu_conductor.py`. Exit status 0 once the part has looked at everything, whatever it
found.
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

from benchmarks.gpu_job import Job


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("function")
    parser.add_argument("--notes", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pretend", action="store_true")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    job = Job(options.notes, options.work, options.seconds, options.pretend, options.data, began)
    module, name = options.function.split(":")
    prepare()
    getattr(importlib.import_module(module), name)(job)


def prepare() -> None:
    """What the command line does before it imports a library."""
    from yolods import compat

    compat.prepare()
    compat.skip_needless_builds()
    compat.accept_torch_optimizers()
    compat.import_muon_uncompiled()
    compat.stand_in_for_torchvision()


if __name__ == "__main__":
    main()
