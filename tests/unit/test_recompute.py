"""The "activation_checkpointing" block: what turns it on, and what it refuses."""

from __future__ import annotations

import pytest

from yolods.config.deepspeed.config import resolve
from yolods.config.deepspeed.recompute import RecomputeConfig
from yolods.errors import Faults


def read(raw: dict, ranks: int = 2):
    faults = Faults()
    config = resolve(raw, path=None, batch_size=8, world_size=ranks, device="cpu", faults=faults)
    return config, "\n".join(faults)


def test_a_json_without_the_block_keeps_all_activations():
    assert read({})[0].recompute is None


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    ("block", "segments"), [({}, None), ({"number_checkpoints": 7}, 7), ({"profile": False}, None)]
)
def test_the_block_turns_it_on_under_every_zero_stage(stage, block, segments):
    config, faults = read(
        {"zero_optimization": {"stage": stage}, "activation_checkpointing": block}
    )
    assert not faults
    assert config.recompute == RecomputeConfig(number_checkpoints=segments)
    assert "activation_checkpointing" not in config.for_initialize(), (
        "DeepSpeed would do nothing with it"
    )


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (
            {"cpu_checkpointing": True},
            "cpu_checkpointing is true: it must be false: tensors that enter",
        ),
        (
            {"partition_activations": True},
            "partition_activations is true: it must be false: there is no",
        ),
        (
            {"number_checkpoints": 0},
            "number_checkpoints is 0: it must be a whole number of at least 1, or empty",
        ),
        (
            {"numbers_checkpoints": 3},
            "unknown key 'numbers_checkpoints' (did you mean 'number_checkpoints'?)",
        ),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(block, said):
    assert said in read({"activation_checkpointing": block})[1]


def test_a_pipeline_has_a_key_of_its_own():
    raw = {"pipeline": {"stages": 2}, "activation_checkpointing": {"number_checkpoints": 4}}
    assert 'use "pipeline".activation_checkpoint_interval' in read(raw)[1]
