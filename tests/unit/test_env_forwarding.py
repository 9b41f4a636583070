"""Which variables travel to other hosts, and how words arrive there whole."""

from __future__ import annotations

import subprocess

import pytest

from yolods.errors import Faults
from yolods.hosts.env_forwarding import (
    carried,
    environment_file,
    is_plain,
    shell_word,
    travelling,
    users_lines,
)


def test_settings_of_the_run_travel_and_those_of_the_host_do_not():
    environ = {
        "YOLODS_CACHE": "/c",
        "NCCL_DEBUG": "INFO",
        "PATH": "/bin",
        "HOME": "/h",
        "OMP_NUM_THREADS": "",
    }
    assert carried(environ) == {"YOLODS_CACHE": "/c", "NCCL_DEBUG": "INFO"}


def test_what_a_line_of_a_file_cannot_hold_stays():
    assert carried({"YOLODS_A": "one\ntwo", "YOLODS_B.C": "1", "DS_ENV_FILE": "x"}) == {}


def test_a_safe_path_hides_the_folder_where_ranks_stand():
    assert carried({"PYTHONSAFEPATH": "1"}) == {"PYTHONPATH": ""}
    assert carried({"PYTHONSAFEPATH": "1", "PYTHONPATH": "/p"}) == {"PYTHONPATH": "/p"}


def test_a_users_files_overrule_and_a_line_that_deepspeed_stops_at_is_a_fault(tmp_path):
    home, here = tmp_path / "home", tmp_path / "here"
    for folder, text in ((home, "A=1\nB=2\n"), (here, "A=3\nexport C=4\n")):
        folder.mkdir()
        (folder / ".deepspeed_env").write_text(text)
    faults = Faults()
    assert users_lines({}, [home, here, tmp_path / "none"], faults) == ["A=1", "B=2", "A=3"]
    assert list(faults) == [
        f"{here / '.deepspeed_env'} line 2: `export C=4`: write NAME=value; DeepSpeed fails at "
        "any other line"
    ]
    found = travelling({"NCCL_DEBUG": "INFO", "PYTHONPATH": "/p", "A": "0"}, [home, here], Faults())
    assert found == {"NCCL_DEBUG": "INFO", "PYTHONPATH": "/p", "A": "3", "B": "2"}


def test_the_file_has_our_lines_and_after_them_the_users():
    text = environment_file({"A": "plain", "B": 'a "$b"', "C": "100%"}, ["D=as it is"]).read_text()
    assert text == 'A=plain\nB=a \\"\\$b\\"\nC=100%%\nD=as it is\n'


@pytest.mark.parametrize(
    "word", ["plain", "a b", "a'b", 'a"b', "$HOME", "a;b", "a b $c `d` \\", "", "*"]
)
def test_a_word_arrives_whole(word):
    """As DeepSpeed puts it into the line, pdsh replaces its signs, and the other host's shell reads
    it."""
    told = shell_word(word)
    if " " in told:
        told = '"' + told.replace('"', '\\"') + '"'
    line = told.replace("%%", "%")
    found = subprocess.run(
        ["sh", "-c", f"printf %s {line}"], capture_output=True, text=True, timeout=20
    )
    assert found.stdout == word


@pytest.mark.parametrize(
    ("path", "plain"), [("/a/b-1.2_c@d", True), ("/a b", False), ("/50%", False), ("/a'b", False)]
)
def test_a_path_that_needs_quotes_is_known(path, plain):
    assert is_plain(path) == plain
