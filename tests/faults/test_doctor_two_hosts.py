"""`yolods doctor` on two hosts that differ, through real ssh: typed on the first, with the hostfile
and no more."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path

import pytest

from tests.tiny import make_dataset
from tests.two_hosts import TestHost, TwoHosts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
PORT = 29500
"""DeepSpeed's own: each host has all ports for itself."""
VERSION = metadata.version("deepspeed")
LISTEN = (
    "import socket, time; s = socket.create_server(('', 29500)); print('listens', flush=True); "
    "time.sleep(100)"
)
TWO_GPUS = "#!/bin/sh\nprintf '0, 80000, 81559\\n1, 80000, 81559\\n'\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny", train=3, val=2)


@pytest.fixture
def doctor(two_hosts: TwoHosts, run_process: Callable) -> Callable[..., tuple[int, list[str]]]:
    """Runs it with some flags. Returns its exit status and its lines."""

    def run(hostfile: Path, *words: object) -> tuple[int, list[str]]:
        python = [
            "env",
            f"PYTHONPATH={ROOT}",
            f"TORCH_EXTENSIONS_DIR={hostfile.parent / 'extensions'}",
            sys.executable,
        ]
        command = [*python, "-m", "yolods", "doctor", "--hostfile", hostfile, *words]
        done = run_process(two_hosts.first.words(command, ROOT), timeout=90)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, [*done.stdout.splitlines(), *done.stderr.splitlines()]

    return run


@pytest.fixture
def planted() -> Iterator[ExitStack]:
    """What ends with the test."""
    with ExitStack() as stack:
        yield stack


def test_a_healthy_set_up(two_hosts: TwoHosts, doctor: Callable, data: Path) -> None:
    began = time.monotonic()
    code, lines = doctor(two_hosts.hostfile(), "--data", data)
    seconds = time.monotonic() - began
    shown = "\n".join(lines)
    assert (code, lines[-1]) == (0, "This run would start."), shown
    assert seconds < 15, f"{seconds:.1f} s:\n{shown}"
    assert lines[0] == f"2 hosts, 2 ranks, meeting at 10.77.0.1, port {PORT}"
    assert "eth0" in shown and "lan0" in shown and "!" not in shown


def test_what_is_planted_is_found(
    two_hosts: TwoHosts, doctor: Callable, data: Path, planted: ExitStack
) -> None:
    """Faults that do not hide each other, all at once. Each host has two GPUs, as a stand-in for
    nvidia-smi says."""
    first, second = two_hosts.first, two_hosts.second
    for host in (first, second):
        planted.callback(host.tool("nvidia-smi", TWO_GPUS).unlink)
    hostfile = two_hosts.hostfile(slots=2, second=4)
    _take_port(first, planted)
    _change_version(second, planted)
    extensions = hostfile.parent / "extensions"
    extensions.mkdir(exist_ok=True)
    planted.enter_context(second.covered(extensions))
    second.run(
        "sh",
        "-c",
        f"mkdir {extensions}/cpu_adam; touch -d '2 hours ago' {extensions}/cpu_adam/lock",
    )
    planted.enter_context(second.covered(data.parent / "images" / "train"))
    for ninja in _ninjas():
        planted.enter_context(second.covered(ninja, ""))
    words = ["--data", data, "--deepspeed_config", ROOT / "ds_configs" / "zero2_offload_fp32.json"]
    code, lines = doctor(hostfile, *words)
    faults = [line for line in lines if line.startswith("fault: ")]
    expected = [
        f"fault: beta: deepspeed 0.1.2, but alpha has {VERSION}; install it there: pip install "
        f"deepspeed=={VERSION}",
        f"fault: alpha: port {PORT} is not usable: Address already in use; end what listens there, "
        "or use another",
        f"fault: beta: a build that was killed 2 hours ago left {extensions}/cpu_adam/lock",
        f"fault: beta: {data.parent / 'images' / 'train'} has 0 files, 0 B, but on alpha 3 files",
        "fault: beta: slots=4, but it has 2 GPUs; write slots=2 in the hostfile",
        "fault: beta: no ninja, but the configuration needs DeepSpeed's CPUAdam compiled; ",
    ]
    shown = "\n".join(lines)
    assert [
        start for start in expected if not any(line.startswith(start) for line in faults)
    ] == [], shown
    assert code == 2 and lines[-1].startswith("This run would fail"), shown
    assert not any("ninja" in line for line in faults if "alpha:" in line), shown


def test_a_cable_that_is_out_and_slots_without_gpus(
    two_hosts: TwoHosts, doctor: Callable, planted: ExitStack
) -> None:
    planted.callback(two_hosts.mend, two_hosts.second)
    two_hosts.cut(two_hosts.second)
    cores = len(os.sched_getaffinity(0))
    began = time.monotonic()
    code, lines = doctor(two_hosts.hostfile(slots=cores + 1))
    assert time.monotonic() - began < 30  # of which 12 at most are the time-out
    shown = "\n".join(lines)
    assert code == 2, shown
    assert any(
        line.startswith(
            "fault: beta: cannot reach it with ssh: ssh: connect to host beta port 22: "
        )
        for line in lines
    ), shown
    slots = f"fault: alpha: {cores + 1} ranks on {cores} CPU cores take turns; write slots={cores}"
    assert slots in lines, shown


def _take_port(host: TestHost, planted: ExitStack) -> None:
    listener = subprocess.Popen(
        host.words([sys.executable, "-c", LISTEN]), stdout=subprocess.PIPE, text=True
    )
    planted.callback(listener.wait)
    planted.callback(host.run, "pkill", "-f", "listens")
    assert listener.stdout.readline() == "listens\n"


def _change_version(host: TestHost, planted: ExitStack) -> None:
    (file,) = (file for file in metadata.files("deepspeed") or () if file.name == "METADATA")
    text = file.read_text().replace(f"\nVersion: {VERSION}", "\nVersion: 0.1.2", 1)
    planted.enter_context(host.covered(Path(file.locate()), text))


def _ninjas() -> list[Path]:
    folders = [Path(sys.executable).parent, *map(Path, ("/usr/local/bin", "/usr/bin", "/bin"))]
    return list(
        {(folder / "ninja").resolve(): None for folder in folders if (folder / "ninja").exists()}
    )
