"""The process that ends a rank which no longer can, played with a stand-in for the rank."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from yolods.watchdog.sidecar import ASKED

pytestmark = pytest.mark.process

RANK = """
import sys, time
from yolods.watchdog.sidecar import Sidecar
sidecar = Sidecar("rank 1 on here", 1.0)
sidecar.tell("step 3, forward 0")
print("ready", flush=True)
for line in sys.stdin:
    if line == "bye\\n":
        sidecar.leave()
        break
    sidecar.tell(line.strip())
"""


@pytest.fixture
def rank():
    process = subprocess.Popen(
        [sys.executable, "-c", RANK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()


def test_a_rank_that_dies_is_named_at_once_with_where_it_was(rank) -> None:
    rank.kill()
    assert rank.stderr.read() == (  # to the end: the sidecar is gone by then, too
        f"yolods: rank 1 on here (process {rank.pid}) ended without a message in step 3, forward "
        "0: killed or crashed (dmesg shows whether memory ran out)\n"
    )


def test_a_rank_that_was_asked_to_stop_and_killed_before_it_had_is_not_said_to_have_crashed(
    rank,
) -> None:
    rank.stdin.write(f"step 3, forward 0{ASKED}\n")
    rank.stdin.flush()
    time.sleep(0.3)  # for the line to reach the sidecar
    rank.kill()
    said = rank.stderr.read()
    assert "crashed" not in said
    assert (
        "in step 3, forward 0 (asked to stop): killed before it had stopped (DeepSpeed's own"
        in said
    )


def test_a_rank_that_gives_no_sign_of_life_is_killed(rank) -> None:
    os.kill(rank.pid, signal.SIGSTOP)
    assert rank.wait(10) == -signal.SIGKILL
    assert (
        "sent no heartbeat for 1 s and was killed; it was in step 3, forward 0"
        in rank.stderr.read()
    )


def test_a_rank_that_goes_on_is_left_alone_and_so_is_its_end(rank) -> None:
    for _ in range(8):
        rank.stdin.write("step 4, data 0\n")
        rank.stdin.flush()
        time.sleep(0.25)
    assert rank.poll() is None
    rank.stdin.write("bye\n")
    rank.stdin.flush()
    assert rank.wait(10) == 0
    assert rank.stderr.read() == ""
