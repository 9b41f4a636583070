"""A cable that is pulled in mid-epoch: the run ends on both hosts in time, says why, and goes on on one of them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.dist.starts import SMALL
from tests.dist.test_two_hosts import BARE
from tests.forks import environment
from tests.tiny import make_dataset
from tests.two_hosts import TwoHosts
from yolods.checkpoint.verify import names_in, step_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

PATIENCE_SECONDS = 150.0
GONE_SECONDS = 15.0
IMAGES, EPOCHS, EVERY_STEPS = 32, 3, 2
STEPS = IMAGES // 4


def of_the_run(hosts: TwoHosts, *parts: str) -> list[psutil.Process]:
    """Processes on either host whose command has one of these parts; by default all that a start consists of, but the
    command that was typed: `yolods launch train`."""
    parts = parts or ("yolods train", "deepspeed.launcher", "keeper.py", "ssh")
    networks = {os.readlink(f"/proc/{host.pid}/ns/net") for host in (hosts.first, hosts.second)}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            words = " ".join(process.cmdline())
            ours = os.readlink(f"/proc/{process.pid}/ns/net") in networks and "sshd" not in words
            if ours and any(part in words for part in parts):
                found.append(process)
    return found


def until(true: Callable[[], bool], seconds: float, process: subprocess.Popen[str], screen: Path) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert process.poll() is None and time.monotonic() < end, screen.read_text()
        time.sleep(0.1)


def test_a_cable_pulled_in_mid_epoch(two_hosts: TwoHosts, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", train=IMAGES, val=4)
    (tmp_path / "ds.json").write_text(json.dumps({"yolods": {"checkpoint": {"every_steps": EVERY_STEPS}}}))
    words = [*BARE, "-m", "yolods", "launch", "train", "--hostfile", two_hosts.hostfile(), "--data", data, *SMALL]
    words += ["--epochs", str(EPOCHS), "--noplots", "--set", "nbs=4", "--deepspeed_config", "ds.json"]
    screen, run = tmp_path / "screen", tmp_path / "runs" / "exp"

    def newest() -> int:
        names = names_in(run / "checkpoints")
        return step_of(names[-1])[0] if names else 0

    with open(screen, "w") as out:
        process = subprocess.Popen(
            two_hosts.first.words(words, tmp_path),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        until(lambda: newest() >= STEPS + EVERY_STEPS, PATIENCE_SECONDS, process, screen)
        before = of_the_run(two_hosts)
        assert len(of_the_run(two_hosts, "keeper.py")) == 2
        two_hosts.cut(two_hosts.second)
        _, alive = psutil.wait_procs(before, timeout=GONE_SECONDS)
        assert not alive, [each.cmdline() for each in alive] + [screen.read_text()]
        assert process.wait(PATIENCE_SECONDS) == 0, screen.read_text()
    finally:
        process.kill()
        process.wait()
        for each in of_the_run(two_hosts, "yolods", "ssh"):
            with suppress(psutil.Error):
                each.kill()
        two_hosts.mend(two_hosts.second)
    shown = screen.read_text()
    assert "rank 1 on beta (process" in shown
    assert "no sign of life" in shown
    assert "beta is left out: ssh does not reach it" in shown
    assert "restart 1 of 3 from step" in shown
    assert "on 1 rank" in shown
    progress = json.loads((run / "checkpoints" / names_in(run / "checkpoints")[-1] / "progress.json").read_text())
    assert progress["position"] == IMAGES * EPOCHS
    assert (run / "results.csv").read_text().count("\n") == EPOCHS + 1
