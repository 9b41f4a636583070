"""Every JSON that `yolods plan --out` writes in the tests trains: two steps of a run on CPU ranks,
or, in fp16, which a run on CPUs refuses, a step of its engine."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.configs import _quiet
from tests.forks import forked
from tests.half import allow_fp16
from tests.parity.small import NAMES, micro_batch
from tests.ranks import on_ranks
from tests.tiny import make_dataset
from yolods.cli import main
from yolods.config import add_train_arguments, build_run_config
from yolods.distributed.world import Ranks
from yolods.engine.build import build_zero
from yolods.engine.build_pipeline import build_stage, plan_stages
from yolods.model.check import blueprint_of
from yolods.optim.lr_schedule import Step
from yolods.optim.optimizers import OptimizerChoice

MODEL = "yolov5[0.33,0.1]"
REQUESTS = {
    "anything": ((), {}),
    "bf16": (("--precision", "bf16", "--stages", "1", "--zero", "1"), {"stage": 1}),
    "bf16 without ZeRO": (("--precision", "bf16", "--stages", "1", "--zero", "0"), {"stage": 0}),
    "ZeRO-2": (("--stages", "1", "--zero", "2"), {"stage": 2}),
    "ZeRO-3": (("--stages", "1", "--zero", "3", "--recompute", "on"), {"stage": 3}),
    "pipeline": (("--stages", "2", "--zero", "0"), {"stage": 0}),
    "3 stages, bf16, recompute": (
        ("--stages", "3", "--zero", "1", "--precision", "bf16", "--recompute", "on"),
        {"stage": 1},
    ),
}
SMALL = ("--model", MODEL, "--imgsz", "64")
SKIPPED = 8
"""Most steps that fp16's loss scale skips before it fits."""


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", REQUESTS)
def test_what_plan_writes_trains(name: str, tmp_path: Path) -> None:
    """The requests differ in data type, ZeRO stage, stages and recomputation."""
    words, zero = REQUESTS[name]
    ranks = 3 if name.startswith("3 stages") else 2
    data = make_dataset(tmp_path / "data", train=8, val=2)
    subject = ["--data", str(data), *SMALL]
    out = tmp_path / "ds.json"
    asked = ["--ranks", str(ranks), "--images-per-step", "4", *words, "--out", str(out)]
    assert main(["plan", *subject, *asked]) == 0
    recipe: dict[str, Any] = json.loads(out.read_text())
    assert recipe["zero_optimization"].items() >= zero.items()
    run = ["--epochs", "1", "--workers", "0", "--noplots", "--deepspeed_config", str(out)]
    run += ["--project", str(tmp_path / "runs"), "--name", "x"]
    call = {"words": ["train", *subject, *run], "size": ranks}
    screen = tmp_path / "screen"
    code = forked("tests.configs:run_ranks", call, screen=screen, timeout=160.0, env=_quiet())
    assert code == 0, screen.read_text(errors="replace")[-3000:]
    config = json.loads((tmp_path / "runs" / "x" / "config.json").read_text())
    assert config["deepspeed_given"] == recipe
    assert config["deepspeed"]["train_batch_size"] == 4


@pytest.mark.slow
def test_the_report_the_recipe_and_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ds.json"
    words = ("plan", *SMALL, "--ranks", "4", "--gpu", "T4", "--images-per-step", "16")
    words += ("--out", str(out))
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"{MODEL} at 64, 16 images per step, 4 ranks on 1 host, T4" in shown
    recipe = json.loads(out.read_text())
    assert recipe["train_batch_size"] == 16
    assert list(tmp_path.iterdir()) == [out]
    assert main(words) == 2
    assert "this file exists" in capsys.readouterr().err
    assert main((*words, "--exist-ok", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["layouts"][0]["layout"]["micro_batch"] == recipe["train_micro_batch_size_per_gpu"]
    assert json.loads(out.read_text()) == recipe
    steps = on_ranks("tests.dist.test_plan_trains:take_step", (4,), file=str(out))[4]
    assert steps[0] <= SKIPPED
    assert steps == steps[:1] * 4


def take_step(ranks: Ranks, file: str) -> int:
    """On a rank: train with a JSON until a step moves the weights; the number of steps before."""
    allow_fp16()
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    args = parser.parse_args(["--data", "demo", *SMALL, "--deepspeed_config", file])
    config = build_run_config(args, world_size=ranks.size, device="cuda", environ={})
    blueprint, ds = blueprint_of(config, NAMES, 3), config.deepspeed
    choice = OptimizerChoice("SGD", 1e-4, 0.9, 0.0)
    if ds.pipeline is None:
        engine, _ = build_zero(blueprint, config, choice, ranks)
    else:
        plan = plan_stages(blueprint, config, ranks)
        engine, _ = build_stage(blueprint, plan, config, choice, ranks, None)
    engine.training()
    step = Step(0, ds.accumulation, 0, (1e-4, 1e-4, 1e-4), 0.9)
    for number in range(SKIPPED + 1):
        batches = [micro_batch(place, images=ds.micro_batch) for place in range(ds.accumulation)]
        record = engine.train_step(step, iter(batches))
        if not record.skipped:
            assert all(map(math.isfinite, record.loss.values()))
            return number
    raise AssertionError(f"no step of {SKIPPED + 1} moved the weights: {record.verdict}")
