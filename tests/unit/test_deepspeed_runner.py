"""What is put right in DeepSpeed's launcher: what it starts, whom it asks to stop, and how it
ends."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.forks import forked
from yolods.launch import deepspeed_runner
from yolods.system.interrupt import PASSED_ON


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, Any]]]:
    """Commands that would have been started, and how."""
    found: list[tuple[list[str], dict[str, Any]]] = []

    def start(command: list[str], **settings: Any) -> SimpleNamespace:
        found.append((list(command), settings))
        return SimpleNamespace(
            returncode=0, send_signal=lambda number: found.append(([str(int(number))], {}))
        )

    monkeypatch.setattr(subprocess, "Popen", start)
    return found


def runner(
    monkeypatch: pytest.MonkeyPatch, main: Callable[[Any], None], *words: str
) -> tuple[Callable[[], int], SimpleNamespace]:
    """Our main around a stand-in for DeepSpeed's runner, whose `main` is given that module."""
    theirs = SimpleNamespace(subprocess=subprocess, signal=signal)
    theirs.main = lambda: main(theirs)
    pdsh = SimpleNamespace(PDSHRunner=SimpleNamespace(get_cmd=None))
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace())
    stub = SimpleNamespace(runner=theirs, multinode_runner=pdsh)
    monkeypatch.setitem(sys.modules, "deepspeed.launcher", stub)
    heeded = SimpleNamespace(stop=None)
    monkeypatch.setattr(deepspeed_runner, "heed", lambda stop: setattr(heeded, "stop", stop))
    monkeypatch.setattr(sys, "argv", ["runner", *words])
    return deepspeed_runner.main, heeded


@pytest.mark.parametrize(
    ("command", "apart"),
    [(["python", "-m", deepspeed_runner.DEEPSPEED_LAUNCH], False), (["pdsh", "-S"], True)],
)
def test_our_launcher_takes_the_place_of_theirs_and_pdsh_is_kept_from_the_terminal(
    started, command, apart
):
    children = deepspeed_runner._Subprocess(subprocess)
    children.Popen(command, env={"A": "1"})
    ((words, settings),) = started
    assert words == [
        {deepspeed_runner.DEEPSPEED_LAUNCH: deepspeed_runner.NODE_LAUNCHER}.get(w, w)
        for w in command
    ]
    assert (settings["start_new_session"], settings["env"]) == (apart, {"A": "1"})
    assert children.hands_on is not apart


def test_all_but_popen_is_subprocess_own_and_their_handlers_are_not_set(monkeypatch):
    assert deepspeed_runner._Subprocess(subprocess).PIPE is subprocess.PIPE
    before = signal.getsignal(signal.SIGTERM)
    theirs = deepspeed_runner.OurHandlers(signal)
    assert theirs.signal(signal.SIGTERM, lambda *_: None) == before
    assert signal.getsignal(signal.SIGTERM) == before and theirs.SIGTERM is signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "number", "handed"),
    [
        (
            deepspeed_runner.DEEPSPEED_LAUNCH,
            signal.SIGINT,
            PASSED_ON,
        ),  # the ranks have had it from the terminal
        (deepspeed_runner.DEEPSPEED_LAUNCH, signal.SIGTERM, signal.SIGTERM),
        ("mpirun", signal.SIGINT, signal.SIGTERM),
    ],
)
def test_a_request_to_stop_is_handed_to_the_child(monkeypatch, started, command, number, handed):
    def theirs(module: Any) -> None:
        module.subprocess.Popen([command])
        heeded.stop(number, None)
        assert started[-1][0] == [str(int(handed))]
        raise SystemExit(1)

    main, heeded = runner(monkeypatch, theirs)
    assert main() == 128 + number


def test_over_pdsh_the_launchers_on_the_hosts_are_asked(started):
    stop = deepspeed_runner._Stop(deepspeed_runner._Subprocess(subprocess))
    stop(signal.SIGTERM, None)
    assert started == [], "there is nobody yet"
    stop.kill = ["pdsh", "-w", "a,b", "^python.*node"]
    stop(PASSED_ON, None)
    assert started[0][0] == ["pdsh", "-w", "a,b", f"pkill -{PASSED_ON:d} -f ^python.*node"]
    assert stop.asked == signal.SIGTERM, "the first request says how it ends"


@pytest.mark.parametrize(
    ("code", "leaving", "expected"),
    [
        (0, None, 0),
        (3, None, 3),
        (-signal.SIGKILL, None, 137),
        (0, 4, 4),
        (0, "no hosts", 1),
        (None, None, 0),
    ],
)
def test_a_death_is_told_from_an_end(monkeypatch, started, code, leaving, expected):
    def theirs(module: Any) -> None:
        if code is not None:
            module.subprocess.Popen(["python"]).returncode = code
        if leaving is not None:
            raise SystemExit(leaving)

    assert runner(monkeypatch, theirs)[0]() == expected


def test_the_runner_keeps_gpus_of_a_start_on_this_machine_from_deepspeed(monkeypatch):
    """It would say that it ignores CUDA_VISIBLE_DEVICES, which the slots honour."""
    seen = []
    for words in ([], ["--launcher", "openmpi"]):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a")
        main, _ = runner(
            monkeypatch, lambda _: seen.append(os.environ.get("CUDA_VISIBLE_DEVICES")), *words
        )
        assert main() == 0
    assert seen == [None, "GPU-a"]


def meant() -> None:
    """What DeepSpeed's own classes make; forked, for it imports them."""
    from argparse import Namespace

    from deepspeed.launcher.multinode_runner import PDSHRunner

    stock = Namespace(
        user_args=["train"], user_script="yolods", launcher_args="", ssh_port=None, master_addr="a",
        master_port=1, venv_script=None, no_python=False, module=True, no_local_rank=True,
        save_pid=False, enable_each_rank_log=None,
    )  # fmt: skip
    command, kill, _ = PDSHRunner(stock, "e30=").get_cmd({}, {"a": [0], "b": [0]})
    assert deepspeed_runner.DEEPSPEED_LAUNCH in command
    *pdsh, pattern = deepspeed_runner.meant(kill)
    assert pdsh == command[: len(pdsh)] == ["pdsh", "-S", "-f", "1024", "-w", "a,b"]
    # As the remote shell reads it, against what `ps` shows of the launcher, of the shell around it,
    # and of pdsh.
    fits = re.compile(" ".join(shlex.split(pattern)))
    line = " ".join(
        deepspeed_runner.NODE_LAUNCHER if word == deepspeed_runner.DEEPSPEED_LAUNCH else word
        for word in command[len(pdsh) :]
    )
    assert fits.search(line[line.index(sys.executable) :])
    assert not fits.search(f"bash -c {line}")
    assert not fits.search(" ".join([*pdsh, line]))


@pytest.mark.process
def test_over_pdsh_the_hosts_launchers_are_asked_and_pdsh_stays(tmp_path: Path) -> None:
    status = forked("tests.unit.test_deepspeed_runner:meant", {}, screen=tmp_path / "s", timeout=60)
    assert status == 0, (tmp_path / "s").read_text()
