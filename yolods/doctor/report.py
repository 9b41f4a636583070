"""The output of `yolods doctor`: one row per host, one line per finding, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from yolods.doctor.checks import Finding, Plan, interface_to, master_address, skews
from yolods.hosts.probe import LIBRARIES, Count
from yolods.hosts.remote import Answer
from yolods.system.humanize import amount, plural, size_text

COLUMNS = (
    *(
        "host",
        "ssh",
        "python",
        "yolods",
        *LIBRARIES,
        "slots",
        "GPU free",
        "disk free",
        "clock",
        "interface",
        "port",
    ),
    *("build", "data"),
)
"""Columns of the table; those that are empty on every host are omitted."""


WIDTH = 120
"""Characters per line of the table; further columns go into a second block below."""


def report_lines(
    plan: Plan, answers: Sequence[Answer], findings: Sequence[Finding], width: int = WIDTH
) -> list[str]:
    """The table, one line per finding, and the verdict. A ! marks a cell with a finding."""
    address = master_address(plan, answers)
    rows = [
        _row(plan, answer, skew, address)
        for answer, skew in zip(answers, _shown_skews(answers), strict=True)
    ]
    marked = {(finding.host, finding.column) for finding in findings}
    columns: list[list[str]] = []
    for name in COLUMNS:
        if any(row[name] for row in rows):
            cells = [(row[name] or "-") + "!" * ((row["host"], name) in marked) for row in rows]
            columns.append([name, *(cells if name != "host" else (row["host"] for row in rows))])
    table = [line for block in _blocks(columns, width) for line in (*block, "")]
    return [_heading(plan, address), "", *table, *map(str, findings), verdict(findings)]


def _blocks(columns: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """Columns side by side as far as the width permits, the rest in blocks below.

    Each block repeats the first column.
    """
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in columns]
    blocks = [[padded[0]]]
    for column in padded[1:]:
        taken = sum(len(other[0]) + 2 for other in blocks[-1])
        if taken + len(column[0]) > width and len(blocks[-1]) > 1:
            blocks.append([padded[0]])
        blocks[-1].append(column)
    return [["  ".join(cells).rstrip() for cells in zip(*block, strict=True)] for block in blocks]


def verdict(findings: Sequence[Finding]) -> str:
    """The last line."""
    faults = sum(finding.fatal for finding in findings)
    warnings = len(findings) - faults
    counts = [
        f"{n} {word}{'s' * (n > 1)}" for n, word in ((faults, "fault"), (warnings, "warning")) if n
    ]
    found = f" ({', '.join(counts)})" if counts else ""
    return ("This run would fail" if faults else "This run would start") + found + "."


def _heading(plan: Plan, address: str | None) -> str:
    ranks = sum(len(host.chosen) for host in plan.hosts)
    port = f"port {plan.master_port}" if plan.master_port else "a free port"
    where = f"{plan.master_addr or address or 'an unknown address'}, {port}"
    return f"{plural(len(plan.hosts), 'host')}, {plural(ranks, 'rank')}, meeting at {where}"


def _shown_skews(answers: Sequence[Answer]) -> list[str]:
    # Adding 0.0 turns -0.0 into 0.0, which prints as +0.0.
    ahead = {id(answer): f"{round(skew, 1) + 0.0:+.1f} s" for answer, skew, _ in skews(answers)}
    return [ahead.get(id(answer), "") for answer in answers]


def _row(plan: Plan, answer: Answer, skew: str, address: str | None) -> dict[str, str]:
    """Column -> cell; "" for an empty one."""
    host, report = answer.host, answer.report
    empty = dict.fromkeys(COLUMNS, "")
    if report is None:
        return {**empty, "host": host.name, "ssh": "no answer"}
    devices = plural(len(report.gpus), "GPU") if report.gpus else plural(report.cores, "core")
    # The GPU with the least free memory limits the run.
    free = min(
        (gpu.free for gpu in report.gpus if gpu.index in host.chosen and gpu.free is not None),
        default=None,
    )
    first = answer.host == plan.hosts[0]
    tools = {
        "ninja": report.ninja or report.ninja_beside,
        "c++": report.compiler,
        "nvcc": report.nvcc if report.gpus else None,
    }
    return {
        **empty,
        "host": host.name,
        "ssh": "" if plan.local else f"{answer.seconds:.1f} s",
        "python": report.python,
        "yolods": report.versions["yolods"] or "",
        **{name: report.versions.get(name) or "" for name in LIBRARIES},
        "slots": f"{len(host.chosen)} on {devices}",
        "GPU free": "" if free is None else f"{free / 1024:.1f} GiB",
        "disk free": size_text(min(report.disk.values(), default=0)),
        "clock": "" if len(plan.hosts) == 1 else skew,
        "interface": "" if plan.local or address is None else interface_to(report, address) or "",
        "port": ("taken" if report.port_error else "free") if first and plan.master_port else "",
        "build": " ".join(name for name, path in tools.items() if path),
        "data": _data_cell(report.data),
    }


def _data_cell(counts: Sequence[Count]) -> str:
    if not counts:
        return ""
    return amount(sum(count.files for count in counts), sum(count.bytes for count in counts))
