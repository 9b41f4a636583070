"""Whether a split detector computes what the whole one does: every cut, beside plain ultralytics at
equal weights.

    python benchmarks/parity_pipeline.py --record benchmarks/parity_pipeline.md

Each case builds the engine that a run builds, takes an optimizer step through `train_step` on gloo
ranks of this machine's CPU, and compares losses, the gradients right before the optimizer's step,
and running statistics. tests/parity/test_pipeline.py runs a part of it.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.hardware import describe
from tests.parity.pipes import LIMITS, ROUNDED_LIMITS, apart, faults_of, split_step
from tests.parity.small import worst
from tests.parity.splits import Case, case_of
from tests.parity.whole import Report, weights_for
from tests.ranks import on_ranks

N, N6 = "yolov5n", "yolov5n6"
LAYERS = {N: range(1, 25), N6: range(1, 34)}
"""Where they can be cut between layers."""
EXACT = {"channels_last": False}
"""Rounds as plain ultralytics does: what is left is the split's own."""
SECONDS_A_CASE = 30
RANDOM_SPLITS = 24

METHOD = f"""\
- 64-pixel images (yolov5n6: 128), micro-batches of 2, SGD, weights of yolov5n after forty steps \
(yolov5n6: initial).
- *loss*: largest relative distance of the three loss items, |ours - plain| / |plain|; *gradient*: \
the same of every
  parameter's gradient, by norms in fp64; *statistic*: of BatchNorm's running means and variances \
after the step.
- Limits: loss and statistics {LIMITS[0]:g}, gradients {LIMITS[1]:g}. In bf16 \
{ROUNDED_LIMITS[0]:g} and {ROUNDED_LIMITS[1]:g}, against a plain model whose
  weights are rounded likewise. The clipped step, the global norm, boxes counted and BatchNorm's \
count of batches are
  held to the plain model's too.
- *exact*: without channels-last images and matrix products for 1x1 convolutions, which round \
differently from plain
  ultralytics whether the model is split or not."""


@dataclass(frozen=True)
class Group:
    """Cases that answer one question."""

    name: str
    """The question's subject."""
    cases: tuple[Case, ...]
    """All of them on grids of equally many ranks."""


def groups() -> list[Group]:
    """Everything that is run."""
    cuts = "yolov5n, every cut between layers"
    grids = "yolov5n, every cut between layers, 2 replicas"
    again = {"recompute": 3}
    return [
        Group(cuts, tuple(layer_cuts(N))),
        Group(f"{cuts}, recomputing every node", tuple(layer_cuts(N, recompute=1))),
        Group(f"{cuts}, recomputing segments of 3", tuple(layer_cuts(N, **again))),
        Group(f"{cuts}, m = 1", tuple(layer_cuts(N, micro_batches=1))),
        Group(f"{cuts}, m = 4, exact", tuple(layer_cuts(N, micro_batches=4, **EXACT))),
        Group(
            f"{cuts}, m = 4, segments of 3, exact",
            tuple(layer_cuts(N, micro_batches=4, **again, **EXACT)),
        ),
        Group(f"{cuts}, ZeRO-1", tuple(layer_cuts(N, zero=1))),
        Group(
            f"{cuts}, bf16, ZeRO-1, exact", tuple(layer_cuts(N, precision="bf16", zero=1, **EXACT))
        ),
        Group(
            f"{cuts}, autocast to bf16, exact", tuple(layer_cuts(N, precision="autocast", **EXACT))
        ),
        Group(
            f"{cuts}, images of 64, 96 and 128 pixels in turn",
            tuple(layer_cuts(N, sizes=(64, 96, 128))),
        ),
        Group("yolov5n, every cut inside a layer", tuple(inner_cuts())),
        Group(
            "yolov5n, every cut inside a layer, recomputing every node",
            tuple(replace(case, recompute=1) for case in inner_cuts()),
        ),
        Group(
            "yolov5n6, every cut between layers, exact",
            tuple(layer_cuts(N6, sizes=(128,), **EXACT)),
        ),
        Group(
            "yolov5n6, every cut between layers, segments of 3, exact",
            tuple(layer_cuts(N6, sizes=(128,), **again, **EXACT)),
        ),
        Group("yolov5n, 4 stages at random nodes", tuple(_random_splits())),
        Group(
            "yolov5n, 4 stages at random nodes, segments of 3",
            tuple(replace(c, **again) for c in _random_splits()),
        ),
        Group(f"{grids}, exact", tuple(layer_cuts(N, replicas=2, **EXACT))),
        Group(
            f"{grids}, BatchNorm over both, exact",
            tuple(layer_cuts(N, replicas=2, sync_bn=True, **EXACT)),
        ),
        Group(
            f"{grids} side by side, ZeRO-1, recomputing every node, exact",
            tuple(layer_cuts(N, replicas=2, zero=1, recompute=1, slots=2, **EXACT)),
        ),
    ]


def layer_cuts(model: str, **settings: Any) -> Iterator[Case]:
    """Two stages, cut at every place between layers."""
    return (Case(cuts=(cut,), model=model, **settings) for cut in LAYERS[model])


def _nodes() -> list[str]:
    """Nodes of yolov5n that a stage may begin with: the last one has nothing to train."""
    from yolods.model.architecture.build import architecture, parse_name
    from yolods.model.graph.graph import build_graph

    return [node.name for node in build_graph(architecture(parse_name(N), 3, 3)).nodes[1:-1]]


def inner_cuts() -> Iterator[Case]:
    """Two stages of yolov5n, cut at every place inside a layer."""
    return (Case(cuts=(name,)) for name in _nodes() if "." in name and not name.endswith(".open"))


def _random_splits() -> Iterator[Case]:
    """Four stages cut anywhere, the same every time; Upsample and Concat have nothing to train."""
    names, rng = _nodes(), random.Random(0)
    for _ in range(RANDOM_SPLITS):
        cuts = tuple(names[place] for place in sorted(rng.sample(range(len(names)), 3)))
        if all(
            _trains(names, start, stop) for start, stop in zip(cuts, (*cuts[1:], None), strict=True)
        ):
            yield Case(cuts=cuts)


def _trains(names: Sequence[str], start: str, stop: str | None) -> bool:
    end = len(names) if stop is None else names.index(stop)
    return any(
        name not in ("11", "12", "15", "16", "19", "22") for name in names[names.index(start) : end]
    )


def measure(ranks: Any, cases: list[dict[str, Any]], folder: str) -> list[list[Report]]:
    """On a rank: every case."""
    found = []
    for case in map(case_of, cases):
        found.append(
            split_step(ranks, case, weights_for(ranks, case.model, Path(folder)), Path(folder))
        )
    return found


@dataclass(frozen=True)
class Outcome:
    """A group's result."""

    group: Group
    worst: dict[str, tuple[float, str]]
    """Largest distance and where, of `loss`, `gradient` and `statistic`."""
    faults: list[str]
    """What is beyond its limit."""
    seconds: float
    """Wall time."""


def run(group: Group, folder: Path) -> Outcome:
    """Measure a group."""
    began = time.perf_counter()
    size = group.cases[0].ranks
    cases = [asdict(case) for case in group.cases]
    limit = 60.0 + SECONDS_A_CASE * len(cases)
    by_rank = on_ranks(
        "benchmarks.parity_pipeline:measure",
        (size,),
        timeout=limit,
        cases=cases,
        folder=str(folder),
    )[size]
    largest = {"loss": (0.0, ""), "gradient": (0.0, ""), "statistic": (0.0, "")}
    faults = []
    for number, case in enumerate(group.cases):
        reports = [rank[number] for rank in by_rank]
        for place, pixels in enumerate(case.sizes):
            where = f"{case.label} at {pixels}"
            faults += [f"{where}: {fault}" for fault in faults_of(case, place, reports)]
            found = {"loss": (max(report[place]["loss"] for report in reports), where)}
            for key, what in (("gradient", "gradients"), ("statistic", "statistics")):
                value, name = worst(apart(reports, place, what))
                found[key] = (value, f"{name}, {where}")
            largest = {key: max(largest[key], found[key]) for key in largest}
    return Outcome(group, largest, faults, time.perf_counter() - began)


def lines_of(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The record's table."""
    yield "| what | cases | loss | gradient | of | statistic | within limits | s |"
    yield "| - | - | - | - | - | - | - | - |"
    for each in outcomes:
        loss, gradient, statistic = (each.worst[key] for key in ("loss", "gradient", "statistic"))
        where = gradient[1] if gradient[0] else "-"
        verdict = "yes" if not each.faults else f"no: {len(each.faults)}"
        yield (
            f"| {each.group.name} | {len(each.group.cases)} | {loss[0]:.1e} | {gradient[0]:.1e} | "
            f"{where} | {statistic[0]:.1e} | {verdict} | {each.seconds:.0f} |"
        )
    for fault in (fault for each in outcomes for fault in each.faults):
        yield f"- beyond its limit: {fault}"


def main() -> int:
    """Run all groups, or those whose name holds a word; 1 where anything is beyond its limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--only", default="", metavar="WORD", help="groups whose name holds it")
    args = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}
    head = describe(sorted(os.sched_getaffinity(0)))
    chosen = [group for group in groups() if args.only in group.name]
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="yolods-parity-") as folder:
        os.environ["YOLO_CONFIG_DIR"] = folder
        for group in chosen:
            outcomes.append(run(group, Path(folder)))
            print(list(lines_of(outcomes[-1:]))[2:], flush=True)
    table = "\n".join(lines_of(outcomes))
    cases = sum(len(group.cases) for group in chosen)
    record = "\n".join(
        [
            "# A split detector beside the whole one",
            "",
            f"`python benchmarks/parity_pipeline.py --record benchmarks/parity_pipeline.md`, "
            f"{datetime.now(timezone.utc):%Y-%m-%d}, {cases} cases.",
            "",
            *head,
            "",
            METHOD,
            "",
            table,
            "",
        ]
    )
    print(record)
    if args.record:
        args.record.write_text(record, encoding="utf-8")
    return int(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
