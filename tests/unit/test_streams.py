"""Standard streams as a shell may leave them, in short processes of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
OPEN = "import os, sys\nfrom yolods.system import streams\nstreams.open_all()\n"


def shell(
    run_process: Run, script: str, redirections: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """A script of Python, started by a shell that has changed the streams."""
    words = ["bash", "-c", f'exec "$@" {redirections}', "-", sys.executable, "-c", script]
    return run_process(words, cwd=ROOT, env=env)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_the_next_file_that_is_opened_does_not_take_the_place_of_a_closed_stream(
    run_process, tmp_path, closed
):
    file = tmp_path / "file"
    script = (
        f"{OPEN}handle = open({str(file)!r}, 'w')\nprint('out'); print('err', file=sys.stderr)\n"
    )
    script += (
        "os.system('echo child; echo child >&2')\nsys.stdin.read()\n"
        "sys.exit(0 if handle.fileno() > 2 else 9)"
    )
    done = shell(run_process, script, closed)
    assert (done.returncode, file.read_text()) == (0, "")
    assert sorted(done.stdout.split()) == ([] if ">&-" in closed.split() else ["child", "out"])
    assert sorted(done.stderr.split()) == ([] if "2>&-" in closed else ["child", "err"])


def test_a_full_screen_does_not_raise_at_who_prints(run_process):
    done = shell(run_process, f"{OPEN}print('x', flush=True); print('y' * 100000)", ">/dev/full")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("screen", [">/dev/full", "> >(true)"])
def test_what_a_command_is_for_is_not_lost_in_silence(run_process, screen):
    script = OPEN + "from yolods.errors import UserError\nimport time; time.sleep(0.2)\n"
    script += (
        "try:\n    streams.show('result')\nexcept UserError as error:\n    sys.exit(str(error))"
    )
    done = shell(run_process, script, screen)
    if "full" in screen:
        expected = (
            "cannot write to standard output: No space left on device; print to another place\n"
        )
        assert (done.returncode, done.stderr) == (1, expected)
    else:  # the reader had enough
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "locale",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
)
def test_a_locale_without_a_letter_ends_nothing(run_process, locale):
    done = shell(run_process, rf"{OPEN}print('Zebra, M\u00fcller, \u732b')", "", **locale)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Zebra, M")


def test_streams_of_others_are_left_alone(capsys):
    from yolods.system import streams

    mine = sys.stdout
    streams.open_all()
    assert sys.stdout is mine
    streams.show("seen")
    assert capsys.readouterr().out == "seen\n"


def test_a_screen_that_is_slow_and_does_not_block_gets_every_line(run_process):
    script = f"{OPEN}os.set_blocking(1, False)\nfor number in range(20000): print(number, 'x' * 20)"
    words = [
        "bash",
        "-c",
        '"$@" | { sleep 0.5; wc -l; }; exit ${PIPESTATUS[0]}',
        "-",
        sys.executable,
        "-c",
        script,
    ]
    done = run_process(words, cwd=ROOT)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "20000", "")
