"""Training over two hosts, by a hostfile and pdsh: what a person types on the first of them, and
nothing else.

Neither host has a variable set that the run needs: they differ in the names of their interfaces,
and both resolve their own name to 127.0.1.1, where gloo by itself would wait for ever.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.dist.commands import ROOT, SMALL, started, wait_for
from tests.tiny import make_dataset
from tests.two_hosts import TwoHosts
from yolods.checkpoint.verify import names_in, step_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]

PATIENCE_SECONDS = 220.0
GONE_SECONDS = 15.0
IMAGES, EPOCHS, EVERY_STEPS = 32, 3, 2
STEPS = IMAGES // 4
BARE = ("env", "-u", "OMP_NUM_THREADS", "-u", "DS_ACCELERATOR", f"PYTHONPATH={ROOT}")
"""A shell in which nothing was prepared; PYTHONPATH stands for an installation of this checkout."""


def test_a_run_by_hostfile_and_pdsh(
    two_hosts: TwoHosts, run_process: Callable, tmp_path: Path
) -> None:
    """What ./launch.sh train starts. The name shows that words arrive whole which a shell would
    take apart."""
    data = make_dataset(tmp_path / "tiny", train=4, val=2)
    name = "it's $HOME; 100%h"
    words = [
        *BARE,
        sys.executable,
        "-m",
        "yolods",
        "launch",
        "train",
        "--hostfile",
        two_hosts.hostfile(),
    ]
    flags = ["--data", data, *SMALL, "--name", name, "--epochs", "1", "--noplots", "--set", "nbs=4"]
    before = _logins(two_hosts)
    done = run_process(two_hosts.first.words([*words, *flags], tmp_path), timeout=PATIENCE_SECONDS)
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    assert "2 ranks on cpu" in shown and "Traceback" not in shown
    # The first host is reached through ssh, too: pdsh makes no difference between them.
    assert [after - count for after, count in zip(_logins(two_hosts), before, strict=True)] == [
        1,
        1,
    ]
    run = tmp_path / "runs" / name
    assert len((run / "results.csv").read_text().splitlines()) == 2
    assert (run / "weights" / "best.pt").stat().st_size and list(
        run.glob("checkpoints/step*/rank1.pt")
    )


def test_deepspeeds_own_launcher(
    two_hosts: TwoHosts, run_process: Callable, tmp_path: Path
) -> None:
    """`deepspeed --hostfile`: the ranks alone see to it that they meet. DeepSpeed carries the
    user's variables."""
    (two_hosts.first.home / ".deepspeed_env").write_text("YOLODS_SAID=a b\n", encoding="utf-8")
    launcher = shutil.which("deepspeed", path=str(Path(sys.executable).parent))
    assert launcher, "the environment of these tests has no deepspeed command"
    words = [
        *BARE,
        launcher,
        "--hostfile",
        two_hosts.hostfile(),
        "--module",
        "tests.dist.hello_rank",
    ]
    done = run_process(two_hosts.first.words(words, tmp_path), timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.partition("{") for line in done.stdout.splitlines() if '"rank"' in line]
    said = sorted(
        (json.loads(brace + rest) for _, brace, rest in lines), key=lambda each: each["rank"]
    )
    hosts = [(host.name, host.interface) for host in (two_hosts.first, two_hosts.second)]
    assert [(each["host"], each["GLOO_SOCKET_IFNAME"]) for each in said] == hosts
    assert [(each["met"], each["YOLODS_SAID"]) for each in said] == [(2, "a b")] * 2


def _logins(two_hosts: TwoHosts) -> list[int]:
    """How often each host let somebody in."""
    logs = (two_hosts.folder / f"{host.name}.log" for host in (two_hosts.first, two_hosts.second))
    return [log.read_text(encoding="utf-8").count("Accepted publickey") for log in logs]


def of_the_run(hosts: TwoHosts, *parts: str) -> list[psutil.Process]:
    """Processes on either host whose command has one of these parts; by default all that a start
    consists of, but the command that was typed: `yolods launch train`."""
    parts = parts or ("yolods train", "deepspeed.launcher", "sidecar.py", "ssh")
    networks = {os.readlink(f"/proc/{host.pid}/ns/net") for host in (hosts.first, hosts.second)}
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            words = " ".join(process.cmdline())
            ours = os.readlink(f"/proc/{process.pid}/ns/net") in networks and "sshd" not in words
            if ours and any(part in words for part in parts):
                found.append(process)
    return found


def test_a_cable_pulled_in_mid_epoch(two_hosts: TwoHosts, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", train=IMAGES, val=4)
    (tmp_path / "ds.json").write_text(
        json.dumps({"yolods": {"checkpoint": {"every_steps": EVERY_STEPS}}})
    )
    words = [
        *BARE,
        sys.executable,
        "-m",
        "yolods",
        "launch",
        "train",
        "--hostfile",
        two_hosts.hostfile(),
    ]
    words += ["--data", data, *SMALL]
    words += [
        "--epochs",
        str(EPOCHS),
        "--noplots",
        "--set",
        "nbs=4",
        "--deepspeed_config",
        "ds.json",
    ]
    screen, run = tmp_path / "screen", tmp_path / "runs" / "exp"

    def newest() -> int:
        names = names_in(run / "checkpoints")
        return step_of(names[-1])[0] if names else 0

    with (
        open(screen, "w") as out,
        started(two_hosts.first.words(words, tmp_path), tmp_path, out) as process,
    ):
        try:
            wait_for(lambda: newest() >= STEPS + EVERY_STEPS, PATIENCE_SECONDS, process, screen)
            before = of_the_run(two_hosts)
            assert len(of_the_run(two_hosts, "sidecar.py")) == 2
            two_hosts.cut(two_hosts.second)
            _, alive = psutil.wait_procs(before, timeout=GONE_SECONDS)
            assert not alive, [each.cmdline() for each in alive] + [screen.read_text()]
            assert process.wait(PATIENCE_SECONDS) == 0, screen.read_text()
        finally:
            for each in of_the_run(two_hosts, "yolods", "ssh"):
                with suppress(psutil.Error):
                    each.kill()
            two_hosts.mend(two_hosts.second)
    shown = screen.read_text()
    assert "rank 1 on beta (process" in shown
    assert "sent no heartbeat" in shown
    assert "excluding host beta: cannot reach it with ssh" in shown
    assert "restart 1 of 3 from step" in shown
    assert "on 1 rank" in shown
    progress = json.loads(
        (run / "checkpoints" / names_in(run / "checkpoints")[-1] / "progress.json").read_text()
    )
    assert progress["position"] == IMAGES * EPOCHS
    assert (run / "results.csv").read_text().count("\n") == EPOCHS + 1
