"""Whose time a step was: every instant of a rank's step belongs to exactly one kind of work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from yolods.trace.record import Part, RankRecord, halves

WAITS, MOVES = "waits", "collectives"
WORK = {
    "forward": "forward",
    "backward": "backward",
    "weights' part of backward": "backward",
    "reduction of gradients": MOVES,
    "loader": "loader",
    "optimizer": "optimizer",
}
"""Tracks -> kinds of work; all others: rest."""
BETWEEN = "between steps"
"""What follows a step before the next one, whatever it is."""
KINDS_OF_WORK = ("forward", "backward", MOVES, WAITS, "loader", "optimizer", "rest")
"""All that a step itself can be."""
_LITTLE = 0.1
"""Share of a step below which nothing but computation is worth a change."""


@dataclass(frozen=True)
class Stretch:
    """A span of one kind of work within a part."""

    begin: float
    """Seconds."""
    end: float
    """Seconds."""
    kind: str
    """One of KINDS_OF_WORK, or BETWEEN."""
    part: Part
    """Where it belongs."""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.begin


def stretches(record: RankRecord) -> Iterator[Stretch]:
    """A rank's time in order, without gaps and overlaps.

    Where the rank stood still in a call, the time is that of the call and not of the phase.
    """
    held = _still(record)
    ends = {step: record.own_end(step) for step in record.steps()}
    at = 0
    for part in record.parts:
        if part.begin >= ends[part.step]:
            yield Stretch(part.begin, part.end, BETWEEN, part)
            continue
        now = part.begin
        while at < len(held) and held[at][1] <= part.begin:
            at += 1
        look = at
        while look < len(held) and held[look][0] < part.end:
            begin, end, kind = held[look]
            begin, end = max(begin, now), min(end, part.end)
            if begin > now:
                yield Stretch(now, begin, WORK.get(part.track, "rest"), part)
            if end > begin:
                yield Stretch(begin, end, kind, part)
                now = end
            look += 1
        if part.end > now:
            yield Stretch(now, part.end, WORK.get(part.track, "rest"), part)


def _still(record: RankRecord) -> list[tuple[float, float, str]]:
    """Spans in which a rank stood still, in order; what two calls share belongs to the first."""
    found = []
    for call in record.calls:
        waits, moves = halves(call)
        found += [(*span, WAITS) for span in waits] + [(*span, MOVES) for span in moves]
    apart: list[tuple[float, float, str]] = []
    for begin, end, kind in sorted(found):
        begin = max(begin, apart[-1][1]) if apart else begin
        if end > begin:
            apart.append((begin, end, kind))
    return apart


def shares(record: RankRecord) -> dict[str, float]:
    """Share of the traced steps that each of KINDS_OF_WORK took, in [0, 1]; they add up to 1."""
    found = dict.fromkeys(KINDS_OF_WORK, 0.0)
    for each in stretches(record):
        if each.kind != BETWEEN:
            found[each.kind] += each.seconds
    whole = max(sum(found.values()), 1e-12)
    return {kind: seconds / whole for kind, seconds in found.items()}


def step_seconds(records: Sequence[RankRecord]) -> tuple[float, float]:
    """Mean duration of a step over steps and ranks, and of what follows it before the next one."""
    own = between = 0.0
    for record in records:
        for step in record.steps():
            begin, end = record.bounds(step)
            own += record.own_end(step) - begin
            between += end - record.own_end(step)
    count = max(sum(len(record.steps()) for record in records), 1)
    return own / count, between / count


def what_holds(records: Sequence[RankRecord], bound: float | None) -> str:
    """One line on what holds the run back.

    Args:
        bound: share of a pipeline's time that its schedule leaves idle with the measured passes;
            None: there is no pipeline.
    """
    all_shares = [shares(record) for record in records]
    mean = {k: sum(each[k] for each in all_shares) / len(all_shares) for k in KINDS_OF_WORK}
    # One rank that waits for images holds all others back, so the worst one counts.
    loading = max(range(len(records)), key=lambda place: all_shares[place]["loader"])
    mean["loader"] = all_shares[loading]["loader"]
    costs = {kind: mean[kind] for kind in KINDS_OF_WORK if kind not in ("forward", "backward")}
    largest = max(costs, key=lambda kind: costs[kind])
    cost = costs[largest]
    own, between = step_seconds(records)
    if between > max(cost, _LITTLE) * (own + between):
        return (
            f"what is done between steps: {between / (own + between):.0%} of the time, most of it "
            f"in {_most_of(records, BETWEEN)}"
        )
    if cost < _LITTLE:
        work = mean["forward"] + mean["backward"]
        return f"computation: forward and backward take {work:.0%} of a step"
    if largest == "loader":
        return (
            f"the loader: rank {records[loading].rank} waits {cost:.0%} of a step for images "
            "(--workers; docs/data.md)"
        )
    if largest == WAITS:
        return _waits(records, all_shares, cost, bound)
    if largest == MOVES:
        return f"the links: {cost:.0%} of a step in collectives (docs/communication.md)"
    if largest == "optimizer":
        return f"the optimizer: {cost:.0%} of a step"
    return (
        f"neither passes nor links: {cost:.0%} of a step, most of it in {_most_of(records, 'rest')}"
    )


def _waits(
    records: Sequence[RankRecord],
    all_shares: Sequence[Mapping[str, float]],
    cost: float,
    bound: float | None,
) -> str:
    last = min(range(len(records)), key=lambda place: all_shares[place][WAITS])
    late = f"rank {records[last].rank}, which waits least ({all_shares[last][WAITS]:.0%})"
    if bound is not None:
        return (
            f"the pipeline: ranks wait {cost:.0%} of a step, of which its schedule explains "
            f"{min(bound, cost):.0%}; the busiest is {late} (docs/pipeline.md)"
        )
    return f"unequal ranks: they wait {cost:.0%} of a step for each other, most for {late}"


def _most_of(records: Sequence[RankRecord], kind: str) -> str:
    """The phase that took most of a kind of work."""
    sums: dict[str, float] = {}
    for each in chain.from_iterable(map(stretches, records)):
        if each.kind == kind:
            sums[each.part.phase] = sums.get(each.part.phase, 0.0) + each.seconds
    return f"'{max(sums, key=lambda phase: sums[phase])}'"
