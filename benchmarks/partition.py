"""How evenly a detector is cut into pipeline stages: ours beside DeepSpeed's own partition methods.

    python benchmarks/partition.py --record benchmarks/partition.md

Arithmetic on the meta device: no training, no accelerator, no processes; a minute on one core.
DeepSpeed's methods are its own functions applied to whole layers, as its PipelineModule does.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from yolods.model.architecture.build import architecture, parse_name
from yolods.model.graph.graph import build_graph, meta_model
from yolods.plan.cost import Cost, Machine, cost
from yolods.plan.partition import MIB, Partition, partition, table
from yolods.plan.stage_costs import Terms

CASES = (("yolov5x", 640), ("yolov5x6", 1280), ("yolov5[2.0,2.0]6", 1280))
STAGES = (2, 4, 8)
TARGETS = {4: 1.05, 8: 1.15}
"""Largest cost of a stage over the mean, by number of stages; cost is what the policy was told to
weigh."""
MACHINE = Machine()
BALANCED, LINKED, FLOPS = "balanced, FLOPs alone", "balanced, FLOPs and link", "flops"

METHOD = f"""\
- *FLOPs*: the largest stage's FLOPs over the mean of all stages. *ms*: the same of its time, \
which is forward and
  backward of one image at {MACHINE.flops / 1e12:g} TFLOP/s and what crosses its ends, both ways, at
  {MACHINE.link / 1e9:g} GB/s; *slowest ms* is that time itself. Worked out, not measured on a \
device.
- *peak MiB*: of the fullest stage, with micro-batches of one image, 4 x stages micro-batches a \
step, 2-byte activations
  and 16 bytes of model states a parameter. *across MiB*: what one image sends over all cuts, \
forward.
- *balanced* and *flops* are ours, on nodes: C3 by bottlenecks, Detect by the convolutions of its \
levels. *{FLOPS}*
  weighs FLOPs and nothing else. *{BALANCED}* is `balanced` told that crossing takes no time, and \
is held to
  the target in the column FLOPs; *{LINKED}* is `balanced` as it is by default, held to it in the \
column ms.
- *DeepSpeed* rows are `deepspeed.runtime.utils.partition_uniform` and `partition_balanced` on \
whole layers, as its
  PipelineModule calls them. *best type* is the one with the most even FLOPs of all `type:regex` \
methods: a regex
  selects a subset of the layer types, and all subsets are tried. *partition_balanced on FLOPs* is \
no method of
  DeepSpeed's; it shows its algorithm with better weights."""


@dataclass(frozen=True)
class Line:
    """One way of cutting one model into one number of stages."""

    method: str
    """Whose."""
    imbalance: float
    """Largest FLOPs of a stage over their mean."""
    slowest: float
    """Seconds of the slowest stage for one image, what crosses its ends included."""
    unevenness: float
    """These seconds over the mean of all stages' seconds."""
    peak: float
    """Bytes of the fullest stage."""
    across: int
    """Bytes of one image over all cuts, forward."""
    begins: tuple[str, ...]
    """The first node of each stage but the first."""


def line(method: str, found: Partition, costs: Cost) -> Line:
    """Judge a partition."""
    rows = table(found, costs, Terms(micro_batches=4 * found.stages, machine=MACHINE))
    seconds = [row.compute + row.transfer for row in rows]
    return Line(
        method,
        max(row.flops_share for row in rows) * len(rows),
        max(seconds),
        max(seconds) / sum(seconds) * len(rows),
        max(row.peak_bytes for row in rows),
        sum(row.sent_bytes for row in rows),
        tuple(row.first for row in rows[1:]),
    )


def ours(costs: Cost, stages: int) -> list[Line]:
    """Our policies on the nodes of `costs`."""
    free = Terms(micro_batches=4 * stages, machine=Machine(link=math.inf))
    linked = Terms(micro_batches=4 * stages, machine=MACHINE)
    return [
        line(BALANCED, partition(costs, stages, "balanced", free), costs),
        line(LINKED, partition(costs, stages, "balanced", linked), costs),
        line(FLOPS, partition(costs, stages, "flops", linked), costs),
    ]


def deepspeeds(costs: Cost, stages: int, *, types: bool = True) -> list[Line]:
    """DeepSpeed's methods on whole layers.

    Args:
        costs: of a graph that was not split.
        stages: how many.
        types: try `type:regex` too, which takes seconds.
    """
    from deepspeed.runtime.utils import partition_balanced, partition_uniform

    count = len(costs.nodes)

    def judged(method: str, bounds: Sequence[int]) -> Line:
        return line(method, Partition(tuple(int(bound) for bound in bounds[1:-1]), count), costs)

    lines = [
        judged(
            "DeepSpeed parameters",
            partition_balanced([node.parameters for node in costs.nodes], stages),
        ),
        judged("DeepSpeed uniform", partition_uniform(count, stages)),
    ]
    if types:
        tried = (
            judged(f"DeepSpeed best type: {'|'.join(chosen)}", partition_balanced(weights, stages))
            for chosen, weights in _types(costs)
        )
        lines.append(min(tried, key=lambda done: done.imbalance))
    flops = partition_balanced([node.flops for node in costs.nodes], stages)
    return [*lines, judged("partition_balanced on FLOPs", flops)]


def _types(costs: Cost) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """Every set of layer types that a regex can select, with the 0/1 weights that DeepSpeed makes
    of it."""
    kinds = costs.graph.kinds
    names = sorted(set(kinds))
    for size in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, size):
            yield chosen, [int(kind in chosen) for kind in kinds]


def costs_of(name: str, imgsz: int) -> tuple[Cost, Cost]:
    """Costs of a model of the zoo with 80 classes: of nodes, and of whole layers."""
    net = meta_model(architecture(parse_name(name), 80, 3))
    fine, whole = (cost(build_graph(net, split=split), imgsz) for split in (True, False))
    return fine, whole


def _section(name: str, imgsz: int) -> tuple[list[str], list[str]]:
    """The lines of one model's tables, and what misses a target."""
    text, missed = [], []
    fine, whole = costs_of(name, imgsz)
    for stages in STAGES:
        lines = [*ours(fine, stages), *deepspeeds(whole, stages)]
        text += ["", f"### {name} at {imgsz}, {stages} stages", ""]
        text += [
            "| method | FLOPs | ms | slowest ms | peak MiB | across MiB | stages begin at |",
            "| - " * 7 + "|",
        ]
        for done in lines:
            figures = (
                f"{done.imbalance:.3f} | {done.unevenness:.3f} | {done.slowest * 1e3:.2f} | "
                f"{done.peak / MIB:.0f}"
            )
            method, begins = done.method.replace("|", ", "), ", ".join(done.begins)
            text.append(f"| {method} | {figures} | {done.across / MIB:.1f} | {begins} |")
        missed += [
            f"{name} at {imgsz}, {stages} stages: {fault}" for fault in misses(lines, stages)
        ]
    return text, missed


def misses(lines: Sequence[Line], stages: int) -> list[str]:
    """What our `balanced` does not reach; empty where all is well."""
    by_method = {done.method: done for done in lines}
    found = []
    for method, share in (
        (BALANCED, by_method[BALANCED].imbalance),
        (LINKED, by_method[LINKED].unevenness),
    ):
        if share > TARGETS.get(stages, math.inf):
            found.append(f"{method}: max / mean {share:.3f} > {TARGETS[stages]}")
    for method in (BALANCED, LINKED):
        if by_method[method].peak > by_method[FLOPS].peak:
            found.append(f"{method}: peak above that of the cut by FLOPs alone")
    return found


def main() -> int:
    """Print the tables, and write them where `--record` says; 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, help="a markdown file to write")
    options = parser.parse_args()
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # nothing is run; without this DeepSpeed looks for a device
    from benchmarks.hardware import describe

    text, missed = [], []
    for name, imgsz in CASES:
        more, faults = _section(name, imgsz)
        print("\n".join(more), flush=True)
        text, missed = text + more, missed + faults
    targets = ", ".join(
        f"max / mean <= {limit} at {stages} stages" for stages, limit in TARGETS.items()
    )
    verdict = "missed:\n" + "\n".join(missed) if missed else "met by all."
    verdict = f"Targets ({targets}; peak no higher than that of the cut by FLOPs alone): {verdict}"
    print(f"\n{verdict}")
    if options.record:
        command = (
            f"`python benchmarks/partition.py --record {options.record}`, "
            f"{datetime.now(timezone.utc):%Y-%m-%d}."
        )
        head = [
            "# Cutting detectors into pipeline stages",
            "",
            command,
            "",
            *describe([0]),
            "",
            METHOD,
            "",
            verdict,
        ]
        options.record.write_text("\n".join([*head, *text]) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
