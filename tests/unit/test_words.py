"""Words of a command line: every fault at once, and what foreign words are called here."""

from __future__ import annotations

import pytest

from yolods.config.flags import HYPER_FLAGS, add_train_arguments, foreign
from yolods.config.hyper import RULES
from yolods.config.words import FlagParser
from yolods.errors import UserError


def parser() -> FlagParser:
    made = FlagParser(prog="yolods train", description="", foreign=foreign)
    add_train_arguments(made)
    return made


def faults(words: str) -> tuple[str, ...]:
    return parser().read(words.split()).faults


def test_sound_words_have_no_fault():
    found = parser().read(
        ["--data", "x.yaml", "--exist_ok", "--batch", "8", "--freeze", "3", "4", "--multi-scale", "--epochs=2"]
    )
    assert found.faults == ()
    assert (found.data, found.exist_ok, found.batch_size, found.freeze, found.multi_scale, found.epochs) == (
        *("x.yaml", True, 8, ["3", "4"], 0.5, 2),
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--epochs", ["--epochs: expected one argument"]),
        ("--epochs many --imgsz 6.5", ["--epochs is 'many'", "--imgsz is '6.5': it has to be a whole number"]),
        ("--multi-scale wide", ["--multi-scale is 'wide': it has to be a number"]),
        ("--xyzzy 3 4 --epochs 2", ["unknown flag --xyzzy"]),
        (
            "--mosaic 1 --mosaik 1",
            ["--mosaic: a hyper-parameter", "--mosaik: unknown (did you mean the hyper"],
        ),
        ("--pose 1", ["--pose: not taken: it belongs to pose estimation"]),
        ("--optimizer", ["--optimizer: expected one argument"]),
        ("x.yaml", ["'x.yaml' belongs to no flag"]),
        ("data=x.yaml lr0=1 what=2", ["data=x.yaml: flags are written with dashes", "lr0=1: a hyper", "what=2: flags"]),
        ("--amp --adam", ["--amp is not taken: precision is in", "--adam is not taken: use --optimizer Adam"]),
        ("--nproc_per_node 4 --fp16", ["--nproc_per_node: ranks per host are", "--fp16: precision is in"]),
        ("-x 3", ["unknown flag -x"]),
    ],
)
def test_each_fault_has_its_line(words, expected):
    found = faults(words)
    assert len(found) == len(expected)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("name", sorted(set(RULES) - set(HYPER_FLAGS)))
def test_a_hyper_parameter_typed_as_a_flag_is_told_how_it_is_written(name):
    (line,) = parser().read([f"--{name}", "1"]).faults
    assert line == f"--{name}: a hyper-parameter; write --set {name}=VALUE"


def test_take_raises_what_read_collects():
    with pytest.raises(UserError, match="--epochs is 'x'"):
        parser().take(["--epochs", "x"])
