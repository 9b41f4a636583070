"""Bytes and seconds per step of every layout of two ranks, on two hosts with links of known speed.

    python benchmarks/plan_links.py --record benchmarks/plan_links.md

The hosts are network namespaces of this machine (tests/two_hosts.py; root), and `tc tbf` limits
what each sends. One rank on each trains yolov5n under every layout in turn, and reads what its
interface has sent in each step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import hardware
from benchmarks.on_two_hosts import links_in_words, run_ranks
from benchmarks.plan_links_model import (
    LAYOUTS,
    NAMES,
    SETTLED,
    Step,
    Task,
    predicted_bytes,
    predicted_seconds,
    rank_correlation,
)
from tests.two_hosts import two_hosts, why_not
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.plan.step_profile import StepProfile
from yolods.plan.traffic.links import Link, nominal
from yolods.planner.search import TIE

ROOT = Path(__file__).resolve().parent.parent
BYTES_LIMIT, SLOWER_LIMIT, CORRELATION_LIMIT = 0.03, 0.05, 0.9
"""Largest difference of the bytes, of the chosen layout from the fastest one, and least rank
correlation."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--imgsz", type=int, default=160)
    found.add_argument("--micro", type=int, default=2, help="images per micro-batch")
    found.add_argument("--accumulation", type=int, default=2)
    found.add_argument("--rounds", type=int, default=5, help="steps of each layout per link")
    found.add_argument("--rates", nargs="+", default=["100mbit", "400mbit", "unlimited"])
    found.add_argument("--timeout", type=float, default=1800, help="seconds for all ranks")
    found.add_argument("--keep", type=Path, help="folder for the ranks' results")
    found.add_argument("--read", type=Path, help="write the record of such a folder; run nothing")
    found.add_argument("--record", type=Path, help="file for the record")
    return found


def main() -> int:
    """Measure, and print or write the record."""
    options = parser().parse_args()
    if (reason := why_not()) and not options.read:
        print(reason, file=sys.stderr)
        return 2
    header = hardware.describe(sorted(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="plan-links-") as name:
        folder = options.read or options.keep or Path(name)
        if not options.read:
            folder.mkdir(parents=True, exist_ok=True)
            _measure(_task(options, folder), header, folder, Path(name) / "hosts", options.timeout)
        lines = record(*_read(folder))
    print("\n".join(lines))
    if options.record:
        options.record.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return 0


def _task(options: argparse.Namespace, folder: Path) -> Task:
    return Task(
        "yolov5n",
        options.imgsz,
        options.micro,
        options.accumulation,
        options.rounds,
        tuple("" if rate == "unlimited" else rate for rate in options.rates),
        "",
        str(folder / "{rank}.json"),
    )


def _measure(
    task: Task, header: Sequence[str], folder: Path, hosts_folder: Path, timeout: float
) -> None:
    about = {"task": task.as_json(), "header": list(header)}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    hosts_folder.mkdir()
    with two_hosts(hosts_folder) as hosts:
        run_ranks(
            hosts,
            "plan_links_ranks.py",
            lambda interface: Task(**{**vars(task), "interface": interface}).as_json(),
            timeout,
        )


def _read(folder: Path) -> tuple[Task, list[dict[str, Any]], list[str]]:
    """The task, both ranks' results and the header of a measurement, also of one that was
    stopped."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    results = [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(2)]
    return Task.from_json(about["task"]), results, about["header"]


def record(task: Task, results: Sequence[dict[str, Any]], header: Sequence[str]) -> list[str]:
    """The record's lines."""
    steps = [[Step(**step) for step in rank["steps"]] for rank in results]
    cuts = results[0]["cuts"]
    lines = ["# Bytes and seconds of two ranks' layouts, predicted and measured", ""]
    lines += [f"`python benchmarks/plan_links.py`, {date.today()}.", "", *header, ""]
    lines += [
        f"- {task.model} at {task.imgsz} px, fp32, micro-batches of {task.micro} images; "
        f"{2 * task.micro * task.accumulation} images per step under every layout: "
        f"{task.accumulation} micro-batches on each of two replicas, or "
        f"{2 * task.accumulation} in a pipeline.",
        f"- {links_in_words()}, one segment per packet; gloo; the launcher's "
        "settings of the allocator. "
        f"{SETTLED} steps of each layout do not count; then the layouts take turns, "
        f"{len(results[0]['profiles'])} rounds per link. Medians.",
        "- *predicted* bytes: `yolods.plan.traffic`, plus 66 bytes of headers per 1448 of data and "
        "gloo's own three headers of 48 bytes per message. Pure acknowledgements are not in it.",
        "- *CPU s*: of both ranks' processes together, per step.",
        "",
    ]
    return [*lines, *_bytes_part(task, steps, cuts), *_time_part(task, results, steps, cuts)]


def _bytes_part(
    task: Task, steps: Sequence[Sequence[Step]], cuts: Sequence[Sequence[int]]
) -> list[str]:
    costs = task.costs(_blueprint(task))
    rows, worst = [], 0.0
    for case, own in zip(LAYOUTS, cuts, strict=True):
        expected = predicted_bytes(case, task, costs, own)
        for rate in task.rates:
            cells = []
            for rank in range(2):
                found = _median(step.sent for step in _of(steps[rank], case.name, rate))
                apart = expected[rank] / found - 1
                worst = max(worst, abs(apart))
                cells += [f"{found / 1e6:.3f}", f"{expected[rank] / 1e6:.3f}", f"{apart:+.1%}"]
            rows.append(f"| {case.name} | {rate or 'unlimited'} | {' | '.join(cells)} |")
    heading = "| layout | link | rank 0 MB | predicted | off | rank 1 MB | predicted | off |"
    met = "met" if worst <= BYTES_LIMIT else "missed"
    return [
        "## Bytes per step that the interfaces sent",
        "",
        heading,
        "| - | - | - | - | - | - | - | - |",
        *rows,
        "",
        f"Largest difference {worst:.1%}; target {BYTES_LIMIT:.0%}: {met}.",
        "",
    ]


def _time_part(
    task: Task,
    results: Sequence[dict[str, Any]],
    steps: Sequence[Sequence[Step]],
    cuts: Sequence[Sequence[int]],
) -> list[str]:
    costs = task.costs(_blueprint(task))
    profile = _profile(results)
    lines = ["## Seconds per step", "", _measured(profile), ""]
    for rate in task.rates:
        told = results[0]["links"][rate]
        link = Link(**told, source="measured")
        pace = (
            f"measured {link.bandwidth * 8 / 1e6:.1f} Mbit/s of data, {link.latency * 1e3:.1f} ms, "
            f"{link.copying * 1e9:.1f} CPU s per GB"
        )
        if rate:
            ideal = nominal(float(rate.removesuffix("mbit")) * 1e6).bandwidth
            pace += f" ({link.bandwidth / ideal - 1:+.1%} against the rate without headers)"
        rows, found, expected = [], [], []
        for case, own in zip(LAYOUTS, cuts, strict=True):
            taken = [_of(rank, case.name, rate) for rank in steps]
            found.append(_median(step.seconds for step in taken[0]))
            cpu = sum(_median(step.cpu for step in rank) for rank in taken)
            expected.append(predicted_seconds(case, task, costs, own, profile, link))
            low, high = (end(step.seconds for step in taken[0]) for end in (min, max))
            rows.append(
                f"| {case.name} | {found[-1]:.2f} ({low:.2f}..{high:.2f}) | {cpu:.2f} "
                f"| {expected[-1]:.2f} |"
            )
        lines += [f"### {rate or 'unlimited'}: {pace}", ""]
        lines += ["| layout | measured s | CPU s | predicted s |", "| - | - | - | - |", *rows, ""]
        lines += [verdict(found, expected), ""]
    return lines


def verdict(found: Sequence[float], expected: Sequence[float]) -> str:
    """How good the choice by the predicted seconds is: as in a plan, the simplest of those that are
    equally fast. `LAYOUTS` begins with the simplest."""
    fast = min(expected) * (1 + TIE)
    chosen = next(place for place, seconds in enumerate(expected) if seconds <= fast)
    slower = found[chosen] / min(found) - 1
    correlation = rank_correlation(found, expected)
    met = slower <= SLOWER_LIMIT and correlation >= CORRELATION_LIMIT
    return (
        f"{LAYOUTS[chosen].name} is chosen: {slower:.1%} slower than the fastest "
        f"measured (target {SLOWER_LIMIT:.0%}); rank correlation {correlation:.2f} (target "
        f"{CORRELATION_LIMIT}): {'met' if met else 'missed'}."
    )


def _profile(results: Sequence[dict[str, Any]]) -> StepProfile:
    """That of the slower rank, as in `plan --links`; of its rounds the median."""
    each = [sorted(map(_told, rank["profiles"]), key=lambda one: one.total) for rank in results]
    return max((rounds[len(rounds) // 2] for rounds in each), key=lambda one: one.total)


def _measured(profile: StepProfile) -> str:
    """What the predictions are made of besides links, in words."""
    parts = {
        "forward": sum(profile.forward),
        "backward": profile.backward,
        "loss": profile.loss,
        "reduction": profile.reduction,
        "optimizer": profile.optimizer,
    }
    told = ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in parts.items())
    return f"Both ranks at once took for a micro-batch, in ms: {told}."


def _told(profile: dict[str, Any]) -> StepProfile:
    return StepProfile(**{**profile, "forward": tuple(profile["forward"])})


@lru_cache
def _blueprint(task: Task) -> Blueprint:
    return Blueprint(architecture(parse_name(task.model), len(NAMES), 3), NAMES, seed=0)


def _of(steps: Iterable[Step], name: str, rate: str) -> list[Step]:
    return [step for step in steps if (step.name, step.rate) == (name, rate)]


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)


if __name__ == "__main__":
    sys.exit(main())
