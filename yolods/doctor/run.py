"""`yolods doctor`: probes every host, compares the reports, and formats the result."""

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
    """Examine all hosts at the same time; the time limits of the probe bound the duration.

    Args:
        hosts: hosts that take part.
        flags: the launcher's flags of the planned start.
        builds: whether DeepSpeed will compile something on hosts with GPUs.
        trees: files and folders that every host needs, with equal numbers of files and bytes.
        lists: text files whose lines name such files.
        ignored: suffixes of files that are not counted, because hosts may differ in them.
        spare: those of `trees` and `lists` that the run does not need; a difference in them is only
            a warning.
        faults: faults found so far; shown with the others. None: there are none.

    Returns:
        lines to print, and whether the run would start.

    Raises:
        UserError: `flags.no_ssh` is set, so there is no way to ask other hosts.
    """
    if flags.no_ssh:
        raise UserError(
            "doctor asks the hosts through ssh, which --no_ssh excludes; "
            "run it on each host without --hostfile and --no_ssh"
        )
    found = faults if faults is not None else Faults()
    local = all(host.is_local for host in hosts)
    address = None if local else meeting_address(flags, hosts)
    # A local start chooses a free port itself; with several hosts DeepSpeed uses its default.
    port = flags.master_port or (None if local else DEFAULT_PORT)
    variables = _variables(found, local=local)
    request = ProbeRequest(address, port, tuple(trees), tuple(lists), tuple(ignored))
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
    # Faults found before any host was asked belong to no host and no column.
    findings = [*(Finding("", "", True, line) for line in found), *diagnose(plan, answers)]
    return report_lines(plan, answers, findings), not any(finding.fatal for finding in findings)


def _variables(faults: Faults, *, local: bool) -> dict[str, str]:
    """The variables that travel to other hosts; adds faults of this process's environment."""
    variables: dict[str, str] = {}
    if not local:
        variables = travelling(os.environ, tuple(filter(None, (home(), Path.cwd()))), faults)
    with faults.caught():
        check_threads(os.environ)
        if local:
            check_interfaces(os.environ, gpus=count_gpus(os.environ) > 0)
    return variables
