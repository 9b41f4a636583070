"""The environment of every test (quiet, offline, single-threaded) and checks that it leaves no
process behind.

pyproject.toml has the time limits of tests.
"""

import ctypes
import gc
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from tests import forks

if TYPE_CHECKING:
    from tests.two_hosts import TwoHosts

# Helpers that Python and torch start once and keep for the life of a process.
KEPT_HELPERS = ("multiprocessing.resource_tracker", "multiprocessing.forkserver", "compile_worker")
# Set if pytest runs inside a distributed job; a test must see only what it sets itself.
JOB_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "HOSTFILE",
    "DS_ENV_FILE",
)
GRACE_SECONDS = 3.0
STARTING_FIXTURES = frozenset(("run_process", "two_hosts"))
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

SCRATCH = Path(tempfile.mkdtemp(prefix="yolods-tests-"))


def gpu_present() -> bool:
    """Whether there are device nodes of a CUDA or ROCm device; importing torch takes seconds."""
    return bool(glob.glob("/dev/nvidia[0-9]*") or glob.glob("/dev/dxg") or glob.glob("/dev/kfd"))


def _prepare_environment() -> None:
    """Set the environment before any test module imports torch, deepspeed or ultralytics."""
    # Without bytecode, each of a thousand processes would compile yolods again.
    for name in (*JOB_VARIABLES, "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "Agg",
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(SCRATCH / "ultralytics"),
        "YOLODS_CACHE": str(SCRATCH / "cache"),
        "TESTS_SCRATCH": str(SCRATCH),  # for results that several worlds of ranks share
    }
    if not gpu_present():
        os.environ["DS_ACCELERATOR"] = "cpu"
    # A shell starts background jobs with SIGINT ignored, and every process of the tests would
    # inherit this.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        # Otherwise init adopts a rank whose launcher died, and the check below cannot see it.
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


_prepare_environment()


def pytest_unconfigure() -> None:
    shutil.rmtree(SCRATCH, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests whose fixtures start processes, and skip `gpu` tests without a device."""
    for item in items:
        if not STARTING_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("process")
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(
            reason=f"needs a CUDA device, and torch {torch.__version__} sees none here"
        )
        for item in marked:
            item.add_marker(skip)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """A function that returns an unused TCP port, a different one each time."""

    def pick() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return pick


@pytest.fixture(scope="session")
def two_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator["TwoHosts"]:
    """Two hosts on this machine with a network of their own, created once per run."""
    from tests.two_hosts import two_hosts, why_not

    if reason := why_not():
        pytest.skip(reason)
    with two_hosts(tmp_path_factory.mktemp("hosts")) as both:
        yield both


@pytest.fixture
def run_process() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a command, and kills it with all its processes after a timeout.

    `run_process(argv, timeout=60.0, cwd=None, env=None)`: `env` is added to the tests' environment;
    stdout and stderr are returned as separate texts. After `timeout` seconds the test fails and
    shows the output so far.
    """

    def run(
        argv: Sequence[str | Path],
        *,
        timeout: float = 60.0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        words = [str(word) for word in argv]
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            _end_session(process)
            stdout, stderr = _what_is_left_to_read(process)
            pytest.fail(
                f"still running after {timeout:g} s: {words}\n{stdout[-3000:]}\n{stderr[-3000:]}"
            )
        except BaseException:  # pytest-timeout's own limit, or Ctrl-C
            _end_session(process)
            raise
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    return run


def _what_is_left_to_read(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:  # a process that left the session still holds the pipes
        return "", ""


def _end_session(process: subprocess.Popen[str]) -> None:
    """Kill `process` and its descendants, also those in other process groups."""
    family = [process]
    try:
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        os.killpg(process.pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass
    for member in family:
        try:
            member.kill()
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue


_started: list[str] = []
"""Python processes that the current test started."""


def _note_starts(event: str, words: tuple) -> None:
    """Note every Python that this process starts; libraries' short calls are allowed."""
    if event == "tests.fork" or (
        event == "subprocess.Popen" and os.path.basename(str(words[0])).startswith("python")
    ):
        _started.append(str(words[-1] if event == "tests.fork" else words[1]))


sys.addaudithook(_note_starts)


@pytest.fixture(autouse=True)
def starts_are_marked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a unit test that starts a Python without the mark `process`, on which --fast relies."""
    _started.clear()
    yield
    unmarked = (
        "tests/unit/" in request.node.nodeid and request.node.get_closest_marker("process") is None
    )
    assert not (unmarked and _started), (
        f"mark it pytest.mark.process, because it starts {_started[0]}"
    )


@pytest.fixture(autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process running, and kill that process."""
    before = _running_children()
    yield
    left = _running_children() - before
    if left:
        gc.collect()  # a data loader ends its workers at garbage collection
        _, alive = psutil.wait_procs(left, timeout=GRACE_SECONDS)
        named = [f"{child.pid}: {_command(child)}" for child in alive]
        for child in alive:
            child.kill()
        psutil.wait_procs(alive, timeout=GRACE_SECONDS)
        assert not alive, "the test left processes running:\n" + "\n".join(named)


def _running_children() -> set[psutil.Process]:
    return {
        child
        for child in _descendants(os.getpid())
        if child.pid != forks.server_pid()
        and not any(helper in _command(child) for helper in KEPT_HELPERS)
    }


def _descendants(pid: int) -> list[psutil.Process]:
    """psutil asks every process of the machine who its parent is, which costs a minute of 8,000
    tests; Linux lists the children of a thread, unless it was built without CONFIG_PROC_CHILDREN.
    """
    if not os.path.exists("/proc/thread-self/children"):
        return psutil.Process(pid).children(recursive=True)
    found: list[psutil.Process] = []
    for file in map(Path, glob.glob(f"/proc/{pid}/task/*/children")):
        children = b""
        with suppress(OSError):  # it has just ended, as below
            children = file.read_bytes()
        for child in map(int, children.split()):
            with suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(child))
            found += _descendants(child)
    return found


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
