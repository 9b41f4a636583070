"""Every JSON that `yolods plan --out` writes trains: two steps on two CPU ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.configs import _quiet
from tests.forks import forked
from tests.tiny import make_dataset
from yolods.cli import main

MODEL = "yolov5[0.33,0.1]"
REQUESTS = {
    "anything": ((), {}),
    "bf16": (("--precision", "bf16", "--stages", "1", "--zero", "1"), {"stage": 1}),
    "bf16 without ZeRO": (("--precision", "bf16", "--stages", "1", "--zero", "0"), {"stage": 0}),
    "ZeRO-2": (("--stages", "1", "--zero", "2"), {"stage": 2}),
    "ZeRO-3": (("--stages", "1", "--zero", "3", "--recompute", "on"), {"stage": 3}),
    "pipeline": (("--stages", "2", "--zero", "0"), {"stage": 0}),
    "pipeline, bf16, recompute": (
        ("--stages", "2", "--zero", "1", "--precision", "bf16", "--recompute", "on"),
        {"stage": 1},
    ),
}


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", REQUESTS)
def test_what_plan_writes_trains(name: str, tmp_path: Path) -> None:
    """The requests differ in data type, ZeRO stage, stages and recomputation."""
    words, zero = REQUESTS[name]
    data = make_dataset(tmp_path / "data", train=8, val=2)
    subject = ["--data", str(data), "--model", MODEL, "--imgsz", "64"]
    out = tmp_path / "ds.json"
    asked = ["--ranks", "2", "--images-per-step", "4", *words, "--out", str(out)]
    assert main(["plan", *subject, *asked]) == 0
    recipe: dict[str, Any] = json.loads(out.read_text())
    assert recipe["zero_optimization"].items() >= zero.items()
    run = ["--epochs", "1", "--workers", "0", "--noplots", "--deepspeed_config", str(out)]
    run += ["--project", str(tmp_path / "runs"), "--name", "x"]
    call = {"words": ["train", *subject, *run], "size": 2}
    screen = tmp_path / "screen"
    code = forked("tests.configs:run_ranks", call, screen=screen, timeout=160.0, env=_quiet())
    assert code == 0, screen.read_text(errors="replace")[-3000:]
    config = json.loads((tmp_path / "runs" / "x" / "config.json").read_text())
    assert config["deepspeed_given"] == recipe
    assert config["deepspeed"]["train_batch_size"] == 4
