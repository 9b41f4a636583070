"""Texts that YAML or JSON cannot be read from: one line each, wherever they stand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from yolods.checkpoint.verify import end_of, run_of
from yolods.config.hyper.hyperparameters import Hyper, read_hyper
from yolods.config.names.model_name import parse_name
from yolods.config.run import RunConfig
from yolods.data.spec import read_spec
from yolods.errors import Faults, UserError
from yolods.model.architecture.build import architecture
from yolods.parsing.json_file import parse_json, read_json
from yolods.parsing.yaml_file import NotYaml, parse_entries, parse_yaml

DEEP = 3000 * "["
DEEP_JSON = 100_000 * "["
UNREADABLE = [
    "2020-13-45",
    "0x_",
    "0b_",
    "!!int x",
    "!!int ''",
    "!!bool x",
    "!!timestamp x",
    "9" * 5000,
    "[1, 0x_]",
    DEEP,
]


@pytest.mark.slow
@pytest.mark.parametrize("value", UNREADABLE, ids=lambda value: value[:12])
def test_a_value_that_yaml_cannot_make_is_one_line_in_every_file_and_no_traceback(tmp_path, value):
    file = tmp_path / "x.yaml"
    file.write_text(f"# a comment\nlr0: {value}\n")
    faults = Faults()
    assert read_hyper(file, [f"lr0={value}"], faults).hyper == Hyper()
    assert [line.partition(": ")[0][:9] for line in faults] == [
        "--hyp " + str(tmp_path)[:3],
        "--set lr0",
    ]
    file.write_text(f"names: [a, {value}]\n")
    with pytest.raises(UserError, match="not valid yaml") as of_data:
        read_spec(file)
    file.write_text(f"head: {value}\n")
    with pytest.raises(UserError, match="not valid yaml") as of_model:
        architecture(parse_name(str(file)), 2, 3)
    assert not any("\n" in text for text in (*faults, str(of_data.value), str(of_model.value)))


def test_the_reason_names_the_value_and_its_line():
    with pytest.raises(
        NotYaml, match=r"^'2020-13-45' is not a valid timestamp; quote it"
    ) as caught:
        parse_yaml("a: 1\nb:\n  - [2020-13-45]\n")
    assert caught.value.line == 3


def test_a_key_that_stands_twice_is_refused_at_every_depth():
    with pytest.raises(NotYaml, match=r"^0 is already on line 2; keep one$") as caught:
        parse_yaml("names:\n  0: a\n  0: b\n")
    assert caught.value.line == 3
    merged = parse_yaml("a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\n")
    assert merged == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}}
    assert [entry[:] for entry in parse_entries("a: 1\na: 2\n") or ()] == [("a", 1, 1), ("a", 2, 2)]


def test_what_ultralytics_ships_reads_as_pyyaml_reads_it():
    package = importlib.util.find_spec("ultralytics")
    assert package is not None and package.origin is not None
    files = [*(Path(package.origin).parent / "cfg" / "datasets").glob("coco*.yaml")]
    assert len(files) > 5
    for file in files:
        assert parse_yaml(file.read_text(encoding="utf-8")) == yaml.safe_load(
            file.read_text(encoding="utf-8")
        )


def test_json_that_is_nested_too_deeply_is_one_line_and_no_traceback(tmp_path):
    file = tmp_path / "x.json"
    file.write_text(DEEP_JSON)
    faults = Faults()
    assert read_json(file, "--deepspeed_config x.json", faults) is None
    assert list(faults) == ["--deepspeed_config x.json: it is nested too deeply"]
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(DEEP_JSON)
    with pytest.raises(
        UserError, match=r"config\.json: not a run's configuration.*nested too deeply"
    ):
        RunConfig.from_json(DEEP_JSON, tmp_path)
    for name in ("ended", "progress.json"):
        (tmp_path / name).write_text(DEEP_JSON)
    assert end_of(tmp_path) is None
    assert run_of(tmp_path) is None
