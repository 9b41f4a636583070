"""Describes one host in one line of JSON. `yolods doctor` runs this file on every host.

It needs only the standard library, because its text is sent to the host's Python on standard input:
so it also answers on a host where yolods is missing or differs. It avoids slow imports: it asks
torch in a separate process, and only if there is a GPU that `nvidia-smi` cannot describe.

    python - '{"master_port": 29500, ...}' < probe.py
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import importlib.util
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

COMMAND_SECONDS = 3.0
"""Time limit of a small tool."""
GPU_SECONDS = 8.0
"""Time limit of the list of GPUs: nvidia-smi may take 1 s per GPU, and importing torch takes 1 to
5 s."""
GRACE_SECONDS = 1
LIBRARIES = ("torch", "deepspeed", "ultralytics")
GPU_NODES = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/kfd")

_SIOCGIFADDR, _SIOCGIFNETMASK = 0x8915, 0x891B  # linux/sockios.h
_TORCH = """
import json, torch
print(json.dumps([[i, *(n >> 20 for n in torch.cuda.mem_get_info(i))] for i in range(torch.cuda.device_count())]))
"""  # noqa: E501


@dataclass(frozen=True)
class ProbeRequest:
    """What to examine. Sent as JSON."""

    master_addr: str | None = None
    """Address or name of the rendezvous, if given."""
    master_port: int | None = None
    """Port that must be free on this host; None: do not check."""
    trees: tuple[str, ...] = ()
    """Files and folders in which to count files and bytes."""
    lists: tuple[str, ...] = ()
    """Text files with one path per line ("./": relative to the list), whose files to count."""
    ignored: tuple[str, ...] = ()
    """File name suffixes to skip."""
    walk_seconds: float = 5.0
    """Time limit of the counting, for all paths together."""
    limit_seconds: int = 10
    """Time limit of the whole probe."""


@dataclass(frozen=True)
class Gpu:
    """A GPU and its memory."""

    index: int
    free: int | None
    """MiB; None: unknown."""
    total: int | None
    """MiB; None: unknown."""


@dataclass(frozen=True)
class Lock:
    """A lock on the folder of an extension that torch compiles."""

    path: str
    age: float
    """Seconds since its creation, by this host's clock."""
    held: bool
    """Whether a process of this host has it open, or has its folder as working directory."""


@dataclass(frozen=True)
class Count:
    """Number of files and bytes under a path."""

    path: str
    present: bool
    """Whether it exists and is readable."""
    files: int = 0
    bytes: int = 0
    whole: bool = True
    """False: the time limit came before everything was counted."""
    fault: str = ""
    """What is wrong with it although it is there: a pack that is not complete."""


# Wide: one field per question of doctor.
@dataclass(frozen=True, kw_only=True)
class Report:
    """A host's answer. All fields survive JSON."""

    name: str
    """Its own host name."""
    machine: str
    """Equal for two names of one machine (or container), and different otherwise."""
    directory: str
    """Working directory, from which relative paths start."""
    python: str
    """Version of Python."""
    executable: str
    versions: dict[str, str | None]
    """Package -> version; None: not installed."""
    package: str | None
    """Folder from which `import yolods` loads."""
    digest: str
    """Digest of the files in that folder; "" without one."""
    gpus: list[Gpu]
    gpu_error: str
    """Why existing GPUs could not be counted; "": they were counted, or there are none."""
    cores: int
    """CPU cores that a process may use."""
    disk: dict[str, int]
    """Folder -> free bytes on its disk, for the working directory and yolods' cache."""
    addresses: list[tuple[str, str]]
    """(interface, address/prefix length)."""
    routes: list[tuple[str, str]]
    """(interface, reachable network)."""
    own_address: str | None
    """What its own name resolves to: gloo listens there unless an interface is given."""
    first_address: str | None
    """First output of `hostname -I`: DeepSpeed's rendezvous unless an address is given."""
    master_address: str | None
    """What the master address resolves to here; None: no name was given, or it is unknown."""
    port_error: str
    """Why the master port cannot be bound; "": it can, or was not checked."""
    ninja: str | None
    """Path of `ninja` on PATH."""
    ninja_beside: str | None
    """Path of `ninja` beside this Python, which may not be on PATH."""
    compiler: str | None
    nvcc: str | None
    headers: bool
    """Whether Python's C headers are installed."""
    locks: list[Lock]
    data: list[Count]
    time: float
    """This host's clock at the end of the probe, in seconds since 1970."""


def probe_host(request: ProbeRequest) -> Report:
    """Examine this host."""
    package = _package()
    cache, extensions = _cache_folders()
    beside = Path(sys.executable).parent / "ninja"
    # At the same time: the GPUs and the counting take seconds each.
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(_gpus)
        data = _counts(request)
    gpus, gpu_error = asked.result()
    return Report(
        name=socket.gethostname(),
        machine=machine_id(),
        directory=os.getcwd(),
        python=".".join(map(str, sys.version_info[:3])),
        executable=sys.executable,
        versions={"yolods": _own_version(package), **{name: _version(name) for name in LIBRARIES}},
        package=str(package) if package else None,
        digest=_digest(package) if package else "",
        gpus=gpus,
        gpu_error=gpu_error,
        cores=len(os.sched_getaffinity(0)),
        disk={str(folder): _free_bytes(folder) for folder in (Path.cwd(), cache) if folder},
        addresses=list(addresses()),
        routes=list(_routes()),
        own_address=_resolve(socket.gethostname()),
        first_address=next(iter(_output(["hostname", "-I"]).split()), None),
        master_address=_resolve(request.master_addr) if request.master_addr else None,
        port_error=_port_error(request.master_port) if request.master_port else "",
        ninja=shutil.which("ninja"),
        ninja_beside=str(beside) if os.access(beside, os.X_OK) else None,
        compiler=shutil.which((os.environ.get("CXX") or "c++").split()[0]),
        nvcc=_nvcc(),
        headers=Path(sysconfig.get_path("include"), "Python.h").is_file(),
        locks=_locks(extensions) if extensions else [],
        data=data,
        time=time.time(),
    )


def encode_report(report: Report) -> str:
    """The report as one line of JSON."""
    return json.dumps(asdict(report))


def decode_report(text: str) -> Report:
    """Inverse of `encode_report`.

    Raises:
        ValueError: the text is not a report.
    """
    try:
        values = json.loads(text)
        nested = {
            "gpus": [Gpu(**value) for value in values["gpus"]],
            "locks": [Lock(**value) for value in values["locks"]],
            "data": [Count(**value) for value in values["data"]],
            "addresses": [tuple(value) for value in values["addresses"]],
            "routes": [tuple(value) for value in values["routes"]],
        }
        return Report(**{**values, **nested})
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a report: {error}") from None


def _output(command: list[str], seconds: float = COMMAND_SECONDS) -> str:
    """What a tool prints; "" if it is missing, fails or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def machine_id() -> str:
    """Identity of this host: equal for two names of one host, and different otherwise."""
    # Two network namespaces share a boot, and two containers may. They count as two hosts, because
    # their ranks reach each other only over a network: hence the namespace in addition.
    parts = []
    for read in (
        Path("/proc/sys/kernel/random/boot_id").read_text,
        lambda: os.readlink("/proc/self/ns/net"),
    ):
        try:
            parts.append(read().strip())
        except OSError:
            parts.append(socket.gethostname())
    return " ".join(parts)


def _package() -> Path | None:
    found = importlib.util.find_spec("yolods")
    return Path(found.origin).parent if found and found.origin else None


def _own_version(package: Path | None) -> str | None:
    if package is None:
        return None
    text = (package / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return match[1] if match else "unknown"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _digest(package: Path) -> str:
    """Digest of the package's file names and contents: two commits may have the same version."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*")):
        if file.suffix in (".py", ".json", ".yaml") and file.is_file():
            digest.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _cache_folders() -> tuple[Path | None, Path | None]:
    """yolods' cache and torch's folder of extensions, by the rules of the yolods on this host."""
    try:
        from yolods.system.folders import cache_dir
    except ImportError:  # yolods is missing, which doctor reports as a fault of its own
        return None, None
    cache = cache_dir()
    return cache, Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cache / "torch_extensions")


def _gpus() -> tuple[list[Gpu], str]:
    began = time.monotonic()
    query = [
        "nvidia-smi",
        "--query-gpu=index,memory.free,memory.total",
        "--format=csv,noheader,nounits",
    ]
    listed = _output(query, GPU_SECONDS) if shutil.which("nvidia-smi") else ""
    gpus = []
    for line in listed.splitlines():
        index, *memory = (part.strip() for part in line.split(","))
        if index.isdigit() and len(memory) == 2:
            gpus.append(
                Gpu(int(index), *(int(part) if part.isdigit() else None for part in memory))
            )
    if gpus or not any(glob.glob(pattern) for pattern in GPU_NODES):
        return gpus, ""
    # Device nodes exist, but nvidia-smi is missing or fails (WSL, ROCm, a broken driver).
    left = GPU_SECONDS - (time.monotonic() - began)
    if left > 0 and (shown := _output([sys.executable, "-c", _TORCH], left)):
        return [Gpu(*row) for row in json.loads(shown)], ""
    return (
        [],
        "there are GPU devices, but neither nvidia-smi nor torch lists them within "
        f"{GPU_SECONDS:g} s",
    )


def _free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def addresses() -> Iterator[tuple[str, str]]:
    """(interface, address/prefix length) of this host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for _, name in socket.if_nameindex():
            asked = struct.pack("256s", name.encode()[:15])
            try:
                address, mask = (
                    socket.inet_ntoa(fcntl.ioctl(handle.fileno(), code, asked)[20:24])
                    for code in (_SIOCGIFADDR, _SIOCGIFNETMASK)
                )
            except OSError:  # the interface is down, or has no IPv4 address
                continue
            yield name, f"{address}/{ipaddress.ip_network(f'0.0.0.0/{mask}').prefixlen}"
    for line in _lines("/proc/net/if_inet6"):
        digits, _, prefix, _, _, name = line.split()
        yield name, f"{ipaddress.ip_address(bytes.fromhex(digits))}/{int(prefix, 16)}"


def _routes() -> Iterator[tuple[str, str]]:
    for line in _lines("/proc/net/route")[1:]:
        name, target, *rest = line.split()
        # Native byte order, as the kernel prints it.
        network, mask = (
            socket.inet_ntoa(struct.pack("=I", int(number, 16))) for number in (target, rest[5])
        )
        yield name, str(ipaddress.ip_network(f"{network}/{mask}", strict=False))


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _resolve(name: str) -> str | None:
    try:
        return str(socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


def _port_error(port: int) -> str:
    try:
        with socket.socket() as handle:
            # As torch's store does: a port with connections in TIME_WAIT then counts as free.
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            handle.bind(("", port))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = ([f"{home}/bin"] if home else []) + [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return shutil.which("nvcc", path=os.pathsep.join(places))


def _locks(extensions: Path) -> list[Lock]:
    found = sorted({*extensions.glob("*/lock"), *extensions.glob("*/*/lock")})
    if not found:
        return []
    in_use, now = _paths_in_use(), time.time()
    locks = []
    for lock in found:
        try:
            age = now - lock.stat().st_mtime
        except OSError:  # released since the glob
            continue
        real = lock.resolve()
        locks.append(Lock(str(lock), age, bool({str(real), str(real.parent)} & in_use)))
    return locks


def _paths_in_use() -> set[str]:
    """Open files and working directories of all processes that this user may inspect.

    torch keeps a lock file open while it builds, and ninja and its compilers run in the lock's
    folder.
    """
    used = set()
    for process in glob.glob("/proc/[0-9]*"):
        for link in (f"{process}/cwd", *glob.glob(f"{process}/fd/*")):
            try:
                used.add(os.readlink(link))
            except OSError:  # the process has ended, or belongs to another user
                continue
    return used


def _counts(request: ProbeRequest) -> list[Count]:
    deadline = time.monotonic() + request.walk_seconds
    counted = [_count(path, _below(path), request.ignored, deadline) for path in request.trees]
    return counted + [
        _count(path, _listed(path), request.ignored, deadline) for path in request.lists
    ]


def _below(path: str) -> Iterator[str]:
    if not os.path.isdir(path):
        yield path
    for folder, _, names in os.walk(path, followlinks=True):
        yield from (os.path.join(folder, name) for name in names)


def _listed(path: str) -> Iterator[str]:
    yield path
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in lines:
            if name := line.strip():
                beside = os.path.dirname(path)
                yield os.path.join(beside, name[2:]) if name.startswith("./") else name


def _count(path: str, names: Iterator[str], ignored: tuple[str, ...], deadline: float) -> Count:
    if not os.access(path, os.R_OK):
        return Count(path, False)
    files = size = 0
    for name in names:
        if time.monotonic() > deadline:
            return Count(path, True, files, size, whole=False)
        if name.endswith(ignored or ("\0",)):
            continue
        try:
            size += os.stat(name).st_size
        except OSError:  # a dangling link, or a listed file that is missing: it does not count
            continue
        files += 1
    return Count(path, True, files, size, fault=pack_fault(path))


def pack_fault(path: str) -> str:
    """The first tar file that a pack lacks, or that has another length; "" if it is no pack."""
    if not path.endswith(".pack"):
        return ""
    try:
        with open(os.path.join(path, "pack.json"), encoding="utf-8") as file:
            shards = [(shard["file"], shard["bytes"]) for shard in json.load(file)["shards"]]
    except FileNotFoundError:
        return "is not a finished pack: pack.json is missing"
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"has a damaged pack.json ({type(error).__name__})"
    for name, length in shards:
        try:
            found = os.stat(os.path.join(path, name)).st_size
        except OSError:
            return f"lacks its {name}"
        if found != length:
            return f"has {found} bytes in {name} instead of {length}"
    return ""


def main(words: list[str]) -> int:
    """Print this host's report."""
    values = json.loads(words[0]) if words else {}
    request = ProbeRequest(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )

    def give_up(*_: object) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        # Time to end a tool that is running. The alarm kills the process if a disk that hangs
        # blocks even the exit.
        signal.alarm(GRACE_SECONDS)
        sys.exit(f"something hangs there: not finished after {request.limit_seconds} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(request.limit_seconds)
    print(encode_report(probe_host(request)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
