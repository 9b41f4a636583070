"""What each rank of `communication.py` does: steps of one layout after the other, by the meter, by
the interface's counters and by the clock, and transfers of known size beside them.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist

from benchmarks.communication_layouts import LARGE, SINGLE, Plan, case_of, sizes_of
from benchmarks.plan_links_model import NAMES, SETTLED, TASK
from benchmarks.plan_links_ranks import built, interface_bytes, limit_rate, made_batch
from yolods import compat
from yolods.distributed.collective_waits import observe
from yolods.distributed.world import Ranks, join_world, leave
from yolods.engine.base import Engine
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.optim.lr_schedule import Step
from yolods.plan.layout import Layout
from yolods.traffic.meter import Meter
from yolods.traffic.moments import HostMoments
from yolods.traffic.theory import need_of_stages, need_of_whole


def main() -> None:
    """Run as one rank."""
    plan = Plan.from_json(os.environ[TASK])
    torch.set_num_threads(1)
    compat.prepare()
    compat.skip_needless_builds()
    compat.import_muon_uncompiled()
    compat.stand_in_for_torchvision()
    ranks = join_world()
    blueprint = Blueprint(architecture(parse_name(plan.model), len(NAMES), 3), NAMES, seed=0)
    found: dict[str, Any] = {"known": {}, "layouts": []}
    _segments(plan, SINGLE)
    for rate in plan.rates:
        limit_rate(plan.interface, rate)
        found["known"][rate] = _all_known(plan, ranks)
    limit_rate(plan.interface, "")
    # A connection keeps the limit of segments that stood when it was made, and engines make some.
    _segments(plan, LARGE)
    found["cost"] = _cost()
    for layout in plan.layouts:
        found["layouts"].append(_measured(layout, blueprint, plan, ranks))
        if ranks.is_main:
            print(f"{layout} is done", file=sys.stderr, flush=True)
        Path(plan.out.format(rank=ranks.rank)).write_text(json.dumps(found), encoding="utf-8")
    ranks.barrier()
    leave()


def _all_gather(part: torch.Tensor, rank: int) -> None:
    dist.all_gather_into_tensor(torch.empty(2 * part.numel()), part)


def _from_0(part: torch.Tensor, rank: int) -> None:
    dist.recv(part, 0) if rank else dist.send(part, 1)


def _from_1(part: torch.Tensor, rank: int) -> None:
    dist.send(part, 0) if rank else dist.recv(part, 1)


_KNOWN_ROUNDS = 5
"""How often a transfer of known size is counted."""
_ADAPTING = 2
"""Steps after a change of the link that do not count."""
_OPERATIONS: dict[str, Callable[[torch.Tensor, int], object]] = {
    "all_reduce": lambda part, rank: dist.all_reduce(part),
    "all_gather": _all_gather,
    "from 0": _from_0,
    "from 1": _from_1,
}


def _all_known(plan: Plan, ranks: Ranks) -> dict[str, list[float]]:
    """Bytes of the interface for transfers of known size; a send goes one way."""
    found = {name: _known(name, plan, ranks) for name in _OPERATIONS}
    for word, rank in (("send", ranks.rank), ("receive", 1 - ranks.rank)):
        found[word] = found.pop(f"from {rank}")
    return found


def _known(name: str, plan: Plan, ranks: Ranks) -> list[float]:
    """Bytes of the interface per call with so many bytes of payload, as medians."""
    found = []
    for size, times in sizes_of(name):
        part, call = torch.zeros(size // 4), _OPERATIONS[name]
        call(part, ranks.rank)
        counted = []
        # On an unlimited link the number of acknowledgements varies from time to time.
        for _ in range(_KNOWN_ROUNDS):
            ranks.barrier()
            before = interface_bytes(plan.interface)[0]
            for _ in range(times):
                call(part, ranks.rank)
            ranks.barrier()
            counted.append((interface_bytes(plan.interface)[0] - before) / times)
        found.append(statistics.median(counted))
    return found


def _segments(plan: Plan, number: int) -> None:
    """Segments per packet that the kernel hands to the interface."""
    words = ["ip", "link", "set", "dev", plan.interface, "gso_max_segs", str(number)]
    subprocess.run(words, check=True, timeout=30)


def _cost() -> float:
    """CPU seconds of the meter per call, without the call itself."""
    meter, part, times = Meter("gloo", HostMoments()), torch.zeros(1000), 300
    costs = []
    for _ in range(10):
        began = time.process_time()
        meter.begin()
        for _ in range(times):
            meter.after(meter.before("all_reduce", (part,), {}), None)
        meter.end(1.0)
        costs.append((time.process_time() - began) / times)
    observe(None)
    return statistics.median(costs)


def _measured(name: str, blueprint: Blueprint, plan: Plan, ranks: Ranks) -> dict[str, Any]:
    """All rates of one layout."""
    case, task = case_of(name), plan.task(name)
    engine, cuts = built(case, blueprint, task, ranks)
    layout = case.layout(task, cuts)
    found = {"name": name, "needed": _needed(blueprint, plan, layout, name), "rates": {}}
    micro_batches = task.accumulation * case.stages
    for number in range(SETTLED):
        _step(engine, plan, micro_batches, number)
    for rate in plan.rates:
        limit_rate(plan.interface, rate)
        found["rates"][rate] = {"interface": _counted(engine, plan, micro_batches, ranks)}
        limit_rate(plan.interface, "")
    _segments(plan, LARGE)
    rounds: dict[str, list[_Round]] = {rate: [] for rate in plan.rates}
    # The links take turns, so that a busy moment of the machine meets all of them.
    for _ in range(plan.rounds):
        for rate in plan.rates:
            limit_rate(plan.interface, rate)
            rounds[rate].append(_timed(engine, plan, micro_batches, ranks))
            limit_rate(plan.interface, "")
    for rate in plan.rates:
        found["rates"][rate].update(_of_rounds(rounds[rate]))
    engine.deepspeed.destroy()
    return found


def _counted(engine: Engine, plan: Plan, micro_batches: int, ranks: Ranks) -> float:
    """The interface's bytes per step, with one segment per packet."""
    _segments(plan, SINGLE)
    _step(engine, plan, micro_batches, SETTLED)
    ranks.barrier()
    before = interface_bytes(plan.interface)[0]
    for place in range(plan.steps):
        _step(engine, plan, micro_batches, place)
    ranks.barrier()
    return (interface_bytes(plan.interface)[0] - before) / plan.steps


class _Round(NamedTuple):
    """Steps that a link took before it was the next one's turn."""

    steps: list[dict[str, Any]]
    held: float
    """Shares of the round's steps, as an epoch's line says them."""
    waiting: float


def _timed(engine: Engine, plan: Plan, micro_batches: int, ranks: Ranks) -> _Round:
    """Some steps of one link by the clock, after some in which TCP adapts to it."""
    for place in range(_ADAPTING):
        _step(engine, plan, micro_batches, SETTLED + place)
    engine.traffic.report(ranks)
    ranks.barrier()
    steps = [_step(engine, plan, micro_batches, place) for place in range(plan.steps)]
    report = engine.traffic.report(ranks)
    # What all ranks say together, the first one tells.
    return _Round(steps, report.held, report.waiting) if report else _Round(steps, 0.0, 0.0)


def _of_rounds(rounds: Sequence[_Round]) -> dict[str, Any]:
    """Medians of all steps of a link, and of the shares of its rounds."""
    steps = [step for each in rounds for step in each.steps]
    return {
        "seconds": statistics.median(step["seconds"] for step in steps),
        "cpu": statistics.median(step["cpu"] for step in steps),
        "curves": {key: statistics.median(step[key] for step in steps) for key in steps[0]},
        "held": statistics.median(each.held for each in rounds),
        "waiting": statistics.median(each.waiting for each in rounds),
    }


def _needed(blueprint: Blueprint, plan: Plan, layout: Layout, name: str) -> float:
    if layout.stages == 1:
        return need_of_whole(blueprint.meta, layout).sent
    return need_of_stages(plan.task(name).costs(blueprint), layout).sent


def _step(engine: Engine, plan: Plan, micro_batches: int, number: int) -> dict[str, Any]:
    """One step as a run takes it: its curves, its seconds, and the CPU seconds of this thread."""
    task = plan.task("ZeRO-1")
    batches = [
        made_batch(task.micro, task.imgsz, number * 100 + place) for place in range(micro_batches)
    ]
    began, busy = time.perf_counter(), time.thread_time()
    engine.traffic.begin()
    engine.train_step(Step(0, micro_batches, 0, (0.0,) * 3, 0.9), iter(batches))
    seconds, cpu = time.perf_counter() - began, time.thread_time() - busy
    return {**engine.traffic.end(seconds), "seconds": seconds, "cpu": cpu}


if __name__ == "__main__":
    main()
