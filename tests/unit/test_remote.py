"""How hosts are asked, and the one line for each way in which they do not answer. Whole visits:
test_doctor_run.py."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from yolods.hosts import remote
from yolods.hosts.hostfile import Host
from yolods.hosts.probe import ProbeRequest, encode_report, probe_host
from yolods.hosts.remote import Answer, Caller, ask, clear, explain, ssh_command

REQUEST = ProbeRequest(master_addr=None, master_port=None, trees=(), lists=(), ignored=())
HERE = Host("here", 1, (0,))


def test_ssh_asks_nothing_and_takes_pdshs_own_options():
    words = ssh_command("b", "true", {"PDSH_SSH_ARGS_APPEND": "-F 'my config'"})
    assert words[0] == "ssh" and words[-4:] == ["-F", "my config", "b", "true"]
    assert "BatchMode=yes" in words and "ConnectTimeout=5" in words
    assert ssh_command("b", "true", {}, 2222)[-4:] == ["-p", "2222", "b", "true"]


@pytest.mark.parametrize(
    ("code", "said", "expected"),
    [
        (
            255,
            "Host key verification failed.",
            "accept its key: ssh b once by hand, or ssh-keyscan",
        ),
        (
            255,
            "ssh: Could not resolve hostname b: x",
            "correct its name in the hostfile, or add it to /etc/hosts",
        ),
        (
            255,
            "ssh: connect to host b port 22: No route to host",
            "check that it is up and on the network",
        ),
        (
            255,
            "",
            "cannot reach it with ssh: exit status 255; check that it is up and on the network",
        ),
        (1, "warning\nSyntaxError: x\n", "/p fails there: SyntaxError: x"),
    ],
)
def test_why_a_host_gave_no_report(code, said, expected):
    assert explain("b", code, said, Caller(Path("/d"), "/p", {})).endswith(expected)


def test_a_host_without_our_python_is_installed_as_this_one_was(monkeypatch):
    monkeypatch.setenv("YOLODS_LAUNCH_SCRIPT", "../yolods/launch.sh")
    expected = "it has no /p; install there as here: ../yolods/launch.sh version"
    assert explain("b", 92, "", Caller(Path("/d"), "/p", {})) == expected


def stand_in(folder: Path, name: str, text: str) -> Path:
    """A short script in the place of Python or ssh."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    file.chmod(0o755)
    return file


def asked(folder: Path, text: str) -> Answer:
    """What comes of asking this machine, where this script is called in the place of Python."""
    caller = Caller(folder, str(stand_in(folder, "script", text)), {})
    (answer,) = ask([HERE], REQUEST, caller, local=True)
    return answer


def test_the_last_line_is_the_report_whatever_a_login_script_says_before_it(tmp_path):
    report = probe_host(REQUEST)
    (tmp_path / "report").write_text(encode_report(report))
    answer = asked(tmp_path, f"cat >/dev/null; echo Welcome!; cat {tmp_path / 'report'}; echo")
    assert answer.report == report and answer.problem == ""
    assert answer.skew == pytest.approx(report.time - time.time(), abs=1)


def test_a_python_that_fails_and_one_that_is_missing_are_told_apart(tmp_path):
    assert (
        asked(tmp_path, "echo no ctypes >&2; exit 1").problem
        == f"{tmp_path}/script fails there: no ctypes"
    )
    (gone,) = ask([HERE], REQUEST, Caller(tmp_path, str(tmp_path / "none"), {}), local=True)
    assert gone.problem.startswith(f"{tmp_path}/none cannot be started: No such file or directory")


def test_a_host_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 0.2)
    answer = asked(tmp_path, "exec sleep 30")
    assert answer.problem == "no answer within 0.2 s; something on this machine hangs"
    assert 0.2 <= answer.seconds < 10


def test_a_far_host_changes_to_the_folder_and_sets_the_variables_first(tmp_path, monkeypatch):
    stand_in(tmp_path, "ssh", f'printf "%s\\n" "$@" >{tmp_path}/words; exit 91')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "my runs").mkdir()
    caller = Caller(tmp_path / "my runs", "/env/bin/python", {"A": "1 2"}, 2222)
    (answer,) = ask([Host("b", 1, (0,))], REQUEST, caller, local=False)
    *options, name, line = (tmp_path / "words").read_text().splitlines()
    assert (options[-2:], name) == (["-p", "2222"], "b")
    start = (
        f"cd '{tmp_path}/my runs' || exit 91; test -x /env/bin/python || exit 92; exec env 'A=1 2' "
        "/env/bin/python - "
    )
    assert line.startswith(start)
    assert answer.problem.startswith(f"it has no folder {tmp_path}/my runs; create it there")


def test_ranks_of_this_run_alone_are_cleared_away(tmp_path, monkeypatch):
    """As `pgrep -f` reads it: not those of another run whose folder begins alike, and not the shell
    that looks."""
    import re
    import shlex

    stand_in(tmp_path, "ssh", f'for word; do :; done; echo "$word" >{tmp_path}/line')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    clear([Host("b", 1, (0,))], Path("/runs/exp+1"), None)
    script = shlex.split((tmp_path / "line").read_text())[2]
    pattern = shlex.split(script.partition("pkill -KILL -f ")[2])[0].rstrip(";")
    line = "/env/bin/python -m yolods train --data x --run-dir /runs/exp+1"
    assert re.search(pattern, line) and re.search(pattern, f"{line} --epochs 3")
    assert not re.search(pattern, f"{line}2") and not re.search(pattern, script)
