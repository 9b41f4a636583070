"""What the meter says about every layout of two ranks, against the interfaces' counters and theory.

    python benchmarks/communication.py --record benchmarks/communication.md

The hosts are network namespaces of this machine (tests/two_hosts.py; root), and `tc tbf` limits
what each sends.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import hardware
from benchmarks.communication_layouts import BOUNDARY_SIZES, LAYOUTS, SIZES, Plan, on_the_wire
from benchmarks.on_two_hosts import links_in_words, run_ranks
from tests.two_hosts import two_hosts, why_not

ROOT = Path(__file__).resolve().parent.parent
BYTES_LIMIT, SHARE_LIMIT = 0.02, 5.0
"""Largest difference of the bytes, and of the share of communication in points."""
COST_LIMIT = 0.005
"""Largest share of a step that measuring may take."""
PREFIX = "communication/"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--model", default="yolov5n")
    found.add_argument("--imgsz", type=int, default=320)
    found.add_argument("--micro", type=int, default=2, help="images per micro-batch")
    found.add_argument("--steps", type=int, default=4, help="steps of a link in each turn")
    found.add_argument("--rounds", type=int, default=7, help="turns of each link")
    found.add_argument("--rates", nargs="+", default=["unlimited", "100mbit"])
    found.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    found.add_argument("--timeout", type=float, default=900, help="seconds for all ranks")
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
    with tempfile.TemporaryDirectory(prefix="communication-") as name:
        folder = options.read or options.keep or Path(name)
        if not options.read:
            folder.mkdir(parents=True, exist_ok=True)
            _measure(_plan(options, folder), header, folder, Path(name) / "hosts", options.timeout)
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        results = [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(2)]
        lines = record(Plan.from_json(about["plan"]), results, about["header"])
    print("\n".join(lines))
    if options.record:
        options.record.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return 0


def _plan(options: argparse.Namespace, folder: Path) -> Plan:
    rates = tuple("" if rate == "unlimited" else rate for rate in options.rates)
    out = str(folder / "{rank}.json")
    # In the order of LAYOUTS, whatever the order on the command line.
    layouts = tuple(name for name in LAYOUTS if name in options.layouts)
    steps = (options.steps, options.rounds)
    return Plan(options.model, options.imgsz, options.micro, *steps, rates, "", out, layouts)


def _measure(
    plan: Plan, header: Sequence[str], folder: Path, hosts_folder: Path, timeout: float
) -> None:
    about = {"plan": plan.as_json(), "header": list(header)}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    hosts_folder.mkdir()
    with two_hosts(hosts_folder) as hosts:
        run_ranks(
            hosts,
            "communication_ranks.py",
            lambda interface: replace(plan, interface=interface).as_json(),
            timeout,
            single_segments=False,
        )


def record(plan: Plan, results: Sequence[dict[str, Any]], header: Sequence[str]) -> list[str]:
    """The record's lines."""
    lines = ["# What a step sends, by the meter, by the interfaces and in theory", ""]
    lines += [f"`python benchmarks/communication.py`, {date.today()}.", "", *header, ""]
    (small, large), message = (size for size, _ in SIZES), BOUNDARY_SIZES[1][0]
    lines += [
        f"- {plan.model} at {plan.imgsz} px, fp32, micro-batches of {plan.micro} images, 2 ranks; "
        f"{plan.rounds} times {plan.steps} steps of each layout and link; the links take turns.",
        f"- {links_in_words()}; gloo. Bytes are counted with "
        "one segment per packet, as on a wire, in steps of their own; time is measured without.",
        "- *meter*: `sent_mb` of `yolods.traffic`, payload alone. *with headers*: the same on the "
        "wire, by the overhead that was measured on this link: the interface's bytes of an "
        f"all-reduce and an all-gather of {small} bytes and of {large >> 20} MiB, of a send and a "
        f"receive of {small} bytes and of {message >> 10} KiB, give the bytes per call and byte of "
        "each. *interface*: what its counter says.",
        "- *theory*: `yolods.traffic.theory`. MB of rank 0 and rank 1, per step.",
        "",
    ]
    return [
        *lines,
        *_bytes_part(plan, results),
        *_time_part(plan, results),
        *_cost_part(plan, results),
    ]


def _bytes_part(plan: Plan, results: Sequence[dict[str, Any]]) -> list[str]:
    rows, worst = [], 0.0
    for layouts in zip(*(rank["layouts"] for rank in results), strict=True):
        for rate in plan.rates:
            cells = []
            counted = [by_kind(own["rates"][rate]["curves"]) for own in layouts]
            for place, (rank, layout) in enumerate(zip(results, layouts, strict=True)):
                own, (sent, calls) = layout["rates"][rate], counted[place]
                others = [each.get("boundary", 0.0) for each in counted[1 - place]]
                wire = on_the_wire(sent, calls, rank["known"][rate], (others[0], others[1]))
                apart = wire / own["interface"] - 1
                worst = max(worst, abs(apart))
                payload = sum(sent.values()) / 1e6
                cells += [f"{payload:.3f}", f"{wire / 1e6:.3f}", f"{own['interface'] / 1e6:.3f}"]
                cells += [f"{apart:+.1%}"]
            means = [own["rates"][rate]["curves"] for own in layouts]
            sent_mb = statistics.fmean(mean[f"{PREFIX}sent_mb"] for mean in means)
            calls_each = statistics.fmean(mean[f"{PREFIX}calls"] for mean in means)
            theory = layouts[0]["needed"] / 1e6
            cells += [f"{theory:.3f}", f"{sent_mb / theory:.2f}", f"{calls_each:.0f}"]
            rows.append(f"| {layouts[0]['name']} | {rate or 'unlimited'} | {' | '.join(cells)} |")
    each = "meter | with headers | interface | off"
    return [
        "## Bytes per step",
        "",
        f"| layout | link | rank 0: {each} | rank 1: {each} | theory | meter / theory | calls |",
        f"|{' - |' * 13}",
        *rows,
        "",
        f"Largest difference {worst:.1%}; target {BYTES_LIMIT:.0%}: "
        f"{'met' if worst <= BYTES_LIMIT else 'missed'}.",
        "",
    ]


def by_kind(curves: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes and calls by kind, of a step's curves."""
    head = f"{PREFIX}sent_mb_"
    kinds = [key.removeprefix(head) for key in curves if key.startswith(head)]
    sent = {kind: curves[f"{head}{kind}"] * 1e6 for kind in kinds}
    return sent, {kind: curves[f"{PREFIX}calls_{kind}"] for kind in kinds}


def _time_part(plan: Plan, results: Sequence[dict[str, Any]]) -> list[str]:
    """The share of communication, against what the link costs."""
    lines = ["## Share of communication", ""]
    for rate in plan.rates[1:]:
        rows, worst = [], [0.0, 0.0]
        for layouts in zip(*(rank["layouts"] for rank in results), strict=True):
            fast, slow = ([own["rates"][each] for own in layouts] for each in (plan.rates[0], rate))
            found = shares(fast, slow)
            both = found.apart, found.link_apart
            worst = [max(before, abs(now)) for before, now in zip(worst, both, strict=True)]
            rows.append(
                f"| {layouts[0]['name']} | {found.fast:.3f} | {found.before:.0%} "
                f"| {fast[0]['waiting']:.0%} | {found.slow:.3f} | {found.share:.0%} "
                f"| {slow[0]['waiting']:.0%} | {found.lost:.0%} | {found.apart:+.1f} "
                f"| {found.busier:+.1%} | {found.link_apart:+.1f} |"
            )
        lines += _shares_page(rate, rows, worst)
    return lines


def _shares_page(rate: str, rows: Sequence[str], worst: Sequence[float]) -> list[str]:
    met = ["met" if each <= SHARE_LIMIT else "missed" for each in worst]
    return [
        "*held* and *waiting* are `held_share` and `waiting_share`, which a run's line and "
        f"TensorBoard say of an epoch. *lost* is how much of the step at {rate} the unlimited one "
        "does not take. *CPU* is by how much the CPU seconds of the ranks' own threads grow from "
        "one to the other, as a share of the longer step: the ranks' CPUs also make the links, and "
        "a rank that has slept goes on with cold caches. No link holds a rank in that time, so "
        "*held* is compared with *lost* less *CPU*. *off*: points from *lost*, and from that. "
        "Seconds are means of both ranks, medians of the steps; "
        "shares are means of both, medians of the rounds.",
        "",
        f"| layout | unlimited s | held | waiting | {rate} s | held | waiting | lost | off "
        "| CPU | off |",
        f"|{' - |' * 11}",
        *rows,
        "",
        f"Held against lost: largest difference {worst[0]:.1f} points, target {SHARE_LIMIT:.0f}: "
        f"{met[0]}. Held against lost less CPU: {worst[1]:.1f} points: {met[1]}.",
        "",
    ]


@dataclass(frozen=True)
class Shares:
    """A layout's steps on two links; shares of the slower one's step, but for `before`."""

    fast: float
    """Seconds on the faster link."""
    slow: float
    before: float
    """Share that the faster link held, of its own step."""
    share: float
    """The share that the slower link held."""
    busier: float
    """By how much the CPU seconds of the ranks' own thread have grown."""

    @property
    def lost(self) -> float:
        """What the slower link costs."""
        return 1 - self.fast / self.slow

    @property
    def apart(self) -> float:
        """Points between the share and what was lost."""
        return 100 * (self.share - self.lost)

    @property
    def link_apart(self) -> float:
        """Points between the share and what was lost without the CPU seconds."""
        return 100 * (self.share - self.lost + self.busier)


def shares(fast: Sequence[Mapping[str, Any]], slow: Sequence[Mapping[str, Any]]) -> Shares:
    """Of both ranks' results on a fast link and on a slow one."""
    # What all ranks say together, the first one tells.
    seconds = [_mean("seconds", ranks) for ranks in (fast, slow)]
    cpu = [_mean("cpu", ranks) for ranks in (fast, slow)]
    held = [ranks[0]["held"] for ranks in (fast, slow)]
    return Shares(*seconds, *held, (cpu[1] - cpu[0]) / seconds[1])


def _cost_part(plan: Plan, results: Sequence[dict[str, Any]]) -> list[str]:
    """What measuring costs of the shortest steps, those of the unlimited link."""
    cost, shares = statistics.fmean(rank["cost"] for rank in results), {}
    for layout in results[0]["layouts"]:
        own = layout["rates"][plan.rates[0]]
        # At most one wait per call, which is metered like a call.
        shares[layout["name"]] = 2 * own["curves"][f"{PREFIX}calls"] * cost / own["seconds"]
    name = max(shares, key=shares.__getitem__)
    return [
        "## Cost of the meter",
        "",
        f"{cost * 1e6:.1f} us of CPU time per call, measured without the call itself (median of 10 "
        f"steps of 300 calls). With one wait per call that is at most {shares[name]:.3%} of a step "
        f"({name}); target {COST_LIMIT:.1%}: {'met' if shares[name] <= COST_LIMIT else 'missed'}.",
        "",
    ]


def _mean(key: str, ranks: Sequence[Mapping[str, Any]]) -> float:
    return statistics.fmean(own[key] for own in ranks)


if __name__ == "__main__":
    sys.exit(main())
