"""What each rank of `plan_links.py` does: timed steps of every layout, and the bytes that its
interface sends meanwhile.

All layouts' engines exist at once, so that they take turns and a busy moment of the machine meets
all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.plan_links_model import BOXES, LAYOUTS, NAMES, SETTLED, TASK, Case, Step, Task
from yolods import compat
from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.distributed.world import Ranks, join_world, leave
from yolods.engine.base import Engine
from yolods.engine.build import build_engine
from yolods.engine.build_pipeline import build_stage, plan_stages
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.optim.lr_schedule import Step as StepPlan
from yolods.optim.optimizers import choose_optimizer
from yolods.plan.step_profile import measure_step
from yolods.planner.links.link_rank import measure_pair


def main() -> None:
    """Run as one rank."""
    task = Task.from_json(os.environ[TASK])
    torch.set_num_threads(1)
    compat.prepare()
    compat.skip_needless_builds()
    compat.import_muon_uncompiled()
    compat.stand_in_for_torchvision()
    ranks = join_world()
    blueprint = Blueprint(architecture(parse_name(task.model), len(NAMES), 3), NAMES, seed=0)
    pairs = [built(case, blueprint, task, ranks) for case in LAYOUTS]
    engines, cuts = [engine for engine, _ in pairs], [found for _, found in pairs]
    found: dict[str, Any] = {"cuts": cuts, "links": {}, "steps": [], "profiles": []}
    for case, engine in zip(LAYOUTS, engines, strict=True):
        for _ in range(SETTLED):
            _timed(case, engine, task, ranks, "", 0)
    for number in range(task.rounds):
        for rate in task.rates:
            limit_rate(task.interface, rate)
            ranks.barrier()
            if not number and (told := measure_pair(ranks, (0, 1))) is not None:
                found["links"][rate] = told
            for place in range(len(LAYOUTS)):
                # Each round begins with another layout.
                which = (place + number) % len(LAYOUTS)
                step = _timed(LAYOUTS[which], engines[which], task, ranks, rate, number)
                found["steps"].append(asdict(step))
        limit_rate(task.interface, "")
        # Both ranks compute, as in a step of the layouts with two replicas.
        ranks.barrier()
        profile = measure_step(blueprint, task.imgsz, task.micro, BOXES, "fp32")
        found["profiles"].append(asdict(profile))
        Path(task.out.format(rank=ranks.rank)).write_text(json.dumps(found), encoding="utf-8")
        if ranks.is_main:
            print(f"round {number + 1} of {task.rounds}", file=sys.stderr, flush=True)
    ranks.barrier()
    leave()


def built(
    case: Case, blueprint: Blueprint, task: Task, ranks: Ranks
) -> tuple[Engine, tuple[int, ...]]:
    """The engine as a run builds it, and where its stages begin."""
    config = _configured(case, task, ranks.size)
    choice = choose_optimizer(
        config.hyper, samples=1000, batch=config.batch_size, epochs=10, nc=len(NAMES)
    )
    cuts: tuple[int, ...] = ()
    engine: Engine
    if case.stages > 1:
        plan = plan_stages(blueprint, config, ranks)
        cuts = tuple(plan.partition.bounds[1:-1])
        engine, _ = build_stage(blueprint, plan, config, choice, ranks, None)
    else:
        net, _ = blueprint.whole(None)
        engine = build_engine(net, config, choice, ranks)
    engine.training()
    return engine, cuts


def _configured(case: Case, task: Task, size: int) -> RunConfig:
    file = Path(task.out.format(rank=f"{case.name}-{os.environ['RANK']}"))
    file.write_text(json.dumps(case.content(task.micro, task.accumulation)), encoding="utf-8")
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    words = ["--data", "demo", "--model", task.model, "--imgsz", str(task.imgsz)]
    words += ["--epochs", "10", "--deepspeed_config", str(file), "--set", "optimizer=SGD"]
    return build_run_config(parser.parse_args(words), world_size=size, device="cpu", environ={})


def _timed(case: Case, engine: Engine, task: Task, ranks: Ranks, rate: str, number: int) -> Step:
    """One step, from a moment at which both ranks are ready to the end of both."""
    micro_batches = task.accumulation * case.stages
    batches = [
        made_batch(task.micro, task.imgsz, number * 100 + place) for place in range(micro_batches)
    ]
    ranks.barrier()
    # What a barrier alone sends is subtracted.
    before = interface_bytes(task.interface)
    ranks.barrier()
    between = interface_bytes(task.interface)
    began, busy = time.perf_counter(), time.process_time()
    engine.train_step(StepPlan(0, micro_batches, 0, (0.0,) * 3, 0.9), iter(batches))
    cpu = time.process_time() - busy
    ranks.barrier()
    seconds, after = time.perf_counter() - began, interface_bytes(task.interface)
    sent = [
        now - then - (then - first) for first, then, now in zip(before, between, after, strict=True)
    ]
    return Step(case.name, rate, number, seconds, cpu, sent[0], sent[1])


def made_batch(images: int, imgsz: int, seed: int) -> dict[str, Tensor]:
    """A micro-batch of noise with boxes."""
    generator = torch.Generator().manual_seed(seed)
    shape = (images, 3, imgsz, imgsz)
    count = images * BOXES
    size = 0.1 + 0.4 * torch.rand(count, 2, generator=generator)
    return {
        "img": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "batch_idx": torch.arange(images).repeat_interleave(BOXES).float(),
        "cls": torch.zeros(count, 1),
        "bboxes": torch.cat((torch.full((count, 2), 0.5), size), 1),
    }


def interface_bytes(interface: str) -> tuple[int, int]:
    """Bytes and packets that an interface of this network namespace has sent."""
    for line in _lines():
        name, _, numbers = line.partition(":")
        if name.strip() == interface:
            fields = numbers.split()
            return int(fields[8]), int(fields[9])
    raise ValueError(f"no interface {interface}")


def _lines() -> Iterator[str]:
    # The file follows the namespace of the process; /sys shows that in which it was mounted.
    yield from Path("/proc/self/net/dev").read_text(encoding="utf-8").splitlines()


def limit_rate(interface: str, rate: str) -> None:
    """Limit what the interface sends; "": not at all."""
    # Fails if nothing limits it yet.
    subprocess.run(["tc", "qdisc", "del", "dev", interface, "root"], stderr=subprocess.DEVNULL)
    if rate:
        words = ["tc", "qdisc", "add", "dev", interface, "root", "tbf", "rate", rate]
        subprocess.run([*words, "burst", "64kb", "latency", "500ms"], check=True, timeout=30)


if __name__ == "__main__":
    main()
