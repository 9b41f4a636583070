"""The launcher's own flags, under DeepSpeed's names."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from yolods.errors import Faults
from yolods.parsing.command_line import FlagParser

LAUNCHERS = ("pdsh", "openmpi", "slurm")
COMMAND = "YOLODS_COMMAND"
"""Variable that carries the typed command over restarts and to other hosts."""


# Wide: one field per flag of DeepSpeed's launcher.
@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """The launcher's own flags, under DeepSpeed's names."""

    hostfile: Path | None = None
    """File of hosts and slots; None: this machine."""
    hostfile_by: str = "--hostfile "
    """Prefix of the path in messages: the flag or the variable that named the hostfile."""
    include: str = ""
    """Hosts and slots to use."""
    exclude: str = ""
    """Hosts and slots to exclude."""
    num_gpus: int | None = None
    """Ranks per host; None: every slot, every GPU, or two on a CPU."""
    master_port: int | None = None
    """Port of the rendezvous; None: a free one for a local run, DeepSpeed's default otherwise."""
    master_addr: str | None = None
    """Address of the first host for the rendezvous; None: the one that routes to the second
    host."""
    launcher: str = "pdsh"
    """What starts the ranks on several hosts: one of `LAUNCHERS`."""
    launcher_args: str = ""
    """More arguments for the launcher."""
    ssh_port: int | None = None
    """Port of sshd on the hosts; None: as in ssh's own configuration."""
    no_ssh: bool = False
    """Start only this host's ranks: the user runs the same command on every host."""
    node_rank: int | None = None
    """Index of this host among the participating lines of the hostfile; only with `no_ssh`."""
    max_restarts: int = 3
    """Number of restarts of a training run that failed."""


def add_launch_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the launcher's own flags, each a field of `LaunchFlags`."""
    parser.add_argument(
        "-H",
        "--hostfile",
        metavar="FILE",
        type=Path,
        help="file of hosts and slots; default: this machine",
    )
    parser.add_argument(
        "-i",
        "--include",
        metavar="HOST[:SLOT,...]",
        default="",
        help="hosts and slots to use; @ joins several",
    )
    parser.add_argument(
        "-e", "--exclude", metavar="HOST[:SLOT,...]", default="", help="hosts and slots to exclude"
    )
    parser.add_argument("--num_gpus", "--num-gpus", metavar="N", type=int, help="ranks per host")
    parser.add_argument(
        "--master_port", "--master-port", metavar="PORT", type=int, help="port of the rendezvous"
    )
    parser.add_argument(
        "--master_addr",
        "--master-addr",
        metavar="ADDRESS",
        help="address of the first host for the rendezvous",
    )
    parser.add_argument(
        "--launcher", choices=LAUNCHERS, default="pdsh", help="what starts ranks on several hosts"
    )
    parser.add_argument(
        "--launcher_args",
        "--launcher-args",
        metavar="WORDS",
        default="",
        help="more arguments for the launcher",
    )
    parser.add_argument(
        "--ssh_port", "--ssh-port", metavar="PORT", type=int, help="port of sshd on the hosts"
    )
    parser.add_argument(
        "--no_ssh",
        "--no-ssh",
        action="store_true",
        help="start only this host's ranks; run the command on every host",
    )
    parser.add_argument(
        "--node_rank",
        "--node-rank",
        metavar="N",
        type=int,
        help="index of this host in the hostfile, with --no_ssh",
    )


def add_restart_argument(parser: argparse._ActionsContainer) -> None:
    """Add the supervisor's flag."""
    parser.add_argument(
        "--max_restarts",
        "--max-restarts",
        metavar="N",
        type=int,
        default=LaunchFlags.max_restarts,
        help=f"number of restarts of a run that failed (default {LaunchFlags.max_restarts})",
    )


def split_words(
    words: Sequence[str], environ: Mapping[str, str] | None = None
) -> tuple[LaunchFlags, list[str]]:
    """Split a command line into the launcher's flags and the rest, and raise on any fault.

    Raises:
        UserError: every fault, one line each.
    """
    faults = Faults()
    flags, rest = read_words(words, faults, environ)
    faults.raise_if_any()
    return flags, rest


def read_words(
    words: Sequence[str], faults: Faults, environ: Mapping[str, str] | None = None
) -> tuple[LaunchFlags, list[str]]:
    """Take the launcher's flags out of a command line.

    Args:
        words: for example ["train", "--data", "x.yaml", "--hostfile", "hosts"].
        faults: collects a line for each flag with a missing or invalid value; such a flag counts
            as not given.
        environ: environment, in which HOSTFILE replaces a missing --hostfile; default: this
            process's own.

    Returns:
        the launcher's flags, and the remaining words in their order.
    """
    parser = FlagParser(prog="yolods launch", description="", add_help=False)
    add_launch_arguments(parser)
    add_restart_argument(parser)
    found, rest, lines = parser.read_known(words)
    for line in lines:
        faults.add(line)
    given = vars(found)
    named = (os.environ if environ is None else environ).get("HOSTFILE")
    if found.hostfile is None and named:
        given |= {"hostfile": Path(named), "hostfile_by": "HOSTFILE="}
    _drop_bad(given, faults)
    return LaunchFlags(**given), rest


def recorded_flags(command: str, folder: Path) -> LaunchFlags:
    """The launcher's flags in the command that started a run.

    Args:
        command: as typed, quoted for a shell.
        folder: the working directory of the command.
    """
    flags, _ = read_words(shlex.split(command), Faults(), {})
    return replace(flags, hostfile=None if flags.hostfile is None else folder / flags.hostfile)


def _drop_bad(given: dict[str, Any], faults: Faults) -> None:
    """Remove bad values, so that their defaults apply and later checks can find more faults."""
    if given["max_restarts"] < 0:
        faults.add(
            f"--max-restarts {given.pop('max_restarts')}: it must be at least 0 (never restart)"
        )
    for flag in ("master_port", "ssh_port"):
        port = given[flag]
        if port is not None and not 0 < port < 65536:
            faults.add(f"--{flag} {given.pop(flag)}: a port is a number from 1 to 65535")
