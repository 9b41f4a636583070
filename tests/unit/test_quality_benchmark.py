"""The quality benchmark: its arithmetic, its order of runs, and going on where it stopped; nothing
is trained."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quality, quality_report
from benchmarks.quality import CASES, USUAL, Pool, Results, go_on_from, next_job, read_results
from benchmarks.quality_report import (
    Difference,
    averaged,
    by_seed,
    difference,
    pooled,
    t_quantile,
    tables,
    time_left,
)
from benchmarks.quality_run import RESULT, Job, Plan, ultralytics_overrides, yolods_words
from yolods.errors import UserError

SETTINGS = {
    "model": "yolov5n",
    "imgsz": 160,
    "batch": 16,
    "epochs": 9,
    "hyper": {"nbs": 16, "val": False},
}
TITLES = {key: case.title for key, case in CASES.items()}


def line(
    case: str, seed: int, value: float, name: str = "demo", seconds: float = 10.0
) -> dict[str, Any]:
    """A result with every metric at one value."""
    losses = {f"train/{kind}_loss": 1.0 for kind in ("box", "cls", "dfl")}
    metrics = dict.fromkeys(("precision", "recall", "mAP50", "mAP50-95"), value)
    times = {"seconds": seconds, "cpu seconds": 9.0, "judging cpu seconds": 1.0}
    facts = {
        "train losses": losses,
        "ended": "2026-11-28 20:00:00 UTC",
        "commit": "abc",
        "settings": SETTINGS,
    }
    return {"case": case, "set": name, "seed": seed, **metrics, **times, **facts}


def found() -> dict[str, Any]:
    """What a run finds out about itself."""
    return {
        key: value for key, value in line("", 0, 0.3).items() if key not in ("case", "set", "seed")
    }


def job(case: str, seed: int, name: str = "demo") -> Job:
    return Job(CASES[case], name, Path("demo.yaml"), seed)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(4, 2.7764), (5, 2.5706), (15, 2.1314), (30, 2.0423), (1000, 1.9623)]
)
def test_students_t_is_that_of_the_tables(freedom: float, expected: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(expected, abs=0.006)
    assert t_quantile(0.025, freedom) == pytest.approx(-expected, abs=0.006)


def test_a_difference_is_taken_over_the_seeds_that_both_have() -> None:
    ours, theirs = {0: 0.1, 1: 0.3, 2: 0.5, 9: 5.0}, {0: 0.2, 1: 0.3, 2: 0.7, 8: -5.0}
    apart = difference(ours, theirs)
    assert apart is not None
    assert apart.seeds == 3
    assert apart.mean == pytest.approx(-0.1)
    assert apart.error == pytest.approx(math.sqrt((0.04 + 0.07) / 3))
    assert apart.paired_error == pytest.approx(statistics.stdev([-0.1, 0.0, -0.2]) / math.sqrt(3))
    assert apart.freedom == pytest.approx((0.04 + 0.07) ** 2 * 2 / (0.04**2 + 0.07**2))
    assert apart.t == pytest.approx(apart.mean / apart.error)
    low, high = apart.interval
    assert (low + high) / 2 == pytest.approx(apart.mean)
    assert (high - low) / 2 == pytest.approx(t_quantile(0.975, apart.freedom) * apart.error)


def test_one_seed_has_no_standard_error_and_none_no_difference() -> None:
    apart = difference({0: 0.5}, {0: 0.25})
    assert apart is not None
    assert apart.mean == 0.25
    assert math.isnan(apart.error) and math.isnan(apart.t) and all(map(math.isnan, apart.interval))
    assert difference({0: 0.5}, {1: 0.5}) is None


def test_seeds_that_all_agree_have_no_interval_and_break_nothing() -> None:
    apart = difference({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5})
    assert apart is not None
    assert apart.error == 0.0
    assert math.isnan(apart.t)


def test_layouts_of_one_seed_count_as_one_observation() -> None:
    values = {"zero1_fp32": (0.1, 0.5), "zero2_fp32": (0.1, 0.5), "pipeline2_fp32": (0.1, 0.5)}
    lines = [
        line(case, seed, value) for case, both in values.items() for seed, value in enumerate(both)
    ]
    mean = pooled(lines, list(values), "demo", "mAP50-95")
    assert mean == {0: pytest.approx(0.1), 1: pytest.approx(0.5)}
    theirs = {0: 0.2, 1: 0.4}
    alone = difference(by_seed(lines, "zero1_fp32", "demo", "mAP50-95"), theirs)
    assert alone is not None
    assert difference(mean, theirs) == Difference(*map(pytest.approx, vars(alone).values()))


def test_layouts_are_averaged_over_the_seeds_that_all_have() -> None:
    lines = [line("zero1_fp32", 0, 0.2), line("zero2_fp32", 0, 0.4), line("zero1_fp32", 1, 9.0)]
    assert pooled(lines, ["zero1_fp32", "zero2_fp32"], "demo", "mAP50") == {0: pytest.approx(0.3)}


def test_the_mean_over_sets_has_the_error_of_independent_differences() -> None:
    mean = averaged(
        [Difference(16, 0.02, 0.03, 0.03, 28.0), Difference(15, -0.04, 0.04, 0.04, 28.0)]
    )
    assert (mean.seeds, mean.mean) == (15, pytest.approx(-0.01))
    assert mean.error == pytest.approx(0.05 / 2)
    assert mean.freedom == pytest.approx(0.05**4 * 28 / (0.03**4 + 0.04**4))


@pytest.mark.parametrize("file", ["best.pt", "last.pt"])
@pytest.mark.parametrize(
    ("shift", "alone", "all_of_them"),
    [(0.001, "not below by more than one standard error: holds", "not below: holds"),
     (-0.001, "not below by more than one standard error: holds", "**below**"),
     (-0.3, "**below by more than one standard error**", "**below**")],
)  # fmt: skip
def test_the_verdicts_follow_from_the_differences(
    shift: float, alone: str, all_of_them: str, file: str
) -> None:
    values, lines = (0.3, 0.4, 0.5), []
    for case in USUAL:
        for name in ("bccd", "demo"):
            for seed, value in enumerate(values):
                best = last = value
                if case != "ultralytics":  # whose runs have one file
                    best, last = (value + shift, 0.9) if file == "best.pt" else (0.9, value + shift)
                both = {} if case == "ultralytics" else {f"{quality_report.LAST}mAP50-95": last}
                lines.append({**line(case, seed, best, name), **both})
    text = tables(lines, TITLES, "ultralytics")
    said = text[text.index(f"## Verdicts on {file}") + 2 :][:11]
    assert [one.endswith(alone) for one in said if "all layouts" not in one] == [True] * 8
    assert [one.endswith(all_of_them) for one in said if "all layouts" in one] == [True] * 3


def test_a_record_of_half_a_benchmark_is_written() -> None:
    text = "\n".join(
        tables([line("ultralytics", 0, 0.3), line("zero1_fp32", 1, 0.4)], TITLES, "ultralytics")
    )
    assert "too few seeds" in text
    assert "0.3000" in text and "0.4000" in text


def test_a_record_names_every_commit_and_every_changed_setting() -> None:
    lines = [line("ultralytics", 0, 0.3), {**line("zero1_fp32", 0, 0.3), "commit": "def"}]
    text = "\n".join(quality_report.head(lines, "python benchmarks/quality.py", ["- CPU: none"]))
    assert "by abc, def" in text
    assert "nbs=16, val=False" in text


def test_the_time_left_counts_ranks_and_cores() -> None:
    lines = [line("zero1_fp32", 0, 0.3, seconds=60), line("zero2_fp32", 0, 0.3, seconds=120)]
    ranks = {key: case.ranks for key, case in CASES.items()}
    left = partial(time_left, lines, ranks=ranks, cores=2)
    assert left(wanted=[("zero1_fp32", "demo")] * 4) == "about 2 min"
    assert left(wanted=[("zero2_fp32", "demo")] * 40) == "about 1 h 20 min"
    assert left(wanted=[("ultralytics", "bccd")] * 2) == "about 3 min", (
        "a case that has not run yet takes the mean"
    )


def test_a_core_is_not_idle_while_a_run_of_the_same_seed_fits() -> None:
    todo = [job("zero2_fp32", 0), job("zero1_fp32", 0), job("zero1_fp32", 1)]
    assert next_job(todo, 2) == 0
    assert next_job(todo, 1) == 1
    assert next_job(todo, 0) is None


def test_no_seed_is_begun_before_the_last_has_no_more_to_start() -> None:
    assert next_job([job("zero2_fp32", 0), job("zero1_fp32", 1)], 1) is None


def test_both_trainers_are_given_the_same_settings(tmp_path: Path) -> None:
    plan = Plan(tmp_path, "yolov5n", 160, 16, 9, SETTINGS["hyper"])
    theirs = ultralytics_overrides(plan, job("ultralytics", 3))
    ours = yolods_words(plan, job("zero2_fp32", 3))
    for flag, key in {
        "--epochs": "epochs",
        "--batch-size": "batch",
        "--imgsz": "imgsz",
        "--seed": "seed",
    }.items():
        assert ours[ours.index(flag) + 1] == str(theirs[key])
    for key, value in SETTINGS["hyper"].items():
        assert theirs[key] == value
        assert f"{key}={json.dumps(value)}" in ours


def test_a_second_start_makes_the_runs_that_are_missing(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    first = Results(file, SETTINGS)
    first.add(job("zero1_fp32", 0), found())
    second = Results(file, SETTINGS)
    assert second.done == {("zero1_fp32", "demo", 0)}
    second.add(job("zero2_fp32", 1), found())
    assert Results(file, SETTINGS).done == {("zero1_fp32", "demo", 0), ("zero2_fp32", "demo", 1)}


def test_a_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    Results(file, SETTINGS).add(job("zero1_fp32", 0), found())
    whole = file.read_text()
    file.write_text(whole + '{"case": "zero2_fp32", "se')
    assert Results(file, SETTINGS).done == {("zero1_fp32", "demo", 0)}
    assert file.read_text() == whole


def test_runs_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    Results(file, SETTINGS).add(job("zero1_fp32", 0), found())
    with pytest.raises(UserError, match=r"'epochs': 9.*'epochs': 10.*--work"):
        Results(file, {**SETTINGS, "epochs": 10})


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text("{}\nnot JSON\n{}\n")
    with pytest.raises(UserError, match=r"results\.jsonl, line 2"):
        read_results(file)


class Led:
    """Stands in for the training of a run: notes when it began and ended, and leaves a result."""

    def __init__(self, folder: Path, behaves: dict[str, str] | None = None) -> None:
        self._folder, self._behaves = folder, behaves or {}

    def __call__(self, plan: Plan, one: Job, benchmark: int) -> None:
        how = self._behaves.get(one.name, "well")
        (self._folder / f"began-{one.name}").write_text(str(os.getpid()))
        if how == "fails":
            raise ValueError("a fault in the run")
        if how == "stops the benchmark":
            os.kill(benchmark, signal.SIGINT)
        if how != "well":
            signal.pause()
        (plan.folder(one) / RESULT).write_text(json.dumps(found()))


def pool(folder: Path, jobs: list[Job]) -> Pool:
    plan = Plan(folder, "yolov5n", 160, 16, 9, {})
    return Pool(plan, Results(folder / "results.jsonl", SETTINGS), jobs, cores=2)


@pytest.mark.process
def test_all_runs_are_made_and_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(quality, "lead", Led(tmp_path))
    jobs = [job(case, seed) for seed in (0, 1) for case in USUAL]
    assert pool(tmp_path, jobs).work() == []
    assert len(Results(tmp_path / "results.jsonl", SETTINGS).done) == 10
    assert not list((tmp_path / "running").iterdir())
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 10
    assert "10/10" in shown[-1] and "0 left" in shown[-1]


@pytest.mark.process
def test_a_run_that_fails_is_told_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(quality, "lead", Led(tmp_path, {"zero2_fp32-demo-0": "fails"}))
    failed = pool(tmp_path, [job(case, 0) for case in USUAL]).work()
    assert [one.name for one in failed] == ["zero2_fp32-demo-0"]
    assert len(Results(tmp_path / "results.jsonl", SETTINGS).done) == 4
    assert "a fault in the run" in capsys.readouterr().out


@pytest.mark.process
def test_runs_that_all_fail_end_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        quality, "lead", Led(tmp_path, {f"zero1_fp32-demo-{seed}": "fails" for seed in range(9)})
    )
    with pytest.raises(RuntimeError, match="3 runs have failed"):
        pool(tmp_path, [job("zero1_fp32", seed) for seed in range(9)]).work()
    assert not (tmp_path / "began-zero1_fp32-demo-8").exists()


@pytest.mark.process
def test_ctrl_c_leaves_no_process_and_what_had_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    behaves = {"zero1_fp32-demo-1": "waits", "zero1_fp32-demo-2": "stops the benchmark"}
    monkeypatch.setattr(quality, "lead", Led(tmp_path, behaves))
    with pytest.raises(KeyboardInterrupt):
        pool(tmp_path, [job("zero1_fp32", seed) for seed in range(4)]).work()
    assert Results(tmp_path / "results.jsonl", SETTINGS).done == {("zero1_fp32", "demo", 0)}
    for began in tmp_path.glob("began-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(began.read_text()), 0)


def test_an_empty_folder_goes_on_from_the_results_beside_the_record(tmp_path: Path) -> None:
    kept = Results(tmp_path / "record.jsonl", SETTINGS)
    kept.add(job("zero1_fp32", 0), found())
    work = tmp_path / "work"
    work.mkdir()
    go_on_from(tmp_path / "record.md", work)
    begun = Results(work / "results.jsonl", SETTINGS)
    assert begun.done == {("zero1_fp32", "demo", 0)}
    begun.add(job("zero1_fp32", 1), found())
    go_on_from(tmp_path / "record.md", work)
    assert len(Results(work / "results.jsonl", SETTINGS).done) == 2, (
        "what is there is not written over"
    )
