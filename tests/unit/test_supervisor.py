"""Starting a command again, played with commands that are quicker than a training run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from yolods.system.interrupt import by_a_user

pytestmark = pytest.mark.process

SCRIPT = """
import sys
from yolods.launch.supervisor import Start, supervise
codes = {codes}
starts = [Start([sys.executable, "-c", code], {{"NUMBER": str(n)}}, f"from step {{n}}") for n, code in enumerate(codes)]
later = iter([*starts[1:], 1])
sys.exit(supervise(starts[0], lambda status: next(later), restarts={restarts}))
"""  # noqa: E501


def supervised(*codes: str, restarts: int = 2) -> list[str]:
    """The command of a supervisor whose starts run these lines of Python, one after the other."""
    return [sys.executable, "-c", SCRIPT.format(codes=list(codes), restarts=restarts)]


def leave(status: int) -> str:
    return f"import sys; sys.exit({status})"


@pytest.mark.parametrize(
    ("codes", "status", "restarts"),
    [
        ([leave(0)], 0, 0),
        ([leave(2), leave(0)], 2, 0),
        ([leave(143), leave(0)], 143, 0),
        ([leave(75), leave(0)], 0, 1),
        (["import os; os.kill(os.getpid(), 9)", leave(7), leave(0)], 0, 2),
        ([leave(7), leave(7), leave(7), leave(0)], 7, 2),
        ([leave(1)], 1, 0),
    ],
    ids=[
        "ended",
        "mistake",
        "stopped",
        "lost",
        "killed and failed",
        "too often",
        "cannot be started again",
    ],
)
def test_what_is_started_again(run_process, codes: list[str], status: int, restarts: int) -> None:
    done = run_process(supervised(*codes))
    assert done.returncode == status
    assert done.stderr.count("; restart ") == restarts


def test_the_line_says_why_and_from_where(run_process) -> None:
    done = run_process(supervised(leave(75), leave(0)))
    assert done.stderr == (
        "yolods: the run ended with status 75 (a rank was lost or stuck); restart 1 of 2 from step "
        "1\n"
    )


def test_no_restart_without_leave(run_process) -> None:
    assert run_process(supervised(leave(75), leave(0), restarts=0)).returncode == 75


WAIT = (
    "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(1)); print('up', flush=True); "
    "time.sleep(60)"
)


def test_a_request_to_stop_is_handed_on_and_ends_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        supervised(WAIT, leave(0)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    assert process.stderr.read() == ""


SAYS = (
    "import os, signal, sys, time; from yolods.system.interrupt import heed\n"
    # Not `print`: the signal may come while the line below is still printing.
    "heed(lambda number, frame: (os.write(1, b'%d' % number), sys.exit(1)))\n"
    "print('up', flush=True); time.sleep(60)"
)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_what_it_was_asked_by_is_what_the_launcher_hears(
    number: signal.Signals, status: int
) -> None:
    """SIGINT to this process alone must not be told as SIGTERM."""
    process = subprocess.Popen(
        supervised(SAYS, leave(0)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that run under nohup inherit that SIGHUP is ignored, and so would this process.
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.wait(10) == status
    assert by_a_user(int(process.stdout.read())) == number


def test_a_second_ctrl_c_kills_what_hangs_though_something_else_had_asked_first() -> None:
    hangs = (
        "import signal, time; yolods = [signal.signal(each, signal.SIG_IGN) for each in (2, 15)]; "
        "print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(supervised(hangs), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
        time.sleep(0.3)  # two signals of one number that are not handled yet are one
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 143


def test_ctrl_c_in_a_terminal_while_its_child_imports_shows_no_traceback() -> None:
    """The child has not come to its handlers, and gets Ctrl-C from the terminal as well."""
    importing = "import time; print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen(
        supervised(importing, leave(0)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "up\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(10) == 130
    assert process.stderr.read() == ""


def test_a_run_that_has_come_to_its_end_ends_with_0_though_it_was_asked_to_stop_meanwhile() -> None:
    ends = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(0)); "
        "print('up', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        supervised(ends, leave(7)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_its_child_does_not_outlive_it(tmp_path: Path) -> None:
    process = subprocess.Popen(supervised(WAIT), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "up\n"
    process.kill()
    assert process.stdout.read() == ""  # the child had the other end
    process.wait()


def test_an_orphan_of_a_start_is_ended_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a rank whose launcher was killed, and that hangs."""
    orphan = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; yolods = 1; "
        "time.sleep(60)'])"
    )
    code = supervised(f"{orphan}; sys.exit(9)", leave(0))
    code[-1] = "import yolods.launch.supervisor as s; s.LEAVE_SECONDS = 0.5\n" + code[-1]
    started = time.monotonic()
    done = subprocess.run(
        code, stdout=subprocess.PIPE, timeout=30, check=False
    )  # until the orphan has let it go
    assert done.returncode == 0
    assert time.monotonic() - started < 25
