"""What a rank works out for itself before it meets the others, so that no launcher has to hand it on.

Hosts differ in what their interfaces are called and where their tools lie; the launcher knows one host only.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from yolods.cluster.probe import addresses
from yolods.errors import UserError

PLACES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),  # the second one is set in a task of srun and only there
)
"""Rank, size and local rank under the names of mpirun and of srun."""
DEFAULT_PORT = 29500
"""DeepSpeed's master port."""
_ANY_PORT = 9


def settle(environ: MutableMapping[str, str]) -> None:
    """Complete a rank's environment; what is set is left alone.

    Raises:
        UserError: there are ranks on other hosts, and none could be met with these variables.
    """
    _adopt_place(environ)
    _find_interface(environ)
    environ.update(tools_on_path(sys.executable, environ))


def own_address_toward(host: str) -> str | None:
    """The address of this machine from which it speaks to a host; None: it does not know how to. Nothing is sent."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as handle:
            handle.connect(target)
            return str(handle.getsockname()[0])
    except OSError:
        return None


def is_here(host: str) -> bool:
    """Whether a name leads to this machine."""
    try:
        family, kind, _, _, (address, *_) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as handle:
            handle.bind((address, 0))
    except OSError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether an address means the machine itself, on every machine."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def cpu_threads(environ: Mapping[str, str]) -> int | None:
    """Threads for a rank that computes on the CPU: its share of the cores; None: leave it at what it is."""
    ranks = environ.get("LOCAL_SIZE", "")
    if environ.get("OMP_NUM_THREADS") or not ranks.isdigit():
        return None
    return max(1, len(os.sched_getaffinity(0)) // int(ranks))


def tools_on_path(python: str, environ: Mapping[str, str]) -> dict[str, str]:
    """PATH with what stands beside a Python on it, where it is not: DeepSpeed's builds look there for `ninja`."""
    folder, path = str(Path(python).parent), environ.get("PATH", "")
    if folder in path.split(os.pathsep):
        return {}
    return {"PATH": os.pathsep.join(part for part in (folder, path) if part)}


def _adopt_place(environ: MutableMapping[str, str]) -> None:
    """Read the rank from mpirun's or srun's variables, under which DeepSpeed's own launcher has no part."""
    for names in PLACES:
        if "RANK" in environ or names[1] not in environ:
            continue
        environ.update(zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), (environ[name] for name in names), strict=True))
        if local := environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"):
            environ["LOCAL_SIZE"] = local
        if int(environ["WORLD_SIZE"]) > 1 and not environ.get("MASTER_ADDR"):
            raise UserError("MASTER_ADDR is not set, so that ranks cannot meet; start by yolods launch, or set it")
        environ.setdefault("MASTER_ADDR", "127.0.0.1")
        environ.setdefault("MASTER_PORT", str(DEFAULT_PORT))


def _find_interface(environ: MutableMapping[str, str]) -> None:
    """Name the interface that leads to the master: by itself gloo listens where the host's own name leads."""
    master = environ.get("MASTER_ADDR")
    own = own_address_toward(master) if master else None
    if own is None:
        return
    if is_loopback(own):
        if "LOCAL_SIZE" in environ and int(environ["WORLD_SIZE"]) > int(environ["LOCAL_SIZE"]):
            text = (
                f"the master address {master} leads to {own} on {socket.gethostname()}, where other hosts are not heard"
            )
            raise UserError(f"{text}; give an address of its network: --master_addr")
        return
    named = (name for name, address in addresses() if str(ipaddress.ip_interface(address).ip) == own)
    if interface := next(named, None):
        environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")  # =: this name, and not all that begin so
