"""What `clipping.py` has counted and timed, and the arithmetic and text on it; no torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.report import BUSY, Spread

READS = 1.1
"""Target: most reads of the gradients in measuring; what is written counts like what is read."""
SYNCS = 1
"""Target: how often the host waits for the device in a step."""
ROOF = 1.3
"""Target: most time of measuring over that of one `torch.sum`."""
FASTER = 4.0
"""Target: least time of the stock way over ours."""
TOLERANCE = 1e-3
"""Relative, between norms: fp32 and fp64 add up in other orders."""

DTYPES = ("fp16", "bf16", "fp32")
"""Of the gradients."""
ZERO12, ZERO3 = "ZeRO-1/2", "ZeRO-3"
OURS, FUSED, STOCK = "yolods", "yolods, fused optimizer", "stock"
TORCH, ROOFLINE = "clip_grad_norm_ (foreach)", "torch.sum"


@dataclass(frozen=True)
class Name:
    """One way of handling a step's gradients."""

    what: str
    """`OURS`, `FUSED`, `STOCK`, `TORCH` or `ROOFLINE`."""
    stage: str = ""
    """`ZERO12` or `ZERO3`, whose layout it works on; nothing where that makes no difference."""

    def __str__(self) -> str:
        return ", ".join(part for part in (self.what, self.stage) if part)


@dataclass
class Tally:
    """What one part of a step does on a device."""

    read: int = 0
    """Bytes that operators read."""
    written: int = 0
    """Bytes that they write."""
    made: int = 0
    """Of these, the bytes of new tensors."""
    operators: int = 0
    """Operators that are no views; a foreach operator is one."""
    launches: int = 0
    """Kernels: a foreach operator starts one for every few hundred chunks of its tensors."""
    waits: int = 0
    """Times that the host waits for a value of the device."""
    sent: int = 0
    """Times that it waits for a value of its own to have arrived there."""
    collectives: int = 0
    """All-reduces; their traffic is in no other number."""
    by_operator: dict[str, int] = field(default_factory=dict)
    """How often each operator came."""

    @property
    def moved(self) -> int:
        """Bytes read and written."""
        return self.read + self.written

    @property
    def syncs(self) -> int:
        """Times that the host waits, for whatever reason."""
        return self.waits + self.sent


@dataclass(frozen=True)
class Sample:
    """One part of one step."""

    seconds: float
    """On a GPU by its own clock; on one core of a CPU those that the process had it, on several by
    the wall clock."""
    busy: float
    """Share of its cores that the process had in that time."""


@dataclass(frozen=True)
class Part:
    """Measuring, or applying, in one way."""

    tally: Tally
    samples: tuple[Sample, ...] = ()
    """Round by round."""
    allocated: int | None = None
    """Bytes that it allocated where it was timed, what operators allocate within themselves
    included; None: not measured."""

    @property
    def moved(self) -> int | None:
        """Bytes read and written where it was timed: what operators have for themselves they write
        and read."""
        if self.allocated is None:
            return None
        return self.tally.moved + 2 * max(0, self.allocated - self.tally.made)


@dataclass(frozen=True)
class Row:
    """A way with its parts."""

    name: Name
    measuring: Part
    """From the reduced gradients to the verdict on the host, or to the norm on the device."""
    applying: Part | None
    """Unscaling and clipping; None where there is none."""
    norm: float | None
    """Global norm that it found; None where it finds none."""

    def seconds(self, *, both: bool) -> list[float]:
        """Round by round: of measuring, or of measuring and applying."""
        first = [sample.seconds for sample in self.measuring.samples]
        if not both or self.applying is None:
            return first
        return [one + two.seconds for one, two in zip(first, self.applying.samples, strict=True)]

    @property
    def syncs(self) -> int:
        """Waits of the host in the whole step."""
        return self.measuring.tally.syncs + (self.applying.tally.syncs if self.applying else 0)


@dataclass(frozen=True)
class Case:
    """All ways on the gradients of one model in one dtype."""

    model: str
    dtype: str
    parameters: int
    """Elements."""
    tensors: int
    """Parameters with a gradient of their own."""
    width: int
    """Bytes of an element."""
    rows: tuple[Row, ...]

    def row(self, what: str, stage: str = "") -> Row:
        """A way by its name."""
        return next(row for row in self.rows if row.name == Name(what, stage))

    def reads(self, part: Part) -> float:
        """How many times the size of the gradients a part moves."""
        return part.tally.moved / (self.parameters * self.width)

    def over_roof(self, row: Row) -> Spread:
        """Time of measuring over that of `torch.sum`, round by round."""
        pairs = zip(row.seconds(both=False), self.row(ROOFLINE).seconds(both=False), strict=True)
        return Spread.of(mine / roof for mine, roof in pairs)

    def faster(self, row: Row, other: Row, *, both: bool) -> Spread:
        """Time of another way over that of `row`, round by round."""
        pairs = zip(row.seconds(both=both), other.seconds(both=both), strict=True)
        return Spread.of(theirs / mine for mine, theirs in pairs)

    @property
    def title(self) -> str:
        """Model, dtype and size."""
        return (
            f"{self.model}, {self.dtype}: {self.parameters / 1e6:.1f} M parameters in "
            f"{self.tensors} tensors"
        )


@dataclass(frozen=True)
class Verdict:
    """A target and what was reached."""

    case: str
    target: str
    stage: str
    found: str
    met: bool


def verdicts(case: Case) -> list[Verdict]:
    """Every target on one case; medians count."""
    return [verdict for stage in (ZERO12, ZERO3) for verdict in _verdicts(case, stage)]


def _verdicts(case: Case, stage: str) -> list[Verdict]:
    where = f"{case.model}, {case.dtype}"
    ours, fused, stock = (case.row(what, stage) for what in (OURS, FUSED, STOCK))
    reads = case.reads(ours.measuring)
    found = [
        Verdict(
            where,
            f"measuring moves at most {READS} x the gradients on a GPU",
            stage,
            f"{reads:.3f}",
            reads <= READS,
        ),
        Verdict(
            where,
            f"host syncs in both parts on a GPU: {SYNCS}",
            stage,
            f"{ours.syncs}",
            ours.syncs == SYNCS,
        ),
    ]
    if not ours.measuring.samples:
        return found
    roof = case.over_roof(ours)
    target = f"measuring takes at most {ROOF} x torch.sum's time"
    found.append(Verdict(where, target, stage, roof.text(2), roof.median <= ROOF))
    for what, row, both in (
        ("measuring", ours, False),
        ("both parts", ours, True),
        ("both parts with a fused optimizer", fused, True),
    ):
        faster = case.faster(row, stock, both=both)
        target = f"{what}: stock takes at least {FASTER:g} x the time"
        found.append(Verdict(where, target, stage, faster.text(2), faster.median >= FASTER))
    return found


def misses(cases: Sequence[Case]) -> list[Verdict]:
    """Targets that are missed."""
    return [verdict for case in cases for verdict in verdicts(case) if not verdict.met]


def doubts(cases: Sequence[Case]) -> list[str]:
    """What makes figures doubtful."""
    found = []
    parts = [
        part
        for case in cases
        for row in case.rows
        for part in (row.measuring, row.applying)
        if part is not None
    ]
    # Of less than a millisecond the two clocks do not tell the same.
    shares = sorted(
        sample.busy for part in parts for sample in part.samples if sample.seconds > 1e-3
    )
    if shares and shares[0] < BUSY:
        below = sum(share < BUSY for share in shares)
        found.append(
            f"While {below} of {len(shares)} times were taken this process had less than "
            f"{BUSY:.0%} of its core (the least {shares[0]:.0%}): something else ran, which "
            "lengthens them by what it takes of caches and memory."
        )
    for case in cases:
        norms = [row.norm for row in case.rows if row.norm is not None and row.name.what != TORCH]
        if norms and max(norms) - min(norms) > TOLERANCE * max(norms):
            found.append(
                f"{case.title}: the ways disagree on the norm, from {min(norms)} to {max(norms)}."
            )
    return found


def count_table(case: Case) -> list[str]:
    """What every way moves, launches and waits for."""
    heads = [
        "way",
        "measuring: bytes a parameter",
        "gradients moved",
        "operators",
        "kernels",
        "syncs",
        "all-reduces",
    ]
    heads += ["applying: bytes a parameter", "operators", "kernels", "syncs"]
    rows = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for row in case.rows:
        one = row.measuring.tally
        cells = [
            str(row.name),
            f"{one.moved / case.parameters:.2f}",
            f"{case.reads(row.measuring):.2f}",
        ]
        cells += [f"{one.operators}", f"{one.launches}", _syncs(one), f"{one.collectives}"]
        if row.applying is None:
            cells += [""] * 4
        else:
            two = row.applying.tally
            cells += [
                f"{two.moved / case.parameters:.2f}",
                f"{two.operators}",
                f"{two.launches}",
                _syncs(two),
            ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _syncs(tally: Tally) -> str:
    return f"{tally.waits} + {tally.sent}" if tally.sent else f"{tally.waits}"


def time_table(case: Case) -> list[str]:
    """How long every way took."""
    heads = [
        "way",
        "measuring, ms",
        "x torch.sum",
        "allocates",
        "moves",
        "applying, ms",
        "both, ms",
    ]
    heads += ["measuring: stock / ours", "both: stock / ours"]
    rows = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for row in case.rows:
        memory = (row.measuring.allocated, row.measuring.moved)
        cells = [
            str(row.name),
            _ms(row.seconds(both=False)),
            case.over_roof(row).text(2),
            *("" if each is None else f"{each / case.parameters:.2f}" for each in memory),
            _ms([sample.seconds for sample in row.applying.samples]) if row.applying else "",
            f"{1e3 * Spread.of(row.seconds(both=True)).median:.1f}",
        ]
        if row.name.what in (OURS, FUSED):
            stock = case.row(STOCK, row.name.stage)
            cells += [
                case.faster(row, stock, both=False).text(2),
                case.faster(row, stock, both=True).text(2),
            ]
        else:
            cells += ["", ""]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _ms(seconds: Sequence[float]) -> str:
    return Spread.of(1e3 * each for each in seconds).text(1)


def verdict_table(cases: Sequence[Case]) -> list[str]:
    """Every target, and whether it is met."""
    rows = [
        f"| gradients | target | {ZERO12} | | {ZERO3} | |",
        "| --- | --- | ---: | --- | ---: | --- |",
    ]
    for case in cases:
        found = {(each.target, each.stage): each for each in verdicts(case)}
        for target in dict.fromkeys(target for target, _ in found):
            pair = [found[target, stage] for stage in (ZERO12, ZERO3)]
            cells = [
                cell for each in pair for cell in (each.found, "met" if each.met else "**missed**")
            ]
            rows.append(f"| {pair[0].case} | {target} | {' | '.join(cells)} |")
    return rows


def tables(cases: Sequence[Case]) -> list[str]:
    """Everything that was found."""
    missed, all_of_them = len(misses(cases)), sum(len(verdicts(case)) for case in cases)
    verdict = f"{missed} of {all_of_them} missed" if missed else "all met"
    lines = [f"Targets: {verdict}.", "", *verdict_table(cases), ""]
    for case in cases:
        lines += [f"## {case.title}", "", "Counted for a GPU:", "", *count_table(case), ""]
        if case.rows[0].measuring.samples:
            lines += [
                "Timed here; what measuring allocates and moves, in bytes a parameter:",
                "",
                *time_table(case),
                "",
            ]
    return [*lines, *doubts(cases)]
