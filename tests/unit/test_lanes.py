"""`./launch.sh test`: two lanes over a small suite, what they show, and what ends them."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.forks import ROOT
from tests.lane_plugin import files_in, take
from tests.lanes import FAST, LIMIT_SECONDS, Progress, Record, expected, files_of, span

SUITE = {
    "tests/dist/test_a.py": "def test_one(): pass\n\ndef test_two(): pass\n",
    "tests/dist/test_b.py": (
        "import pytest\n\n@pytest.mark.skip(reason='no such device')\ndef test_three(): pass\n"
    ),
    "tests/unit/test_c.py": (
        "import pytest\n\n@pytest.mark.slow\ndef test_four(): pass\n\ndef test_five(): pass\n"
    ),
    "pytest.ini": (
        "[pytest]\ntestpaths = tests\nnorecursedirs =\naddopts = -ra\nmarkers =\n  slow: s\n"
        "  process: p\n"
    ),
}
FAILS = {"tests/unit/test_d.py": "def test_six():\n    assert 6 == 7, 'six is not seven'\n"}
WAITS = {
    f"tests/{folder}/test_0{number}.py": "import subprocess, sys\n\ndef test_waits():\n"
    f"    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    f"    open('child{number}', 'w').write(str(child.pid))\n    child.wait()\n"
    for number, folder in enumerate(("dist", "unit"))
}
"""One for each lane, the first that it takes: a lane also takes the file after the current one."""


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., tuple[list[str], dict[str, str]]]:
    """A function that writes a suite, and returns the command that runs it with such words, and its
    environment."""

    def written(
        files: dict[str, str], *words: str, limit: float = LIMIT_SECONDS
    ) -> tuple[list[str], dict[str, str]]:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        code = (
            "import sys; from pathlib import Path; from tests import lanes; lanes.LIMIT_SECONDS = "
            "float(sys.argv[1]);"
        )
        code += "sys.exit(lanes.main(sys.argv[2:], Path.cwd()))"
        # The small suite's folder has the name of ours, where the plugin is.
        return [sys.executable, "-c", code, str(limit), *words], {
            "PYTHONPATH": str(ROOT),
            "PYTHONSAFEPATH": "1",
        }

    return written


def test_every_test_runs_once_and_the_end_says_what_was_slow_and_skipped(
    suite, run_process, tmp_path
) -> None:
    words, env = suite(SUITE)
    done = run_process(words, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *_, last = done.stdout.splitlines()
    assert (
        first == "yolods: all tests, in two lanes; nobody knows how long: no run has been recorded"
    )
    assert re.fullmatch(r"yolods: 4 passed, 0 failed, 1 skipped in \d+ s", last)
    slowest = done.stdout.partition("The slowest of 5 tests:\n")[2].splitlines()[:-1]
    assert sorted(line.split(" s  ")[1] for line in slowest) == [
        *(
            "tests/dist/test_a.py::test_one",
            "tests/dist/test_a.py::test_two",
            "tests/dist/test_b.py::test_three",
        ),
        *("tests/unit/test_c.py::test_five", "tests/unit/test_c.py::test_four"),
    ]
    assert "SKIPPED [1] tests/dist/test_b.py:3: no such device" in done.stdout
    again = run_process(words, cwd=tmp_path, env=env).stdout.splitlines()[0]
    assert re.fullmatch(
        r"yolods: all tests, in two lanes; about \d+ s, as the last run did here", again
    )


def test_the_quick_part_is_of_unit_and_leaves_slow_tests_out(suite, run_process, tmp_path) -> None:
    words, env = suite(SUITE, "--fast")
    done = run_process(words, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "yolods: 1 passed, 0 failed, 0 skipped" in done.stdout
        and "test_c.py::test_five" in done.stdout
    )


def test_a_failure_is_shown_with_its_reason_and_kept_for_the_next_run(
    suite, run_process, tmp_path
) -> None:
    words, env = suite(SUITE | FAILS)
    done = run_process(words, cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "AssertionError: six is not seven" in done.stdout
    assert "yolods: 4 passed, 1 failed, 1 skipped" in done.stdout
    kept = tmp_path / ".pytest_cache/v/cache/lastfailed"
    assert json.loads(kept.read_text()) == {"tests/unit/test_d.py::test_six": True}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere\n", "No module named 'nowhere'"),
        ("import os\n\ndef test_dies():\n    os._exit(0)\n", "tests were not run"),
    ],
    ids=["a file that cannot be imported", "a test that ends its lane"],
)
def test_tests_that_were_not_run_are_no_success(
    suite, run_process, tmp_path, text: str, said: str
) -> None:
    words, env = suite({**SUITE, "tests/dist/test_e.py": text})
    done = run_process(words, cwd=tmp_path, env=env)
    assert done.returncode == 1 and said in done.stdout, done.stdout
    assert not (tmp_path / ".pytest_cache/lanes.json").exists()


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_end_ends_both_lanes_and_all_that_they_started(
    suite, tmp_path, number: signal.Signals
) -> None:
    words, env = suite(SUITE | WAITS)
    process = subprocess.Popen(
        words, cwd=tmp_path, env={**os.environ, **env}, stdout=subprocess.DEVNULL
    )
    children = [tmp_path / f"child{each}" for each in range(2)]
    deadline = time.monotonic() + 60
    while (
        not all(child.exists() and child.read_text() for child in children)
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) == 4
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert not psutil.wait_procs(family, timeout=5)[1]


def test_lanes_that_hang_are_ended_in_time(suite, run_process, tmp_path) -> None:
    words, env = suite(SUITE | WAITS, limit=4.0)
    done = run_process(words, cwd=tmp_path, env=env)
    assert done.returncode == 1 and "it took more than 4 s and was ended" in done.stdout, (
        done.stdout
    )


def test_a_lane_without_files_takes_those_of_the_other(tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    queue.write_text(json.dumps({"files": ["a", "b", "c"], "front": ["a", "b"], "back": ["c"]}))
    ends = ("front", "back", "back", "front", "back")
    assert [take(queue, end) for end in ends] == ["a", "c", "b", None, None]
    assert files_in(queue) == ["a", "b", "c"]


def test_each_lane_begins_with_its_longest_files(tmp_path: Path) -> None:
    for name in ("dist/test_a", "faults/test_b", "unit/test_c", "unit/test_d"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / f"{name}.py").touch()
    seconds = {"tests/faults/test_b.py": 90.0, "tests/unit/test_d.py": 500.0}
    unit = ["tests/unit/test_d.py", "tests/unit/test_c.py"]
    others = ["tests/faults/test_b.py", "tests/dist/test_a.py"]
    assert files_of(tmp_path, "whole", seconds) == {"front": others, "back": unit}
    assert files_of(tmp_path, "fast", seconds) == {"front": [], "back": unit}
    assert FAST == ("tests/unit", "-m", "not slow and not process")


def test_where_no_run_was_recorded_here_the_speed_of_the_machine_counts(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    Record({"tests/a.py": 10.0}, 600.0, 0.2).keep(tmp_path / "tests/seconds.json", "whole")
    guess, why = expected(tmp_path, "whole", loop=0.4)
    slow = max(1.0, 2 / len(os.sched_getaffinity(0)))
    assert (guess.seconds, guess.files["tests/a.py"]) == (
        1200 * slow,
        20 * slow,
    ) and "estimated" in why
    assert not expected(tmp_path, "fast", loop=0.4)[0].seconds


def test_progress_counts_work_and_not_tests() -> None:
    progress = Progress(Record({"long.py": 90.0, "short.py": 10.0}, 100.0, 0.1))
    assert progress.share() == 0.0 and progress.left() == pytest.approx(100.0, abs=1)
    progress.take_in({"collected": {"long.py": 2, "short.py": 10}})
    progress.take_in({"ended": "long.py::test_a", "outcome": "passed", "seconds": 44.0})
    assert progress.share() == pytest.approx(0.45)
    progress.take_in({"ended": "short.py::test_a", "outcome": "failed", "seconds": 1.0})
    assert progress.share() == pytest.approx(0.46) and progress.failed == ["short.py::test_a"]
    assert [span(8.2), span(62), span(779.6)] == ["8 s", "1 min 02 s", "13 min 00 s"]


@pytest.mark.parametrize("read", [files_in, lambda queue: [take(queue, "front")]])
def test_a_queue_that_another_lane_is_writing_is_waited_for(tmp_path: Path, read: Callable) -> None:
    queue = tmp_path / "queue"
    queue.write_text("")
    with ThreadPoolExecutor(1) as lane:
        with queue.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            found = lane.submit(read, queue)
            time.sleep(0.2)
            assert not found.done()
            json.dump({"files": ["a.py"], "front": ["a.py"], "back": []}, other)
        assert found.result(timeout=10) == ["a.py"]
