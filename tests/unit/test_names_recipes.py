"""A DeepSpeed configuration by its path or by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolods.config.names.recipes import find_json
from yolods.errors import Faults


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A working folder without files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("named", ["zero1_fp16", "zero1_fp16.json"])
def test_a_name_leads_to_the_file_that_comes_with_yolods(named):
    faults = Faults()
    found = find_json(named, faults)
    assert found.is_file() and found.parts[-2:] == ("ds_configs", "zero1_fp16.json")
    assert not faults


def test_a_file_that_exists_wins_over_a_name(here):
    (here / "zero1_fp16").write_text("{}")
    assert find_json("zero1_fp16", Faults()).resolve() == here / "zero1_fp16"


@pytest.mark.parametrize(
    ("named", "hint"),
    [
        ("zero1", "(did you mean 'zero1_bf16' or 'zero1_fp16' or 'zero1_fp32'?)"),
        ("pipelin2_fp32", "(did you mean 'pipeline2_fp32'?)"),
    ],
)
def test_a_name_that_is_none_is_told_with_those_there_are(named, hint):
    faults = Faults()
    find_json(named, faults)
    (line,) = faults
    assert line.startswith(
        f"--deepspeed_config {named}: no such file {hint}; ds_configs/ has pipeline2_fp32, "
    )


@pytest.mark.parametrize("named", ["folder/zero1", "gone.json"])
def test_of_a_path_nothing_is_said_here(named):
    faults = Faults()
    assert str(find_json(named, faults)) == named
    assert not faults
