"""train.log has every line, the screen only ours and warnings: in processes of their own with the
real libraries."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forks import forked
from yolods.telemetry import open_log

pytestmark = pytest.mark.process

RunProcess = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
IMPORTS = (
    "import deepspeed\nfrom deepspeed.utils import logger as ds\n"
    "from ultralytics.utils import LOGGER as ul\n"
)
OPEN = """
from pathlib import Path
from yolods.telemetry.log import open_log
log = open_log(Path({run!r}), {rank}, "node7")
"""
SPEAK = """
import logging, warnings
ours = logging.getLogger("yolods.training.loop")
ds.warning("ds first warning")
ds.info("ds info")
ul.info("ul info"); ul.warning("ul warning")
ours.info("our info"); ours.error("our error")
warnings.warn("a python warning", FutureWarning)
logging.getLogger("torch.distributed").warning("torch warning")
log.close()
"""


def libraries_first(script: str) -> None:
    """In a fork, which has imported them."""
    exec(script, {})


def shown_by_fork(script: str, folder: Path) -> list[str]:
    screen = folder / "screen"
    call = {"script": IMPORTS + script}
    code = forked("tests.unit.test_telemetry_log:libraries_first", call, screen=screen, timeout=60)
    shown = screen.read_text()
    assert code == 0, shown
    return shown.splitlines()


@pytest.mark.parametrize("order", ["libraries first", "log first"])
def test_rank_0(run_process: RunProcess, tmp_path: Path, order: str) -> None:
    opening = OPEN.format(run=str(tmp_path), rank=0)
    if order == "libraries first":
        lines = shown_by_fork(opening + SPEAK, tmp_path)
    else:
        lines = run_process(
            [sys.executable, "-c", opening + IMPORTS + SPEAK], cwd=ROOT
        ).stdout.splitlines()
    shown = [line for line in lines if re.search("ds|ul|our|python", line)]
    assert shown == [
        "warning (DeepSpeed): ds first warning",
        "warning (ultralytics): ul warning",
        "our info",
        "error: our error",
    ]
    log = (tmp_path / "train.log").read_text()
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} "
    expected = [
        r"WARNING DeepSpeed: ds first warning",
        r"INFO    DeepSpeed: ds info",
        r"WARNING ultralytics: ul warning",
        r"INFO    yolods.training.loop: our info",
        r"ERROR   yolods.training.loop: our error",
        r"WARNING py.warnings: .*FutureWarning: a python warning",
    ]
    for line in expected:
        assert len(re.findall(f"^{stamp}{line}", log, re.MULTILINE)) == 1, line
    if order == "libraries first":
        assert "torch.distributed: torch warning" in log
        assert "ultralytics: ul info" in log


def test_other_ranks_show_warnings_under_their_name(tmp_path: Path) -> None:
    lines = shown_by_fork(OPEN.format(run=str(tmp_path), rank=3) + SPEAK, tmp_path)
    assert [line for line in lines if "our" in line or "ds" in line] == [
        "[rank 3 node7] warning (DeepSpeed): ds first warning",
        "[rank 3 node7] error: our error",
    ]
    assert not (tmp_path / "train.log").exists()
    own = (tmp_path / "logs" / "rank3.log").read_text()
    assert "ds first warning" in own
    assert "info" not in own


def test_a_rank_with_nothing_to_say_leaves_no_file(tmp_path: Path) -> None:
    with open_log(tmp_path / "run", rank=1):
        pass
    assert not (tmp_path / "run").exists()


def test_what_a_library_warns_of_makes_no_file_of_a_rank_by_itself(tmp_path: Path) -> None:
    with open_log(tmp_path / "run", rank=1):
        logging.getLogger("torch.distributed").warning("torch's own")
        logging.getLogger("py.warnings").warning("a python warning")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "level"), [("yolods.training.loop", logging.WARNING), ("torch", logging.ERROR)]
)
def test_what_a_library_has_warned_of_stands_before_the_line_that_makes_a_ranks_file(
    tmp_path: Path, name: str, level: int
) -> None:
    with open_log(tmp_path, rank=1):
        logging.getLogger("py.warnings").warning("first")
        logging.getLogger(name).log(level, "second")
        logging.getLogger("py.warnings").warning("third")
    lines = (tmp_path / "logs" / "rank1.log").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["first", "second", "third"]


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full, Linux's device that is always full"
)
def test_a_screen_that_is_full_shows_no_traceback_of_logging(
    tmp_path: Path, run_process: RunProcess
) -> None:
    script = (
        OPEN.format(run=str(tmp_path), rank=0)
        + "import logging; logging.getLogger('yolods').info('a line')"
    )
    done = run_process(
        ["bash", "-c", 'exec "$@" >/dev/full', "-", sys.executable, "-u", "-c", script], cwd=ROOT
    )
    assert done.stderr == ""
    assert "a line" in (tmp_path / "train.log").read_text()


def test_lines_of_a_resumed_run_follow_those_before(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with open_log(tmp_path):
            logging.getLogger("yolods").info(word)
    logging.getLogger("yolods").warning("after close")
    found = [line.split(": ")[1] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert found == ["first", "second"]


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="needs /dev/full, Linux's device that is always full"
)
def test_a_full_disk_is_reported_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").symlink_to("/dev/full")
    with open_log(tmp_path):
        for _ in range(3):
            logging.getLogger("yolods").info("a line")
    captured = capsys.readouterr()
    assert captured.out.count("a line") == 3
    assert captured.err.count("train.log cannot be written") == 1
    assert "Traceback" not in captured.err
