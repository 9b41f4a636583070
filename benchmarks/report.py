"""From what runs have seen to ratios, tables and the record: arithmetic and text alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cases import CASES, PAIRED, REFERENCE
from benchmarks.observer import Seen

BUSY = 0.97
"""Share of its cores that a run has to get; below, something else was running and the figure is not
to be trusted."""


@dataclass(frozen=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Median and extremes of at least one value."""
        values = sorted(values)
        return cls(statistics.median(values), values[0], values[-1])

    def text(self, digits: int) -> str:
        """`median (low..high)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f}..{self.high:.{digits}f})"


@dataclass(frozen=True)
class Result:
    """One measured run, or the mean of those that ran at once."""

    key: str
    """Case."""
    round: int
    """Round, from 0."""
    rate: float
    """Training images a second over all ranks, from the second epoch on."""
    first_step: float
    """Seconds from process start to the end of the first optimizer step."""
    busy: float
    """CPU time over wall time of rank 0's threads while the rate was taken."""


def result(key: str, number: int, runs: Sequence[Seen], threads: int) -> Result:
    """Bring what a case's runs have seen to one result: the mean over runs that ran at once.

    Raises:
        ValueError: a run saw fewer than two epochs; the first is never counted.
    """
    rates, busy, first = [], [], []
    for seen in runs:
        counted = seen.epochs[1:]
        if not counted or seen.first_step is None:
            raise ValueError(f"{key}: two epochs are needed, {len(seen.epochs)} were seen")
        seconds = sum(epoch["seconds"] for epoch in counted)
        rates.append(sum(epoch["images"] for epoch in counted) / seconds)
        busy.append(sum(epoch["cpu_seconds"] for epoch in counted) / seconds / threads)
        first.append(seen.first_step)
    return Result(
        key, number, statistics.mean(rates), statistics.mean(first), statistics.mean(busy)
    )


def ratios(results: Sequence[Result], key: str) -> list[float]:
    """Rate of each run of a case over that of the ultralytics run before it."""
    found, reference = [], None
    for one in results:
        if one.key == REFERENCE:
            reference = one
        elif one.key == key and reference is not None:
            found.append(one.rate / reference.rate)
    return found


def scaling(results: Sequence[Result], baseline: str) -> list[float]:
    """Round by round, the rate of two ranks over twice the rate of `baseline` (one rank alone, or
    one of two runs)."""
    rates = {(one.key, one.round): one.rate for one in results}
    rounds = sorted({one.round for one in results})
    wanted = [
        number
        for number in rounds
        if ("two-ranks", number) in rates and (baseline, number) in rates
    ]
    return [rates["two-ranks", number] / (2 * rates[baseline, number]) for number in wanted]


def rate_table(results: Sequence[Result]) -> list[str]:
    """One row a case, as markdown."""
    rows = [
        "| case | images/s, median (min..max) | x ultralytics, pair by pair | first step after, s "
        "| core busy |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for key, case in CASES.items():
        mine = [one for one in results if one.key == key]
        if not mine:
            continue
        compared = (
            Spread.of(found).text(3) if (found := ratios(results, key)) and key in PAIRED else ""
        )
        busy = min(one.busy for one in mine)
        rows.append(
            f"| {case.title} | {Spread.of(one.rate for one in mine).text(2)} | {compared} | "
            f"{Spread.of(one.first_step for one in mine).text(1)} | "
            f"{busy:.0%}{' (!)' if disturbed(mine) else ''} |"
        )
    return rows


def scaling_lines(results: Sequence[Result]) -> list[str]:
    """What two ranks reach, by both definitions."""
    texts = {
        "fp32": "2 x one rank while the other core is idle",
        "two-runs": "2 x one rank while an independent run of the same kind loads the other core",
    }
    lines = []
    for baseline, text in texts.items():
        if found := scaling(results, baseline):
            lines.append(f"- two ranks reach {Spread.of(found).text(3)} of {text}")
    return lines


def split_table(splits: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Milliseconds an image by part of a step, a column a case."""
    parts = [
        "data",
        "input",
        "forward",
        "loss",
        "backward",
        "optimizer and communication",
        "EMA",
        "telemetry",
        "rest",
    ]
    named = {key: CASES[key].title for key in splits}
    rows = [f"| ms an image | {' | '.join(named.values())} |", f"| --- |{' ---: |' * len(named)}"]
    for part in [*parts, "total"]:
        values = [
            f"{split[part]:.2f} ({split[part] / split['total']:.0%})" if part in split else ""
            for split in splits.values()
        ]
        rows.append(f"| {part} | {' | '.join(values)} |")
    return rows


def operator_table(operators: Sequence[Mapping[str, float]]) -> list[str]:
    """The most expensive operators of a case."""
    rows = ["| operator | calls a step | ms an image | share |", "| --- | ---: | ---: | ---: |"]
    return rows + [
        f"| `{one['name']}` | {one['calls']:.0f} | {one['ms']:.2f} | {one['share']:.1%} |"
        for one in operators
    ]


def map_table(scores: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """mAP of every seed by case, and each mean beside the spread of ultralytics' seeds."""
    rows = [
        "| case | mAP50 by seed | mean | mAP50-95 by seed | mean |",
        "| --- | --- | ---: | --- | ---: |",
    ]
    names = ("metrics/mAP50(B)", "metrics/mAP50-95(B)")
    for key, runs in scores.items():
        cells = []
        for name in names:
            values = [run[name] for run in runs]
            cells += [
                " ".join(f"{value:.3f}" for value in values),
                f"{statistics.mean(values):.3f}",
            ]
        rows.append(f"| {CASES[key].title} | {' | '.join(cells)} |")
    if REFERENCE not in scores:
        return rows
    reference = [run[names[0]] for run in scores[REFERENCE]]
    rows.append("")
    for key, runs in scores.items():
        if key != REFERENCE:
            apart = statistics.mean(run[names[0]] for run in runs) - statistics.mean(reference)
            rows.append(
                f"- {CASES[key].title}: mean mAP50 {apart:+.3f} from ultralytics', whose seeds lie "
                f"{max(reference) - min(reference):.3f} apart"
            )
    return rows


def disturbed(results: Sequence[Result]) -> list[Result]:
    """Runs that did not get their core to themselves. Ranks that wait for each other cannot be told
    from those."""
    return [one for one in results if one.busy < BUSY and CASES[one.key].ranks == 1]


def doubts(results: Sequence[Result]) -> list[str]:
    """What makes figures doubtful."""
    if not (found := disturbed(results)):
        return []
    worst = min(one.busy for one in found)
    return [
        f"- {len(found)} of {len(results)} runs had less than {BUSY:.0%} of their core (least: "
        f"{worst:.0%}): the machine was doing something else, so measure again."
    ]
