"""What needs a real GPU, in about three minutes: parts of benchmarks/gpu.py, each held to finding
nothing wrong.

Skipped, with the reason, without one. `benchmarks/gpu.py --pretend` rehearses the same parts on a
CPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_engines import OVERFLOWING, single_rank_configs
from benchmarks.gpu_page import faults

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).resolve().parents[2]
Take = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture
def take(tmp_path: Path, run_process: Callable[..., Any]) -> Take:
    """A function that runs a part of a script and returns its items by name, nothing of which may
    be wrong."""

    def taken(
        part: str, *, script: str = "gpu.py", timeout: float = 120.0
    ) -> dict[str, dict[str, Any]]:
        words = [sys.executable, ROOT / "benchmarks" / script, "--only", part, "--out", tmp_path]
        done = run_process(words, timeout=timeout, cwd=ROOT)
        results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
        assert faults(results) == [], done.stdout[-3000:] + done.stderr[-3000:]
        (entry,) = results["parts"]
        return {item["name"]: item for item in entry["items"]}

    return taken


def test_every_engine_steps_restores_rolls_back_and_evaluates(take: Take) -> None:
    items = take("engines")
    overflows = {f"{name} at a scale that overflows" for name in OVERFLOWING}
    assert items.keys() == {*single_rank_configs(offload=False), *overflows}
    assert all(
        len(items[name]["facts"]["norms"]) == 4 for name in single_rank_configs(offload=False)
    )


def test_the_device_computes_what_a_cpu_computes(take: Take) -> None:
    items = take("numbers")
    assert sum(name.startswith("gradient of a step") for name in items) == 4
    assert "loss" in items and "squares, torch.float16" in items


def test_a_resumed_run_is_the_unbroken_one(take: Take) -> None:
    (item,) = take("resume").values()
    assert item["facts"]["last.pt: largest difference"] == 0


def test_the_cpu_is_used_where_it_is_asked_for(take: Take) -> None:
    (item,) = take("cpu").values()
    assert item["facts"]["epochs"] == 1


@pytest.mark.parametrize("part", ["nccl", "pipeline", "zero"])
def test_two_gpus_meet_and_compute_what_one_model_does(take: Take, part: str) -> None:
    import torch

    if (count := torch.cuda.device_count()) < 2:
        pytest.skip(f"needs two CUDA devices, and there is {count}")
    assert take(part, script="gpu_two.py", timeout=200)
