"""The lines about a trace: a row of shares per rank, and what holds the run back."""

from __future__ import annotations

from collections.abc import Sequence

from yolods.trace.record import RankRecord
from yolods.trace.shares import KINDS_OF_WORK, shares, step_seconds, what_holds

_ROWS = 32
"""Ranks that have a row."""


def trace_lines(records: Sequence[RankRecord], bound: float | None) -> list[str]:
    """The table, for a screen of 80 columns; of many ranks the first ones, and the mean of all.

    Args:
        bound: as for `what_holds`.
    """
    steps = records[0].steps()
    own, between = step_seconds(records)
    width = max(4, len(str(len(records) - 1)))
    head = "".join(f" {kind:>{max(len(kind), 8)}}" for kind in KINDS_OF_WORK)
    lines = [
        f"traced steps {steps[0]} to {steps[-1]}: {own * 1e3:.1f} ms each, {between * 1e3:.1f} ms "
        "between them",
        f"{'rank':>{width}}{head}",
    ]
    found = [shares(record) for record in records]
    named = [(str(record.rank), each) for record, each in zip(records, found, strict=True)]
    if len(records) > _ROWS:
        mean = {kind: sum(each[kind] for each in found) / len(found) for kind in KINDS_OF_WORK}
        named = [*named[:_ROWS], ("mean", mean)]
    for name, each in named:
        cells = "".join(f" {share:>{max(len(kind), 8)}.1%}" for kind, share in each.items())
        lines.append(f"{name:>{width}}{cells}")
    return [*lines, f"what holds the run back: {what_holds(records, bound)}"]
