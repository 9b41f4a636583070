"""Ctrl-C in the middle of training: everything ends within seconds, with 130 and without a traceback."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tiny import make_dataset

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
WORDS = ("--model", "yolov5[0.1,0.1]", "--imgsz", "64", "--batch-size", "4", "--epochs", "1000", "--workers", "2")


def wait_for(condition, seconds: float, process: subprocess.Popen) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_one_process_and_its_loaders(tmp_path):
    yaml = make_dataset(tmp_path / "data", train=8, val=2)
    words = ["train", "--data", yaml, *WORDS, "--noplots", "--noval", "--set", "nbs=4", "--project", tmp_path / "runs"]
    variables = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    with open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "yolods", *map(str, words)],
            cwd=ROOT,
            env=variables,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
    try:
        results = tmp_path / "runs" / "exp" / "results.csv"
        wait_for(lambda: results.is_file() and results.read_text().count("\n") > 3, 90, process)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 2
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process at once
        assert process.wait(10) == 130
        assert not psutil.wait_procs(family, timeout=3)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "Traceback" not in (tmp_path / "out").read_text() + (tmp_path / "err").read_text()
    assert "KeyboardInterrupt" not in (tmp_path / "err").read_text()
