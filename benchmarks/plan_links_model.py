"""What `plan_links.py` compares with: the layouts, their bytes with all headers, their seconds."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from yolods.distributed.exchange import LONGEST_MESSAGE
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import build_graph
from yolods.plan.cost import Cost, cost
from yolods.plan.layout import Layout
from yolods.plan.step_profile import StepProfile
from yolods.plan.time.gpus import CPU
from yolods.plan.time.nodes import profiled_times
from yolods.plan.time.routes import Network
from yolods.plan.time.step import Clock
from yolods.plan.traffic.links import Link
from yolods.plan.traffic.transfers import Transfer, rounds, sent_bytes, transfers

TASK = "YOLODS_PLAN_LINKS"
"""Variable with a rank's task."""
NAMES = ("one", "two", "three")
BOXES = 3
"""Boxes per image."""
SETTLED = 2
"""Steps of each layout before the first that counts."""

MTU, HEADERS, ETHERNET_HEADER = 1500, 20 + 32, 14
"""IPv4 and TCP with timestamps, and Ethernet: bytes of a packet besides its data."""
SEGMENT = MTU - HEADERS
PREAMBLE, PREAMBLES = 48, 3
"""Bytes of gloo's header, and how many of them a message takes: both ends announce that they are
ready, and one precedes the data (gloo, transport/tcp/pair.h, `Op`, and unbound_buffer.cc)."""
GLOO_SEGMENT = 1 << 20
"""Most bytes of one message of gloo's all-reduce (gloo/allreduce.h, kMaxSegmentSize)."""


@dataclass(frozen=True)
class Case:
    """A layout of two ranks."""

    name: str
    zero: int = 0
    stages: int = 1

    def content(self, micro: int, accumulation: int) -> dict[str, Any]:
        """The DeepSpeed JSON; every layout takes the same images per step."""
        found: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation * self.stages,
            "zero_optimization": {"stage": self.zero, "reduce_bucket_size": 50_000_000},
        }
        return found | ({"pipeline": {"stages": self.stages}} if self.stages > 1 else {})

    def layout(self, task: Task, cuts: Sequence[int]) -> Layout:
        """The same in the plan's terms."""
        return Layout(
            imgsz=task.imgsz,
            micro_batch=task.micro,
            accumulation=task.accumulation * self.stages,
            replicas=2 // self.stages,
            zero_stage=self.zero,
            cuts=tuple(cuts),
            reduce_bucket=50_000_000,
        )


LAYOUTS = (*(Case(f"ZeRO-{stage}", stage) for stage in range(4)), Case("pipeline 2", 0, 2))


@dataclass(frozen=True)
class Task:
    """What the ranks do."""

    model: str
    imgsz: int
    micro: int
    accumulation: int
    rounds: int
    rates: tuple[str, ...]
    """As `tc` writes them; "": unlimited."""
    interface: str
    out: str
    """Path of a rank's results, with {rank}."""

    def as_json(self) -> str:
        """For `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Task:
        """The task of `as_json`."""
        found = json.loads(text)
        return cls(**{**found, "rates": tuple(found["rates"])})

    def costs(self, blueprint: Blueprint) -> Cost:
        """The model's costs in fp32."""
        return _costs(blueprint, self.imgsz)


@lru_cache
def _costs(blueprint: Blueprint, imgsz: int) -> Cost:
    return cost(build_graph(blueprint.meta), imgsz, 4)


@dataclass(frozen=True)
class Step:
    """One measured step of one rank."""

    name: str
    rate: str
    round: int
    seconds: float
    cpu: float
    """CPU seconds of the rank's process."""
    sent: int
    """Bytes of its interface."""
    packets: int


def messages(transfer: Transfer) -> tuple[int, float]:
    """Messages of gloo per call, and bytes of each.

    An all-reduce sends its part in each round in at least two segments of at most 1 MiB
    (gloo/allreduce.cc, `ring`), an all-gather in two (gloo/allgather.cc). An exchange has messages
    of yolods' own length.
    """
    whole = sent_bytes(transfer, backend="gloo") / transfer.calls
    turns = rounds(transfer, backend="gloo")
    if transfer.operation == "send":
        return 1, whole
    if transfer.operation == "exchange":  # one part to each other rank
        count = turns * math.ceil(whole / turns / LONGEST_MESSAGE)
        return count, whole / count
    segments = 2
    if transfer.operation != "all_gather":
        parts = math.ceil(transfer.bytes / transfer.calls / GLOO_SEGMENT)
        segments = max(2, math.ceil(parts / transfer.ranks))
    return turns * segments, whole / (turns * segments)


def wire_bytes(transfer: Transfer) -> float:
    """Bytes that an interface sends for a transfer between two ranks, with all headers.

    data       in packets of 1448 bytes, each with 66 bytes of headers
    gloo       three headers of 48 bytes per message, one with the data, two in packets of their own

    In a ring of two each rank sends as many messages as it gets, so it sends both announcements
    once per message. A send goes one way, and its receiver sends one of them. Packets that only
    acknowledge are not counted: most acknowledgements travel with data of the other direction.
    """
    count, size = messages(transfer)
    frame = HEADERS + ETHERNET_HEADER
    data = size + PREAMBLE
    each = data + frame * math.ceil(data / SEGMENT)
    announcements = PREAMBLES - 1 - (transfer.operation == "send")
    return transfer.calls * count * (each + announcements * (PREAMBLE + frame))


def predicted_bytes(case: Case, task: Task, costs: Cost, cuts: Sequence[int]) -> list[float]:
    """Bytes per step of each rank's interface."""
    found = transfers(costs, case.layout(task, cuts), boxes=BOXES)
    each = [sum(map(wire_bytes, stage)) for stage in found]
    return each * (2 // len(each))


def predicted_seconds(
    case: Case, task: Task, costs: Cost, cuts: Sequence[int], profile: StepProfile, link: Link
) -> float:
    """Seconds per step by the plan's time model, from what `plan --links` measures.

    Args:
        profile: of steps that both ranks took at the same time.
        link: between the hosts.
    """
    clock = Clock(
        {"fp32": costs},
        {"fp32": profiled_times(profile)},
        CPU,
        Network(link, link, slots=1),
        float(BOXES),
        "gloo",
        profile,
    )
    return clock.step(case.layout(task, cuts)).total


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's coefficient of two equally long series; equal numbers share their mean place."""
    return statistics.correlation(_places(first), _places(second))


def _places(values: Sequence[float]) -> list[float]:
    return [
        sum(other < value for other in values) + sum(other == value for other in values) / 2
        for value in values
    ]
