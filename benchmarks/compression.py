"""Seconds and bytes per step with and without PowerSGD, on two hosts with a slow link.

    python benchmarks/compression.py --record benchmarks/compression.md

The hosts are network namespaces of this machine (tests/two_hosts.py; root), and `tc tbf` limits
what each sends. One rank on each trains yolov5s under every case in turn, and reads what its
interface has sent in each step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import hardware
from benchmarks.on_two_hosts import links_in_words, run_ranks
from tests.two_hosts import two_hosts, why_not

ROOT = Path(__file__).resolve().parent.parent
TARGET_SECONDS = 1.5
"""Of a step with PowerSGD at 100 Mbit/s, where ZeRO-1 took 5.85 s (issue 17)."""


@dataclass(frozen=True)
class Variant:
    """A ZeRO stage, and the rank of PowerSGD."""

    stage: int
    rank: int = 0
    """0: gradients are not compressed."""

    @property
    def name(self) -> str:
        """In tables."""
        return f"ZeRO-{self.stage}" + (f", PowerSGD of rank {self.rank}" if self.rank else "")

    def content(self, micro: int) -> dict[str, Any]:
        """The DeepSpeed JSON: one micro-batch per step."""
        found: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": self.stage},
        }
        if self.stage and not self.rank:
            # As in the configuration without --deepspeed_config.
            found["zero_optimization"]["reduce_bucket_size"] = 50_000_000
        if self.rank:
            found["yolods"] = {"compression": {"kind": "powersgd", "rank": self.rank}}
        return found


VARIANTS = (
    Variant(1),
    Variant(0),
    *(Variant(0, rank) for rank in (1, 2, 4)),
    Variant(1, 2),
)


@dataclass(frozen=True)
class Job:
    """What the ranks do."""

    model: str
    imgsz: int
    micro: int
    rounds: int
    rates: tuple[str, ...]
    """As `tc` writes them; "": unlimited."""
    interface: str
    out: str
    """Path of a rank's results, with {rank}."""

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The job whose fields `text` has."""
        found = json.loads(text)
        return cls(**{**found, "rates": tuple(found["rates"])})


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    found.add_argument("--model", default="yolov5s")
    found.add_argument("--imgsz", type=int, default=160)
    found.add_argument("--micro", type=int, default=2, help="images per micro-batch")
    found.add_argument("--rounds", type=int, default=3, help="steps of each case per link")
    found.add_argument("--rates", nargs="+", default=["100mbit", "1gbit", "unlimited"])
    found.add_argument("--timeout", type=float, default=900, help="seconds for both ranks")
    found.add_argument("--record", type=Path, help="file for the record")
    return found


def main() -> int:
    """Measure, and print or write the record."""
    options = parser().parse_args()
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 2
    header = hardware.describe(sorted(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory(prefix="compression-") as name:
        folder = Path(name)
        job = Job(
            options.model,
            options.imgsz,
            options.micro,
            options.rounds,
            tuple("" if rate == "unlimited" else rate for rate in options.rates),
            "",
            str(folder / "{rank}.json"),
        )
        (folder / "hosts").mkdir()
        with two_hosts(folder / "hosts") as hosts:
            run_ranks(
                hosts,
                "compression_ranks.py",
                lambda interface: json.dumps({**asdict(job), "interface": interface}),
                options.timeout,
                single_segments=False,
            )
        results = [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(2)]
    lines = record(job, results, header)
    print("\n".join(lines))
    if options.record:
        options.record.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return 0


def record(job: Job, results: Sequence[dict[str, Any]], header: Sequence[str]) -> list[str]:
    """The record's lines."""
    lines = ["# Seconds and bytes per step with and without PowerSGD", ""]
    lines += [f"`python benchmarks/compression.py`, {date.today()}.", "", *header, ""]
    lines += [
        f"- {job.model} at {job.imgsz} px, fp32, {2 * job.micro} images per step: one micro-batch "
        f"of {job.micro} on each of two ranks.",
        f"- {links_in_words()}; gloo, "
        "one thread per rank. Two steps of each case do not count; then the cases take turns, "
        f"{job.rounds} rounds per link. Medians, and in brackets the smallest and largest.",
        "- *gradients MB*: what a rank sends of gradients by the rule of a ring, 2 (N - 1) / N of "
        "what is averaged. ZeRO-1 sends the updated weights besides, (N - 1) / N of them.",
        "- *sent MB*: what rank 0's interface counted; it gets up to 64 KB with one header.",
        "- *averaging s*: of a step, what PowerSGD takes with its messages.",
        "",
    ]
    for rate in job.rates:
        lines += [f"## {rate or 'unlimited'}", ""]
        lines += ["| case | s per step | gradients MB | sent MB | averaging s |"]
        lines += ["| - | - | - | - | - |", *_rows(results[0], rate), ""]
    return [*lines, *verdict(results[0], job.rates)]


def _rows(found: dict[str, Any], rate: str) -> list[str]:
    rows = []
    for variant in VARIANTS:
        steps = [
            step for step in found["steps"] if (step["name"], step["rate"]) == (variant.name, rate)
        ]
        seconds = [step["seconds"] for step in steps]
        averaging = [step["averaging"] for step in steps if step["averaging"]]
        rows.append(
            f"| {variant.name} | {statistics.median(seconds):.2f} "
            f"({min(seconds):.2f}..{max(seconds):.2f}) "
            f"| {found['gradients'][variant.name] / 1e6:.2f} "
            f"| {statistics.median(step['sent'] for step in steps) / 1e6:.2f} "
            f"| {f'{statistics.median(averaging):.2f}' if averaging else '-'} |"
        )
    return rows


def verdict(found: dict[str, Any], rates: Sequence[str]) -> list[str]:
    """Whether a step with PowerSGD is as quick as it has to be on the slowest link."""
    medians = {
        variant.name: statistics.median(
            step["seconds"]
            for step in found["steps"]
            if (step["name"], step["rate"]) == (variant.name, rates[0])
        )
        for variant in VARIANTS
    }
    plain, name = medians["ZeRO-1"], "ZeRO-0, PowerSGD of rank 2"
    met = "met" if medians[name] <= TARGET_SECONDS else "missed"
    return [
        f"{name} at {rates[0] or 'an unlimited rate'}: {medians[name]:.2f} s where ZeRO-1 takes "
        f"{plain:.2f}; target {TARGET_SECONDS} s: {met}."
    ]


if __name__ == "__main__":
    sys.exit(main())
