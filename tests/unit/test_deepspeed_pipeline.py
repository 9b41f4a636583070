"""The "pipeline" block: what is wrong in it is refused by name and with the arithmetic, before
anything starts where one process can tell, and else on every rank alike."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.tiny import make_dataset
from yolods import cli
from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.config.deepspeed.pipeline import PipelineConfig
from yolods.distributed.world import Ranks
from yolods.engine.build_pipeline import plan_stages
from yolods.errors import UserError
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import build_graph
from yolods.plan.cost import cost
from yolods.plan.stage_plan import StagePlan

ZERO1, ZERO2, ZERO3 = ({"zero_optimization": {"stage": stage}} for stage in (1, 2, 3))


def configured(folder: Path, content: dict[str, Any], ranks: int, *words: str) -> RunConfig:
    """The configuration of a run under a JSON."""
    (folder / "ds.json").write_text(json.dumps(content))
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    given = [
        "--data",
        "demo",
        "--model",
        "yolov5n",
        "--deepspeed_config",
        str(folder / "ds.json"),
        *words,
    ]
    return build_run_config(parser.parse_args(given), world_size=ranks, device="cpu", environ={})


def planned(folder: Path, content: dict[str, Any], ranks: int, *words: str) -> StagePlan:
    """Where its model is cut, worked out by one rank for all."""
    config = configured(folder, content, ranks, *words)
    return plan_stages(drawn(config.model), config, Ranks(0, 1, 0, "host", torch.device("cpu")))


@lru_cache
def drawn(model: str) -> Blueprint:
    """The model on paper."""
    return Blueprint(architecture(parse_name(model), 3, 3), ("a", "b", "c"), seed=0)


@pytest.fixture(scope="module", autouse=True)
def drawn_once() -> Iterator[None]:
    """Counting a model's costs takes longer than all that is tested here."""
    with (
        mock.patch("yolods.plan.stage_plan.build_graph", lru_cache(build_graph)),
        mock.patch("yolods.plan.stage_plan.cost", lru_cache(cost)),
    ):
        yield


def faults_of(call: Any, *given: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        call(*given)
    return str(caught.value).splitlines()


STATIC = [
    (
        {"pipeline": {"stages": 3}},
        4,
        'ds.json: "pipeline".stages 3 does not divide 4 ranks: 4 / 3 = 1.33; 4 ranks support 1, 2, '
        "4 stages",
    ),
    (
        {"pipeline": {"stages": 4}},
        2,
        'ds.json: "pipeline".stages 4 does not divide 2 ranks: 2 / 4 = 0.50; 2 ranks support 1, 2 '
        "stages",
    ),
    (
        {"pipeline": {"stages": 2}, **ZERO2},
        2,
        'ds.json: "pipeline" with ZeRO stage 2: a stage reduces its gradients once per step, after '
        'all micro-batches, and keeps its weights; set "zero_optimization": {"stage": 1} or 0',
    ),
    (
        {"pipeline": {"stages": 2}, **ZERO3},
        2,
        'ds.json: "pipeline" with ZeRO stage 3: a stage reduces its gradients once per step, after '
        'all micro-batches, and keeps its weights; set "zero_optimization": {"stage": 1} or 0',
    ),
    (
        {
            "pipeline": {"stages": 2},
            "zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu"}},
        },
        2,
        'ds.json: "pipeline" with "offload_optimizer" is not supported: each stage already holds '
        "only its own states",
    ),
    (
        {"pipeline": {"stages": 4, "partition": [6, 13]}},
        4,
        'ds.json: "pipeline".partition has 2 cuts and therefore 3 stages, but stages is 4',
    ),
    (
        {"pipeline": {"stages": 2, "partition": "balance"}},
        2,
        "ds.json: \"pipeline\".partition is 'balance': it must be one of balanced, flops, "
        "activations, parameters, ",
    ),
    (
        {"pipeline": {"stages": 2, "partition": [0]}},
        2,
        'ds.json: "pipeline".partition is [0]: it must be one of balanced, flops, activations, '
        "parameters, uniform, ",
    ),
    (
        {"pipeline": {"stages": 0}},
        2,
        'ds.json: "pipeline".stages is 0: it must be a whole number of at least 1',
    ),
    (
        {"pipeline": {"stages": 2, "stagess": 2}},
        2,
        "ds.json: \"pipeline\": unknown key 'stagess' (did you mean 'stages'?); known: stages, "
        "partition, activation_",
    ),
    (
        {"pipeline": {"stages": 2, "activation_checkpoint_interval": -1}},
        2,
        'ds.json: "pipeline".activation_checkpoint_interval is -1: it must be a whole number of at '
        "least 0",
    ),
    (
        {"pipeline": {"stages": 2, "schedule": "zeb"}},
        2,
        "ds.json: \"pipeline\".schedule is 'zeb': it must be one of 1f1b, zb",
    ),
    (
        {"pipeline": {"stages": 2, "schedule": "zb", "activation_checkpoint_interval": 3}},
        2,
        'ds.json: "pipeline".schedule "zb" with activation_checkpoint_interval 3 is not supported: '
        "zb keeps the layers' inputs from the backward pass to the weights' part, which are what "
        'recomputing is to free; set the interval to 0, or "schedule": "1f1b"',
    ),
    (
        {"pipeline": {"stages": 2, "use_reentrant": True}},
        2,
        'ds.json: "pipeline".use_reentrant is true: it must be false (several tensors cross a cut, '
        "which reentrant ",
    ),
    (
        {"pipeline": {"stages": 2, "memory_gib": 0}},
        2,
        'ds.json: "pipeline".memory_gib is 0: it must be a number above 0',
    ),
    (
        {"pipeline": [2]},
        2,
        'ds.json: "pipeline" is [2]: it must be an object {...}',
    ),
]
IDS = [line.partition('"pipeline"')[2][:40] for *_, line in STATIC]


@pytest.mark.parametrize(("content", "ranks", "line"), STATIC, ids=IDS)
def test_what_the_file_alone_shows_to_be_wrong(tmp_path, content, ranks, line):
    (shown,) = faults_of(configured, tmp_path, content, ranks, "--batch-size", "16")
    assert shown.startswith(line)


@pytest.mark.parametrize(("content", "ranks", "line"), STATIC, ids=IDS)
def test_the_same_before_any_process_is_started(tmp_path, monkeypatch, capfd, content, ranks, line):
    def refuse(*_: Any) -> None:
        raise AssertionError("a process was started")

    make_dataset(tmp_path / "data", train=3, val=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.setattr(cli.os, "execvpe", refuse)
    (tmp_path / "ds.json").write_text(json.dumps(content))
    words = [
        "--data",
        "data/tiny.yaml",
        "--model",
        "yolov5n",
        "--imgsz",
        "64",
        "--batch-size",
        "16",
    ]
    assert (
        cli.main(
            ["launch", "train", "--num_gpus", str(ranks), *words, "--deepspeed_config", "ds.json"]
        )
        == 2
    )
    (shown,) = capfd.readouterr().err.splitlines()
    assert shown.startswith(f"error: {line}")


def test_all_faults_are_said_at_once(tmp_path):
    content = {"pipeline": {"stages": 3, "partition": [4], "wrong": 1}, **ZERO3}
    shown = faults_of(configured, tmp_path, content, 4)
    said = (
        "unknown key 'wrong'",
        "1 cuts and therefore 2 stages",
        "ZeRO stage 3",
        "does not divide 4 ranks",
    )
    assert len(shown) == len(said)
    assert all(any(part in line for line in shown) for part in said)


@pytest.mark.parametrize(
    ("stages", "cuts", "lines"),
    [
        (2, [25], ["pipeline: cut 25 names nothing; layers are 1 to 24"]),
        (
            2,
            ["4.9"],
            [
                "pipeline: cut '4.9' names nothing; layer 4 consists of 4.open, 4.m.0, 4.m.1, "
                "4.close"
            ],
        ),
        (2, ["head"], ["pipeline: cut 'head' names nothing; layers are 1 to 24"]),
        (
            3,
            [13, 6],
            ["pipeline: cuts must ascend, but 6.open does not come after 13.open: [13, 6]"],
        ),
        (
            3,
            [13, 13],
            ["pipeline: cuts must ascend, but 13.open does not come after 13.open: [13, 13]"],
        ),
        (
            4,
            [13, 6, 99],
            [
                "pipeline: cuts must ascend, but 6.open does not come after 13.open: [13, 6, 99]",
                "pipeline: cut 99 names nothing; layers are 1 to 24",
            ],
        ),
        (
            3,
            [11, 13],
            ["pipeline: stage 1 (11..12) has nothing to train: it has no weights; cut elsewhere, "],
        ),
        (
            2,
            ["24.detect"],
            [
                "pipeline: stage 1 (24.detect..24.detect) has nothing to train: all of its weights "
                "are frozen; cut "
            ],
        ),
    ],
)
def test_what_the_model_shows_to_be_wrong(tmp_path, stages, cuts, lines):
    shown = faults_of(
        planned, tmp_path, {"pipeline": {"stages": stages, "partition": cuts}}, stages
    )
    assert len(shown) == len(lines)
    assert all(one.startswith(other) for one, other in zip(shown, lines, strict=True)), shown


@pytest.mark.parametrize("partition", ["balanced", "uniform"])
def test_more_stages_than_nodes(tmp_path, partition):
    content = {"pipeline": {"stages": 64, "partition": partition}}
    line = "pipeline: 64 stages, but there are 56 nodes to divide among them"
    assert faults_of(planned, tmp_path, content, 64) == [line]


def test_uniform_shares_out_whole_layers(tmp_path):
    content = {"pipeline": {"stages": 32, "partition": "uniform"}}
    assert faults_of(planned, tmp_path, content, 32) == [
        'pipeline: "uniform" divides whole layers, but 32 stages > 25 layers'
    ]


def test_frozen_layers_leave_a_stage_nothing_to_train(tmp_path):
    content = {"pipeline": {"stages": 2, "partition": [10]}}
    assert planned(tmp_path, content, 2, "--freeze", "9").partition.stages == 2
    (shown,) = faults_of(planned, tmp_path, content, 2, "--freeze", "10")
    assert shown.startswith(
        "pipeline: stage 0 (0..9) has nothing to train: all of its weights are frozen; cut "
    )


def test_a_memory_limit_that_nothing_fits(tmp_path):
    content = {"pipeline": {"stages": 2, "memory_gib": 0.01}}
    shown = faults_of(planned, tmp_path, content, 2, "--imgsz", "64")
    assert all(line.startswith("pipeline: ") and " MiB" in line for line in shown)
    assert "use more stages, fewer images per micro-batch" in shown[-1]


def test_stages_and_replicas(tmp_path):
    config = configured(tmp_path, {"pipeline": {"stages": 2}}, 6, "--batch-size", "12").deepspeed
    assert (config.pipeline, config.dp_size, config.world_size) == (PipelineConfig(stages=2), 3, 6)
    assert (config.micro_batch, config.batches.batch) == (4, 12)
    assert "pipeline" not in config.for_initialize()
    plain = configured(tmp_path, {}, 6, "--batch-size", "12").deepspeed
    assert (plain.pipeline, plain.dp_size, plain.world_size) == (None, 6, 6)


def test_a_batch_is_dealt_to_replicas_not_to_ranks(tmp_path):
    assert (
        configured(
            tmp_path, {"pipeline": {"stages": 4}}, 4, "--batch-size", "7"
        ).deepspeed.micro_batch
        == 7
    )
    (shown,) = faults_of(configured, tmp_path, {"pipeline": {"stages": 2}}, 4, "--batch-size", "7")
    assert (
        shown == "--batch-size 7 cannot be divided evenly among 2 ranks: 7 / 2 = 3.50; use 6 or 8"
    )


def test_what_deepspeed_is_told_for_a_stage(tmp_path):
    zero = {"zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": 5}}
    told = configured(tmp_path, {"pipeline": {"stages": 2}, **zero}, 2).deepspeed.for_initialize()
    expected = {
        "stage": 1,
        "reduce_bucket_size": 5,
        "contiguous_gradients": False,
        "overlap_comm": False,
    }
    assert told["zero_optimization"] == expected


@pytest.mark.parametrize("stages", [1, 4])
@pytest.mark.parametrize("partition", ["balanced", "flops", "activations", "parameters", "uniform"])
def test_every_rule_gives_stages_that_train(tmp_path, stages, partition):
    plan = planned(tmp_path, {"pipeline": {"stages": stages, "partition": partition}}, stages)
    assert plan.partition.stages == stages
    assert len(plan.lines) == stages + 2
    assert plan.lines[-1] == "ms: assumed, at 100 TFLOP/s; only their ratios are meaningful"
    assert sum(row.parameters for row in plan.rows) == sum(
        each.numel() for each in plan.graph.skeleton.parameters()
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, 16),
        (ZERO1, 14),
        ({**ZERO1, "bf16": {"enabled": True}}, 10),
        ({"bf16": {"enabled": True}}, 16),
    ],
)
def test_the_plan_counts_states_by_precision_and_replicas(tmp_path, content, expected):
    plan = planned(tmp_path, {"pipeline": {"stages": 4}, **content}, 8, "--batch-size", "16")
    assert [row.state_bytes / row.parameters for row in plan.rows] == pytest.approx([expected] * 4)
