"""The launcher of one host, with ranks that are short scripts; forked, for it imports DeepSpeed."""

from __future__ import annotations

import base64
import json
import signal
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import psutil
import pytest

from tests.forks import forked, server_pid
from yolods.system.interrupt import PASSED_ON

pytestmark = pytest.mark.process

RANK = """
import os, signal, sys, time
from yolods.system.interrupt import heed
def stop(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open(f"asked{os.environ['RANK']}", "w").write(str(number))
    time.sleep(1.5)  # a long step
    open(f"saved{os.environ['RANK']}", "w").close()
    os._exit(143)
heed(stop)
open(f"up{os.environ['RANK']}", "w").close()
time.sleep(60)
"""


def launch(folder: str) -> int:
    """DeepSpeed's patience is half a second here, and not 30."""
    import os

    from deepspeed.launcher import launch as stock

    from yolods.launch import node_launcher

    os.chdir(folder)
    world = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
    ours = [
        f"--world_info={world}",
        "--master_port=1",
        "--no_local_rank",
        "--log_level=error",
        f"{folder}/rank.py",
    ]
    wait = psutil.wait_procs
    patience = mock.patch.object(
        stock.psutil, "wait_procs", lambda left, timeout: wait(left, timeout=0.5)
    )
    with (
        mock.patch.object(sys, "argv", ["launch", *ours]),
        patience,
        pytest.raises(SystemExit) as left,
    ):
        node_launcher.main()
    return left.value.code


def told(folder: Path, number: signal.Signals) -> None:
    """Once both ranks are up, send a signal to the launcher, which is what the server has
    forked."""
    deadline = time.monotonic() + 60
    while (
        not all((folder / f"up{rank}").exists() for rank in range(2))
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    for child in psutil.Process(server_pid()).children():
        child.send_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, PASSED_ON], ids=["SIGTERM", "Ctrl-C"])
def test_a_step_that_is_longer_than_deepspeed_s_patience_ends_in_good_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    teller = threading.Thread(target=told, args=(tmp_path, number))
    teller.start()
    status = forked(
        "tests.unit.test_node_launcher:launch",
        {"folder": str(tmp_path)},
        screen=tmp_path / "s",
        timeout=90,
    )
    teller.join()
    screen = (tmp_path / "s").read_text()
    assert status == 143, screen
    assert screen == ""
    for rank in range(2):
        assert (tmp_path / f"asked{rank}").read_text() == str(int(number))
        assert (tmp_path / f"saved{rank}").exists()
