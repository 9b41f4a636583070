"""A small model with its costs, times and a memory of formulas, for tests of plans."""

from __future__ import annotations

from functools import lru_cache

from yolods.config.names.model_name import parse_name
from yolods.model.architecture.build import architecture
from yolods.model.blueprint import Blueprint
from yolods.model.graph.graph import Graph, build_graph
from yolods.plan.cost import Cost, cost
from yolods.plan.layout import Layout
from yolods.plan.memory.boxes import BoxCounts
from yolods.plan.memory.terms import RankMemory
from yolods.plan.step_profile import StepProfile
from yolods.plan.time.gpus import GPUS
from yolods.plan.time.nodes import assumed_times
from yolods.plan.time.routes import Network
from yolods.plan.time.step import Clock
from yolods.plan.traffic.links import Link
from yolods.planner.request import Machines, Subject

IMGSZ = 64
PROFILE = StepProfile(
    (), 0.0, 0.0, reduction=0.5, optimizer=0.6, images=1, imgsz=64, precision="fp32"
)
MIB = 2**20
WITHIN, BETWEEN = Link(1e10, 1e-6, "assumed"), Link(1e9, 1e-5, "assumed")


@lru_cache(maxsize=1)
def blueprint() -> Blueprint:
    """A yolov5 of a tenth of the width, with two classes."""
    layers = architecture(parse_name("yolov5[0.33,0.1]"), 2, 3)
    return Blueprint(layers, ("a", "b"), 0)


@lru_cache(maxsize=1)
def graph() -> Graph:
    """Its nodes."""
    return build_graph(blueprint().meta)


@lru_cache(maxsize=4)
def costs(precision: str) -> Cost:
    """Its costs at `IMGSZ`."""
    return cost(graph(), IMGSZ, 4 if precision == "fp32" else 2)


@lru_cache(maxsize=8)
def clock(slots: int = 8, gpu: str = "T4") -> Clock:
    """Times of the model on a GPU of the table, in fp32 and fp16."""
    found = {each: costs(each) for each in ("fp32", "fp16")}
    times = {each: assumed_times(found[each], GPUS[gpu], each) for each in found}
    return Clock(found, times, GPUS[gpu], Network(WITHIN, BETWEEN, slots))


def memory_of(layout: Layout) -> tuple[RankMemory, ...]:
    """Round numbers that grow with what they should: MiB per image, states shared by ZeRO."""
    share = layout.replicas if layout.zero_stage else 1
    kept = 4 if layout.recompute else 20
    width = 2 if layout.precision == "fp32" else 1
    return tuple(
        RankMemory(
            weights=10 * MIB // layout.stages,
            states=0 if layout.offload_optimizer else 60 * MIB // share // layout.stages,
            activations=kept
            * width
            * layout.micro_batch
            * MIB
            * (layout.stages - stage)
            // layout.stages,
            host=60 * MIB // share if layout.offload_optimizer else 0,
        )
        for stage in range(layout.stages)
    )


def machines(ranks: int = 4, memory: float = 1e12) -> Machines:
    """Ranks of one host."""
    return Machines(
        hosts=1,
        ranks=ranks,
        device="cuda",
        figures=GPUS["T4"],
        memory=memory,
        memory_source="given",
        host_memory=float("inf"),
        network=Network(WITHIN, BETWEEN, ranks),
        here=False,
    )


def subject() -> Subject:
    """The model with two boxes per sample."""
    return Subject("yolov5[0.33,0.1]", blueprint(), BoxCounts(2.0, 5), "given")
