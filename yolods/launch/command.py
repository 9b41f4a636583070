"""The command that starts a run: DeepSpeed's launcher with what it needs on this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from yolods.distributed.rank_env import check_interfaces, check_threads, is_here, tools_on_path
from yolods.errors import UserError
from yolods.hosts.devices import NAMED, VISIBLE, are_numbers, slots_of, visible
from yolods.hosts.hostfile import MOST_SLOTS, Host, parse_hostfile, plain_hostfile, select
from yolods.launch.args import LaunchFlags
from yolods.launch.multi_host import MODULE, crosses_hosts, over_hosts

CPU_RANKS = 2
"""Default number of ranks on a machine without a GPU."""

ALLOCATOR = {
    # glibc returns freed activations to the kernel and page-faults them in again in the next
    # step. These settings keep the memory and ask for huge pages; measured on two cores with
    # YOLOv5n: 8 to 12% more steps per second.
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""Settings of glibc's allocator for ranks that compute on a CPU."""


def launcher_command(
    words: Sequence[str],
    flags: LaunchFlags,
    *,
    gpus: int,
    python: str,
    cores: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[list[str], dict[str, str]]:
    """Build the launcher's command line.

    Args:
        words: subcommand and flags for yolods.
        gpus: GPUs of this machine; 0: it computes on the CPU.
        python: the interpreter for the ranks.
        cores: CPU cores that this process may use; counted by default.
        environ: environment, by default this process's own; values that the user has set stay.

    Returns:
        the command, and the variables to set for it in addition to the environment.

    Raises:
        UserError: a bad hostfile or filter, or more ranks than there are devices.
    """
    variables = os.environ if environ is None else environ
    hosts = _hosts(flags, gpus, variables)
    _check_place(flags, hosts, gpus)
    check_threads(variables)
    command = [python, "-m", "yolods.launch.deepspeed_runner", "--no_local_rank"]
    if flags.hostfile is not None:
        command += ["--log_level", "warning", "--hostfile", str(plain_hostfile(flags.hostfile))]
    else:
        # Without the flag DeepSpeed would read /job/hostfile, but a start without --hostfile means
        # this machine. Log level "error" hides its warning that there is no hostfile.
        command += ["--log_level", "error", "--hostfile", os.devnull]
    command += _filters(flags, hosts, gpus, variables)
    if crosses_hosts(flags, hosts):
        _check_shared_gpus(flags, hosts, gpus, variables)
        # If this machine takes part and has no GPU, the others have none either.
        cpus = gpus == 0 and any(is_here(host.name) for host in hosts)
        # Avoids DeepSpeed's warning when it detects the CPU.
        quiet = {"DS_ACCELERATOR": "cpu"} if cpus else {}
        settings = {**quiet, **ALLOCATOR} if cpus else {}
        more, set_too = over_hosts(
            words, flags, hosts, settings=settings, python=python, environ=variables
        )
        quiet = {name: value for name, value in quiet.items() if not variables.get(name)}
        return [*command, *more], {**quiet, **set_too, **tools_on_path(python, variables)}
    check_interfaces(variables, gpus=gpus > 0)
    if flags.hostfile is not None:
        # All ranks start here, or each host starts its own. DeepSpeed would ssh to the first host
        # for its address, and few machines accept an ssh login from themselves.
        command += ["--no_ssh_check", "--master_addr", flags.master_addr or "127.0.0.1"]
    if flags.no_ssh:
        command += ["--no_ssh", "--node_rank", str(flags.node_rank)]
        hosts = (hosts[flags.node_rank],)
    port = flags.master_port or (None if flags.no_ssh else free_port())
    command += ["--master_port", str(port)] if port else []
    return [*command, *MODULE, *words], _environment(
        hosts, flags.hostfile, gpus, python, cores, variables
    )


def ranks_of(flags: LaunchFlags, *, gpus: int, environ: Mapping[str, str] | None = None) -> int:
    """Number of ranks of a start, so that batch sizes can be checked before it.

    Raises:
        UserError: as `launcher_command`.
    """
    return sum(len(host.chosen) for host in hosts_of(flags, gpus=gpus, environ=environ))


def hosts_of(
    flags: LaunchFlags, *, gpus: int, environ: Mapping[str, str] | None = None
) -> tuple[Host, ...]:
    """The hosts and slots that take part in a start.

    Args:
        gpus: GPUs of this machine; 0: none, or do not compare them with the hostfile.

    Raises:
        UserError: as `launcher_command`.
    """
    return _hosts(flags, gpus, os.environ if environ is None else environ)


def unused_flags(flags: LaunchFlags, hosts: Sequence[Host]) -> list[str]:
    """The given flags that have no effect, because no other host takes part."""
    if crosses_hosts(flags, hosts):
        return []
    names = ("launcher", "launcher_args", "ssh_port", *(() if flags.hostfile else ("master_addr",)))
    given = ((name, getattr(flags, name)) for name in names)
    return [f"--{name} {value}" for name, value in given if value != getattr(LaunchFlags, name)]


def free_port() -> int:
    """A TCP port of this machine on which nobody listens.

    Another process may take it before the ranks bind it; a restart then chooses another one.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _hosts(flags: LaunchFlags, gpus: int, environ: Mapping[str, str]) -> tuple[Host, ...]:
    """The hosts and slots that take part."""
    if flags.num_gpus is not None and (flags.include or flags.exclude):
        raise UserError("--num_gpus cannot be combined with --include or --exclude; keep one")
    if flags.num_gpus is not None and flags.num_gpus < 1:
        raise UserError(f"--num_gpus {flags.num_gpus}: it must be at least 1")
    if flags.num_gpus is not None and flags.num_gpus > MOST_SLOTS:
        raise UserError(
            f"--num_gpus {flags.num_gpus}: it must be at most {MOST_SLOTS}; it counts ranks per "
            "host"
        )
    if flags.hostfile is None:
        return select(_this_machine(flags, gpus, environ), flags.include, flags.exclude)
    hosts = select(parse_hostfile(flags.hostfile, flags.hostfile_by), flags.include, flags.exclude)
    for host in hosts:
        if host.is_local and gpus and host.slots > gpus:
            raise UserError(
                f"{flags.hostfile}: {host.name} has slots={host.slots}, but this machine has "
                f"{gpus} GPUs"
            )
    if flags.num_gpus is None:
        return hosts
    for host in hosts:
        if flags.num_gpus > host.slots:
            raise UserError(
                f"--num_gpus {flags.num_gpus}: {host.name} has {host.slots} slots in "
                f"{flags.hostfile}"
            )
    return tuple(Host(host.name, host.slots, tuple(range(flags.num_gpus))) for host in hosts)


def _this_machine(flags: LaunchFlags, gpus: int, environ: Mapping[str, str]) -> tuple[Host, ...]:
    if gpus == 0:
        ranks = flags.num_gpus or CPU_RANKS
        return (Host("localhost", ranks, tuple(range(ranks))),)
    named = visible(environ)
    slots = tuple(range(gpus)) if named is None else slots_of(named)
    if flags.num_gpus is not None and flags.num_gpus > len(slots):
        raise UserError(f"--num_gpus {flags.num_gpus}: this machine has {len(slots)} usable GPUs")
    return (Host("localhost", max(slots) + 1, slots[: flags.num_gpus]),)


def _filters(
    flags: LaunchFlags, hosts: Sequence[Host], gpus: int, environ: Mapping[str, str]
) -> list[str]:
    """DeepSpeed's flags that select the slots."""
    if flags.hostfile is None and gpus == 0:
        # DeepSpeed counts NUMA nodes as CPU slots, but accepts any number: CPU slots are all equal.
        return ["--num_gpus", str(len(hosts[0].chosen))]
    if flags.hostfile is None and visible(environ) is not None:
        # With --num_gpus or --exclude DeepSpeed counts from the machine's first GPU, also if it is
        # not visible.
        return ["--include", f"localhost:{','.join(map(str, hosts[0].chosen))}"]
    if flags.include:
        return ["--include", flags.include]
    if flags.exclude:
        return ["--exclude", flags.exclude]
    if flags.hostfile is not None:
        return [] if flags.num_gpus is None else ["--num_gpus", str(flags.num_gpus)]
    return ["--num_gpus", str(len(hosts[0].chosen))]


def _check_place(flags: LaunchFlags, hosts: Sequence[Host], gpus: int) -> None:
    """Check that --no_ssh and --node_rank agree with each other and with the hostfile."""
    if not flags.no_ssh:
        if flags.node_rank is not None:
            raise UserError(
                "--node_rank tells which host this is in a start on every host; add --no_ssh"
            )
        return
    if flags.hostfile is None or flags.master_addr is None or flags.node_rank is None:
        raise UserError(
            "--no_ssh needs --hostfile, --master_addr and --node_rank: without them no host knows "
            "the others"
        )
    if not 0 <= flags.node_rank < len(hosts):
        raise UserError(
            f"--node_rank {flags.node_rank}: {len(hosts)} hosts take part, counted from 0"
        )
    own = hosts[flags.node_rank]
    if gpus and max(own.chosen) >= gpus:
        raise UserError(
            f"{flags.hostfile}: {own.name} has slots={own.slots}, but this machine has {gpus} GPUs"
        )


def _check_shared_gpus(
    flags: LaunchFlags, hosts: Sequence[Host], gpus: int, environ: Mapping[str, str]
) -> None:
    """Refuse CUDA_VISIBLE_DEVICES if it excludes chosen slots of this machine.

    Under pdsh, slots are GPU numbers on every host, including this one, and the variable is not
    forwarded.
    """
    named = visible(environ) if gpus and flags.launcher == "pdsh" else None
    for host in hosts:
        if named is None or not is_here(host.name):
            continue
        if not are_numbers(named) or not set(host.chosen) <= set(slots_of(named)):
            slots = ",".join(map(str, host.chosen))
            text = (
                f"{VISIBLE}={environ[VISIBLE]} applies to this machine only, but the run would use "
                f"{host.name}:{slots}"
            )
            raise UserError(f"{text}; choose GPUs of several hosts with --include, and unset it")


def _environment(
    hosts: Sequence[Host],
    hostfile: Path | None,
    gpus: int,
    python: str,
    cores: int | None,
    environ: Mapping[str, str],
) -> dict[str, str]:
    """The variables for ranks on this machine."""
    wanted: dict[str, str] = {}
    if gpus == 0:
        cores = cores or len(os.sched_getaffinity(0))
        ranks = sum(len(host.chosen) for host in hosts)
        wanted = {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(max(1, cores // ranks)),
            **ALLOCATOR,
        }
    wanted = {name: value for name, value in wanted.items() if not environ.get(name)}
    return wanted | _shown(hosts[0], hostfile, gpus, environ) | tools_on_path(python, environ)


def _shown(
    host: Host, hostfile: Path | None, gpus: int, environ: Mapping[str, str]
) -> dict[str, str]:
    """The variables that tell ranks on this machine which GPUs CUDA_VISIBLE_DEVICES names.

    DeepSpeed's launcher overwrites that variable with slot numbers; `NAMED` preserves the names.
    """
    if gpus == 0:
        # DeepSpeed would unset an empty value, and libraries would see all GPUs.
        return {VISIBLE: ""} if environ.get(VISIBLE) else {}
    named = visible(environ)
    if named is None:
        return {}
    if hostfile is None and are_numbers(named):
        return {}
    if max(host.chosen) >= len(named):
        text = f"{hostfile}: {host.name} has slots={host.slots}, but {VISIBLE}={environ[VISIBLE]}"
        raise UserError(f"{text} names {len(named)} GPUs; write slots={len(named)}, or unset it")
    return {NAMED: ",".join(named)}
