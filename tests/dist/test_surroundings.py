"""One run in a shell that has seen much: leftovers of three launchers, streams closed, a hostfile
from Windows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dist.commands import SMALL, front_door
from tests.forks import environment
from tests.tiny import make_dataset

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

LEFT_OVER = {
    **{
        "RANK": "1",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "x",
        "LOCAL_WORLD_SIZE": "9",
        "LOCAL_SIZE": "many",
    },
    **{"MASTER_ADDR": "gone.invalid", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"},
    **{"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    **{
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_LOCALID": "0",
        "PMI_RANK": "3",
        "PMI_SIZE": "4",
    },
    **{
        "CUDA_VISIBLE_DEVICES": "-1",
        "TMPDIR": "/nowhere",
        "LC_ALL": "C",
        "TERM": "none",
        "PYTHONHASHSEED": "0",
    },
}


def test_a_run_in_a_shell_that_has_seen_much(run_process: Callable, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", train=8, val=4, nc=2)
    hosts = tmp_path / "hosts"
    hosts.write_bytes("\ufeff# zwei Kerne, für uns\r\nlocalhost slots=2\r\n".encode())
    words = [
        *front_door("train"),
        "--data",
        "data/tiny.yaml",
        *SMALL,
        "--workers",
        "2",
        "--epochs",
        "1",
    ]
    words += ["--set", "plots=False", "--hostfile", str(hosts)]
    shell = ["bash", "-c", 'exec "$@" <&- >&-', "-", *words]
    done = run_process(shell, cwd=tmp_path, env={**environment(), **LEFT_OVER}, timeout=200)
    assert done.returncode == 0, done.stderr
    told = (
        "yolods: ignoring PMI_SIZE=4, RANK=1, SLURM_STEP_NUM_TASKS=4, WORLD_SIZE=7 in the "
        "environment: "
    )
    assert told in done.stderr
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr
    run = tmp_path / "runs" / "exp"
    assert json.loads((run / "config.json").read_text())["ranks"] == 2
    assert len((run / "results.csv").read_text().splitlines()) == 2
    if len(os.sched_getaffinity(0)) < 4:
        assert (
            "--workers 2: a rank starts 1, its share of this host's cores"
            in (run / "train.log").read_text()
        )
    assert not (run / "logs").exists(), "no rank had anything to say"
