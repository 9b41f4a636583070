"""Configuration is closed: who computes reads typed values, and one function makes what DeepSpeed
is given."""

from __future__ import annotations

import argparse
import ast
import json
from pathlib import Path
from typing import Any

import pytest

from yolods.config import RunConfig, add_train_arguments, build_run_config

PACKAGE = Path(__file__).parents[2] / "yolods"
OUTSIDE = [
    file
    for file in sorted(PACKAGE.rglob("*.py"))
    if "config" not in file.relative_to(PACKAGE).parts
]


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nobody_but_config_reads_the_json_as_it_was_given(file: Path) -> None:
    read = [
        node.attr
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
    ]
    assert not {"raw", "resolved"} & set(read)


def test_one_line_initialises_deepspeed_with_what_config_has_made() -> None:
    calls = [
        node
        for file in OUTSIDE
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "deepspeed.initialize"
    ]
    (given,) = [
        ast.unparse(keyword.value)
        for call in calls
        for keyword in call.keywords
        if keyword.arg == "config"
    ]
    assert len(calls) == 1 and given.startswith("config.for_initialize(")


def configured(folder: Path, content: dict[str, Any], *words: str) -> RunConfig:
    file = folder / "ds.json"
    file.write_text(json.dumps({"train_micro_batch_size_per_gpu": "auto", **content}))
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    flags = [
        "--data",
        "demo",
        "--deepspeed_config",
        str(file),
        "--project",
        str(folder),
        "--batch-size",
        "8",
        *words,
    ]
    return build_run_config(parser.parse_args(flags), world_size=2, device="cpu", environ={})


def test_what_deepspeed_is_given_names_no_optimizer_and_no_folder_but_the_runs(
    tmp_path: Path,
) -> None:
    content = {
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "tensorboard": {"enabled": True, "output_path": "/elsewhere"},
        "yolods": {"watchdog": {"enabled": False}},
    }
    config = configured(tmp_path, content)
    given = config.for_initialize()
    assert not {"optimizer", "yolods"} & given.keys()
    assert given["tensorboard"]["output_path"] == str(config.run_dir / "deepspeed")
    rest = {
        key: value for key, value in config.deepspeed.for_initialize().items() if key not in given
    }
    assert set(rest) == {"optimizer"}
    given["zero_optimization"] = {"stage": 3}
    assert config.for_initialize() != given, "a fresh copy"


@pytest.mark.parametrize(
    ("params", "decay"),
    [
        (None, 0.0005 * 64 / 48),
        ({}, 0.0005 * 64 / 48),
        ({"weight_decay": "auto"}, 0.0005 * 64 / 48),
        ({"weight_decay": None}, 0.0005 * 64 / 48),
        ({"weight_decay": 0.0005}, 0.0005),
        ({"weight_decay": 0.01}, 0.01),
        ({"weight_decay": 0}, 0.0),
    ],
)
def test_a_decay_of_the_jsons_own_stands_and_any_other_is_scaled_to_the_step(
    tmp_path: Path, params: dict[str, Any] | None, decay: float
) -> None:
    block = {} if params is None else {"optimizer": {"type": "SGD", "params": params}}
    config = configured(tmp_path, {"gradient_accumulation_steps": 8, **block}, "--set", "nbs=48")
    assert config.deepspeed.train_batch == 64
    assert config.weight_decay == pytest.approx(decay, rel=1e-12)
