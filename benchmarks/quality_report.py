"""From results of single runs to means, deviations, differences with intervals, and verdicts:
arithmetic and text.

A result is a line of results.jsonl: `case`, `set`, `seed`, the metrics, `seconds`, `cpu seconds`,
`commit`, `settings`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

Line = Mapping[str, Any]

SHOWN = ("mAP50-95", "mAP50", "precision", "recall")
JUDGED = "mAP50-95"
"""What the verdicts are about."""

LAST = "last.pt's "
"""Before a metric that is last.pt's; without it, it is best.pt's."""

METHOD = """\
Every trainer starts from random weights that it draws itself, with the same seed, \
hyper-parameters and images; a step
sees {batch} images in every case, over all ranks: two ranks normalise over half of them each. \
ultralytics'
DetectionTrainer is used as it is. Different from its defaults, in all cases: {hyper}. Neither \
trainer evaluates before
its last epoch, so that ultralytics' best.pt is its last.pt. yolods' best.pt has the weights of \
its last.pt, and
BatchNorm's statistics taken anew over train images (`precise_bn`, on by default, \
docs/training.md) where that is better
on the validation images; ultralytics has nothing like it.

best.pt and last.pt (fp16, the moving average) of every run are judged by ultralytics' own \
DetectionValidator, on the
set's validation images. Tables of best.pt compare what a user takes away, those of last.pt the \
training alone. Where a
CPU has no bf16 instructions, bf16 convolutions are computed in fp32 from the same bf16 values and \
rounded once, as the
instructions do (`benchmarks/bf16_products.py`).

- *+-*: standard deviation over seeds.
- *difference*: from the mean of ultralytics, over the seeds that both have; in brackets its 95% \
interval.
- *SE*: standard error of the difference of two independent means (Welch); *t*: the difference \
over it. The trainers
  draw from streams of their own, so that the same seed makes no pair of them; *paired SE*, from \
the differences seed by
  seed, is about the same where that is so.
- *all layouts*: seed by seed the mean over yolods' layouts, which counts as one observation: \
layouts share a seed's
  weights and samples, so that they are not independent of each other."""


@dataclass(frozen=True)
class Difference:
    """The mean of one sample less that of another."""

    seeds: int
    """Seeds that both have."""
    mean: float
    error: float
    """Standard error of the difference of two independent means; nan below two seeds."""
    paired_error: float
    """Standard error from the differences seed by seed."""
    freedom: float
    """Welch's degrees of freedom."""

    @property
    def t(self) -> float:
        """The difference over its standard error; nan where there is none."""
        return self.mean / self.error if self.error > 0 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95%."""
        half = t_quantile(0.975, self.freedom) * self.error if self.error > 0 else math.nan
        return self.mean - half, self.mean + half


def difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Compare two samples by seed, over the seeds that both have; None where there are none."""
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    mine, other = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    mean, count = statistics.mean(mine) - statistics.mean(other), len(seeds)
    if count < 2:
        return Difference(count, mean, math.nan, math.nan, math.nan)
    parts = [statistics.variance(values) / count for values in (mine, other)]
    squares = sum(part**2 for part in parts)
    freedom = sum(parts) ** 2 * (count - 1) / squares if squares else math.nan
    paired = statistics.stdev(a - b for a, b in zip(mine, other, strict=True)) / math.sqrt(count)
    return Difference(count, mean, math.sqrt(sum(parts)), paired, freedom)


def averaged(differences: Sequence[Difference]) -> Difference:
    """The mean of independent differences: those of several sets."""
    count = len(differences)

    def error(of: Sequence[float]) -> float:
        return math.sqrt(sum(value**2 for value in of)) / count

    total = sum(one.error**2 for one in differences)
    squares = sum(one.error**4 / one.freedom for one in differences)
    return Difference(
        seeds=min(one.seeds for one in differences),
        mean=statistics.mean(one.mean for one in differences),
        error=error([one.error for one in differences]),
        paired_error=error([one.paired_error for one in differences]),
        freedom=total**2 / squares if squares else math.nan,
    )


def t_quantile(share: float, freedom: float) -> float:
    """Student's t, by its expansion around the normal distribution: 0.005 off at 4 degrees of
    freedom, less above."""
    if not freedom > 0:
        return math.nan
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def by_seed(lines: Sequence[Line], case: str, name: str, metric: str) -> dict[int, float]:
    """Seed -> a metric, of one case on one set. Runs that note nothing of last.pt have no other
    best.pt."""
    mine = [line for line in lines if (line["case"], line["set"]) == (case, name)]
    return {line["seed"]: line.get(metric, line[metric.removeprefix(LAST)]) for line in mine}


def pooled(
    lines: Sequence[Line], layouts: Sequence[str], name: str, metric: str
) -> dict[int, float]:
    """Seed -> mean of a metric over layouts, of the seeds that all of them have."""
    samples = [by_seed(lines, case, name, metric) for case in layouts]
    seeds = set.intersection(*map(set, samples)) if samples else set()
    return {seed: statistics.mean(sample[seed] for sample in samples) for seed in seeds}


def tables(lines: Sequence[Line], titles: Mapping[str, str], reference: str) -> list[str]:
    """A table a set and metric, and the verdicts.

    Args:
        titles: case -> its name in tables, in their order.
        reference: the case that the others are compared with.
    """
    there = {line["case"] for line in lines}
    layouts = [case for case in titles if case in there and case != reference]
    sets = list(dict.fromkeys(line["set"] for line in lines))
    text = []
    for name in sets:
        for metric in (*SHOWN[:2], f"{LAST}{JUDGED}"):
            title = metric if metric.startswith(LAST) else f"best.pt's {metric}"
            text += [
                f"## {name}: {title}",
                "",
                *_table(lines, titles, reference, layouts, name, metric),
                "",
            ]
        text += [f"## {name}: means", "", *_means(lines, titles, name), ""]
    for file, metric in (("best.pt", JUDGED), ("last.pt", f"{LAST}{JUDGED}")):
        text += [
            f"## Verdicts on {file}",
            "",
            *verdicts(lines, titles, reference, layouts, sets, metric),
            "",
        ]
    return text[:-1]


def _table(
    lines: Sequence[Line],
    titles: Mapping[str, str],
    reference: str,
    layouts: Sequence[str],
    name: str,
    metric: str,
) -> list[str]:
    rows = [
        "| case | seeds | mean | +- | difference (95%) | SE | paired SE | t |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    theirs = by_seed(lines, reference, name, metric)
    for case, title in titles.items():
        if not (values := by_seed(lines, case, name, metric)):
            continue
        rows.append(_row(title, values, None if case == reference else difference(values, theirs)))
    if len(layouts) > 1 and (values := pooled(lines, layouts, name, metric)):
        rows.append(_row(f"all {len(layouts)} layouts", values, difference(values, theirs)))
    return rows


def _row(title: str, values: Mapping[int, float], apart: Difference | None) -> str:
    deviation = f"{statistics.stdev(values.values()):.4f}" if len(values) > 1 else ""
    cells = [title, str(len(values)), f"{statistics.mean(values.values()):.4f}", deviation]
    return f"| {' | '.join([*cells, *_compared(apart)])} |"


def _compared(apart: Difference | None) -> list[str]:
    if apart is None:
        return ["", "", "", ""]
    if math.isnan(apart.error):
        return [f"{apart.mean:+.4f}", "", "", ""]
    low, high = apart.interval
    shown = f"{apart.mean:+.4f} ({low:+.4f} to {high:+.4f})"
    return [shown, f"{apart.error:.4f}", f"{apart.paired_error:.4f}", f"{apart.t:+.2f}"]


def _means(lines: Sequence[Line], titles: Mapping[str, str], name: str) -> list[str]:
    losses = ("train/box_loss", "train/cls_loss", "train/dfl_loss")
    heads = [*SHOWN, "last box loss", "class loss", "DFL loss", "CPU s per run"]
    rows = [f"| case | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for case, title in titles.items():
        mine = [line for line in lines if (line["case"], line["set"]) == (case, name)]
        if mine:
            values = [statistics.mean(line[metric] for line in mine) for metric in SHOWN]
            values += [
                statistics.mean(line["train losses"][key] for line in mine) for key in losses
            ]
            cells = [f"{value:.4f}" for value in values]
            cells.append(
                f"{statistics.mean(line['cpu seconds'] + line['judging cpu seconds'] for line in mine):.0f}"  # noqa: E501
            )
            rows.append(f"| {title} | {' | '.join(cells)} |")
    return rows


def verdicts(
    lines: Sequence[Line],
    titles: Mapping[str, str],
    reference: str,
    layouts: Sequence[str],
    sets: Sequence[str],
    metric: str = JUDGED,
) -> list[str]:
    """A line for each layout and set, for all layouts on a set, and for all on all sets."""
    text, whole = [], []
    for name in sets:
        theirs = by_seed(lines, reference, name, metric)
        for case in layouts:
            apart = difference(by_seed(lines, case, name, metric), theirs)
            if apart is None or math.isnan(apart.error):
                text.append(f"- {name}, {titles[case]}: too few seeds")
                continue
            held = apart.mean >= -apart.error
            text.append(
                f"- {name}, {titles[case]}: {_said(apart)}, "
                f"{_within(held, ' by more than one standard error')}"
            )
        apart = difference(pooled(lines, layouts, name, metric), theirs)
        if apart is not None and not math.isnan(apart.error):
            whole.append(apart)
            text.append(f"- {name}, all layouts: {_said(apart)}, {_within(apart.mean >= 0, '')}")
    if len(whole) > 1:
        apart = averaged(whole)
        low, high = apart.interval
        held = _within(apart.mean >= 0, "")
        text.append(
            f"- all layouts, mean over sets: {_said(apart)}, 95% {low:+.4f} to {high:+.4f}, {held}"
        )
    return text


def _said(apart: Difference) -> str:
    return (
        f"{JUDGED} {apart.mean:+.4f} from ultralytics' over {apart.seeds} seeds, SE "
        f"{apart.error:.4f}"
    )


def _within(held: bool, how: str) -> str:
    return f"not below{how}: holds" if held else f"**below{how}**"


def head(lines: Sequence[Line], command: str, machine: Sequence[str]) -> list[str]:
    """What a record begins with.

    Args:
        machine: lines about it.
    """
    settings, ended = lines[-1]["settings"], [line["ended"] for line in lines]
    changed = ", ".join(f"{key}={value}" for key, value in settings["hyper"].items())
    commits = ", ".join(sorted({line["commit"] for line in lines}))
    cpu = sum(line["cpu seconds"] + line["judging cpu seconds"] for line in lines)
    return [
        f"# Quality beside ultralytics, {max(ended)}",
        "",
        f"    {command}",
        "",
        *machine,
        f"- {len(lines)} runs, ended from {min(ended)} to {max(ended)}, {cpu / 3600:.1f} CPU "
        f"hours, by {commits}",
        f"- workload: {settings['model']} from random weights at {settings['imgsz']} px, "
        f"{settings['epochs']} epochs, {settings['batch']} images per step, one thread per rank",
        "",
        METHOD.format(batch=settings["batch"], hyper=changed),
        "",
    ]


def one_line(line: Line) -> str:
    """A run that has ended, on the screen."""
    cpu = line["cpu seconds"] + line["judging cpu seconds"]
    return (
        f"mAP50 {line['mAP50']:.3f}, mAP50-95 {line['mAP50-95']:.3f}; {cpu:.0f} CPU s in "
        f"{line['seconds']:.0f} s"
    )


def time_left(
    lines: Sequence[Line], wanted: Sequence[tuple[str, str]], ranks: Mapping[str, int], cores: int
) -> str:
    """About how long runs take that are still to be made, from those that were.

    Args:
        wanted: case and set of each.
        ranks: of each case; each has a core.
        cores: there are.
    """
    taken: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        taken.setdefault((line["case"], line["set"]), []).append(
            line["seconds"] * ranks[line["case"]]
        )
    anyone = statistics.mean(value for values in taken.values() for value in values)
    seconds = sum(statistics.mean(taken.get(key, [anyone])) for key in wanted) / cores
    minutes = math.ceil(seconds / 60)
    return (
        f"about {minutes // 60} h {minutes % 60:02} min"
        if minutes >= 60
        else f"about {minutes} min"
    )
