"""A DeepSpeed configuration by its path or by its name."""

from __future__ import annotations

import pytest

from yolods.config import ready
from yolods.config.ready import find_json
from yolods.errors import Faults


@pytest.fixture(autouse=True)
def shipped(tmp_path, monkeypatch):
    folder = tmp_path / "shipped"
    folder.mkdir()
    for name in ("zero1_fp16", "zero1_fp32", "pipeline2"):
        (folder / f"{name}.json").write_text("{}")
    monkeypatch.setattr(ready, "FOLDER", folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.mark.parametrize("named", ["zero1_fp16", "zero1_fp16.json"])
def test_a_name_leads_to_the_file_that_comes_with_yolods(shipped, named):
    faults = Faults()
    assert find_json(named, faults) == shipped / "zero1_fp16.json"
    assert not faults


def test_a_file_that_exists_wins_over_a_name(tmp_path):
    here = tmp_path / "work" / "zero1_fp16"
    here.write_text("{}")
    assert find_json("zero1_fp16", Faults()).resolve() == here


@pytest.mark.parametrize(
    ("named", "hint"),
    [("zero1", "(did you mean 'zero1_fp16' or 'zero1_fp32'?)"), ("pipelin2", "(did you mean 'pipeline2'?)")],
)
def test_a_name_that_is_none_is_told_with_those_there_are(named, hint):
    faults = Faults()
    find_json(named, faults)
    assert list(faults) == [
        f"--deepspeed_config {named}: no such file {hint}; ds_configs/ has pipeline2, zero1_fp16, zero1_fp32"
    ]


@pytest.mark.parametrize("named", ["folder/zero1", "gone.json"])
def test_of_a_path_nothing_is_said_here(named):
    faults = Faults()
    assert str(find_json(named, faults)) == named
    assert not faults
