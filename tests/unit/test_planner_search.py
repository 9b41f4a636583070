"""The search finds what trying everything finds, and examines less."""

from __future__ import annotations

import itertools
import time
from functools import lru_cache

import pytest

from tests import plans
from yolods.plan.layout import Layout
from yolods.planner.choices import Choice, Family, family_of
from yolods.planner.search import Limits, search_layouts

IMAGES = 8
CHOICE = Choice(plans.IMGSZ, 4, IMAGES, ("fp32", "fp16"))


def fits(layout: Layout, limit: float) -> bool:
    return max(each.device for each in plans.memory_of(layout)) <= limit


@lru_cache(maxsize=1)
def everything() -> tuple[tuple[Layout, float], ...]:
    """All layouts on one and on two stages with their seconds; of two stages, every third cut."""
    nodes, found = len(plans.graph().nodes), []
    for stages, precision, micro, recompute, zero in itertools.product(
        (1, 2), ("fp32", "fp16"), (1, 2, 4, 8), (False, True), range(4)
    ):
        replicas = 4 // stages
        if IMAGES % (replicas * micro) or (precision == "fp16" and not zero):
            continue
        if stages > 1 and zero > 1:
            continue
        aways = [(False, False)]
        aways += [(True, False)] if stages == 1 and zero else []
        aways += [(True, True)] if stages == 1 and zero == 3 else []
        cuts = range(1, nodes, 3) if stages > 1 else (0,)
        schedules = ("1f1b", "zb") if stages > 1 and not recompute else ("1f1b",)
        for (away, param), cut, schedule in itertools.product(aways, cuts, schedules):
            layout = Layout(
                imgsz=plans.IMGSZ,
                micro_batch=micro,
                accumulation=IMAGES // replicas // micro,
                replicas=replicas,
                precision=precision,
                zero_stage=zero,
                offload_optimizer=away,
                offload_param=param,
                cuts=(cut,) if stages > 1 else (),
                recompute=(0 if not recompute else -1 if stages == 1 else 5),
                schedule=schedule,
            )
            found.append((layout, plans.clock().step(layout).total))
    return tuple(found)


def key_of(family: Family) -> tuple[object, ...]:
    return (
        *(family.stages, family.zero_stage),
        *(family.offload_optimizer, family.offload_param),
    )


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1000.0, 80.0, 45.0])
def test_the_search_finds_what_trying_everything_finds(limit: float) -> None:
    """Without a pipeline exactly. A pipeline's cuts balance its stages, which is not the fastest
    step of few micro-batches: on these two stages it takes up to 4.3% longer."""
    found = search_layouts(CHOICE, plans.clock(), plans.memory_of, Limits(limit * plans.MIB))
    best: dict[tuple[object, ...], float] = {}
    for layout, seconds in everything():
        if fits(layout, limit * plans.MIB):
            key = key_of(family_of(layout))
            best[key] = min(best.get(key, seconds), seconds)
    ours = {key_of(each.family): each.seconds for each in found.ranked}
    assert {key for key in ours if key[0] in (1, 2)} == set(best)
    for key, seconds in best.items():
        if key[0] == 1:
            assert ours[key] == pytest.approx(seconds, rel=1e-12), key
        else:
            assert ours[key] <= seconds * 1.05, key
    assert found.examined > len(best)


def test_what_does_not_fit_is_never_the_best() -> None:
    found = search_layouts(CHOICE, plans.clock(), plans.memory_of, Limits(40 * plans.MIB))
    assert found.best is not None
    assert all(fits(each.layout, 40 * plans.MIB) for each in found.ranked)
    none = search_layouts(CHOICE, plans.clock(), plans.memory_of, Limits(1 * plans.MIB))
    assert none.best is None and none.nearest is not None and none.nearest.over > 0


def test_equally_fast_layouts_are_ranked_by_simplicity() -> None:
    found = search_layouts(CHOICE, plans.clock(), plans.memory_of, Limits(1e15))
    fastest = min(each.seconds for each in found.ranked)
    assert found.best is not None
    tied = [each.family for each in found.ranked if each.seconds <= fastest * 1.02]
    assert found.best.family == min(
        tied, key=lambda f: (f.stages, f.offload_optimizer + f.offload_param, f.zero_stage)
    )


def test_a_bound_is_never_above_the_time() -> None:
    """Otherwise the search could leave out the best."""
    clock = plans.clock()
    for stages, cuts in ((1, ()), (2, (9,)), (4, (5, 12, 30))):
        for micro, schedule in itertools.product((1, 4), ("1f1b", "zb")):
            layout = Layout(
                imgsz=plans.IMGSZ,
                micro_batch=micro,
                accumulation=8 // micro,
                replicas=4 // stages,
                cuts=cuts,
                schedule=schedule,
            )
            assert clock.least(layout) <= clock.step(layout).total * (1 + 1e-9)


def test_host_memory_is_a_limit_too() -> None:
    limits = Limits(1e15, host=10 * plans.MIB)
    found = search_layouts(CHOICE, plans.clock(), plans.memory_of, limits)
    assert not any(each.family.offload_optimizer for each in found.ranked)


def test_on_a_cpu_both_memories_are_one() -> None:
    memory = plans.memory_of(Layout(imgsz=64, offload_optimizer=True))
    apart, shared = Limits(60 * plans.MIB), Limits(60 * plans.MIB, shared=True)
    assert not apart.over(memory)
    assert shared.over(memory) == 50 * plans.MIB


@pytest.mark.slow
def test_a_thousand_ranks_are_searched_in_seconds() -> None:
    """CPU seconds after the cost model, with room for a busy machine, which slows them too."""
    choice = Choice(plans.IMGSZ, 1024, 4096, ("fp32", "fp16"))
    clock = plans.clock()
    began = time.process_time()
    found = search_layouts(choice, clock, plans.memory_of, Limits(1e12))
    assert found.best is not None and found.examined > 300
    assert time.process_time() - began < 5.0
