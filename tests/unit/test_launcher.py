"""The launcher as a process of the caller's: its output, its errors, and requests to stop."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

import yolods
from yolods.api import launcher
from yolods.api.launcher import Launcher, environment

LAUNCHER = """
import os, signal, sys, time
print("on ä", flush=True)
print("yolods: off", "error: one", "error: two", sep="\\n", file=sys.stderr, flush=True)
"""


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Starts a script in place of yolods."""
    real = launcher.subprocess.Popen

    def starting(rest: str) -> Launcher:
        words = [sys.executable, "-c", LAUNCHER + rest]
        monkeypatch.setattr(launcher.subprocess, "Popen", lambda _, **how: real(words, **how))
        return Launcher(["train"], tmp_path / "told")

    return starting


@pytest.mark.process
def test_output_is_passed_on_and_errors_are_kept(start, capsys):
    calls = []
    with start("sys.exit(2)") as process:
        assert process.wait(lambda: calls.append(1)) == 2
        assert process.errors == ["one", "two"]
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("on ä\n", "yolods: off\n")
    assert calls
    process.show_errors()
    assert capsys.readouterr().err == "error: one\nerror: two\n"


@pytest.mark.process
def test_a_killed_launcher_has_the_status_of_a_shell(start):
    with start("os.kill(os.getpid(), signal.SIGKILL)") as process:
        assert process.wait(lambda: None) == 137


@pytest.mark.process
@pytest.mark.parametrize(
    ("reason", "heard"), [(KeyboardInterrupt, signal.SIGINT), (ValueError, signal.SIGTERM)]
)
def test_ctrl_c_and_exceptions_stop_it_and_are_raised_when_it_has_ended(
    start, reason, heard, capsys
):
    rest = """
def leave(number, frame):
    time.sleep(0.3)
    os.write(1, b"saved after %d\\n" % number)  # print may be at work in the main program
    sys.exit(1)
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, leave)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # as `yolods launch train` does
print("ready", flush=True)
time.sleep(10)
"""
    seen = []

    def fail() -> None:
        seen.append(capsys.readouterr().out)
        if "ready" not in "".join(seen):
            return
        raise reason("mine")

    with start(rest) as process, pytest.raises(reason):
        process.wait(fail)
    assert f"saved after {heard:d}\n" in capsys.readouterr().out


@pytest.mark.process
def test_a_second_ctrl_c_is_passed_on_too(start, monkeypatch, capsys):
    rest = """
signal.signal(signal.SIGINT, lambda *_: signal.signal(signal.SIGINT, lambda *_: os._exit(7)))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
print("ready", flush=True)
time.sleep(10)
"""
    pressed = []

    def press(*_: object) -> None:
        if "ready" in capsys.readouterr().out or pressed:
            pressed.append(1)
            raise KeyboardInterrupt

    with start(rest) as process:
        passing = process._pass_on
        monkeypatch.setattr(process, "_pass_on", lambda seconds: (passing(seconds), press()))
        with pytest.raises(KeyboardInterrupt):
            process.wait(lambda: None)
    assert len(pressed) >= 2


@pytest.mark.process
def test_ctrl_c_during_the_start_is_not_lost(start, monkeypatch):
    rest = """
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
time.sleep(10)
"""
    before = signal.getsignal(signal.SIGINT)
    register = launcher.selectors.DefaultSelector

    def pressed():
        signal.raise_signal(signal.SIGINT)
        return register()

    monkeypatch.setattr(launcher.selectors, "DefaultSelector", pressed)
    with start(rest) as process, pytest.raises(KeyboardInterrupt):
        process.wait(lambda: None)
    assert signal.getsignal(signal.SIGINT) == before


def test_its_environment_has_this_yolods_and_no_notebook():
    environ = {"PYTHONPATH": "/mine", "MPLBACKEND": "module://matplotlib_inline", "A": "b"}
    found = environment(environ, Path("/told"))
    root = str(Path(yolods.__file__).parents[1])
    assert found["PYTHONPATH"] == f"{root}{os.pathsep}/mine"
    assert (found["MPLBACKEND"], found["A"]) == ("Agg", "b")
    assert found["YOLODS_CALLER"] == "/told"
    assert environment({}, Path("x")).get("MPLBACKEND") is None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
