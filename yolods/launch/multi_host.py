"""The part of the launcher's command that starts ranks on other hosts by pdsh, OpenMPI or Slurm."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from yolods.distributed.rank_env import DEFAULT_PORT, is_here, is_loopback, own_address_toward
from yolods.errors import Faults, UserError
from yolods.hosts import env_forwarding
from yolods.hosts.hostfile import Host
from yolods.launch.args import LaunchFlags
from yolods.system.folders import home

MODULE = ("--module", "yolods")
ALIVE = "-o ServerAliveInterval=3 -o ServerAliveCountMax=3"
"""Makes ssh, and with it pdsh, exit within 12 seconds after a host is cut off; by default it waits
forever. ssh uses the first of repeated options, so the user's PDSH_SSH_ARGS_APPEND comes first."""
TOOLS = {
    "pdsh": ("pdsh", "apt-get install pdsh"),
    "openmpi": ("ompi_info", "apt-get install openmpi-bin"),
    "slurm": ("srun", "start on a node of the Slurm cluster"),
}
"""Launcher -> the tool that it needs on this machine, and how to get it."""


def crosses_hosts(flags: LaunchFlags, hosts: Sequence[Host]) -> bool:
    """Whether a start needs other hosts. DeepSpeed starts the ranks of a single host locally."""
    return len(hosts) > 1 and not flags.no_ssh


def meeting_address(flags: LaunchFlags, hosts: Sequence[Host]) -> str | None:
    """Rendezvous address: the given one, or this machine's address that routes to the second host.

    None: this machine is not the first host, so DeepSpeed asks that one for the first address of
    `hostname -I`.
    """
    if flags.master_addr or not crosses_hosts(flags, hosts) or not is_here(hosts[0].name):
        return flags.master_addr
    address = own_address_toward(hosts[1].name)
    return None if address is None or is_loopback(address) else address


def over_hosts(
    words: Sequence[str],
    flags: LaunchFlags,
    hosts: Sequence[Host],
    *,
    settings: Mapping[str, str],
    python: str,
    environ: Mapping[str, str],
) -> tuple[list[str], dict[str, str]]:
    """Build the rest of the command, after the flags that it shares with a local start.

    Args:
        words: subcommand and flags for yolods.
        settings: variables for every rank, unless the user has set them.
        python: the interpreter for the ranks.
        environ: environment.

    Returns:
        the rest of the command, and the variables to set for it.

    Raises:
        UserError: the launcher's tool is missing, or it does not support what was requested.
    """
    _check(flags, hosts, environ)
    faults = Faults()
    lines = env_forwarding.users_lines(environ, tuple(filter(None, (home(), Path.cwd()))), faults)
    faults.raise_if_any()
    shared = {**settings, **env_forwarding.carried(environ)}
    # DeepSpeed's check tests only the first host. Without it, pdsh names any host it cannot reach.
    command = ["--no_ssh_check", "--launcher", flags.launcher]
    address, port = meeting_address(flags, hosts), flags.master_port
    command += ["--master_port", str(port)] if port else []
    if flags.launcher == "pdsh":
        _check_plain(python)
        command += ["--master_addr", address] if address else []
        command += [f"--launcher_args={flags.launcher_args}"] if flags.launcher_args else []
        command += ["--ssh_port", str(flags.ssh_port)] if flags.ssh_port else []
        variables = {
            env_forwarding.ENV_FILE: str(env_forwarding.environment_file(shared, lines)),
            "PDSH_SSH_ARGS_APPEND": f"{environ.get('PDSH_SSH_ARGS_APPEND', '')} {ALIVE}".strip(),
        }
        return [*command, *MODULE, *map(env_forwarding.shell_word, words)], variables
    # Under OpenMPI and Slurm no process of DeepSpeed runs between the launcher and a rank, so
    # nothing sets RANK: `rank_env` reads the launcher's own variables, and the address goes along.
    address = address or _number_of(hosts[0].name)
    shared |= {"MASTER_ADDR": address, "MASTER_PORT": str(port or DEFAULT_PORT)}
    if flags.launcher == "openmpi":
        placed, program = _under_mpirun(flags, shared, lines), [*MODULE]
    else:
        # DeepSpeed's runner for Slurm drops --module, so the program is a file. Python would put
        # its folder on the import path, where our modules' names could hide others.
        shared["PYTHONSAFEPATH"] = "1"
        placed, program = _under_srun(hosts), [str(Path(__file__).parents[1] / "__main__.py")]
    placed = f"{placed} {flags.launcher_args}".strip()
    command += ["--master_addr", address, f"--launcher_args={placed}"]
    return [*command, *program, *words], shared


def _under_mpirun(flags: LaunchFlags, variables: Mapping[str, str], lines: Sequence[str]) -> str:
    # DeepSpeed passes these; mpirun allows each name once.
    named = {line.partition("=")[0] for line in lines}
    words = [
        f"-x {name}"
        for name in variables
        if name not in named and not name.startswith(env_forwarding.EXPORTED)
    ]
    words += [f"--mca plm_rsh_args '-p {flags.ssh_port}'"] if flags.ssh_port else []
    return " ".join(words)


def _under_srun(hosts: Sequence[Host]) -> str:
    """Arguments that pin srun to the hosts; by default it uses any hosts of the allocation.

    srun forwards the whole environment, so no variables are listed.
    """
    names = ",".join(host.name for host in hosts)
    return f"--nodes={len(hosts)} --ntasks-per-node={len(hosts[0].chosen)} --nodelist={names}"


def _check(flags: LaunchFlags, hosts: Sequence[Host], environ: Mapping[str, str]) -> None:
    """Refuse what the launcher does not support, where DeepSpeed fails or starts something else."""
    tool, remedy = TOOLS[flags.launcher]
    faults = Faults()
    if shutil.which(tool, path=environ.get("PATH")) is None:
        faults.add(
            f"no {tool} here, which --launcher {flags.launcher} needs: {remedy}, or use another "
            "--launcher"
        )
    if flags.launcher == "openmpi" and (
        flags.include or flags.exclude or flags.num_gpus is not None
    ):
        faults.add(
            "--launcher openmpi uses the whole hostfile; omit --include, --exclude and --num_gpus"
        )
    if flags.launcher == "slurm":
        _check_slurm(flags, hosts, faults)
    faults.raise_if_any()


def _check_slurm(flags: LaunchFlags, hosts: Sequence[Host], faults: Faults) -> None:
    if len({len(host.chosen) for host in hosts}) > 1:
        counts = ", ".join(f"{host.name} {len(host.chosen)}" for host in hosts)
        faults.add(
            f"--launcher slurm needs the same slots on every host, not {counts}; change them, or "
            "use pdsh"
        )
    for host in hosts:
        if host.chosen != tuple(range(len(host.chosen))):
            slots = ",".join(map(str, host.chosen))
            faults.add(
                f"--launcher slurm uses a host's first slots, not {host.name}:{slots}; use pdsh "
                "for these"
            )
    if flags.ssh_port is not None:
        faults.add("--launcher slurm does not use ssh; omit --ssh_port")


def _check_plain(python: str) -> None:
    """Refuse paths that need quotes: DeepSpeed writes them into the remote command without."""
    for what, path in (("the current folder", os.getcwd()), ("Python's path", python)):
        if not env_forwarding.is_plain(path):
            text = f"{what}, {path}, has a character that DeepSpeed cannot pass through pdsh"
            raise UserError(
                f"{text}; use a folder, or a link to it, with only letters, digits and @+=:,./_-"
            )


def _number_of(name: str) -> str:
    """A host's address, at which the other hosts can reach it."""
    try:
        address = str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        address = None
    if address is None or is_loopback(address):
        leads = f"the name {name} resolves to {address or 'nothing'} here"
        raise UserError(
            f"{leads}, where ranks cannot meet; give the first host's address with --master_addr"
        )
    return address
