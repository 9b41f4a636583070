"""Sends the probe to all hosts in parallel, each with a hard timeout, and collects the answers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from yolods.hosts import probe
from yolods.hosts.hostfile import Host
from yolods.hosts.probe import ProbeRequest, Report
from yolods.system.invocation import script

CONNECT_SECONDS = 5
"""Time limit of ssh's connection."""
ANSWER_SECONDS = 12.0
"""Time limit of a host's answer, including the connection."""
DRAIN_SECONDS = 1.0
CLEAR_SECONDS = 75
"""A rank whose launcher is gone takes at most 60 s to save and leave."""

_NO_FOLDER, _NO_PYTHON, _SSH_FAILED = 91, 92, 255
_SSH_REMEDIES = {
    "Permission denied": "allow login without a password: ssh-copy-id {name}",
    "Host key verification failed": "accept its key: ssh {name} once by hand, or ssh-keyscan",
    "Could not resolve": "correct its name in the hostfile, or add it to /etc/hosts",
    "Connection refused": "start sshd there, or set its port in ~/.ssh/config under Host {name}",
}
"""What ssh says -> what to do about it. `explain` fills in `{name}`."""


@dataclass(frozen=True)
class Answer:
    """A host's answer."""

    host: Host
    report: Report | None
    problem: str = ""
    """One line: why there is no report, and the remedy."""
    seconds: float = 0.0
    """Time from the request to the answer."""
    skew: float = 0.0
    """The host's clock minus ours, in seconds, accurate to some tenths."""


@dataclass(frozen=True)
class Caller:
    """The environment from which a run would start; every host needs the same."""

    directory: Path
    """Directory to which DeepSpeed's launcher changes on each host."""
    python: str
    """Interpreter that it starts there."""
    variables: Mapping[str, str]
    """Variables that it sets there."""
    ssh_port: int | None = None
    """Port of sshd; None: as in ssh's own configuration."""


def ask(
    hosts: Sequence[Host], request: ProbeRequest, caller: Caller, *, local: bool
) -> list[Answer]:
    """Probe all hosts at the same time.

    Args:
        local: start the probe here, without ssh. The launcher needs no ssh only if every host is
            this machine; otherwise it uses ssh for each host, including this machine.

    Returns:
        one answer per host, in their order.
    """
    source = Path(probe.__file__).read_text(encoding="utf-8")
    words = json.dumps(asdict(request))
    with ThreadPoolExecutor(max_workers=min(256, len(hosts))) as pool:
        return list(pool.map(lambda host: _ask(host, source, words, caller, local), hosts))


def clear(hosts: Sequence[Host], run_dir: Path, port: int | None) -> None:
    """Wait until no rank of a run is left on the hosts; after CLEAR_SECONDS, kill those that are.

    Ranks whose login shell has ended stop by themselves when they notice it. The rest are killed
    with pkill, as DeepSpeed does it.

    Args:
        run_dir: absolute path, which is in the command line of every rank.
        port: port of sshd; None: as in ssh's own configuration.
    """
    # The brackets keep pgrep and pkill from matching the command that contains this pattern.
    pattern = shlex.quote(f"[y]olods train .*--run-dir {re.escape(str(run_dir))}( |$)")
    wait = (
        f"for i in $(seq {CLEAR_SECONDS}); do pgrep -f {pattern} >/dev/null || exit 0; sleep 1; "
        "done"
    )
    command = shlex.join(["sh", "-c", f"{wait}; pkill -KILL -f {pattern}; sleep 1"])
    silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    processes = [
        subprocess.Popen(ssh_command(host.name, command, os.environ, port), **silent)
        for host in hosts
    ]
    for process in processes:
        try:
            process.wait(CLEAR_SECONDS + ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ssh_command(
    name: str, command: str, environ: Mapping[str, str], port: int | None = None
) -> list[str]:
    """ssh as pdsh calls it, but without any prompt and with a short connection timeout."""
    options = ("BatchMode=yes", "PasswordAuthentication=no", f"ConnectTimeout={CONNECT_SECONDS}")
    words = [word for option in options for word in ("-o", option)]
    words += [
        *shlex.split(environ.get("PDSH_SSH_ARGS_APPEND", "")),
        *(["-p", str(port)] if port else []),
    ]
    return ["ssh", *words, name, command]


def _ask(host: Host, source: str, words: str, caller: Caller, local: bool) -> Answer:
    command = [caller.python, "-", words]
    variables = dict(os.environ)
    if local:
        # As the launcher does for local ranks: the tools beside its Python are on PATH.
        variables["PATH"] = os.pathsep.join(
            (str(Path(sys.executable).parent), variables.get("PATH", ""))
        )
    else:
        command = ssh_command(host.name, _remote(command, caller), variables, caller.ssh_port)
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=caller.directory,
            env=variables,
        )
    except OSError as error:
        return Answer(
            host,
            None,
            f"{command[0]} cannot be started: {error.strerror}; install it (openssh-client)",
        )
    try:
        shown, said = process.communicate(source, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        # Its children may still hold the pipe.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=DRAIN_SECONDS)
        remedy = (
            "something on this machine hangs" if local else f"try by hand: ssh {host.name} true"
        )
        problem = f"no answer within {ANSWER_SECONDS:g} s; {remedy}"
        return Answer(host, None, problem, time.monotonic() - began)
    ended, seconds = time.time(), time.monotonic() - began
    try:
        # Login scripts may print before the report.
        report = probe.decode_report(shown.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return Answer(host, None, explain(host.name, process.returncode, said, caller), seconds)
    # The probe reads its clock last, so the skew contains only the time of the way back.
    return Answer(host, report, "", seconds, report.time - ended)


def _remote(command: Sequence[str], caller: Caller) -> str:
    """A command line that any login shell understands."""
    folder, python = shlex.quote(str(caller.directory)), shlex.quote(caller.python)
    variables = [f"{name}={value}" for name, value in caller.variables.items()]
    start = shlex.join(["env", *variables, *command])
    return f"cd {folder} || exit {_NO_FOLDER}; test -x {python} || exit {_NO_PYTHON}; exec {start}"


def explain(name: str, code: int, said: str, caller: Caller) -> str:
    """One line: why a host sent no report, and the remedy.

    Args:
        code: exit status of the command.
        said: its standard error.
    """
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit status {code}"
    if code == _NO_FOLDER:
        return (
            f"it has no folder {caller.directory}; create it there, or start in a folder that all "
            "hosts have"
        )
    if code == _NO_PYTHON:
        here = script()
        remedy = (
            f"install there as here: {here} version"
            if here
            else "create the same environment there"
        )
        return f"it has no {caller.python}; {remedy}"
    if code != _SSH_FAILED:
        return f"{caller.python} fails there: {last}"
    remedy = next(
        (text for sign, text in _SSH_REMEDIES.items() if sign in last),
        "check that it is up and on the network",
    )
    return f"cannot reach it with ssh: {last}; {remedy.format(name=name)}"
