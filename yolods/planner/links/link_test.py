"""Measures the links between a hostfile's hosts, by ranks that the launcher starts like a run's."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yolods.errors import Faults, UserError
from yolods.hosts.env_forwarding import in_memory, travelling
from yolods.hosts.hostfile import Host
from yolods.hosts.probe import ProbeRequest
from yolods.hosts.remote import Caller, ask
from yolods.launch.args import LaunchFlags
from yolods.launch.command import hosts_of, launcher_command
from yolods.launch.multi_host import crosses_hosts
from yolods.launch.supervisor import be_a_child
from yolods.plan.step_profile import StepProfile, StepsOf
from yolods.plan.traffic.links import Link
from yolods.planner.links.link_rank import MARK
from yolods.system.folders import home

RANK_COMMAND = "link-test"
"""The command of a rank that measures (`planner.links.link_rank`)."""
LINK_SECONDS = 270.0
"""Time limit from the start of the launcher; ranks end themselves earlier (`RANK_SECONDS`)."""
END_SECONDS = 5.0
SHOWN_LINES = 8

Say = Callable[[str], None]


@dataclass(frozen=True)
class MeasuredLinks:
    """The links between neighbouring hosts."""

    links: dict[tuple[str, str], Link]
    """By the names of the two hosts in the hostfile."""
    profiles: dict[str, StepProfile] = field(default_factory=dict)
    """Of the slowest rank, by precision; empty if no rank was asked for it."""

    @property
    def slowest(self) -> Link:
        """What a ring over all hosts is as fast as: the worst of each number."""
        found = self.links.values()
        return Link(
            min(link.bandwidth for link in found),
            max(link.latency for link in found),
            "measured",
            max(link.copying for link in found),
        )


def measure_links(
    flags: LaunchFlags, *, gpus: int, say: Say, steps: StepsOf | None = None
) -> MeasuredLinks:
    """Measure the links between the hosts that take part.

    It starts one rank on each host, in the way in which a run would start there, and takes half a
    minute, or longer on slow links.

    Args:
        flags: the launcher's flags of the planned start.
        gpus: GPUs of this machine.
        say: shows a line of progress.
        steps: what all ranks of a run would compute on CPUs; they are started, and compute steps of
            it at the same time. None: only links are measured.

    Raises:
        UserError: there is only one host, a host does not answer, the ranks did not meet, or time
            ran out.
    """
    hosts = hosts_of(flags, gpus=0 if flags.hostfile else gpus)
    if not crosses_hosts(flags, hosts):
        raise UserError(
            "--links measures the links between hosts, and "
            + ("--no_ssh cannot start ranks on others" if flags.no_ssh else "there is only one")
            + "; give --hostfile with two or more, or give the link's numbers"
        )
    _check_hosts(hosts, flags, say)
    words = [RANK_COMMAND, *(steps.words if steps else ())]
    chosen = _with_slots(flags, hosts, len(hosts[0].chosen) if steps else 1)
    command, variables = launcher_command(words, chosen, gpus=gpus, python=sys.executable)
    say(f"starting {'the ranks' if steps else 'one rank'} on each of {len(hosts)} hosts")
    return _follow(command, variables, hosts, say)


def _check_hosts(hosts: Sequence[Host], flags: LaunchFlags, say: Say) -> None:
    """Refuse hosts that do not answer, before ranks would wait for them.

    Raises:
        UserError: one line per host.
    """
    say(f"asking {len(hosts)} hosts")
    faults = Faults()
    variables = travelling(os.environ, tuple(filter(None, (home(), Path.cwd()))), faults)
    caller = Caller(Path.cwd(), sys.executable, variables, flags.ssh_port)
    for answer in ask(hosts, ProbeRequest(), caller, local=False):
        if answer.problem:
            faults.add(f"{answer.host.name}: {answer.problem}")
    faults.raise_if_any()


def _with_slots(flags: LaunchFlags, hosts: Sequence[Host], slots: int) -> LaunchFlags:
    # A file instead of --num_gpus, which --include and OpenMPI exclude.
    lines = "".join(f"{host.name} slots={slots}\n" for host in hosts)
    file = in_memory("hostfile", lines)
    return replace(flags, hostfile=file, include="", exclude="", num_gpus=None)


def _follow(
    command: Sequence[str], variables: dict[str, str], hosts: Sequence[Host], say: Say
) -> MeasuredLinks:
    """Run the launcher, and read what rank 0 prints."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=be_a_child,
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    found: dict[tuple[str, str], Link] = {}
    profiles: dict[str, StepProfile] = {}
    others: list[str] = []
    deadline = time.monotonic() + LINK_SECONDS
    try:
        while (line := _next(lines, deadline)) is not None:
            told = message_of(line)
            if told is None:
                others.append(line.rstrip())
            elif "pair" in told:
                pair, link = link_of(told, hosts)
                found[pair] = link
                say(f"{pair[0]} - {pair[1]}: {described(link)}")
            elif "forward" in told:
                told["forward"] = tuple(told["forward"])
                profiles[told["precision"]] = StepProfile(**told)
    except TimeoutError:
        raise UserError(
            f"--links: no result within {LINK_SECONDS:g} s; `yolods doctor --hostfile ...` looks "
            "for the cause"
        ) from None
    finally:
        _end(process)
    if process.returncode != 0 or len(found) < len(hosts) - 1:
        shown = "\n".join(f"    {line}" for line in others[-SHOWN_LINES:])
        raise UserError(
            f"--links: the ranks ended with status {process.returncode} and {len(found)} links "
            f"measured; they said:\n{shown}"
        )
    return MeasuredLinks(found, profiles)


def message_of(line: str) -> dict[str, Any] | None:
    """What a line of rank 0 says; None for any other line."""
    _, mark, text = line.partition(MARK)
    if not mark:
        return None
    try:
        told = json.loads(text)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


def link_of(told: dict[str, Any], hosts: Sequence[Host]) -> tuple[tuple[str, str], Link]:
    """A pair's names, and its link; ranks are in the order of the hosts."""
    first, second = (hosts[rank].name for rank in told["pair"])
    numbers = told["bandwidth"], told["latency"], "measured", told["copying"]
    return (first, second), Link(*numbers)


def described(link: Link) -> str:
    """A link in words."""
    return f"{link.bandwidth * 8 / 1e6:,.0f} Mbit/s, {link.latency * 1e3:.2f} ms"


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put(None)


def _next(lines: queue.Queue[str | None], deadline: float) -> str | None:
    try:
        return lines.get(timeout=max(deadline - time.monotonic(), 0.0))
    except queue.Empty:
        raise TimeoutError from None


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the launcher to stop, which asks the ranks, and kill it if it does not."""
    for tell in (process.terminate, process.kill):
        try:
            process.wait(END_SECONDS)
            return
        except subprocess.TimeoutExpired:
            tell()
    process.wait()
