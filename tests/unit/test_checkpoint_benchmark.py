"""The checkpoint benchmark's arithmetic, and what it reads of a run that was started again."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import checkpoint
from benchmarks.checkpoint_report import (
    BESIDE,
    NONE,
    WAITING,
    Case,
    Interval,
    Seen,
    doubts,
    misses,
    table,
)
from benchmarks.checkpoint_restart import (
    FIRST_STEP,
    RESUMED,
    Restart,
    _newest,
    _times,
    restart_table,
)

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "checkpoint.py"


def rounds(beside: float, left: float = 0.0, work: float = 0.05) -> list[list[Interval]]:
    """Three rounds of 10 steps of 0.1 s; each way's place in a round is another one."""
    rows = []
    for number in range(3):
        plain = 1.0 + 0.01 * number
        row = [
            Interval(NONE, 0.0, 0.0, plain, 0.0),
            Interval(WAITING, 0.4, 0.1, plain + 0.5, 0.0),
            Interval(BESIDE, 0.02, work, plain + beside, left),
        ]
        rows.append(row[number:] + row[:number])
    return rows


def case(beside: float, left: float = 0.0, work: float = 0.05) -> Case:
    quicker = rounds(beside, left, work)
    slower = [[replace(one, held=2 * one.held) for one in row] for row in quicker]
    return Case("yolov5n", 2, 10, [Seen(30.0, quicker), Seen(31.0, slower)])


def test_what_a_checkpoint_costs():
    """Beside the interval of the same round, and the time of a step where there is no
    checkpoint."""
    found = case(0.08)
    assert found.step == pytest.approx(0.101)
    assert found.held(WAITING) == [0.8] * 3 and found.held(BESIDE) == [0.04] * 3
    assert found.stall(WAITING) == [0.8] * 3 and found.stall(BESIDE) == pytest.approx([0.09] * 3)
    assert found.longer(WAITING) == pytest.approx([0.5] * 3)
    assert found.share(found.stall(BESIDE)) == pytest.approx(0.09 / 10.1)
    assert found.noise() == pytest.approx(0.02)
    assert replace(found, spare=True).stall(BESIDE) == found.held(BESIDE)
    assert misses([found]) == []
    waiting, beside = table([found])[2:]
    about = "| yolov5n | 2 | 31 | 0.101 |"
    assert waiting == (
        f"{about} synchronous | 800 (800..800) | 100 (100..100) | 500 (500..500) | 7.92% | 4.95% |"
    )
    assert (
        beside
        == f"{about} asynchronous | 40 (40..40) | 50 (50..50) | 80 (80..80) | 0.89% | 0.79% |"
    )


def test_what_is_wrong_with_a_measurement_is_said():
    found = case(0.2, left=0.3, work=0.16)
    assert misses([found]) == ["yolov5n, 2 ranks: 1.98% of 100 steps"]
    assert doubts([found])[1] == (
        "- yolov5n, 2 ranks: 3 intervals were too short for their checkpoint to be written in them"
    )


def test_seen_travels_between_processes():
    seen = Seen(3.0, rounds(0.1))
    assert Seen.of(seen.as_dict()) == seen


def test_times_of_a_restart_are_read_from_the_log(tmp_path):
    (tmp_path / "train.log").write_text(
        "2026-01-02 03:04:05,500 INFO    yolods.telemetry: step 1: box_loss 3, grad_norm 1\n"
        "2026-01-02 03:04:09,250 INFO    yolods.telemetry.console: Resuming after step 10, in "
        "epoch 1\n"
        "2026-01-02 03:04:10,750 INFO    yolods.telemetry: step 11: box_loss 2, grad_norm 1\n"
    )
    first, second = _times(tmp_path, FIRST_STEP)
    assert second - first == pytest.approx(5.25)
    assert second - _times(tmp_path, RESUMED)[0] == pytest.approx(1.5)
    assert _times(tmp_path / "nothing", RESUMED) == [] and _newest(tmp_path) == 0
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("step00000010")
    assert _newest(tmp_path) == 10
    lines = restart_table([Restart(0.4, 1.0, 8.0, 9.0), Restart(0.6, 2.0, 9.0, 10.0)])
    assert lines[-3:] == ["| first step | 9.5 (9.0..10.0) |", "", "2 kills."]


def test_help_works_as_a_script_from_any_folder(run_process, tmp_path):
    done = run_process([sys.executable, SCRIPT, "--help"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--restart" in done.stdout


@pytest.mark.parametrize(
    "words", [["--rounds", "0"], ["--ranks", "2", "0"], ["--record", "no/such/folder/x.md"]]
)
def test_what_cannot_be_measured_is_refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        checkpoint.main(words)
    assert stopped.value.code == 2
    assert words[0].removeprefix("--") in capsys.readouterr().err
