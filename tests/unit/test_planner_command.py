"""What `yolods plan` refuses; tests/dist/test_plan_trains.py has what it writes."""

from __future__ import annotations

import json
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
from yolods.planner.command import run_plan
from yolods.planner.flags import plan_flags
from yolods.planner.links.link_test import MeasuredLinks

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
    told = json.loads(run_plan(args, LaunchFlags(hostfile=file), 0, lambda _: None))
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


def test_ranks_are_given_once() -> None:
    args = plan_flags().take([*SMALL[1:], "--ranks", "2"])
    with pytest.raises(UserError, match="both say where ranks run; keep one"):
        run_plan(args, LaunchFlags(hostfile=Path("hosts")), 0, lambda _: None)
