"""What a start says before its first step: a small train set, ranks that nothing would end, and
what TensorBoard compares runs by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.unit.test_start import schedule_of
from yolods.config.hyper.hyperparameters import Hyper
from yolods.training.setup import announcement


@pytest.mark.parametrize(
    ("samples", "ranks", "remedy"),
    [(5, 1, "--batch-size 5 --set nbs=20"), (5, 2, "--batch-size 4 --set nbs=16")],
)
def test_a_set_that_is_smaller_than_a_batch_is_told_what_that_means(samples, ranks, remedy):
    (line,) = announcement._small_set(schedule_of(samples, 16), ranks)
    assert line.endswith(remedy)
    assert (
        "5 train images are fewer than a batch of 16" in line
        and "100 epochs are about 8 steps" in line
    )


@pytest.mark.parametrize(("samples", "batch", "ranks"), [(16, 16, 1), (17, 16, 2), (3, 4, 4)])
def test_nothing_is_said_of_a_set_that_fills_a_batch_or_has_no_smaller_one(samples, batch, ranks):
    assert announcement._small_set(schedule_of(samples, batch), ranks) == []


@pytest.mark.parametrize(
    ("enabled", "size", "device", "environ", "said"),
    [
        (False, 2, "cuda", {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}, True),
        (True, 2, "cuda", {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0"}, False),
        (False, 1, "cuda", {}, False),
        (False, 2, "cpu", {}, False),
        (False, 2, "cuda", {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "3"}, False),
        (False, 2, "cuda", {"NCCL_ASYNC_ERROR_HANDLING": "1"}, False),
    ],
)
def test_ranks_that_nothing_would_end_are_told_of(enabled, size, device, environ, said):
    own = SimpleNamespace(watchdog=SimpleNamespace(enabled=enabled))
    config = SimpleNamespace(deepspeed=SimpleNamespace(own=own))
    line = announcement._unwatched(
        config, SimpleNamespace(size=size, device=torch.device(device)), environ
    )
    assert (line is not None) == said


def test_gpus_have_a_planned_memory():
    seen = []

    def predict():
        seen.append(True)
        return (2**30,)

    assert announcement.drawn_plan("cpu", (), predict) == () and not seen
    assert announcement.drawn_plan("cuda", (20,), predict) == () and not seen
    assert announcement.drawn_plan("cuda", (), predict) == (2**30,)


def test_hparams_begin_with_the_layout():
    """TensorBoard sorts columns by their characters, and shows the first five."""
    ds = SimpleNamespace(
        autocast=None,
        precision="bf16",
        pipeline=SimpleNamespace(stages=2),
        zero_stage=1,
        offload_optimizer=False,
        offload_param=False,
        micro_batch=4,
    )
    config = SimpleNamespace(deepspeed=ds, model="yolov5n", data=Path("d"), imgsz=64, epochs=3)
    ranks = SimpleNamespace(size=4, device=torch.device("cpu"))
    found = announcement._run_settings(config, ranks, schedule_of(100, 8, 2))
    columns = sorted({**found, **Hyper().as_dict()})
    assert {name: found[name] for name in columns[:5]} == {
        "Images per step": 16,
        "Pipeline stages": 2,
        "Precision": "bf16",
        "Ranks": 4,
        "ZeRO stage": 1,
    }
