"""A layout is what the run's JSON says, in the units of the formulas for memory and traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_deepspeed_pipeline import configured
from yolods.plan.layout import Layout, layout_of

BATCH = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}


def of(
    folder: Path, content: dict[str, Any], ranks: int, *words: str, cuts: tuple[int, ...] = ()
) -> Layout:
    """The layout of a run under a JSON."""
    return layout_of(configured(folder, {**BATCH, **content}, ranks, *words), cuts)


def test_batches_ranks_and_images_multiply_out(tmp_path: Path) -> None:
    layout = of(tmp_path, {"pipeline": {"stages": 2}}, 4, "--imgsz", "320", cuts=(9,))
    assert (layout.stages, layout.replicas, layout.ranks, layout.imgsz) == (2, 2, 4, 320)
    assert layout.images == 2 * 2 * 3


@pytest.mark.parametrize(
    ("content", "field", "value"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_stage", 3),
        ({"zero_optimization": {"stage": 1}}, "reduce_bucket", None),
        ({"zero_optimization": {"stage": 1}}, "owned", True),
        (
            {"zero_optimization": {"stage": 2, "use_multi_rank_bucket_allreduce": True}},
            "owned",
            False,
        ),
        ({"zero_optimization": {"stage": 2, "overlap_comm": False}}, "overlapped", False),
        ({"zero_optimization": {"stage": 1, "reduce_bucket_size": 1e6}}, "reduce_bucket", 10**6),
        ({"zero_optimization": {"stage": 1}, "bf16": {"enabled": True}}, "precision", "bf16"),
        ({"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}, "autocast", "bf16"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "offload_optimizer",
            True,
        ),
        ({"activation_checkpointing": {}}, "recompute", -1),
        ({"activation_checkpointing": {"number_checkpoints": 3}}, "recompute", 3),
        ({"pipeline": {"stages": 2, "activation_checkpoint_interval": 4}}, "recompute", 4),
        ({"pipeline": {"stages": 2, "schedule": "zb"}}, "schedule", "zb"),
        ({"pipeline": {"stages": 2}}, "schedule", "1f1b"),
        ({}, "schedule", "1f1b"),
    ],
)
def test_each_setting_of_the_json_arrives(
    tmp_path: Path, content: dict[str, Any], field: str, value: object
) -> None:
    assert getattr(of(tmp_path, content, 2), field) == value


def test_batchnorm_is_shared_only_among_replicas(tmp_path: Path) -> None:
    assert of(tmp_path, {}, 2, "--set", "sync_bn=true").sync_bn
    assert not of(tmp_path, {}, 1, "--set", "sync_bn=true").sync_bn
