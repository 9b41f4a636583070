"""`yolods doctor`: asks every host about itself, compares what they say, and puts it into lines."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from yolods.distributed.rank_env import DEFAULT_PORT, check_interfaces, check_threads
from yolods.doctor.checks import Finding, Plan, diagnose
from yolods.doctor.report import report_lines
from yolods.errors import Faults, UserError
from yolods.hosts.devices import count_gpus
from yolods.hosts.env_forwarding import travelling
from yolods.hosts.hostfile import Host
from yolods.hosts.probe import ProbeRequest, machine_id
from yolods.hosts.remote import Caller, ask
from yolods.launch.args import LaunchFlags
from yolods.launch.multi_host import TOOLS, meeting_address
from yolods.system.folders import home
from yolods.system.invocation import script


def run_doctor(
    hosts: Sequence[Host],
    flags: LaunchFlags,
    *,
    builds: bool = False,
    trees: Sequence[str] = (),
    lists: Sequence[str] = (),
    ignored: Sequence[str] = (),
    spare: frozenset[str] = frozenset(),
    faults: Faults | None = None,
) -> tuple[list[str], bool]:
    """Examine hosts, at the same time; it takes as long as the slowest, and never longer than the time-outs.

    Args:
        hosts: those that take part.
        flags: what the start will have.
        builds: whether DeepSpeed will have to compile something where there are GPUs.
        trees: files and folders that every host needs, with the same number of files and bytes.
        lists: text files that name such files.
        ignored: endings of file names that may differ between hosts.
        spare: those of `trees` and `lists` without which the run starts all the same.
        faults: what was found already; shown with the rest.

    Returns:
        lines to print, and whether the run would start.

    Raises:
        UserError: hosts that --no_ssh says cannot be asked.
    """
    if flags.no_ssh:
        raise UserError(
            "doctor asks hosts through ssh, and --no_ssh says there is none; start it on each, without both"
        )
    found = faults if faults is not None else Faults()
    local = all(host.is_local for host in hosts)
    # A local start picks a free port by itself; over several hosts DeepSpeed takes its default.
    address = None if local else meeting_address(flags, hosts)
    port = flags.master_port or (None if local else DEFAULT_PORT)
    variables = {} if local else travelling(os.environ, tuple(filter(None, (home(), Path.cwd()))), found)
    with found.caught():
        check_threads(os.environ)
        if local:
            check_interfaces(os.environ, gpus=count_gpus(os.environ) > 0)
    request = ProbeRequest(
        master_addr=address, master_port=port, trees=tuple(trees), lists=tuple(lists), ignored=tuple(ignored)
    )
    caller = Caller(Path.cwd(), sys.executable, variables, flags.ssh_port)
    plan = Plan(
        hosts=tuple(hosts),
        local=local,
        here=machine_id(),
        master_addr=address,
        master_port=port,
        builds=builds,
        spare=spare,
        launcher=flags.launcher,
        tool=shutil.which(TOOLS[flags.launcher][0]),
        variables=variables,
        script=script(),
    )
    answers = ask(hosts, request, caller, local=local)
    findings = [*(Finding("", "", True, line) for line in found), *diagnose(plan, answers)]
    return report_lines(plan, answers, findings), not any(finding.fatal for finding in findings)
