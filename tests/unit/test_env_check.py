"""Variables of a shell that DeepSpeed or torch would end a rank over."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from yolods import cli
from yolods.errors import OwnError
from yolods.launch.env_check import VARIABLE_RULES, check_variables

WRONG = {name: "abc" for name in VARIABLE_RULES} | {"DEEPSPEED_TIMEOUT": "1.5"}
RIGHT = {name: "1" for name in VARIABLE_RULES} | {
    "TORCH_DISTRIBUTED_DEBUG": "info",
    "GLOO_DEVICE_TRANSPORT": "tcp",
}


def test_all_that_are_wrong_are_named_at_once_with_what_they_have_to_be():
    with pytest.raises(OwnError) as caught:
        check_variables(dict(WRONG))
    assert [line.partition("=")[0] for line in str(caught.value).splitlines()] == list(
        VARIABLE_RULES
    )
    assert (
        "DEEPSPEED_TIMEOUT=1.5: it must be a number of minutes from 1 to 1000000; correct it"
        in str(caught.value)
    )


@pytest.mark.parametrize("value", ["0", "-1", "1e3", "²", "9" * 20])
def test_minutes_are_those_that_a_time_limit_can_have(value):
    with pytest.raises(OwnError, match="DEEPSPEED_TIMEOUT="):
        check_variables({"DEEPSPEED_TIMEOUT": value})


def test_what_is_right_is_left_alone_and_what_is_empty_is_no_choice():
    given = dict(RIGHT)
    check_variables(given)
    assert given == RIGHT
    empty = dict.fromkeys(VARIABLE_RULES, "")
    check_variables(empty)
    assert empty == {}


@pytest.mark.parametrize(
    "words", [["train", "--data", "demo"], ["launch", "val", "--weights", "x.pt"]]
)
def test_one_gets_a_line_before_anything_is_imported(monkeypatch, capfd, words):
    monkeypatch.setenv("DEEPSPEED_TIMEOUT", "abc")
    assert cli.main(words) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("error: DEEPSPEED_TIMEOUT=abc: it must be a number of minutes")


def test_the_libraries_still_die_of_them(run_process):
    """One that is no longer read, or takes anything, needs no rule."""
    place = Path(sys.prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages")
    files = (
        "deepspeed/constants.py",
        "torch/distributed/distributed_c10d.py",
        "torch/_dynamo/config.py",
    )
    text = "".join((place / file).read_text() for file in (*files, "torch/_inductor/config.py"))
    read = {
        name
        for name in VARIABLE_RULES
        if re.search(rf"int\(\s*os\.(environ|getenv)[.(\[get]*\s*\"{name}\"", text)
    }
    assert set(VARIABLE_RULES) - read == {
        "TORCH_DISTRIBUTED_DEBUG",
        "GLOO_DEVICE_TRANSPORT",
    }  # which torch's library reads
    start = (
        "import torch.distributed as d; d.init_process_group('gloo', store=d.HashStore(), rank=0, "
        "world_size=1)"
    )
    for name in ("TORCH_DISTRIBUTED_DEBUG", "GLOO_DEVICE_TRANSPORT"):
        result = run_process([sys.executable, "-c", start], env={name: "abc"})
        assert result.returncode == 1 and "Traceback" in result.stderr, name
