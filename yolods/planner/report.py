"""What a plan shows: the best layouts by term, what each number is, and why the others lost."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from yolods.plan.layout import Layout
from yolods.plan.memory.terms import RankMemory
from yolods.plan.stage_plan import GIB
from yolods.plan.time.step import Clock, StepSeconds
from yolods.planner.choices import obstacle
from yolods.planner.request import Machines, Subject, machine_line
from yolods.planner.search import TIE, Found, Option, traits
from yolods.system.humanize import size_text

_EXACT, _MEASURED, _ASSUMED = "exact", "measured", "assumed"
MEMORY_TERMS = tuple(each.name for each in fields(RankMemory))
"""Names of the terms of a rank's memory."""
TIME_TERMS = tuple(each.name for each in fields(StepSeconds))
"""Names of the terms of a step's time."""
_SHORT = {"moving_average": "average", "communication": "exposed"}


def memory_kinds(device: str) -> dict[str, str]:
    """What each term of a rank's memory is.

    Tensors follow from shapes and DeepSpeed's rules. The loss depends on the boxes that a batch
    happens to have, and the reserve on the allocator.
    """
    kinds = dict.fromkeys(MEMORY_TERMS, _EXACT)
    return {**kinds, "loss": _ASSUMED, "reserve": _ASSUMED if device == "cuda" else _EXACT}


def time_kinds(clock: Clock, layout: Layout) -> dict[str, str]:
    """What each term of a step's time is: as good as the worst of what it is computed from."""
    compute = clock.times[layout.autocast or layout.precision].source
    links = {clock.network.within.source, clock.network.between.source}
    if layout.ranks <= clock.network.slots:
        links = {clock.network.within.source}
    elif clock.network.slots == 1:
        links = {clock.network.between.source}
    return {
        "compute": compute,
        "communication": _EXACT if layout.ranks == 1 else _worst(links),
        "idle": _worst({compute, *links}) if layout.stages > 1 else _EXACT,
        "optimizer": _ASSUMED if clock.profile is None else _MEASURED,
    }


def _worst(kinds: Collection[str]) -> str:
    return next((each for each in (_ASSUMED, "given", _MEASURED) if each in kinds), _ASSUMED)


def render_plan(
    found: Found, clock: Clock, subject: Subject, machines: Machines, *, top: int
) -> list[str]:
    """The whole report as lines; nothing fits: without a table."""
    rows = found.ranked[:top]
    lines = [_title(found, subject, machines), *_sources(clock, subject, machines), ""]
    if rows:
        kinds = {**_column_kinds(clock, rows), **memory_kinds(machines.device)}
        lines += [*_table(rows, kinds, found), ""]
    return [*lines, *(f"- {line}" for line in losers(found, top=top))]


def _column_kinds(clock: Clock, rows: Sequence[Option]) -> dict[str, str]:
    """What the times of each column are: as good as its worst row."""
    found = dict.fromkeys(TIME_TERMS, _EXACT)
    for each in rows:
        told = time_kinds(clock, each.layout)
        found |= {term: kind for term, kind in told.items() if kind != _EXACT}
    return found


def _title(found: Found, subject: Subject, machines: Machines) -> str:
    choice = found.choice
    return (
        f"{subject.model} at {choice.imgsz}, {choice.images} images per step, "
        f"{machine_line(machines)}: {found.examined} layouts searched"
    )


def _sources(clock: Clock, subject: Subject, machines: Machines) -> Iterator[str]:
    yield (
        f"memory: a rank may use {size_text(machines.limits.device)} of "
        f"{size_text(machines.memory)} ({machines.memory_source}); boxes per sample "
        f"{subject.boxes.mean:.1f}, at most {subject.boxes.most} ({subject.boxes_source})"
    )
    if next(iter(clock.times.values())).source == _MEASURED:
        where = "this device" if machines.device == "cuda" else "these hosts"
        compute = f"measured on {where}"
    elif machines.device == "cuda":
        compute = f"assumed from published figures of {machines.figures.name}"
    else:
        compute = "assumed for any CPU: only the ratios mean anything"
    links = {"within a host": clock.network.within}
    if machines.hosts > 1:
        links["between hosts"] = clock.network.between
    bandwidths = ", ".join(
        f"{where} {link.bandwidth * 8e-9:.4g} Gbit/s ({link.source})"
        for where, link in links.items()
    )
    yield f"time: compute {compute}; links {bandwidths}"


def _table(rows: Sequence[Option], kinds: dict[str, str], found: Found) -> list[str]:
    """Time and memory of each row, with what the numbers are below their names."""
    shown = [
        term
        for term in MEMORY_TERMS
        if term != "host" or any(getattr(each.fullest, term) for each in rows)
    ]
    head = ["", "layout", "type", "micro", "steps", "recompute", "ms", *TIME_TERMS]
    head += ["GiB", *shown]
    head = [_shown(name) for name in head]
    under = ["", "", "", "", "", "", "", *(kinds[each] for each in TIME_TERMS)]
    under += ["", *(kinds[each] for each in shown)]
    cells = [head, under, *(_row(place, each, shown) for place, each in enumerate(rows, 1))]
    widths = [max(len(row[place]) for row in cells) for place in range(len(head))]
    left = {1, 2}
    return [
        "  ".join(
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _shown(name: str) -> str:
    """The name of a term in the report."""
    return _SHORT.get(name, name.replace("_", " "))


def _row(place: int, option: Option, shown: Sequence[str]) -> list[str]:
    layout, memory, step = option.layout, option.fullest, option.step
    assert step is not None
    return [
        str(place),
        option.family.label + (f", {layout.schedule}" if layout.schedule != "1f1b" else ""),
        layout.precision,
        str(layout.micro_batch),
        str(layout.accumulation),
        _recompute(layout),
        f"{step.total * 1e3:.1f}",
        *(f"{getattr(step, each) * 1e3:.1f}" for each in TIME_TERMS),
        f"{memory.device / GIB:.2f}",
        *(f"{getattr(memory, each) / GIB:.2f}" for each in shown),
    ]


def _recompute(layout: Layout) -> str:
    return "-" if not layout.recompute else "yes" if layout.recompute < 0 else str(layout.recompute)


def losers(found: Found, *, top: int) -> list[str]:
    """A line per family below the table, and per setting that no row has, with the reason."""
    shown = [each.family for each in found.ranked[:top]]
    below = sorted(found.options, key=lambda each: (each.seconds, each.over))
    lines = [
        f"{each.family.label}: {_why(each, found)}" for each in below if each.family not in shown
    ]
    lines += [f"{each.label}: {obstacle(found.choice, each)}" for each in found.undivided]
    return [*lines, *_settings(found, top)] if found.best else lines


def _settings(found: Found, top: int) -> Iterator[str]:
    """A line per value of a setting that no row of the table has."""
    best, rows = found.best, [traits(each.layout) for each in found.ranked[:top]]
    assert best is not None
    for (name, value), bound in found.bounds.items():
        if any(row.get(name) == value for row in rows):
            continue
        slower = bound / best.seconds - 1
        why = (
            f"at least {slower:.0%} slower: {bound * 1e3:.1f} ms without any waiting"
            if slower > 0
            else "no family is fastest with it, or it does not fit there"
        )
        yield f"{name} {value}: {why}"
    yield (
        "autocast: not searched; it computes as fast as its data type, with weights and gradients "
        "in fp32, and so never takes less memory or sends less"
    )


def _why(option: Option, found: Found) -> str:
    """Why a layout is not the best: what is too large, or what takes longer."""
    if option.step is None:
        return f"needs {need(option, found)}"
    best = found.best
    assert best is not None and best.step is not None
    slower = option.seconds / best.seconds - 1
    if slower <= TIE:
        return "as fast, but not as simple"
    terms = {each: getattr(option.step, each) - getattr(best.step, each) for each in TIME_TERMS}
    worst = max(terms, key=lambda each: terms[each])
    own, least = (getattr(step, worst) * 1e3 for step in (option.step, best.step))
    return f"{slower:.0%} slower: {_shown(worst)} {own:.1f} ms instead of {least:.1f} ms"


def need(option: Option, found: Found) -> str:
    """What a layout that does not fit takes, with the sum of its terms."""
    limits = found.limits
    memory = max(option.memory, key=limits.taken)
    if limits.taken(memory) <= limits.device:
        host = max(each.host for each in option.memory)
        return f"{size_text(host)} of host memory per rank > {size_text(limits.host)}"
    counted = [each for each in MEMORY_TERMS if each != "host" or limits.shared]
    terms = sorted(((getattr(memory, each), each) for each in counted), reverse=True)
    parts = [f"{name.replace('_', ' ')} {size_text(size)}" for size, name in terms if size]
    return f"{size_text(limits.taken(memory))} > {size_text(limits.device)}: {' + '.join(parts)}"


def plan_json(
    found: Found, clock: Clock, subject: Subject, machines: Machines, *, top: int
) -> dict[str, Any]:
    """Everything that the report shows, for programs: bytes and seconds."""
    return {
        "model": subject.model,
        "parameters": subject.blueprint.parameters,
        "imgsz": found.choice.imgsz,
        "images_per_step": found.choice.images,
        "ranks": machines.ranks,
        "hosts": machines.hosts,
        "device": machines.figures.name,
        "limit_bytes": machines.limits.device,
        "boxes": {**asdict(subject.boxes), "source": subject.boxes_source},
        "examined": found.examined,
        "layouts": [
            {
                "name": each.family.label,
                "layout": asdict(each.layout),
                "seconds": {**asdict(each.step), "total": each.seconds},
                "seconds_are": time_kinds(clock, each.layout),
                "stages_bytes": [asdict(rank) for rank in each.memory],
            }
            for each in found.ranked[:top]
            if each.step is not None
        ],
        "bytes_are": memory_kinds(machines.device),
        "losers": losers(found, top=top),
    }
