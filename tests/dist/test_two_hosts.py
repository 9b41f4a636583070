"""Training over two hosts, by a hostfile and pdsh: what a person types on the first of them, and nothing else.

Neither host has a variable set that the run needs: they differ in the names of their interfaces, and both resolve their
own name to 127.0.1.1, where gloo by itself would wait for ever.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dist.starts import ROOT, SMALL
from tests.tiny import make_dataset
from tests.two_hosts import TwoHosts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PATIENCE_SECONDS = 200.0
BARE = ("env", "-u", "OMP_NUM_THREADS", "-u", "DS_ACCELERATOR", f"PYTHONPATH={ROOT}", sys.executable)
"""Python in a shell in which nothing was prepared; PYTHONPATH stands for an installation of this checkout."""


def flags(data: Path) -> list[str]:
    return ["--data", str(data), *SMALL, "--epochs", "1", "--noplots", "--set", "nbs=4", "--set", "warmup_epochs=0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "tiny", train=8, val=4)


def test_a_hostfile_and_pdsh(two_hosts: TwoHosts, data: Path, run_process: Callable, tmp_path: Path) -> None:
    """What ./launch.sh train starts. The name shows that words arrive whole that a shell would take apart."""
    name = "it's $HOME; 100%h"
    words = [*BARE, "-m", "yolods", "launch", "train", "--hostfile", two_hosts.hostfile(), "--name", name]
    done = run_process(two_hosts.first.words([*words, *flags(data)], tmp_path), timeout=PATIENCE_SECONDS)
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    run = tmp_path / "runs" / name
    assert "2 ranks on cpu" in shown
    log = (run / "train.log").read_text(encoding="utf-8")
    print(shown, log)
