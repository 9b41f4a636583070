"""Runs a script as two ranks, each on a host of its own (tests/two_hosts.py)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.cases import ROOT
from benchmarks.plan_links_model import TASK
from tests.two_hosts import TestHost, TwoHosts
from yolods.launch.command import ALLOCATOR

PORT = "29500"
_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def links_in_words() -> str:
    """How the hosts' links are made, for a record. TCP's congestion control is this machine's."""
    control = _CONTROL.read_text(encoding="ascii").strip()
    return f"Two network namespaces, `tc tbf`, burst 64 KB, MTU 1500, TCP {control}"


def run_ranks(
    hosts: TwoHosts,
    script: str,
    task_of: Callable[[str], str],
    timeout: float,
    *,
    single_segments: bool = True,
) -> None:
    """Start both ranks, and wait for their end.

    Args:
        script: file of `benchmarks/`; it finds its task in the environment, under `TASK`.
        task_of: the task of a rank as JSON, from the name of its host's interface.
        timeout: seconds for each rank.
        single_segments: send one segment per packet, as on a wire: the interfaces count what they
            are given.

    Raises:
        SystemExit: a rank failed.
    """
    ranks = []
    for rank, host in enumerate((hosts.first, hosts.second)):
        if single_segments:
            host.run("ip", "link", "set", "dev", host.interface, "gso_max_segs", "1")
        task = task_of(host.interface)
        ranks.append(_start(host, rank, script, task, hosts.first.address))
    try:
        for process in ranks:
            if process.wait(timeout):
                raise SystemExit(f"a rank ended with status {process.returncode}")
    finally:
        for process in ranks:
            process.kill()
            process.wait()


def _start(
    host: TestHost, rank: int, script: str, task: str, master: str
) -> subprocess.Popen[bytes]:
    variables = {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_SIZE": "1",
        "MASTER_ADDR": master,
        "MASTER_PORT": PORT,
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        # As the launcher starts ranks on CPUs.
        **ALLOCATOR,
        TASK: task,
    }
    words = ["env", *(f"{name}={value}" for name, value in variables.items())]
    words += [sys.executable, str(ROOT / "benchmarks" / script)]
    return subprocess.Popen(host.words(words, ROOT), stdin=subprocess.DEVNULL)
