"""`yolods doctor`: asks every host about itself, compares what they say, and puts it into lines."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from yolods.cluster.doctor import DEFAULT_PORT, Finding, Plan, diagnose
from yolods.cluster.hosts import Host
from yolods.cluster.probe import Request, machine_id
from yolods.cluster.reach import Caller, ask, travelling
from yolods.cluster.table import show
from yolods.errors import Faults


def visit(
    hosts: Sequence[Host],
    *,
    master_addr: str | None = None,
    master_port: int | None = None,
    builds: bool = False,
    trees: Sequence[str] = (),
    lists: Sequence[str] = (),
    ignored: Sequence[str] = (),
    faults: Faults | None = None,
) -> tuple[list[str], bool]:
    """Examine hosts, at the same time; it takes as long as the slowest, and never longer than the time-outs.

    Args:
        master_addr: where ranks are to meet, if the start will say so.
        master_port: the same; it has to be free on the first host.
        builds: whether DeepSpeed will have to compile something where there are GPUs.
        trees: files and folders that every host needs, with the same number of files and bytes.
        lists: text files that name such files.
        ignored: endings of file names that may differ between hosts.
        faults: what was found already; shown with the rest.

    Returns:
        lines to print, and whether the run would start.
    """
    found = faults if faults is not None else Faults()
    local = all(host.is_local for host in hosts)
    # A local start picks a free port by itself; over several hosts DeepSpeed takes its default.
    port = master_port or (None if local else DEFAULT_PORT)
    variables = {} if local else travelling(os.environ, (Path.home(), Path.cwd()), found)
    request = Request(
        master_addr=master_addr, master_port=port, trees=tuple(trees), lists=tuple(lists), ignored=tuple(ignored)
    )
    caller = Caller(Path.cwd(), sys.executable, variables)
    plan = Plan(
        hosts=tuple(hosts),
        local=local,
        here=machine_id(),
        master_addr=master_addr,
        master_port=port,
        builds=builds,
        launcher=shutil.which("pdsh"),
        variables=variables,
    )
    answers = ask(hosts, request, caller, local=local)
    findings = [*(Finding("", "", True, line) for line in found), *diagnose(plan, answers)]
    return show(plan, answers, findings), not any(finding.fatal for finding in findings)
