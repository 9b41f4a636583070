"""What `yolods plan` refuses; tests/dist/test_plan_trains.py has what it writes."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import plans
from yolods.cli import main
from yolods.errors import UserError
from yolods.launch.args import LaunchFlags
from yolods.plan.step_profile import StepProfile, StepsOf
from yolods.plan.traffic.links import Link
from yolods.planner import command
from yolods.planner.command import Planner, run_plan
from yolods.planner.flags import plan_flags
from yolods.planner.links.link_test import MeasuredLinks
from yolods.system import files

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


@pytest.mark.slow
def test_times_of_cpus_come_from_the_steps_of_their_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --links; without, they are assumed."""
    asked: list[Any] = []

    def measured(*_: Any, steps: StepsOf, **__: Any) -> MeasuredLinks:
        asked.append(steps)
        nodes = (0.001,) * len(plans.graph().nodes)
        profile = StepProfile(nodes, 0.2, 0.03, 0.002, 0.004, steps.images, steps.imgsz, "fp32")
        return MeasuredLinks({("a", "b"): Link(1e9, 1e-4, "measured", 1e-9)}, {"fp32": profile})

    monkeypatch.setattr(command, "measure_links", measured)
    file = tmp_path / "hosts"
    file.write_text("a slots=1\nb slots=1\n")
    words = [*SMALL[1:], "--images-per-step", "8", "--links", "--json"]
    args = plan_flags().take([*words, "--host-memory", "4"])
    shown: list[str] = []
    run_plan(args, LaunchFlags(hostfile=file), 0, tell=lambda _: None, show=shown.append)
    told = json.loads(shown[0])
    (steps,) = asked
    assert steps == StepsOf("yolov5[0.33,0.1]", 80, 3, 64, 4, 29, ("fp32",))
    for each in told["layouts"]:
        kinds = each["seconds_are"]
        assert kinds["compute"] == kinds["optimizer"] == kinds["communication"] == "measured"
    whole = next(each for each in told["layouts"] if not each["layout"]["cuts"])
    micro, passes = whole["layout"]["micro_batch"], whole["layout"]["accumulation"]
    nodes = 0.001 * len(plans.graph().nodes) + 0.2
    again = 0.001 * len(plans.graph().nodes) if whole["layout"]["recompute"] else 0.0
    assert whole["seconds"]["compute"] == pytest.approx(
        passes * (0.03 + micro / 4 * (nodes + again))
    )


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--out", "--plot"])
def test_a_full_disk_costs_the_file_and_not_the_plan(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def full(*_: object) -> Iterator[int]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield 0

    monkeypatch.setattr(files, "_beside", full)
    file = tmp_path / "file"
    words = (*SMALL, "--images-per-step", "2", "--ranks", "1", "--gpu", "T4", "--precision", "fp32")
    assert main((*words, flag, str(file))) == 2
    shown = capsys.readouterr()
    assert shown.err.endswith(f"error: {flag} {file}: cannot be written: No space left on device\n")
    assert "32 layouts searched" in shown.out and not file.exists()


@pytest.mark.slow
def test_a_file_that_appears_during_the_search_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two plans with one --out said both that they had written it."""
    file, search = tmp_path / "ds.json", Planner.search

    def found_meanwhile(*words: Any) -> Any:
        file.write_text("{}")
        return search(*words)

    monkeypatch.setattr(Planner, "search", found_meanwhile)
    words = (*SMALL, "--images-per-step", "2", "--ranks", "1", "--gpu", "T4", "--precision", "fp32")
    assert main((*words, "--out", str(file))) == 2
    assert "this file exists; name another, or replace it" in capsys.readouterr().err
    assert file.read_text() == "{}"


def test_ranks_are_given_once() -> None:
    args = plan_flags().take([*SMALL[1:], "--ranks", "2"])
    with pytest.raises(UserError, match="both say where ranks run; keep one"):
        run_plan(args, LaunchFlags(hostfile=Path("hosts")), 0, tell=print, show=print)
