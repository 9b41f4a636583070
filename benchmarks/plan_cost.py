"""What predicting costs: CPU seconds and memory of the largest models' memory, and of a search."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.hardware import describe

GIB = 2**30
MEMORY = {
    # model: CPU seconds allowed, and GiB or None.
    "yolov5x": (5.0, 1.0),
    "yolov5x6": (20.0, None),
    "yolov5[4,4]6": (20.0, None),
}
FIRST, AGAIN = 5.0, 1.0
"""Seconds allowed for a search of 1,024 ranks, and for it once the cost model is there."""
TRACE = """
import json, resource, sys, time
def taken():
    return time.process_time()
import torch
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.plan.layout import Layout
from yolods.plan.memory.boxes import BoxCounts
from yolods.plan.memory.predict import MemoryModel
imported, before = taken(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
names = tuple(map(str, range(80)))
blueprint = Blueprint(architecture(parse_name(sys.argv[1]), 80, 3), names, seed=0)
model = MemoryModel(blueprint, boxes=BoxCounts(7, 90, (0.05,)), optimizer="SGD", device="cuda")
sizes = {"imgsz": 1280, "micro_batch": 4, "accumulation": 1, "replicas": 8}
layout = Layout(**sizes, precision="fp16", zero_stage=1)
rank, = model.ranks(layout)
print(json.dumps({
    "imports": imported, "prediction": taken() - imported, "predicted": rank.device,
    "grown": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
}))
"""
SEARCH = """
import json, sys, time
from yolods.cli import main
from yolods.planner import command
from yolods.planner.search import search_layouts
seconds = []
def timed(*given):
    began = time.process_time()
    found = search_layouts(*given)
    seconds.append([time.process_time() - began, found.examined])
    return found
command.search_layouts = timed
began = time.process_time()
planner = None
search = command.Planner.search
def twice(self, *given):
    began = time.process_time()
    search(self, *given)
    seconds.append([time.process_time() - began, 0])
    return search(self, *given)
command.Planner.search = twice
sys.argv = ["yolods", "plan", *sys.argv[1:]]
main()
print(json.dumps({"first": seconds[1][0], "examined": seconds[0][1], "again": seconds[2][0]}))
"""


@dataclass(frozen=True)
class Cost:
    """One measured prediction."""

    what: str
    text: str
    met: bool


def run(args: argparse.Namespace) -> int:
    """Measure, print and write the record; 1 if a target was missed."""
    header = describe(sorted(os.sched_getaffinity(0)))
    found = [*map(_memory, MEMORY), *_search()]
    missed = [each.what for each in found if not each.met]
    lines = [
        "# What predicting costs",
        "",
        f"`python benchmarks/plan.py --cost --record benchmarks/plan_cost.md`, "
        f"{datetime.now(UTC):%Y-%m-%d}.",
        "",
        *header,
        "",
        "Every model and the search have a process each. CPU seconds are without imports.",
        "",
        "| what | cost | met |",
        "| --- | --- | --- |",
        *(f"| {each.what} | {each.text} | {'yes' if each.met else 'no'} |" for each in found),
        "",
        f"Missed: {'; '.join(missed) or 'none'}.",
    ]
    print("\n".join(lines))
    if args.record:
        args.record.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(bool(missed))


def _memory(model: str) -> Cost:
    told = _told([sys.executable, "-c", TRACE, model])
    seconds, gib = MEMORY[model]
    text = (
        f"{told['prediction']:.2f} CPU s (allowed: {seconds:.0f}; imports "
        f"{told['imports']:.1f}), memory grown by {told['grown'] / 2**10:.0f} MiB to "
        f"{told['peak'] / 2**10:.0f} MiB; predicted {told['predicted'] / GIB:.1f} GiB per rank"
    )
    met = told["prediction"] <= seconds and (gib is None or told["peak"] <= gib * 2**20)
    return Cost(f"memory of {model} at 1280, micro-batch 4, fp16", text, met)


def _search() -> list[Cost]:
    words = "--model yolov5x --imgsz 1280 --ranks 1024 --hosts 128 --gpu H100"
    words += " --images-per-step 4096"
    told = _told([sys.executable, "-c", SEARCH, *words.split()])
    layouts = f"{told['examined']} layouts"
    return [
        Cost(
            "all layouts of yolov5x on 1,024 ranks, the first time",
            f"{told['first']:.2f} CPU s (allowed: {FIRST:.0f}); {layouts}",
            told["first"] < FIRST,
        ),
        Cost(
            "the same search when the models of cost and memory are there",
            f"{told['again']:.2f} CPU s (allowed: {AGAIN:.0f})",
            told["again"] < AGAIN,
        ),
    ]


def _told(command: Sequence[str]) -> dict[str, float]:
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])
