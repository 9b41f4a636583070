"""What each rank of `pipeline.py` does: the same stage under our engine and under DeepSpeed's, and
timed steps of both.

    pipeline.py   --- Task, in the environment --->   one process a stage, on a core of its own
                  <-- Seen, in a file -------------   rank 0

Learning rates are 0, so every step of every way starts from the same weights and has to give the
same loss.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from types import MethodType
from typing import Any

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from benchmarks.pipeline_report import BOXES, DEEPSPEED, MARK, STOCK, Sample, Seen, Task
from yolods.config import RunConfig, add_train_arguments, build_run_config
from yolods.distributed.world import Ranks, join_world, leave
from yolods.engine.build import plan_schedule
from yolods.engine.build_pipeline import build_stage
from yolods.engine.pipeline.engine import PipelineEngine
from yolods.engine.pipeline.stage_timer import StageTimer
from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import OUT, Graph, build_graph, live
from yolods.model.graph.stage import Stage
from yolods.model.initialise import initialise
from yolods.model.inputs import InputFormat
from yolods.model.layers import exchange_layers
from yolods.model.loss.detection_loss import DetectionLoss
from yolods.optim.optimizers import OptimizerChoice, build_optimizer, parameter_groups
from yolods.plan.cost import cost
from yolods.plan.partition import partition, table
from yolods.plan.profile import measure
from yolods.plan.stage_costs import Terms
from yolods.plan.stage_plan import StagePlan

NAMES = ("one", "two", "three")
CONFIG = Path(__file__).resolve().parent.parent / "ds_configs" / "pipeline2_fp32.json"


class Meter(StageTimer):
    """The engine's own clock, which also adds up CPU time: of the passes, and of all the process
    does meanwhile."""

    cpu = process = 0.0

    def start(self) -> None:
        """See `StageTimer`."""
        super().start()
        self.cpu, self.process = 0.0, -time.process_time()

    def stop(self) -> None:
        """See `StageTimer`."""
        super().stop()
        self.process += time.process_time()

    @contextmanager
    def _span(self, kind: str) -> Iterator[None]:
        began = time.thread_time()
        with super()._span(kind):
            yield
        self.cpu += time.thread_time() - began

    def sample(
        self, way: str, number: int, step: float, *, loss: float, norm: float = 0.0
    ) -> Sample:
        """The step that has ended."""
        times = self.times(0)
        forwards, backwards = (
            tuple(end - begin for begin, end in self._spans[kind])
            for kind in ("forward", "backward")
        )
        return Sample(
            way=way,
            micro_batches=len(forwards),
            round=number,
            forwards=forwards,
            backwards=backwards,
            waiting=times.waiting,
            pipe=times.total,
            step=step,
            around=self.process - self.cpu,
            busy=self.cpu / (times.forward + times.backward),
            loss=loss,
            norm=norm,
        )


class Ours(PipelineEngine):
    """Our engine; with `stock` on, its backward pass is DeepSpeed's: one walk for each tensor that
    crossed the cut."""

    stock = False

    def _backward(self, number: int, size: int | None) -> None:
        if not self.stock or self.mesh.last:
            return super()._backward(number, size)
        flight = self._flights.pop(number)
        gradients = self._gradients_of(number)
        with self._clock.backward():
            last = len(flight.sent) - 1
            for place, (tensor, gradient) in enumerate(zip(flight.sent, gradients, strict=True)):
                tensor.backward(gradient, retain_graph=place < last)
        if self._channels.to_before is not None:
            self._channels.to_before.send(
                [flight.received[name].grad for name in self._cut.before], ("B", size)
            )
        return None


class Carried(nn.Module):
    """A stage as a layer of DeepSpeed's pipeline: values come and go as tuples."""

    def __init__(self, graph: Graph, first: int, last: int, blueprint: Blueprint) -> None:
        super().__init__()
        self.stage = Stage(graph, first, last)
        initialise(self.stage, blueprint.strides, len(blueprint.names), blueprint.seed)
        exchange_layers(self.stage, low_precision=False, sync_bn=False, pointwise=True)
        self.before, self.after = live(graph, first), live(graph, last)

    def forward(self, inputs: Tensor | tuple[Tensor, ...]) -> Any:
        """From what crosses the cut before to what crosses the one after; raw predictions at the
        end."""
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        # DeepSpeed sends contiguous tensors only: channels-first between stages, and channels-last
        # within.
        given = [value.contiguous(memory_format=torch.channels_last) for value in given]
        outputs = self.stage(dict(zip(self.before, given, strict=True)))
        return (
            outputs[OUT]
            if self.after == (OUT,)
            else tuple(outputs[name].contiguous() for name in self.after)
        )


class Bench:
    """Both engines on this rank's stage."""

    def __init__(self, task: Task, ranks: Ranks) -> None:
        self.task, self.ranks = task, ranks
        self.config = configure(task, ranks.size)
        self.blueprint = Blueprint(
            architecture(parse_name(task.model), len(NAMES), 3), NAMES, self.config.seed
        )
        self.choice = OptimizerChoice("AdamW", 0.0, 0.9, 0.0)
        self.plan = plan(task, self.blueprint, ranks)
        self.ours, _ = build_stage(self.blueprint, self.plan, self.config, self.choice, ranks, None)
        self.ours.__class__ = Ours
        self.ours._clock = Meter(ranks.device)
        self.ours.training()
        self.step = replace(
            plan_schedule(self.config, self.choice, 64).step_at(0), lr=(0.0, 0.0, 0.0)
        )
        self.deepspeed = DeepSpeeds(self) if DEEPSPEED in task.ways else None

    def take(self, way: str, micro_batches: int, number: int) -> Sample:
        """One step. A collective."""
        batches = [micro_batch(place, self.task) for place in range(micro_batches)]
        self.ranks.barrier()
        if way == DEEPSPEED:
            assert self.deepspeed is not None
            return self.deepspeed.take(batches, number)
        self.ours.stock = way == STOCK
        began = time.perf_counter()
        result = self.ours.train_step(replace(self.step, batches=micro_batches), iter(batches))
        seconds = time.perf_counter() - began
        loss, norm = sum(result.loss.values()), result.grad_norm or 0.0
        return self.ours._clock.sample(way, number, seconds, loss=loss, norm=norm)


class DeepSpeeds:
    """DeepSpeed's own pipeline on the same stages."""

    def __init__(self, bench: Bench) -> None:
        import deepspeed
        from deepspeed.pipe import LayerSpec, PipelineModule

        device, blueprint = bench.ranks.device, bench.blueprint
        self._meter = Meter(device)
        self._inputs = InputFormat(device, torch.float32, True)
        self._criterion = DetectionLoss(blueprint.head, device, bench.config.hyper)
        self._images, self._items = bench.task.images, 0.0
        spans = pairwise(bench.plan.partition.bounds)
        layers = [LayerSpec(Carried, bench.plan.graph, *span, blueprint) for span in spans]
        module = PipelineModule(
            layers, num_stages=len(layers), loss_fn=self._loss, partition_method="uniform"
        )
        settings = bench.config.deepspeed.for_initialize(accumulation=1)
        groups = parameter_groups(module, 0.0)
        optimizer = build_optimizer(bench.choice, groups, device)
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=settings, dist_init_required=False
        )
        self._watch()

    def _loss(self, outputs: Any, labels: dict[str, Tensor]) -> Tensor:
        loss, items = self._criterion(outputs, labels, self._images * self._engine.micro_batches)
        self._items += float(items.sum())
        return loss

    def _watch(self) -> None:
        """Put the meter around the passes, and its end before the gradients are reduced."""
        from deepspeed.runtime.pipe import schedule

        table = dict(self._engine._INSTRUCTION_MAP)
        for instruction, span in (
            (schedule.ForwardPass, self._meter.forward),
            (schedule.BackwardPass, self._meter.backward),
        ):
            table[instruction] = _within(span, table[instruction])
        reduce = table[schedule.ReduceTiedGrads]

        def stop_and_reduce(engine: Any) -> None:
            self._meter.stop()
            reduce(engine)

        table[schedule.ReduceTiedGrads] = stop_and_reduce
        self._engine._INSTRUCTION_MAP = table

    def take(self, batches: list[dict[str, Tensor]], number: int) -> Sample:
        """One step. A collective."""
        engine, count = self._engine, len(batches)
        engine.set_train_batch_size(self._images * count)
        engine.micro_batches = count
        self._items = 0.0
        # Only the first stage reads images, but DeepSpeed gives both ends the same stream.
        first = engine.is_first_stage()
        pairs = (
            (self._inputs.images(batch["img"]) if first else batch["img"], batch)
            for batch in batches
        )
        began = time.perf_counter()
        self._meter.start()
        engine.train_batch(pairs)
        seconds = time.perf_counter() - began
        return self._meter.sample(DEEPSPEED, number, seconds, loss=self._items / count)


def _within(span: Callable[[], Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def timed(engine: Any, *args: Any, **kwargs: Any) -> None:
        with span():
            MethodType(function, engine)(*args, **kwargs)

    return timed


def configure(task: Task, stages: int) -> RunConfig:
    """A run's configuration, as the command line gives it."""
    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    flags = {
        "data": "demo",
        "model": task.model,
        "imgsz": task.imgsz,
        "batch-size": task.images,
        "epochs": 10,
    }
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    words += [
        "--deepspeed_config",
        str(CONFIG),
        "--set",
        "warmup_epochs=0",
        "--set",
        f"nbs={task.images}",
    ]
    return build_run_config(parser.parse_args(words), world_size=stages, device="cpu", environ={})


def plan(task: Task, blueprint: Blueprint, ranks: Ranks) -> StagePlan:
    """The cut that was asked for, or the fastest by a profile that rank 0 takes. A collective.

    With a given cut nothing is profiled, and the table's times are assumed."""
    graph = build_graph(blueprint.meta)
    terms = Terms(
        micro_batch=task.images,
        micro_batches=max(task.micro_batches),
        seconds=ranks.main_first(lambda: profile(task, blueprint, ranks))
        if task.cut is None
        else None,
        memory_limit=2.0
        ** 40,  # none that counts: without a limit memory is a second aim beside time
    )
    costs = cost(graph, task.imgsz, 4)
    found = partition(costs, ranks.size, "balanced" if task.cut is None else [task.cut], terms)
    return StagePlan(graph, found, table(found, costs, terms), measured=terms.seconds is not None)


def profile(task: Task, blueprint: Blueprint, ranks: Ranks) -> tuple[float, ...]:
    """Seconds of each node, with the layers that training uses on a CPU."""
    graph = build_graph(blueprint.meta)
    exchange_layers(graph.skeleton, low_precision=False, sync_bn=False, pointwise=True)
    return measure(graph, task.imgsz, task.images, ranks.device, "fp32")


def micro_batch(number: int, task: Task) -> dict[str, Tensor]:
    """The micro-batch of this number, the same on every rank: uint8 noise and `BOXES` boxes an
    image."""
    generator = torch.Generator().manual_seed(number)
    count = task.images * BOXES
    size = 0.1 + 0.3 * torch.rand(count, 2, generator=generator)
    return {
        "img": torch.randint(
            0, 256, (task.images, 3, task.imgsz, task.imgsz), generator=generator, dtype=torch.uint8
        ),
        "batch_idx": torch.arange(task.images).repeat_interleave(BOXES).float(),
        "cls": torch.randint(0, len(NAMES), (count, 1), generator=generator).float(),
        "bboxes": torch.cat(
            (size / 2 + (1 - size) * torch.rand(count, 2, generator=generator), size), 1
        ),
    }


def take_all(bench: Bench) -> list[Sample]:
    """Every case and way, taking turns; each round begins with another way."""
    task, samples = bench.task, []
    for count in task.micro_batches:
        for number in range(-1, task.rounds):
            shift = number % len(task.ways)
            for way in (*task.ways[shift:], *task.ways[:shift]):
                sample = bench.take(way, count, number)
                if bench.ranks.is_main:
                    label = "warm-up" if number < 0 else f"round {number + 1}/{task.rounds}"
                    print(
                        f"{MARK}m = {count}, {label}: {way}: {sample.step:.2f} s a step", flush=True
                    )
                samples += [sample] if number >= 0 else []
    return samples


def main() -> int:
    """Measure on this rank."""
    from yolods import compat

    task = Task.from_environment()
    torch.set_num_threads(1)
    compat.prepare()
    compat.skip_needless_builds()
    ranks = join_world()
    bench = Bench(task, ranks)
    if ranks.is_main:
        print("\n".join(f"{MARK}{line}" for line in bench.plan.lines), flush=True)
    everyone = ranks.to_main(take_all(bench))
    if ranks.is_main:
        crossing = bench.plan.rows[0].sent
        seen = Seen(bench.plan.lines, list(crossing), everyone)
        Path(task.out).write_text(json.dumps(asdict(seen)), encoding="utf-8")
    leave()
    return 0


if __name__ == "__main__":
    # Before any thread is started, so that gloo's stay on the rank's own core too.
    os.sched_setaffinity(0, {Task.from_environment().cores[int(os.environ["RANK"])]})
    sys.exit(main())
