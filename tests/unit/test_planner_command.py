"""What `yolods plan` refuses; tests/dist/test_plan_trains.py has what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolods.cli import main
from yolods.errors import UserError
from yolods.launch.args import LaunchFlags
from yolods.planner.command import run_plan
from yolods.planner.flags import plan_parser

SMALL = ("plan", "--model", "yolov5[0.33,0.1]", "--imgsz", "64")


@pytest.mark.slow
def test_what_fits_nothing_is_refused_with_what_would(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = (*SMALL, "--ranks", "1", "--gpu", "T4", "--gpu-memory", "0.001", "--precision", "fp32")
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "\nerror: no layout fits; the nearest is " in shown
    assert "it would fit with --gpu-memory " in shown


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--ranks", "2", "--hostfile", "hosts"), "--ranks 2 and --hostfile hosts both say"),
        (("--ranks", "2", "--gpu", "B9"), "--gpu B9: no figures of this GPU"),
        (("--ranks", "2", "--zro", "1"), "unknown flag --zro"),
        (("--ranks", "2", "--plot", "/"), "--plot /: this is a folder"),
        (("--ranks", "2", "--out", "/proc/ds.json"), "--out /proc/ds.json: no file can be written"),
        (("--ranks", "2", "--out", "a", "--plot", "./a"), "--out and --plot both name a;"),
    ],
)
def test_wrong_flags_are_refused(
    words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main((*SMALL, *words)) == 2
    shown = capsys.readouterr().err
    assert line in shown and "Traceback" not in shown


def test_ranks_are_given_once() -> None:
    args = plan_parser().take([*SMALL[1:], "--ranks", "2"])
    with pytest.raises(UserError, match="both say where ranks run; keep one"):
        run_plan(args, LaunchFlags(hostfile=Path("hosts")), 0, lambda _: None)
