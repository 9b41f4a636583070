"""The comparison of all runs' samples, and what it says: which entries differ, and which of them
are meant to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.samples_compare import (
    CONFIDENCE,
    MEASURES,
    QUANTITIES,
    Difference,
    ages,
    correlations,
    differences,
    limit,
    marginals,
    pooled,
    summary,
    table,
)
from benchmarks.samples_run import BATCH, IMGSZ, PHASES, Condition, Shown

DELIBERATE: tuple[tuple[str, str, str, str], ...] = (
    (
        "partners",
        r"mosaic (0\.5|1)\b",
        (
            r"[^:]*: (distance of partners$|(partner|distance of partners).* x (partner|distance "
            r"of partners))"
        ),
        "mosaic partners come from the whole set, where ultralytics takes them from the images "
        "that a worker loaded last. There the partners of neighbouring samples are of one buffer, "
        "which holds the sample itself, and they repeat more often: more of them lie near it. The "
        "table below has its size.",
    ),
    (
        "orders",
        r"(mosaic .*, ranks 2, workers 2, (first|closed)|.*pooled)$",
        r"[^:]*: place in the epoch x place in the epoch in the next epoch$",
        "every epoch has an order of its own. A rank of ultralytics' with workers reads ahead into "
        "the next epoch before it is told of it: the run's second epoch, and the second after the "
        "mosaic was closed, are shown in the order of the one before.",
    ),
)
"""Name, where and which entry (regular expressions that match from the beginning), reason."""


@dataclass
class Comparison:
    """All entries of all conditions, and the ages of mosaic partners."""

    parts: dict[str, list[Difference]] = field(default_factory=dict)
    """By condition and phase, or by what was pooled."""
    partners: dict[str, tuple[Mapping[str, float], Mapping[str, float]]] = field(
        default_factory=dict
    )
    """`summary` of ultralytics' and of ours, by condition and phase."""
    samples: int = 0
    """Per condition and phase."""

    @property
    def limit(self) -> float:
        """Standard errors that chance may put between two sides."""
        return limit(sum(map(len, self.parts.values())))

    def apart(self) -> list[Difference]:
        """Entries that differ by more, in the order of how much."""
        bound = self.limit
        found = [one for part in self.parts.values() for one in part if abs(one.z) > bound]
        return sorted(found, key=lambda one: -abs(one.z))


def compared(sides: Mapping[Condition, tuple[Sequence[Shown], Sequence[Shown]]]) -> Comparison:
    """Every condition's runs, ultralytics' and ours, phase by phase; then pooled over conditions,
    if there are some."""
    found, pools = Comparison(), {}
    for condition, runs in sides.items():
        for phase in PHASES:
            where = f"{condition}, {phase}"
            theirs, ours = (table(run, phase) for run in runs)
            found.samples = len(ours)
            part = differences(where, correlations(theirs), correlations(ours))
            part += differences(where, *marginals(theirs, ours))
            found.parts[where] = part
            pool = "closed" if phase == "closed" else f"mosaic {condition.mosaic:g}"
            pools.setdefault(f"{pool}, pooled", []).append(part)
            if condition.mosaic and phase != "closed":
                found.partners[where] = tuple(summary(ages(run, phase)) for run in runs)
    if len(sides) > 1:
        found.parts |= {where: list(pooled(where, parts)) for where, parts in pools.items()}
    return found


def named(one: Difference) -> str | None:
    """The deliberate difference that an entry shows."""
    for name, where, entry, _ in DELIBERATE:
        if re.match(where, one.where) and re.match(entry, one.entry):
            return name
    return None


def judged(found: Comparison, control: Comparison) -> tuple[list[str], int]:
    """The record's text, and the exit status."""
    apart, seen = found.apart(), control.apart()
    unnamed = [one for one in apart if named(one) is None]
    verdict = (
        f"{len(unnamed)} entries differ without a name"
        if unnamed
        else "no entry differs but for deliberate ones"
    )
    text = [
        f"**{verdict[0].upper()}{verdict[1:]}; the control is {'seen' if seen else 'NOT SEEN'}.**",
        "",
        *_method(found),
        "",
        "### Entries that differ",
        "",
        *(_entries(apart) or ["None."]),
        "",
        *(f"- *{name}*: {reason}" for name, _, _, reason in DELIBERATE),
        "",
        "### Where mosaic partners come from",
        "",
        "How many samples ago a rank was last shown the partner as a sample of its own.",
        "",
        *_partners(found),
        "",
        "### By condition",
        "",
        *_conditions(found),
        "",
        f"### The control: {len(seen)} entries differ (limit {control.limit:.2f})",
        "",
        *_entries(seen[:12]),
    ]
    return text, int(bool(unnamed) or not seen)


def _method(found: Comparison) -> list[str]:
    entries = sum(map(len, found.parts.values()))
    phases = ", ".join(f"{first} and {last} ({phase})" for phase, (first, last) in PHASES.items())
    return f"""\
- {found.samples} samples of either side per condition and phase, of a set of {found.samples // 2} images at {IMGSZ} px,
  batch {BATCH}, a seed per condition. Phases: epochs {phases}.
- {len(QUANTITIES)} quantities: {", ".join(QUANTITIES)}.
  Hyper-parameters are ultralytics' defaults and `flipud` 0.5; albumentations is not installed.
- The matrix of dependence: each two quantities of a sample, and each quantity with those of the next sample of the
  rank, of the same image in the next epoch, and of the other rank's sample of the same number. {len(MEASURES)} measures
  ({", ".join(MEASURES)}); a *spread* is the distance of a rank from the middle,
  which sees what neither rises nor falls. Beside it mean, deviation and five quantiles of each quantity.
- {entries} entries. One differs where its two sides lie {found.limit:.2f} standard errors apart: {CONFIDENCE:.1%}
  confidence that chance has none do so. Errors are the bootstrap's, in the closed form that many resamples come to.
- *Pooled* entries are means over conditions, by their precision: they see what is small and everywhere.""".splitlines()  # noqa: E501


def _entries(apart: Sequence[Difference]) -> list[str]:
    """Each entry once, where it differs most."""
    by_entry: dict[tuple[str, str | None], list[Difference]] = {}
    for one in apart:
        by_entry.setdefault((one.entry, named(one)), []).append(one)
    if not by_entry:
        return []
    rows = [
        "| entry | parts | most in | ultralytics | yolods | standard errors | name |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for (entry, name), ones in by_entry.items():
        most = ones[0]
        rows.append(
            f"| {entry} | {len(ones)} | {most.where} | {most.theirs:.3f} | {most.ours:.3f} | "
            f"{most.z:+.1f} | {name or '**none**'} |"
        )
    return rows


def _partners(found: Comparison) -> list[str]:
    rows: list[str] = []
    for where, sides in found.partners.items():
        for name, side in zip(("ultralytics", "yolods"), sides, strict=True):
            if not rows:
                rows = [f"| | {' | '.join(side)} |", f"| --- |{' ---: |' * len(side)}"]
            figures = (
                f"{value:.0f}" if key.startswith("quantile") else f"{value:.1%}"
                for key, value in side.items()
            )
            rows.append(f"| {name}, {where} | {' | '.join(figures)} |")
    return rows


def _conditions(found: Comparison) -> list[str]:
    rows = [
        (
            "| part | entries | largest difference, standard errors | deviation of all | differ | "
            "not named |"
        ),
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    bound = found.limit
    for where, part in found.parts.items():
        z = np.array([one.z for one in part])
        apart = [one for one in part if abs(one.z) > bound]
        rows.append(
            f"| {where} | {len(part)} | {np.abs(z).max():.2f} | {z.std():.3f} | {len(apart)} | "
            f"{sum(named(one) is None for one in apart)} |"
        )
    return rows
