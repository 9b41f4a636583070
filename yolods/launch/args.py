"""The launcher's own flags, under DeepSpeed's names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yolods.errors import Faults
from yolods.parsing.command_line import FlagParser

LAUNCHERS = ("pdsh", "openmpi", "slurm")
COMMAND = "YOLODS_COMMAND"
"""Variable in which the launcher hands on what was typed, over restarts and to other hosts."""


# Wide: a field for each flag of DeepSpeed's launcher.
@dataclass(frozen=True, kw_only=True)
class LaunchFlags:
    """The launcher's own flags, DeepSpeed's names."""

    hostfile: Path | None = None
    """Hosts and their slots; None: this machine."""
    hostfile_by: str = "--hostfile "
    """What has named the hostfile, as it is written before its path: the flag, or the variable."""
    include: str = ""
    """Hosts and slots to use."""
    exclude: str = ""
    """Hosts and slots to leave out."""
    num_gpus: int | None = None
    """Ranks a host; None: every slot, every GPU, or two on a CPU."""
    master_port: int | None = None
    """Port on which ranks meet; None: a free one for a local run, DeepSpeed's default otherwise."""
    master_addr: str | None = None
    """Address of the first host, where ranks meet; None: the one that leads to the second host."""
    launcher: str = "pdsh"
    """What starts the ranks on several hosts: one of `LAUNCHERS`."""
    launcher_args: str = ""
    """More words for it."""
    ssh_port: int | None = None
    """Where sshd listens on the hosts; None: what ssh's own configuration says."""
    no_ssh: bool = False
    """Start the ranks of this host alone: the same command is started on every host."""
    node_rank: int | None = None
    """This host's line among those of the hostfile that take part, from 0; only with `no_ssh`."""
    max_restarts: int = 3
    """How often a training run that has died is started again."""


def add_launch_arguments(parser: argparse._ActionsContainer) -> None:
    """The launcher's own flags, each a field of `LaunchFlags`."""
    parser.add_argument("-H", "--hostfile", metavar="FILE", type=Path, help="hosts and their slots; else this machine")
    parser.add_argument("-i", "--include", metavar="HOST[:SLOT,...]", default="", help="what to use; @ joins several")
    parser.add_argument("-e", "--exclude", metavar="HOST[:SLOT,...]", default="", help="what to leave out")
    parser.add_argument("--num_gpus", "--num-gpus", metavar="N", type=int, help="ranks a host")
    parser.add_argument("--master_port", "--master-port", metavar="PORT", type=int, help="where ranks meet")
    parser.add_argument("--master_addr", "--master-addr", metavar="ADDRESS", help="of the first host, where ranks meet")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="pdsh", help="what starts ranks on several hosts")
    parser.add_argument("--launcher_args", "--launcher-args", metavar="WORDS", default="", help="more words for it")
    parser.add_argument("--ssh_port", "--ssh-port", metavar="PORT", type=int, help="where sshd listens on the hosts")
    parser.add_argument(
        "--no_ssh", "--no-ssh", action="store_true", help="start this host's ranks only; started on every host"
    )
    parser.add_argument(
        "--node_rank", "--node-rank", metavar="N", type=int, help="this host's place in the hostfile, with --no_ssh"
    )


def add_restart_argument(parser: argparse._ActionsContainer) -> None:
    """The flag of what watches over the launcher."""
    parser.add_argument(
        "--max_restarts",
        "--max-restarts",
        metavar="N",
        type=int,
        default=LaunchFlags.max_restarts,
        help=f"how often training that has died is started again (default {LaunchFlags.max_restarts})",
    )


def split_words(words: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[LaunchFlags, list[str]]:
    """The same as `read_words`, where nothing else can be wrong.

    Raises:
        UserError: every fault, a line each.
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
        faults: takes a line for a flag without its value, or with one that is none; it counts as not given.
        environ: HOSTFILE stands in for --hostfile where that is missing; this process' variables by default.

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
    if found.max_restarts < 0:
        faults.add(f"--max-restarts {given.pop('max_restarts')}: it has to be at least 0, which means never")
    for flag in ("master_port", "ssh_port"):
        port = given[flag]
        if port is not None and not 0 < port < 65536:
            faults.add(f"--{flag} {given.pop(flag)}: a port is a number from 1 to 65535")
    return LaunchFlags(**given), rest
