"""The arithmetic of `reduction.py`: bytes by the rule of rings, theory, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.calls import Call

REDUCING = ("all_reduce", "reduce", "reduce_scatter_tensor", "exchange")
NUMBERS = 10_000
"""A call with fewer bytes carries numbers of a step, such as losses, and no gradients."""


@dataclass
class Sent:
    """What one rank sends in a step."""

    bytes: float
    calls: int
    reduced: float
    """Bytes of gradients among them."""
    early: float
    """Those of calls that began within the backward pass."""


def ring_bytes(call: Call) -> float:
    """Bytes that a rank sends for a call, as `yolods.plan.traffic.transfers` counts them.

    gloo's reduce_scatter is an all-reduce, and what it exchanges goes to every rank but itself.
    """
    size, ranks = call.elements * call.size, call.ranks
    share = (ranks - 1) / ranks
    if call.operation in ("all_reduce", "reduce_scatter_tensor"):
        return 2 * share * size
    if call.operation in ("all_gather_into_tensor", "all_gather"):
        return (ranks - 1) * size
    return share * size


def sent_by(made: Sequence[Call], early: Sequence[Call]) -> Sent:
    """The sums of a step's calls."""
    return Sent(
        bytes=sum(map(ring_bytes, made)),
        calls=len(made),
        reduced=sum(map(ring_bytes, filter(_carries_gradients, made))),
        early=sum(map(ring_bytes, filter(_carries_gradients, early))),
    )


def _carries_gradients(call: Call) -> bool:
    return call.operation in REDUCING and call.elements * call.size >= NUMBERS


def sent_table(
    cases: Sequence[dict[str, Any]], ranks: Sequence[Sequence[dict[str, Any]]], theory: float
) -> list[str]:
    """One row per layout: before -> now, the mean of the ranks.

    Args:
        cases: with `old`, in pairs: first the old way, then the present one.
        ranks: the results of each rank, in the order of the cases.
        theory: bytes of 2 P for one rank.
    """
    rows = [
        "| ZeRO | micro-batches | MB a step | of 2P | calls | gradients begun early | broadcasts "
        "at the start |",
        "| ---: | ---: | --- | --- | --- | --- | --- |",
    ]
    means = [_mean([rank[place] for rank in ranks]) for place in range(len(cases))]
    for place in range(0, len(cases), 2):
        before, now = means[place], means[place + 1]
        pairs = [
            f"{before['bytes'] / 1e6:.2f} -> {now['bytes'] / 1e6:.2f}",
            f"{before['bytes'] / theory:.2f} -> {now['bytes'] / theory:.2f}",
            f"{before['calls']:.0f} -> {now['calls']:.0f}",
            f"{_share(before):.0%} -> {_share(now):.0%}",
            f"{before['broadcasts']:.0f} -> {now['broadcasts']:.0f}",
        ]
        case = cases[place]
        rows.append(f"| {case['zero']['stage']} | {case['accumulation']} | {' | '.join(pairs)} |")
    return rows


def _mean(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {key: sum(each[key] for each in found) / len(found) for key in found[0]}


def _share(found: dict[str, float]) -> float:
    return found["early"] / found["reduced"]


def missed_targets(
    cases: Sequence[dict[str, Any]], ranks: Sequence[Sequence[dict[str, Any]]], theory: float
) -> list[str]:
    """What of the targets the present way misses."""
    missed = []
    for place, case in enumerate(cases):
        if case["old"]:
            continue
        found = _mean([rank[place] for rank in ranks])
        stage, accumulation = case["zero"]["stage"], case["accumulation"]
        name = f"ZeRO-{stage}, {accumulation} micro-batches"
        limit = 1.05 if accumulation == 1 else 2.0
        if stage in (1, 2) and found["bytes"] > limit * theory:
            missed.append(f"{name}: {found['bytes'] / theory:.2f} times 2P, not {limit}")
        if stage < 3 and _share(found) < 0.8:
            missed.append(f"{name}: {_share(found):.0%} begin early, not 80%")
        if stage == 3 and accumulation == 1 and found["calls"] > 10:
            missed.append(f"{name}: {found['calls']:.0f} calls, not 10")
    return missed


def accuracy_table(found: dict[str, dict[str, Any]]) -> list[str]:
    """One row per type in which gradients travel."""
    rows = [
        "| communication_data_type | whole gradient | worst parameter | which |",
        "| --- | ---: | ---: | --- |",
    ]
    for name, each in found.items():
        rows.append(f"| {name} | {each['whole']:.1e} | {each['worst']:.1e} | {each['where']} |")
    return rows
