"""The parsers of the commands: which flags `--help` lists, and what an unknown flag is told."""

import pytest

from yolods import cli
from yolods.commands.parsers import (
    doctor_parser,
    export_parser,
    pack_parser,
    train_parser,
    val_parser,
)
from yolods.errors import UserError


@pytest.mark.parametrize(
    "words",
    [["train"], ["val"], ["export"], ["pack"], ["launch", "train"], ["launch", "val"]],
)
def test_every_word_lists_its_flags(capsys, words):
    with pytest.raises(SystemExit) as caught:
        cli.main([*words, "--help"])
    shown = capsys.readouterr().out
    assert caught.value.code == 0
    assert f"usage: yolods {words[-1]}" in shown
    assert any(flag in shown for flag in ("--weights", "--to", "--shard-size"))
    if words[-1] in ("train", "val"):
        assert all(
            flag in shown for flag in ("--hostfile", "--num_gpus", "--launcher", "--max_restarts")
        )


@pytest.mark.parametrize(
    ("parser", "words"),
    [
        (train_parser, []),
        (val_parser, []),
        (export_parser, ["run", "--to", "x"]),
        (pack_parser, []),
        (doctor_parser, []),
    ],
)
def test_a_parser_refuses_an_unknown_flag_by_its_name(parser, words):
    with pytest.raises(UserError, match="unknown flag --nonsense"):
        parser().take([*words, "--nonsense", "1"])


def test_a_flag_of_the_launcher_is_told_from_an_unknown_one():
    faults = train_parser().read(["--data", "demo", "--hostfile", "h"]).faults
    assert len(faults) == 1 and "a flag of the launcher" in faults[0]
