"""Whether two runs' samples are of one distribution: their marginals, and the dependence of every
two quantities.

Beside the quantities of one sample stand those of its neighbours, so that dependence between
samples is an entry of the same matrix. Standard errors are the bootstrap's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from statistics import NormalDist

import numpy as np

from benchmarks.samples_run import COLUMN, DRAWN, PHASES, Shown

QUANTITIES = (*DRAWN, "place in the epoch")
NEIGHBOURS = ("", " of the next sample", " in the next epoch", " on the other rank")
"""Whose the second quantity of an entry is; the first one is always the sample's own."""
MEASURES = {
    "Pearson": ("value", "value"),
    "Spearman": ("rank", "rank"),
    "spread-spread": ("spread", "spread"),
    "rank-spread": ("rank", "spread"),
    "spread-rank": ("spread", "rank"),
}
"""What is correlated. A spread is the distance of a rank from the middle, which sees dependence
that does not rise or fall: of ranks that lie on a circle, or of a variance that follows another
quantity."""
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
CONFIDENCE = 0.999
"""Of the whole comparison: chance has one in 1,000 to make any entry differ."""
SMALLEST_ERROR = 1e-3
"""Correlations that are exact on both sides have none."""
FEWEST = 500
"""Samples that an entry has to stand on."""


@dataclass(frozen=True)
class Estimate:
    """Statistics of one run, and their standard errors by the bootstrap."""

    names: tuple[str, ...]
    values: np.ndarray
    errors: np.ndarray


@dataclass(frozen=True)
class Difference:
    """One entry on both sides."""

    where: str
    """Condition and phase, or that it is pooled."""
    entry: str
    theirs: float
    ours: float
    z: float
    """The difference over its standard error."""

    @property
    def apart(self) -> float:
        """Ours less theirs."""
        return self.ours - self.theirs


def table(ranks: Sequence[Shown], phase: str) -> np.ndarray:
    """(n, 4, len(QUANTITIES)): each sample of a phase, then its neighbours; NaN where there is
    none.

    Places count what a rank was shown of an epoch. Other ranks' samples are those of the same
    number in the phase.
    """
    shown = [_placed(rank, phase) for rank in ranks]
    rows = sum(len(epoch) for epoch, _ in shown)
    made = np.full((rows, len(NEIGHBOURS), len(QUANTITIES)), np.nan)
    first, second = PHASES[phase]
    later = {int(row[COLUMN["index"]]): row for epoch, own in shown for row in own[epoch == second]}
    start = 0
    for number, (epoch, own) in enumerate(shown):
        part = made[start : start + len(own)]
        part[:, 0] = own
        part[:-1, 1] = own[1:]
        for row in np.flatnonzero(epoch == first):
            part[row, 2] = later.get(int(own[row, COLUMN["index"]]), np.nan)
        if number == 0 and len(shown) > 1:
            both = min(len(own), len(shown[1][1]))
            part[:both, 3] = shown[1][1][:both]
        start += len(own)
    return made


def _placed(rank: Shown, phase: str) -> tuple[np.ndarray, np.ndarray]:
    chosen = np.isin(rank.epoch, PHASES[phase])
    epoch, drawn = rank.epoch[chosen], rank.drawn[chosen]
    place = np.empty(len(epoch))
    for one in PHASES[phase]:
        place[epoch == one] = np.arange((epoch == one).sum())
    return epoch, np.column_stack([drawn, place])


def ages(ranks: Sequence[Shown], phase: str) -> np.ndarray:
    """For each mosaic partner of a phase, how many samples ago its rank was last shown it as a
    sample of its own.

    0 is the sample itself, infinity an image that the rank has not been shown yet.
    """
    found: list[float] = []
    for rank in ranks:
        wanted, seen = np.isin(rank.epoch, PHASES[phase]), {}
        partners = rank.drawn[:, COLUMN["partner 1"] : COLUMN["partner 3"] + 1]
        for now, index in enumerate(rank.drawn[:, COLUMN["index"]]):
            seen[index] = now
            if wanted[now]:
                found += [
                    now - seen.get(one, -np.inf) for one in partners[now] if not np.isnan(one)
                ]
    return np.array(found)


def correlations(made: np.ndarray) -> Estimate:
    """Every entry of the matrix of dependence; `made` is what `table` gives."""
    neighbours = [k for k in range(len(NEIGHBOURS)) if np.isfinite(made[:, k]).any()]
    flat = made[:, neighbours].reshape(len(made), -1)
    forms = {"value": _value, "rank": _rank, "spread": _spread}
    kinds = {
        kind: np.column_stack([_standard(form(column)) for column in flat.T])
        for kind, form in forms.items()
    }
    count, names, values, errors = len(QUANTITIES), [], [], []
    for measure, (left, right) in MEASURES.items():
        found, error = correlate(kinds[left][:, :count], kinds[right])
        wanted = np.isfinite(found)
        wanted[:, :count] &= (
            np.triu(np.ones((count, count), bool), 1)
            if left == right
            else ~np.eye(count, dtype=bool)
        )
        for a, b in zip(*np.nonzero(wanted), strict=True):
            other = QUANTITIES[b % count] + NEIGHBOURS[neighbours[b // count]]
            names.append(f"{measure}: {QUANTITIES[a]} x {other}")
        values.append(found[wanted])
        errors.append(error[wanted])
    return Estimate(tuple(names), np.concatenate(values), np.concatenate(errors))


def correlate(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of each column with each, over the rows that have both, and its standard error by
    the bootstrap.

    The error is what many resamples come to: the mean square of what each row adds to the
    correlation, over n (the infinitesimal jackknife). Columns are near mean 0 and variance 1.

    Args:
        left: (n, a), NaN where a row has nothing.
        right: (n, b).

    Returns:
        (a, b) each; NaN where a side does not vary, or has too few rows.
    """
    powers = [
        [np.isfinite(side).astype(float), *(np.nan_to_num(side) ** power for power in range(1, 5))]
        for side in (left, right)
    ]
    count = powers[0][0].T @ powers[1][0]
    total = np.maximum(count, 1.0)
    raw = {(i, j): powers[0][i].T @ powers[1][j] / total for i in range(5) for j in range(5 - i)}

    def moment(i: int, j: int) -> np.ndarray:
        """About the means."""
        return sum(
            comb(i, a) * comb(j, b) * (-raw[1, 0]) ** (i - a) * (-raw[0, 1]) ** (j - b) * raw[a, b]
            for a in range(i + 1)
            for b in range(j + 1)
        )

    x, y = moment(2, 0), moment(0, 2)
    usable = (count >= FEWEST) & (x > 1e-9) & (y > 1e-9)
    x, y = np.where(usable, x, np.nan), np.where(usable, y, np.nan)
    r = moment(1, 1) / np.sqrt(x * y)
    fourth = moment(2, 2) / (x * y)
    square = (
        fourth
        - r * (moment(3, 1) / (x * np.sqrt(x * y)) + moment(1, 3) / (y * np.sqrt(x * y)))
        + r**2 / 4 * (moment(4, 0) / x**2 + 2 * fourth + moment(0, 4) / y**2)
    )
    return r, np.sqrt(np.maximum(square, 0) / total)


def marginals(theirs: np.ndarray, ours: np.ndarray) -> tuple[Estimate, Estimate]:
    """Mean, deviation and quantiles of every quantity, on both sides; in units of its deviation.

    A quantile is compared by the share of samples at or below it, it being that of both sides
    together. Errors are what many resamples come to, as in `correlate`.

    Args:
        theirs, ours: what `table` gives.
    """
    both = np.concatenate([theirs[:, 0], ours[:, 0]])
    names, found = [], ([], [])
    for column, quantity in enumerate(QUANTITIES):
        known = both[np.isfinite(both[:, column]), column]
        sides = [side[np.isfinite(side[:, 0, column]), 0, column] for side in (theirs, ours)]
        if min(map(len, sides)) < FEWEST or known.std() == 0:
            continue
        names += [
            f"{name}: {quantity}"
            for name in ("mean", "deviation", *(f"quantile {level:g}" for level in LEVELS))
        ]
        bounds = np.quantile(known, LEVELS)
        for rows, values in zip(found, sides, strict=True):
            rows += _marginals(
                (values - known.mean()) / known.std(), (bounds - known.mean()) / known.std()
            )
    return tuple(Estimate(tuple(names), *np.array(rows).T) for rows in found)


def _marginals(values: np.ndarray, bounds: np.ndarray) -> list[tuple[float, float]]:
    deviation, n = values.std(), len(values)
    fourth = ((values - values.mean()) ** 4).mean()
    shares = [(values <= bound + 1e-9).mean() for bound in bounds]
    return [
        (values.mean(), deviation / np.sqrt(n)),
        (deviation, np.sqrt(max(fourth - deviation**4, 0) / n) / max(2 * deviation, 1e-9)),
        *((share, np.sqrt(share * (1 - share) / n)) for share in shares),
    ]


def differences(where: str, theirs: Estimate, ours: Estimate) -> list[Difference]:
    """Entries that both sides have."""
    there = dict(zip(theirs.names, range(len(theirs.names)), strict=True))
    found = []
    for name, value, error in zip(ours.names, ours.values, ours.errors, strict=True):
        if (place := there.get(name)) is not None:
            scale = np.hypot(max(error, SMALLEST_ERROR), max(theirs.errors[place], SMALLEST_ERROR))
            other = theirs.values[place]
            found.append(
                Difference(where, name, float(other), float(value), float((value - other) / scale))
            )
    return found


def pooled(where: str, parts: Sequence[Sequence[Difference]]) -> Iterator[Difference]:
    """Each entry over all conditions that have it, weighted by its precision: chance leaves less of
    it there.

    Runs of different conditions have different seeds, so that they are independent.
    """
    by_entry: dict[str, list[Difference]] = {}
    for one in (one for part in parts for one in part):
        by_entry.setdefault(one.entry, []).append(one)
    for entry, ones in by_entry.items():
        if len(ones) > 1:
            precision = np.array(
                [(one.z / one.apart) ** 2 if one.apart else 1 / SMALLEST_ERROR**2 for one in ones]
            )
            share = precision / precision.sum()
            theirs, ours = (
                float(share @ [getattr(one, side) for one in ones]) for side in ("theirs", "ours")
            )
            yield Difference(
                where, entry, theirs, ours, (ours - theirs) * float(np.sqrt(precision.sum()))
            )


def limit(entries: int) -> float:
    """How many standard errors chance may put between two sides of any of that many entries."""
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2 / max(entries, 1))


def summary(values: np.ndarray) -> Mapping[str, float]:
    """Of the ages of partners: shares of the sample itself, of what the rank was not shown;
    quantiles of others."""
    seen = values[np.isfinite(values)]
    return {
        "the sample itself": float((values == 0).mean()),
        "not shown before": float((~np.isfinite(values)).mean()),
        **{f"quantile {level:g}": float(np.quantile(seen, level)) for level in LEVELS},
    }


def _value(column: np.ndarray) -> np.ndarray:
    return column


def _rank(column: np.ndarray) -> np.ndarray:
    """Shares of the samples below, ties in their middle; NaN for what has two values only: its
    ranks say no more."""
    has = np.isfinite(column)
    values, places, counts = np.unique(column[has], return_inverse=True, return_counts=True)
    made = np.full(len(column), np.nan)
    if len(values) > 2:
        made[has] = ((counts.cumsum() - counts / 2) / has.sum())[places]
    return made


def _spread(column: np.ndarray) -> np.ndarray:
    return np.abs(_rank(column) - 0.5)


def _standard(column: np.ndarray) -> np.ndarray:
    has = np.isfinite(column)
    if not has.any() or column[has].std() == 0:
        return np.full(len(column), np.nan)
    return (column - column[has].mean()) / column[has].std()
