"""Words of a command line: every fault at once, and what foreign words are called here."""

from __future__ import annotations

import pytest

from yolods.config.flags import HYPER_FLAGS, add_train_arguments, add_val_arguments, foreign
from yolods.config.hyper.hyperparameters import RULES
from yolods.errors import UserError
from yolods.parsing.command_line import FlagNames, FlagParser


def parser() -> FlagParser:
    made = FlagParser(prog="yolods train", description="", foreign=foreign)
    add_train_arguments(made)
    return made


def faults(words: str) -> tuple[str, ...]:
    return parser().read(words.split()).faults


def test_sound_words_have_no_fault():
    found = parser().read(
        [
            "--data",
            "x.yaml",
            "--exist_ok",
            "--batch",
            "8",
            "--freeze",
            "3",
            "4",
            "--multi-scale",
            "--epochs=2",
        ]
    )
    assert found.faults == ()
    assert (
        found.data,
        found.exist_ok,
        found.batch_size,
        found.freeze,
        found.multi_scale,
        found.epochs,
    ) == (*("x.yaml", True, 8, ["3", "4"], 0.5, 2),)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--epochs", ["--epochs: expected one argument"]),
        (
            "--epochs many --imgsz 6.5",
            ["--epochs is 'many'", "--imgsz is '6.5': it must be a whole number"],
        ),
        ("--multi-scale wide", ["--multi-scale is 'wide': it must be a number"]),
        ("--xyzzy 3 4 --epochs 2", ["unknown flag --xyzzy"]),
        (
            "--mosaic 1 --mosaik 1",
            ["--mosaic: a hyper-parameter", "--mosaik: unknown (did you mean the hyper"],
        ),
        ("--pose 1", ["--pose: not supported: it is for pose estimation"]),
        ("--optimizer", ["--optimizer: expected one argument"]),
        ("x.yaml", ["unexpected 'x.yaml'"]),
        (
            "data=x.yaml lr0=1 what=2",
            ["data=x.yaml: write flags with dashes", "lr0=1: a hyper", "what=2: write flags"],
        ),
        (
            "--amp --adam",
            [
                "--amp is not supported: set the precision in",
                "--adam is not supported: use --optimizer Adam",
            ],
        ),
        (
            "--nproc_per_node 4 --fp16",
            ["--nproc_per_node: use --num_gpus of", "--fp16: set the precision in"],
        ),
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


@pytest.mark.parametrize("word", ["-hX", "-h=1", "--help=1"])
def test_a_word_that_begins_like_help_gets_a_line_and_leaves_the_other_words_in_place(word):
    found = parser().read([word, "--epochs", "3", "--mosaik", "1"])
    assert (
        found.faults[0]
        == f"{word.partition('=')[0]}: ignored explicit argument '{word.lstrip('-help=')}'"
    )
    assert (len(found.faults), found.epochs, found.set) == (2, 3, None)


def test_help_with_one_dash_is_help(capsys):
    with pytest.raises(SystemExit):
        parser().read(["-help"])
    assert capsys.readouterr().out.startswith("usage: yolods train")


def test_words_that_are_refused_as_a_whole_leave_every_flag_at_its_default():
    made = FlagParser(prog="yolods export", description="")
    made.add_argument("run")
    made.add_argument("--to", default="x")
    assert (found := made.read([])).faults and (found.run, found.to) == (None, "x")


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("resume=True", "resume=True: write flags with dashes: --resume"),
        ("exist_ok=true", "exist_ok=true: write flags with dashes: --exist-ok"),
        ("exist_ok=False", "exist_ok=False: omit --exist-ok"),
        ("device=0", "device=0: --device is not supported: choose devices with the launcher's"),
    ],
)
def test_advice_about_an_assignment_is_not_refused_in_its_turn(word, line):
    (told,) = faults(word)
    assert told.startswith(line)


@pytest.mark.parametrize("flag", ["--foo", "--bucket", "--wd"])
def test_a_flag_that_is_like_none_gets_no_hint(flag):
    assert faults(flag) == (f"unknown flag {flag}; yolods train --help lists them",)


@pytest.mark.parametrize(
    "words", [["--data", ""], ["--data="], ["--hyp="], ["--epochs", ""], ["--optimizer="]]
)
def test_an_empty_value_is_no_choice_and_is_said_to_be_empty(words):
    found = parser().read([*words, "--imgsz", "64"])
    (line,) = found.faults
    assert line == f"{words[0].rstrip('=')} is empty: is a shell variable unset?"
    assert (found.data, found.hyp, found.epochs, found.imgsz) == (None, None, None, 64)


def test_what_yolov5_starts_from_nothing_by_stays():
    assert (
        parser().read(["--weights", ""]).faults == ()
        and parser().read(["--weights="]).weights == ""
    )


@pytest.mark.parametrize(
    "flag",
    [
        "num_nodes",
        "elastic_training",
        "bind_cores_to_rank",
        "enable_each_rank_log",
        "no_python",
        "module",
        "autotuning",
    ],
)
def test_a_flag_of_deepspeeds_own_launcher_is_told_what_says_the_same(flag):
    (line,) = parser().read([f"--{flag}"]).faults
    assert line.startswith(f"--{flag}: ") and "did you mean" not in line and "unknown" not in line


def test_the_names_of_flags_are_all_spellings_those_of_groups_too():
    names = FlagNames(
        add_train_arguments, lambda parser: parser.add_argument("-x", "--extra")
    ).names
    assert {"--data", "--batch-size", "--batch", "--seed", "-x", "--extra"} <= set(names)
    assert len(names) == len(set(names)) and all(name.startswith("-") for name in names)
    assert "--epochs" not in FlagNames(add_val_arguments).names
