"""What a rank derives from its own environment before it joins the world.

Hosts differ in the names of their interfaces and in the places of their tools, and the launcher
knows only its own host; so each rank works these out by itself.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from yolods.errors import Faults, OwnError, UserError
from yolods.hosts.probe import addresses

RANK = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Rank, size and local rank as DeepSpeed's launcher and torchrun set them."""
PLACES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    # SLURM_NTASKS is also set in a batch script; SLURM_STEP_NUM_TASKS only in a task of srun.
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
"""The same values as set by OpenMPI's mpirun, by srun, and by MPICH's and Intel's mpiexec."""
MEETING = ("MASTER_ADDR", "MASTER_PORT")
"""Rendezvous, as DeepSpeed's launcher and torchrun set it."""
LOCAL_SIZES = ("LOCAL_SIZE", "LOCAL_WORLD_SIZE")
"""Ranks on this host, as set by DeepSpeed's launcher and by torchrun."""
_TASKS_HERE = ("OMPI_COMM_WORLD_LOCAL_SIZE", None, "MPI_LOCALNRANKS")
"""The same as set by the launchers of `PLACES`, in their order; srun sets no such variable."""
_TORCHRUN = (*RANK, LOCAL_SIZES[1], "TORCHELASTIC_RUN_ID")
"""Variables that torchrun always sets."""
_OTHERS = (
    "CROSS_RANK",
    "CROSS_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "NODE_RANK",
    *_TASKS_HERE[::2],
)
_BEGINNINGS = ("OMPI_COMM_WORLD_", "PMIX_", "PMI_", "ROLE_", "TORCHELASTIC_", "MPI_LOCAL")
_SETTINGS = ("PMIX_MCA_",)
"""Other variables that launchers set, by name and by prefix; those of `_SETTINGS` are the user's
own settings."""
DEFAULT_PORT = 29500
"""DeepSpeed's master port."""
CHECKED = (
    "torch",
    "numpy",
    "deepspeed",
    "ultralytics",
    "yaml",
    "psutil",
    "PIL",
    "cv2",
    "matplotlib",
    "tensorboard",
)
"""Packages that `check_packages` compares."""
MOST_THREADS = 1024
"""Limit on machines with fewer cores: with some thousands of threads OpenMP aborts the process."""
_ANY_PORT = 9  # needed for a socket address, but nothing is sent there


@dataclass(frozen=True)
class LaunchedRank:
    """The rank of this process according to its launcher's variables."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Position on this host."""
    local_size: int | None = 1
    """Ranks on this host; None: the launcher does not tell."""
    launched: bool = False
    """Whether a launcher started this process."""
    task: bool = False
    """Whether it is a task of its own of mpirun or srun."""


def read_launched_rank(environ: Mapping[str, str]) -> LaunchedRank:
    """This process's rank, from the variables of its launcher.

    A launcher sets all of its variables; an incomplete set is left over from something else.

    Raises:
        OwnError: variables are missing or contradict each other.
    """
    faults = Faults()
    given, task = [name for name in RANK if environ.get(name)], _task(environ)
    names = RANK if given else task
    if names is None:
        return LaunchedRank()
    sizes = [
        name
        for name in (_local_sizes(environ) if given else (_TASKS_HERE[PLACES.index(names)],))
        if name
    ]
    sizes = [name for name in sizes if environ.get(name)]
    missing = [name for name in names if not environ.get(name)]
    if missing:
        faults.add(
            f"{_values(environ, names)} without {' and '.join(missing)}, which every launcher sets "
            "as well"
        )
    numbers = {
        name: _whole(environ, name, faults) for name in (*names, *sizes) if environ.get(name)
    }
    if not faults:
        _compare(environ, numbers, names, sizes, faults)
    if not faults and given:
        _check_meeting(environ, numbers["WORLD_SIZE"], faults)
        _check_task(environ, numbers["WORLD_SIZE"], task, faults)
    if faults:
        others = (*MEETING, *(task or ())) if given else ()
        unset = " ".join(name for name in (*names, *sizes, *others) if environ.get(name))
        raise OwnError(f"{'; '.join(faults)}. If no launcher started this process: unset {unset}")
    rank, size, local = (numbers[name] for name in names)
    of_task = task is not None and environ.get(task[1]) == str(size)
    # srun tells no number of ranks per host; a world of one has one.
    here = numbers[sizes[0]] if sizes else 1 if size == 1 else None
    return LaunchedRank(rank, size, local, here, launched=True, task=of_task)


def rank_given(environ: Mapping[str, str]) -> str:
    """The rank that any launcher gave to this process, as text and unchecked; "": none."""
    names = None if environ.get(RANK[0]) else _task(environ)
    return environ.get(RANK[0] if names is None else names[0], "")


def under_torchrun(environ: Mapping[str, str]) -> bool:
    """Whether torchrun started this rank.

    DeepSpeed's launcher sets the same variables and in addition CROSS_SIZE.
    """
    return all(environ.get(name) for name in _TORCHRUN) and "CROSS_SIZE" not in environ


def forget_ranks(environ: MutableMapping[str, str]) -> list[str]:
    """Remove the variables by which any launcher, also an earlier one, gives a process its rank.

    For a process that is a launcher itself: its ranks would inherit the variables, and take them
    for their own.

    Returns:
        `NAME=value` of those removed that made this process one of several ranks, sorted.
    """
    world_sizes = {RANK[1], *(names[1] for names in PLACES)}
    of_several = [
        f"{name}={environ[name]}"
        for name in environ
        if name in world_sizes and environ[name] not in ("", "1")
    ]
    if environ.get("RANK", "0") not in ("", "0"):
        of_several.append(f"RANK={environ['RANK']}")
    places = {name for names in PLACES for name in names}
    removed = {*RANK, *MEETING, *LOCAL_SIZES, *_OTHERS, *places}
    for name in list(environ):
        if name in removed or (name.startswith(_BEGINNINGS) and not name.startswith(_SETTINGS)):
            del environ[name]
    return sorted(of_several)


def forget_empty(environ: MutableMapping[str, str]) -> None:
    """Remove empty variables: DeepSpeed and gloo would look for a device or interface named ""."""
    for name in ("DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "OMP_NUM_THREADS"):
        if environ.get(name) == "":
            del environ[name]


def complete_environment(environ: MutableMapping[str, str]) -> None:
    """Complete a rank's environment; variables that are set stay.

    Raises:
        UserError: there are ranks on other hosts, which cannot be reached with these variables.
    """
    _adopt_place(environ)
    _find_interface(environ)
    environ.update(tools_on_path(sys.executable, environ))


def own_address_toward(host: str) -> str | None:
    """The address of this machine from which packets to a host leave; None: there is no route.

    Connecting a UDP socket selects the route and sends nothing.
    """
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, _ANY_PORT, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as handle:
            handle.connect(target)
            return str(handle.getsockname()[0])
    except OSError:
        return None


def is_here(host: str) -> bool:
    """Whether a name resolves to this machine: only its own addresses can be bound."""
    try:
        family, kind, _, _, (address, *_) = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind) as handle:
            handle.bind((address, 0))
    except OSError:
        return False
    return True


def is_loopback(address: str) -> bool:
    """Whether an address is a loopback address, which on every machine means the machine itself."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def cpu_threads(environ: Mapping[str, str]) -> int | None:
    """Threads per rank on the CPU: its share of the cores; None: keep the present number."""
    ranks = environ.get("LOCAL_SIZE", "")
    if environ.get("OMP_NUM_THREADS") or not ranks.isdigit():
        return None
    return max(1, len(os.sched_getaffinity(0)) // int(ranks))


def check_threads(environ: Mapping[str, str]) -> None:
    """Check OMP_NUM_THREADS: OpenMP ignores a value that is not a number and uses all cores.

    Raises:
        OwnError: it is not a number of threads, or more than any machine can start.
    """
    given = environ.get("OMP_NUM_THREADS", "").strip()
    limit = max(MOST_THREADS, os.cpu_count() or 1)
    # One per level of nesting.
    numbers = [part.strip() for part in given.split(",")] if given else []
    if not all(part.isascii() and part.isdigit() and 0 < int(part) <= limit for part in numbers):
        wanted = f"it must be a whole number from 1 to {limit}"
        raise OwnError(
            f"OMP_NUM_THREADS={given}: {wanted}; correct it, or unset it for a share of the cores"
        )


def check_packages(environ: Mapping[str, str]) -> None:
    """Check that PYTHONPATH, left over from a shell for another Python, hides no installed package.

    Raises:
        OwnError: it hides one with a package for another Python version, or from another folder
            than torch.
    """
    given = [part for part in environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    own = [part for part in sys.path if part not in given]
    torch = PathFinder.find_spec("torch") if given else None
    for name in CHECKED if given else ():
        theirs, ours = PathFinder.find_spec(name, given), PathFinder.find_spec(name, own)
        if theirs is None or ours is None or theirs.origin is None or theirs.origin == ours.origin:
            continue
        # A path such as lib/python3.10/ tells for which Python a package was installed. A package
        # that lies beside the torch that would be imported belongs to a consistent set, which is
        # the user's choice.
        versions = set(re.findall(r"/python(3\.\d+)/", theirs.origin))
        another = versions and "{}.{}".format(*sys.version_info) not in versions
        if (
            another
            or torch is None
            or Path(theirs.origin).parents[1] != Path(str(torch.origin)).parents[1]
        ):
            text = (
                f"PYTHONPATH={environ['PYTHONPATH']} puts {theirs.origin} before the installed "
                f"{name}"
            )
            raise OwnError(f"{text}; unset it, or remove that folder from it")


def check_interfaces(environ: Mapping[str, str], *, gpus: bool) -> None:
    """Check that the interfaces named for the ranks' traffic exist on this host.

    Raises:
        OwnError: one does not.
    """
    faults = Faults()
    present = dict.fromkeys(name for name, _ in addresses())
    for name, fits, used in (
        ("GLOO_SOCKET_IFNAME", suits_gloo, True),
        ("NCCL_SOCKET_IFNAME", suits_nccl, gpus),
    ):
        value = environ.get(name)
        if used and value and not fits(value, set(present)):
            where = (
                f"{name}={value} does not fit the interfaces of {socket.gethostname()} "
                f"({', '.join(present)})"
            )
            faults.add(f"{where}; correct it, or unset it")
    if faults:
        raise OwnError("\n".join(faults))


def suits_gloo(value: str, interfaces: set[str]) -> bool:
    """Whether all interfaces of a comma-separated list exist: gloo opens each of them."""
    return set(value.split(",")) <= interfaces


def suits_nccl(value: str, interfaces: set[str]) -> bool:
    """Whether NCCL's list of prefixes matches an interface (=: full names, ^: names to exclude)."""
    words = value.lstrip("^=").split(",")
    if value.startswith("="):
        return bool(interfaces & set(words))
    named = {name for name in interfaces if name.startswith(tuple(words))}
    return bool(interfaces - named - {"lo"}) if value.startswith("^") else bool(named)


def tools_on_path(python: str, environ: Mapping[str, str]) -> dict[str, str]:
    """PATH extended by the folder of a Python, if it lacks it: DeepSpeed's builds need `ninja`
    there."""
    folder, path = str(Path(python).parent), environ.get("PATH", "")
    if folder in path.split(os.pathsep):
        return {}
    return {"PATH": os.pathsep.join(part for part in (folder, path) if part)}


def _adopt_place(environ: MutableMapping[str, str]) -> None:
    """Copy the rank to the variables that torch and DeepSpeed read."""
    task = None if environ.get("RANK") else _task(environ)
    if task is not None:
        environ.update(zip(RANK, (environ[name] for name in task), strict=True))
        here = _TASKS_HERE[PLACES.index(task)]
        for name in LOCAL_SIZES:  # left over from another launcher
            environ.pop(name, None)
        if here is not None and environ.get(here):
            environ["LOCAL_SIZE"] = environ[here]
        if int(environ["WORLD_SIZE"]) > 1 and not environ.get("MASTER_ADDR"):
            raise UserError(
                "MASTER_ADDR is not set, so ranks cannot meet; start with yolods launch, or set it"
            )
        environ.setdefault("MASTER_ADDR", "127.0.0.1")
        environ.setdefault("MASTER_PORT", str(DEFAULT_PORT))


def _local_sizes(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The launcher's variable for the ranks on this host; both if the launcher is unknown."""
    if under_torchrun(environ):
        return LOCAL_SIZES[1:]
    return LOCAL_SIZES[:1] if "CROSS_SIZE" in environ else LOCAL_SIZES


def _task(environ: Mapping[str, str]) -> tuple[str, str, str] | None:
    """The variables by which mpirun or srun numbers this process; None: neither started it."""
    for names in PLACES:
        if (size := environ.get(names[1])) and (
            size != "1" or all(environ.get(name) for name in names)
        ):
            return names
    return None


def _whole(environ: Mapping[str, str], name: str, faults: Faults) -> int:
    value = environ[name]
    if value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    faults.add(f"{name}={value} is not a whole number")
    return 0


def _values(environ: Mapping[str, str], names: Iterable[str]) -> str:
    return " and ".join(f"{name}={environ[name]}" for name in names if environ.get(name))


def _compare(
    environ: Mapping[str, str],
    numbers: Mapping[str, int],
    names: Sequence[str],
    sizes: Sequence[str],
    faults: Faults,
) -> None:
    rank, size, local = (numbers[name] for name in names)
    if rank >= size:
        faults.add(
            f"{_values(environ, names[:2])}: ranks are counted from 0, so this is one too many"
        )
    if len({numbers[name] for name in sizes}) > 1:
        faults.add(f"{_values(environ, sizes)}, one of which is left over")
    here = min((numbers[name] for name in sizes), default=size)
    if here > size:
        faults.add(f"{_values(environ, (names[1], *sizes))}: more ranks on this host than in total")
    elif local >= here:
        faults.add(
            f"{_values(environ, (names[2], *(sizes or names[1:2])))}: ranks of a host are counted "
            "from 0"
        )


def _check_meeting(environ: Mapping[str, str], size: int, faults: Faults) -> None:
    """Check the rendezvous, which a single rank does not need."""
    missing = [name for name in MEETING if not environ.get(name)]
    if size > 1 and missing:
        faults.add(
            f"{_values(environ, RANK)} without {' and '.join(missing)}, where ranks would meet"
        )
    port = environ.get("MASTER_PORT", "")
    if size > 1 and port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        faults.add(f"MASTER_PORT={port}: a port is a number from 1 to 65535")


def _check_task(
    environ: Mapping[str, str], size: int, task: Sequence[str] | None, faults: Faults
) -> None:
    """Check WORLD_SIZE against mpirun or srun: each of their tasks may start several ranks."""
    tasks = environ.get(task[1], "") if task is not None else ""
    if tasks.isdigit() and int(tasks) > size:
        faults.add(
            f"WORLD_SIZE={size}, but {_values(environ, task[1:2])}: one of them is left over"
        )


def _find_interface(environ: MutableMapping[str, str]) -> None:
    """Name the interface that routes to the master, unless the user has named one.

    By default gloo listens at the address of the host's own name, which often is a loopback one.
    """
    master = environ.get("MASTER_ADDR")
    own = own_address_toward(master) if master else None
    if own is None:
        return
    if is_loopback(own):
        if "LOCAL_SIZE" in environ and int(environ["WORLD_SIZE"]) > int(environ["LOCAL_SIZE"]):
            text = (
                f"the master address {master} leads to {own} on {socket.gethostname()}, which "
                "other hosts cannot reach"
            )
            raise OwnError(f"{text}; give an address of its network with --master_addr")
        return
    named = (
        name for name, address in addresses() if str(ipaddress.ip_interface(address).ip) == own
    )
    if interface := next(named, None):
        environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        # =: this name only, not as a prefix.
        environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
