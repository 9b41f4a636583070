"""The launcher's own flags, taken out of the words that a user typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolods.errors import Faults, UserError
from yolods.launch.args import LaunchFlags, read_words, recorded_flags, split_words


def test_the_launchers_flags_are_taken_out_of_the_words():
    words = [
        "train",
        "--data",
        "x",
        "--hostfile",
        "h",
        "--num_gpus=3",
        "--include",
        "a:0",
        "--local_rank",
        "0",
    ]
    flags, rest = split_words(words, {})
    assert flags == LaunchFlags(hostfile=Path("h"), num_gpus=3, include="a:0")
    assert rest == ["train", "--data", "x", "--local_rank", "0"]


def test_flags_of_a_launcher():
    words = [
        "val",
        "--launcher",
        "slurm",
        "--launcher_args=-v --overlap",
        "--ssh_port",
        "2",
        "--master_addr",
        "x",
    ]
    flags, rest = split_words([*words, "--no_ssh", "--node_rank", "0"], {})
    expected = {
        "launcher": "slurm",
        "launcher_args": "-v --overlap",
        "ssh_port": 2,
        "master_addr": "x",
    }
    assert flags == LaunchFlags(**expected, no_ssh=True, node_rank=0)
    assert rest == ["val"]


def test_abbreviations_are_left_to_the_subcommand():
    """--in would otherwise be taken for --include, and --e for --exclude."""
    assert split_words(["train", "--epochs", "3", "--in", "x"], {})[1] == [
        "train",
        "--epochs",
        "3",
        "--in",
        "x",
    ]


def test_hostfile_by_variable():
    assert split_words(["train"], {"HOSTFILE": "h"})[0].hostfile == Path("h")
    assert split_words(["train", "--hostfile", "k"], {"HOSTFILE": "h"})[0].hostfile == Path("k")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--num_gpus", "two"], "--num_gpus is 'two': it must be a whole number"),
        (["--hostfile"], "--hostfile: expected one argument"),
        (["--launcher", "rsh"], "--launcher: invalid choice: 'rsh'"),
    ],
)
def test_mistakes_in_the_launchers_flags(words, line):
    with pytest.raises(UserError, match=f"^{line}"):
        split_words(words, {})


def test_all_mistakes_in_the_launchers_flags_are_told_at_once():
    faults = Faults()
    words = [
        "train",
        "--num_gpus",
        "x",
        "--max-restarts",
        "-1",
        "--master_port",
        "0",
        "--data",
        "d.yaml",
    ]
    flags, rest = read_words(words, faults, {})
    assert (flags, rest) == (LaunchFlags(), ["train", "--data", "d.yaml"])
    assert [line.split()[0] for line in faults] == ["--num_gpus", "--max-restarts", "--master_port"]


@pytest.mark.parametrize("flag", ["--hostfile", "--include", "--num_gpus", "--master_addr"])
def test_an_empty_flag_of_the_launcher_is_not_taken_for_this_machine_or_for_all_hosts(flag):
    with pytest.raises(UserError, match=f"^{flag} is empty: is a shell variable unset"):
        split_words(["train", flag, "", "--data", "x"])


def test_flags_of_a_recorded_command_are_relative_to_its_folder(monkeypatch):
    monkeypatch.setenv("HOSTFILE", "of-this-shell")
    typed = "./launch.sh train --data 'a b.yaml' --hostfile hosts --include a:0 --epochs 3"
    found = recorded_flags(typed, Path("/data"))
    assert found == LaunchFlags(hostfile=Path("/data/hosts"), include="a:0")
    assert recorded_flags("", Path("/data")) == LaunchFlags()
