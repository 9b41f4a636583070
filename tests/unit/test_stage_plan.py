"""What a run's cuts are judged by, and what is refused of them. Whole configurations:
test_deepspeed_pipeline.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from yolods.errors import UserError
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.plan.cost import Cost
from yolods.plan.partition import Partition, table
from yolods.plan.stage_plan import (
    GIB,
    StagePlan,
    check_stages,
    choose,
    counted,
    state_bytes,
    terms_of,
)

STAGES = 2


def configured(
    *,
    partition: object = "flops",
    freeze: object = None,
    memory_gib: float | None = None,
    schedule: str = "1f1b",
    device: str = "cpu",
    **layout: Any,
) -> SimpleNamespace:
    """A run's configuration, as far as a plan looks at it."""
    block = {
        "stages": STAGES,
        "partition": partition,
        "memory_gib": memory_gib,
        "activation_checkpoint_interval": 4,
        "schedule": schedule,
    }
    usual = {
        **{
            "precision": "fp32",
            "autocast": None,
            "micro_batch": 2,
            "accumulation": 3,
            "zero_stage": 1,
            "dp_size": 2,
        },
        **{"pipeline": SimpleNamespace(**block)},
    }
    deepspeed = SimpleNamespace(**{**usual, **layout})
    return SimpleNamespace(
        imgsz=64, device=device, hyper=SimpleNamespace(freeze=freeze), deepspeed=deepspeed
    )


@pytest.fixture(scope="module")
def blueprint() -> Blueprint:
    return Blueprint(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b"), seed=0)


@pytest.fixture(scope="module")
def costs(blueprint: Blueprint) -> Cost:
    return counted(blueprint, configured())


def chosen(costs: Cost, **settings: Any) -> Partition:
    config = configured(**settings)
    return choose(costs, config, terms_of(config))


def test_terms_come_from_the_json_and_its_memory_wins_over_the_device_s():
    terms = terms_of(configured(precision="bf16"), seconds=(1.0,), memory=5e9)
    assert (terms.micro_batch, terms.micro_batches, terms.seconds, terms.recompute) == (
        2,
        3,
        (1.0,),
        4,
    )
    assert (terms.memory_limit, terms.state_bytes) == (5e9, 10.0)
    assert terms_of(configured(memory_gib=1.5), memory=5e9).memory_limit == 1.5 * GIB
    assert terms_of(configured()).memory_limit is None
    assert terms_of(configured(schedule="zb")).schedule == "zb"


def test_activations_are_counted_in_the_type_that_is_computed_in(blueprint: Blueprint, costs: Cost):
    halved = counted(blueprint, configured(autocast="bf16"))
    assert halved.crossing[5] * 2 == costs.crossing[5] > 0
    assert counted(blueprint, configured(precision="fp16")).crossing == halved.crossing


def test_every_stage_that_has_nothing_to_train_is_named_with_the_reason(costs: Cost):
    first = costs.graph.nodes_of(2)[0]
    with pytest.raises(UserError) as caught:
        chosen(costs, partition=(2,), freeze=2)
    assert str(caught.value) == (
        "pipeline: stage 0 (0..1) has nothing to train: all of its weights are frozen; cut "
        "elsewhere, or use fewer stages"
    )
    with pytest.raises(
        UserError, match=r"stage 1 \(24\.detect\.\.24\.detect\) has nothing to train"
    ):
        chosen(costs, partition=("24.detect",))
    assert chosen(costs, partition=(2,), freeze=1).bounds == (0, first, len(costs.graph.nodes))


@pytest.mark.parametrize(
    ("partition", "device", "refused"),
    [("flops", "cpu", True), ("balanced", "cpu", True), ("balanced", "cuda", False)],
)
def test_before_a_start_only_cuts_that_are_known_by_then_are_refused(
    costs: Cost, partition, device, refused
):
    """On GPUs balanced cuts are where the ranks will have measured them to belong."""
    config = configured(partition=partition, device=device, freeze=tuple(range(25)))
    if refused:
        with pytest.raises(UserError, match="has nothing to train"):
            check_stages(costs, config)
    else:
        check_stages(costs, config)


def test_the_table_says_whether_its_times_were_measured(costs: Cost):
    found = chosen(costs)
    lines = [
        StagePlan(costs.graph, found, table(found, costs), measured).lines
        for measured in (True, False)
    ]
    assert lines[0][:-1] == lines[1][:-1] and len(lines[0]) > STAGES
    assert [each[-1].split(",")[0] for each in lines] == ["ms: measured here", "ms: assumed"]


@pytest.mark.parametrize(
    ("precision", "zero_stage", "replicas", "expected"),
    [
        ("fp32", 0, 1, 16),  # weight 4, gradient 4, moments 8: the weights are the masters
        ("fp32", 0, 4, 16),
        ("bf16", 0, 2, 16),  # weight 2, gradient 2, master 4, moments 8
        ("bf16", 1, 1, 16),
        ("bf16", 1, 2, 10),
        ("fp16", 1, 4, 7),
        ("fp32", 1, 1, 20),  # weight 4, gradient 4, and apart from them master 4 and moments 8
        ("fp32", 1, 2, 14),
        ("fp32", 1, 4, 11),
    ],
)
def test_bytes_of_model_states_a_parameter(precision, zero_stage, replicas, expected):
    """tests/dist/test_layouts.py counts them in real engines."""
    assert state_bytes(precision, zero_stage, replicas) == expected
