"""What each rank of `compression.py` does: timed steps of every case, and the bytes that its
interface sends meanwhile.

All engines exist at once, so that they take turns and a busy moment of the machine meets all of
them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.compression import VARIANTS, Job, Variant
from benchmarks.plan_links_model import NAMES, SETTLED, TASK
from benchmarks.plan_links_ranks import interface_bytes, limit_rate, made_batch
from yolods import compat
from yolods.config import add_train_arguments, build_run_config
from yolods.distributed.world import Ranks, join_world, leave
from yolods.engine.base import Engine
from yolods.engine.build import build_engine
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.optim.lr_schedule import Step
from yolods.optim.optimizers import choose_optimizer


def main() -> None:
    """Run as one rank."""
    job = Job.from_json(os.environ[TASK])
    torch.set_num_threads(1)
    compat.prepare()
    compat.skip_needless_builds()
    compat.import_muon_uncompiled()
    compat.stand_in_for_torchvision()
    ranks = join_world()
    engines = {variant: _built(variant, job, ranks) for variant in VARIANTS}
    sums = {variant: _watched(engine) for variant, engine in engines.items()}
    found: dict[str, Any] = {"steps": [], "gradients": {}}
    for variant, engine in engines.items():
        found["gradients"][variant.name] = _ring_bytes(engine, ranks.size)
        for _ in range(SETTLED):
            _timed(engine, sums[variant], job, ranks, 0)
    for rate in job.rates:
        limit_rate(job.interface, rate)
        for number in range(job.rounds):
            for place in range(len(VARIANTS)):
                # Each round begins with another case.
                variant = VARIANTS[(place + number) % len(VARIANTS)]
                step = _timed(engines[variant], sums[variant], job, ranks, number)
                found["steps"].append({"name": variant.name, "rate": rate, **step})
        limit_rate(job.interface, "")
    Path(job.out.format(rank=ranks.rank)).write_text(json.dumps(found), encoding="utf-8")
    ranks.barrier()
    leave()


def _built(variant: Variant, job: Job, ranks: Ranks) -> Engine:
    file = Path(job.out.format(rank=f"{variant.stage}-{variant.rank}-{ranks.rank}"))
    file.write_text(json.dumps(variant.content(job.micro)), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = ["--data", "demo", "--model", job.model, "--imgsz", str(job.imgsz), "--epochs", "10"]
    words += ["--deepspeed_config", str(file), "--set", "optimizer=SGD"]
    config = build_run_config(
        parser.parse_args(words), world_size=ranks.size, device="cpu", environ={}
    )
    choice = choose_optimizer(
        config.hyper, samples=1000, batch=config.batch_size, epochs=10, nc=len(NAMES)
    )
    layers = architecture(parse_name(job.model), len(NAMES), 3)
    net, _ = Blueprint(layers, NAMES, seed=0).whole(None)
    engine = build_engine(net, config, choice, ranks)
    engine.training()
    return engine


def _watched(engine: Engine) -> list[float]:
    """Seconds that the compression has taken, one number per step from now on."""
    found: list[float] = []
    if engine.compression is None:
        return found
    average = engine.compression.average_

    def timed(*arguments: Any) -> None:
        began = time.perf_counter()
        average(*arguments)
        found.append(time.perf_counter() - began)

    engine.compression.average_ = timed  # type: ignore[method-assign]
    return found


def _ring_bytes(engine: Engine, ranks: int) -> float:
    """Bytes of gradients that a rank of a ring sends per step."""
    elements = (
        sum(each.numel() for each in engine.net.parameters() if each.requires_grad)
        if engine.compression is None
        else engine.compression.sent_elements
    )
    return 2 * (ranks - 1) / ranks * 4 * elements


def _timed(
    engine: Engine, averaging: list[float], job: Job, ranks: Ranks, number: int
) -> dict[str, float]:
    """One step, from a moment at which both ranks are ready to the end of both."""
    batch = made_batch(job.micro, job.imgsz, number)
    ranks.barrier()
    before = interface_bytes(job.interface)
    began = time.perf_counter()
    engine.train_step(Step(0, 1, 0, (0.0,) * 3, 0.9), iter([batch]))
    ranks.barrier()
    seconds = time.perf_counter() - began
    sent = interface_bytes(job.interface)[0] - before[0]
    return {"seconds": seconds, "sent": sent, "averaging": averaging[-1] if averaging else 0.0}


if __name__ == "__main__":
    main()
