"""Checks whether a run would start, by comparing the hosts' reports with each other and the plan.

Pure: starts nothing and reads nothing but its arguments.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from yolods.distributed.rank_env import suits_gloo, suits_nccl
from yolods.hosts.hostfile import Host
from yolods.hosts.probe import LIBRARIES, Count, Report
from yolods.hosts.remote import Answer
from yolods.launch.multi_host import TOOLS
from yolods.system.humanize import age_text, amount, size_text

SKEW_WARNING, SKEW_FAULT = 2.0, 60.0
"""Seconds between clocks. From the fault on, file times and log lines on a shared disk are out of
order."""
STALE_SECONDS = 180.0
"""Age from which a lock that no host holds is stale. The longest build takes three minutes, and a
younger lock may be held by another machine that shares the folder and was not asked."""
BUILT = "cpu_adam"
"""What DeepSpeed compiles, in C++ only, for a run that offloads on GPUs; also its folder's name."""
DISK_WARNING, DISK_FAULT = 10 << 30, 1 << 30
"""Free bytes. A few checkpoints of the largest model take 10 GiB; less than 1 GiB holds not even
one."""
GPU_WARNING, GPU_FAULT = 0.8, 1024
"""Share of a GPU's memory that should be free, and MiB below which not even CUDA's context fits
beside a model."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The planned start."""

    hosts: tuple[Host, ...]
    """The hosts that take part."""
    local: bool
    """Whether all of them are this machine, which needs no ssh."""
    here: str = ""
    """Identity of this machine, as `Report.machine`."""
    master_addr: str | None = None
    """Rendezvous; None: the first address of the first host's `hostname -I`."""
    master_port: int | None = None
    """Port of the rendezvous; None: the launcher chooses a free one."""
    builds: bool = False
    """Whether DeepSpeed compiles something for this configuration on hosts with GPUs."""
    spare: frozenset[str] = frozenset()
    """Data paths that the run does not need."""
    launcher: str = "pdsh"
    """Launcher of the ranks."""
    tool: str | None = "pdsh"
    """Path of the launcher's own tool on this machine; None: it is missing."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables that the launcher sets on every host."""
    script: str | None = None
    """The launch.sh that creates environments; None: they were created otherwise, say by pip."""


@dataclass(frozen=True)
class Finding:
    """A problem."""

    host: str
    """Host with the problem; "": all hosts, or this machine."""
    column: str
    """Column of the table that it marks."""
    fatal: bool
    """Whether the run would fail because of it; otherwise it is a warning."""
    text: str
    """One line: the problem and the remedy."""

    def __str__(self) -> str:
        kind = "fault" if self.fatal else "warning"
        return f"{kind}: {self.host}: {self.text}" if self.host else f"{kind}: {self.text}"


def diagnose(plan: Plan, answers: Sequence[Answer]) -> list[Finding]:
    """All problems, faults first, each group in the order of checks and hosts."""
    heard = [(answer.host, answer.report) for answer in answers if answer.report is not None]
    findings = [
        Finding(answer.host.name, "ssh", True, answer.problem)
        for answer in answers
        if answer.report is None
    ]
    findings += _check_launcher(plan, heard)
    findings += _check_versions(plan, heard)
    findings += _check_folder(heard)
    findings += _check_devices(plan, heard)
    findings += _check_disks(heard)
    findings += _check_clocks(answers)
    findings += _check_network(plan, answers)
    findings += _check_builds(plan, heard)
    findings += _check_data(plan, heard)
    return sorted(findings, key=lambda finding: not finding.fatal)


Heard = Sequence[tuple[Host, Report]]


def _check_launcher(plan: Plan, heard: Heard) -> Iterable[Finding]:
    if len(plan.hosts) > 1 and not plan.local and plan.tool is None:
        tool, remedy = TOOLS[plan.launcher]
        yield Finding(
            "", "ssh", True, f"no {tool} here, which starts ranks on the other hosts; {remedy}"
        )
    # DeepSpeed starts the ranks of a single host locally, whatever its name.
    if len(plan.hosts) == 1 and not plan.local and heard and heard[0][1].machine != plan.here:
        text = (
            "the only host, but not this machine; DeepSpeed would start its ranks here: log in "
            "there and start there"
        )
        yield Finding(heard[0][0].name, "host", True, text)
    first: dict[str, str] = {}
    for host, report in heard:
        if report.machine in first:
            text = (
                f"the same machine as {first[report.machine]}; give it one line in the hostfile "
                "with all its slots"
            )
            # GPUs would be used twice; on a CPU the ranks only share its cores.
            yield Finding(host.name, "host", bool(report.gpus), text)
        first.setdefault(report.machine, host.name)


def _check_versions(plan: Plan, heard: Heard) -> Iterable[Finding]:
    def own(report: Report) -> str | None:
        return f"{report.versions['yolods']} ({report.digest})" if report.package else None

    names: dict[str, Callable[[Report], str | None]] = {
        "python": lambda report: report.python,
        "yolods": own,
        **{name: lambda report, name=name: report.versions.get(name) for name in LIBRARIES},
    }
    for name, value in names.items():
        good, example = _usual(heard, value)
        for host, report in heard:
            found = value(report)
            remedy = (
                _by_script(plan.script, name, good, report) if plan.script else _by_pip(name, good)
            )
            if found is None:
                yield Finding(host.name, name, True, f"{report.executable} has no {name}; {remedy}")
            elif found != good:
                yield Finding(
                    host.name, name, True, f"{name} {found}, but {example} has {good}; {remedy}"
                )


def _check_folder(heard: Heard) -> Iterable[Finding]:
    # DeepSpeed starts the same interpreter path and folder on every host.
    folder, example = _usual(heard, lambda report: report.package)
    for host, report in heard:
        if report.package and report.package != folder:
            text = (
                f"yolods is in {report.package}, but on {example} in {folder}; use the same path "
                "on every host"
            )
            yield Finding(host.name, "yolods", True, text)


def _by_script(script: str, name: str, good: str | None, report: Report) -> str:
    """The remedy for another version, where launch.sh creates the environments in a checkout."""
    if name == "yolods":
        return f"check out the same commit in {report.directory} there"
    if name == "python":
        return f"create .venv there with the same Python: remove it, and run {script} version"
    wanted = good or "the version that constraints.txt names"
    return f"install {wanted} there: remove .venv and run {script} version, or use pip"


def _by_pip(name: str, good: str | None) -> str:
    """The remedy for another version, where there need not be a checkout."""
    if name == "yolods":
        return "install the same yolods there"
    if name == "python":
        return "create the environment there again with the same Python"
    return f"install it there: pip install {name}{f'=={good}' if good else ''}"


def _usual(heard: Heard, value: Callable[[Report], str | None]) -> tuple[str | None, str]:
    """The most frequent value, on a tie the first host's, and the first host that has it."""
    found = [(value(report), host.name) for host, report in heard]
    counted = Counter(what for what, _ in found if what is not None)
    if not counted:
        return None, ""
    usual = counted.most_common(1)[0][0]
    return usual, next(name for what, name in found if what == usual)


def _check_devices(plan: Plan, heard: Heard) -> Iterable[Finding]:
    with_gpus = [host.name for host, report in heard if report.gpus]
    for host, report in heard:
        if report.gpu_error:
            yield Finding(host.name, "slots", True, f"{report.gpu_error}; run nvidia-smi there")
        elif with_gpus and not report.gpus:
            text = (
                f"no GPU, but {with_gpus[0]} has some, and ranks cannot meet across both; repair "
                "its driver, or "
            )
            yield Finding(host.name, "slots", True, f"{text}exclude it: --exclude {host.name}")
        elif report.gpus:
            yield from _check_gpus(host, report)
        elif len(host.chosen) > report.cores:
            # On this machine alone, someone is trying something out, and it works, if slowly. With
            # several hosts it is a fault: ranks that wait for a core keep all hosts waiting, and
            # can look like ranks that hang.
            text = (
                f"{len(host.chosen)} ranks on {report.cores} CPU cores take turns; write "
                f"slots={report.cores}"
            )
            yield Finding(host.name, "slots", not plan.local, text)


def _check_gpus(host: Host, report: Report) -> Iterable[Finding]:
    present = {gpu.index: gpu for gpu in report.gpus}
    missing = [slot for slot in host.chosen if slot not in present]
    if missing:
        text = (
            f"slots={host.slots}, but it has {len(present)} GPUs; write slots={len(present)} in "
            "the hostfile"
        )
        yield Finding(host.name, "slots", True, text)
    elif host.slots < len(present):
        text = (
            f"slots={host.slots}, but it has {len(present)} GPUs: the rest are idle; write "
            f"slots={len(present)} for all"
        )
        yield Finding(host.name, "slots", False, text)
    if (report.versions.get("torch") or "").endswith("+cpu"):
        text = (
            f"torch {report.versions['torch']} cannot use its GPUs; install a build of torch for "
            "them"
        )
        yield Finding(host.name, "torch", True, text)
    for slot in host.chosen:
        gpu = present.get(slot)
        if gpu is None or gpu.free is None or not gpu.total or gpu.free >= GPU_WARNING * gpu.total:
            continue
        text = (
            f"GPU {slot} has {gpu.free / 1024:.1f} of {gpu.total / 1024:.1f} GiB free; end what "
            "runs there (nvidia-smi lists it), or exclude the GPU"
        )
        yield Finding(host.name, "GPU free", gpu.free < GPU_FAULT, text)


def _check_disks(heard: Heard) -> Iterable[Finding]:
    for host, report in heard:
        for folder, free in report.disk.items():
            if free < DISK_WARNING:
                text = (
                    f"{size_text(free)} free on the disk of {folder}; make room, or choose another "
                    "folder"
                )
                yield Finding(host.name, "disk free", free < DISK_FAULT, text)


def _check_clocks(answers: Sequence[Answer]) -> Iterable[Finding]:
    for answer, skew, first in skews(answers):
        if abs(skew) >= SKEW_WARNING:
            order = "ahead of" if skew > 0 else "behind"
            text = (
                f"its clock is {abs(skew):.1f} s {order} that of {first}; set it with NTP: "
                "timedatectl set-ntp true"
            )
            yield Finding(answer.host.name, "clock", abs(skew) >= SKEW_FAULT, text)


def skews(answers: Sequence[Answer]) -> list[tuple[Answer, float, str]]:
    """(answer, seconds that its clock is ahead of the first host's, name of the first host).

    The hosts are compared with each other: the clock of the machine that asks does not matter to
    the ranks.
    """
    heard = [answer for answer in answers if answer.report is not None]
    return [(answer, answer.skew - heard[0].skew, heard[0].host.name) for answer in heard]


def master_address(plan: Plan, answers: Sequence[Answer]) -> str | None:
    """Numeric address of the rendezvous; None: unknown."""
    if plan.local:
        return "127.0.0.1"
    first = answers[0].report
    if plan.master_addr is None:
        return first.first_address if first else None
    # Any host's answer will do: a name that resolves differently shows as a missing address below.
    return next(
        (a.report.master_address for a in answers if a.report and a.report.master_address), None
    )


def interface_to(report: Report, address: str) -> str | None:
    """The interface that has an address or routes to it; None: no route."""
    wanted = ipaddress.ip_address(address)
    for name, own in report.addresses:
        if ipaddress.ip_interface(own).ip == wanted:
            return name
    networks = [(name, ipaddress.ip_network(network)) for name, network in report.routes]
    networks += [(name, ipaddress.ip_interface(own).network) for name, own in report.addresses]
    # The longest prefix wins, as in the kernel's routing.
    leading = [(network.prefixlen, name) for name, network in networks if wanted in network]
    return max(leading, key=lambda pair: pair[0])[1] if leading else None


def _has_address(report: Report, address: str) -> bool:
    return any(
        ipaddress.ip_interface(own).ip == ipaddress.ip_address(address)
        for _, own in report.addresses
    )


def _check_network(plan: Plan, answers: Sequence[Answer]) -> Iterable[Finding]:
    heard = [(answer.host, answer.report) for answer in answers if answer.report is not None]
    first = answers[0].report
    if first and first.port_error:
        text = (
            f"port {plan.master_port} is not usable: {first.port_error}; end what listens there, "
            "or use another "
        )
        yield Finding(plan.hosts[0].name, "port", True, text + "--master_port")
    if plan.local or first is None:
        return
    address = master_address(plan, answers)
    if address is None:
        text = "its `hostname -I` prints no address; give the rendezvous with --master_addr ADDRESS"
        if plan.master_addr is not None:
            text = (
                f"--master_addr {plan.master_addr} is unknown there; give a number, or add it to "
                "/etc/hosts"
            )
        yield Finding(plan.hosts[0].name, "interface", True, text)
        return
    yield from _check_master(plan, heard, first, address)
    yield from _check_interface_names(plan, heard)


def _check_interface_names(plan: Plan, heard: Heard) -> Iterable[Finding]:
    for variable, fits in (("NCCL_SOCKET_IFNAME", suits_nccl), ("GLOO_SOCKET_IFNAME", suits_gloo)):
        value = plan.variables.get(variable)
        for host, report in heard:
            if value and not fits(value, {name for name, _ in report.addresses}):
                text = (
                    f"{variable}={value} does not fit its interfaces ({_interfaces(report)}); "
                    "correct it"
                )
                yield Finding(host.name, "interface", True, text)


def _check_master(plan: Plan, heard: Heard, first: Report, address: str) -> Iterable[Finding]:
    master = plan.hosts[0].name
    if not _has_address(first, address):
        text = (
            f"rank 0 runs there, but none of its interfaces has {address}; give one of its own as "
            "--master_addr"
        )
        yield Finding(master, "interface", True, text)
    loopback = ipaddress.ip_address(address).is_loopback
    for host, report in heard:
        if report.machine == first.machine:
            continue
        if loopback or _has_address(report, address):
            text = f"{address} is this host itself there, not {master}; give another --master_addr"
            yield Finding(host.name, "interface", True, text)
        elif interface_to(report, address) is None:
            text = (
                f"no route to {master} at {address}; give an address that it reaches as "
                "--master_addr"
            )
            yield Finding(host.name, "interface", True, text)


def _interfaces(report: Report) -> str:
    return ", ".join(dict.fromkeys(name for name, _ in report.addresses))


def _check_builds(plan: Plan, heard: Heard) -> Iterable[Finding]:
    if plan.builds:
        for host, report in heard:
            for text in _tools_missing(report):
                where = (
                    ""
                    if report.gpus
                    else " (its ranks run on the CPU, where nothing is compiled so far)"
                )
                yield Finding(host.name, "build", bool(report.gpus), text + where)
    yield from _check_locks(plan, heard)


def _check_locks(plan: Plan, heard: Heard) -> Iterable[Finding]:
    # Hosts may share the folder: a lock that any of them holds is in use, whoever reports it.
    held = {lock.path for _, report in heard for lock in report.locks if lock.held}
    seen: set[tuple[str, str]] = set()
    for host, report in heard:
        for lock in report.locks:
            if lock.path in held or (report.machine, lock.path) in seen:
                continue
            seen.add((report.machine, lock.path))
            built = plan.builds and bool(report.gpus) and lock.path.split("/")[-2] == BUILT
            stale = lock.age >= STALE_SECONDS
            killed = f"a build that was killed {age_text(lock.age)} ago left {lock.path}"
            text = f"{killed}, which blocks every later build without a message"
            if not stale:
                text = (
                    f"no process of the hosts holds {lock.path}, created {age_text(lock.age)} ago, "
                    "which blocks builds without a message"
                )
            elif not built:
                text = (
                    f"{killed}; this run builds nothing there, but a run that does would wait "
                    "without a message"
                )
            yield Finding(host.name, "build", stale and built, f"{text}; rm {lock.path}")


def _tools_missing(report: Report) -> Iterable[str]:
    # Ranks put the one beside their Python on PATH.
    if report.ninja is None and report.ninja_beside is None:
        yield (
            "no ninja, but the configuration needs DeepSpeed's CPUAdam compiled; "
            f"{report.executable} -m pip install ninja"
        )
    if report.compiler is None:
        yield (
            "no C++ compiler, but the configuration needs DeepSpeed's CPUAdam compiled; apt-get "
            "install g++"
        )
    if not report.headers:
        yield (
            f"no headers of Python {report.python}, which the compilation needs; apt-get install "
            "python3-dev"
        )


def _check_data(plan: Plan, heard: Heard) -> Iterable[Finding]:
    paths = list(dict.fromkeys(count.path for _, report in heard for count in report.data))
    for path in paths:
        counts = [
            (host, next(count for count in report.data if count.path == path))
            for host, report in heard
        ]
        yield from _compare_counts(path, counts, fatal=path not in plan.spare)


def _compare_counts(
    path: str, counts: Sequence[tuple[Host, Count]], *, fatal: bool
) -> Iterable[Finding]:
    """One path's files and bytes on all hosts: those that differ from most hosts' are faults."""
    readable = [(host, count) for host, count in counts if count.present and not count.fault]
    tally = Counter((count.files, count.bytes) for _, count in readable if count.whole)
    # Most hosts are assumed to be right: the most frequent count, of equally frequent ones that of
    # the first host, is the reference for the others.
    usual = tally.most_common(1)[0][0] if tally else None
    note = "" if fatal else " (of the test split, which no training reads)"
    copied = _copied_from(readable[0][0].name, path) if readable else ""
    for host, count in counts:
        if not count.present:
            remedy = copied or "correct the data yaml"
            text = f"{path} is missing or unreadable{note}; {remedy}"
            yield Finding(host.name, "data", fatal, text)
        elif count.fault:
            remedy = copied or "pack the data again"
            yield Finding(host.name, "data", fatal, f"{path} {count.fault}{note}; {remedy}")
        elif not count.whole:
            text = (
                f"{path} has more than {count.files} files, too many to count in time; they were "
                "not compared"
            )
            yield Finding(host.name, "data", False, text)
        elif usual is not None and (count.files, count.bytes) != usual:
            right = next(h.name for h, c in readable if c.whole and (c.files, c.bytes) == usual)
            here, usually = amount(count.files, count.bytes), amount(*usual)
            text = f"{path} has {here}, but on {right} {usually}{note}"
            yield Finding(host.name, "data", fatal, f"{text}; {_copied_from(right, path)}")


def _copied_from(host: str, path: str) -> str:
    """The remedy for data that another host has."""
    return f"copy it: rsync -a {host}:{path} {_parent(path)}/"


def _parent(path: str) -> str:
    return path.rstrip("/").rpartition("/")[0]
