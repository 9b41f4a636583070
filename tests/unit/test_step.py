"""The time of a step by terms, against formulas and the simulation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests import plans
from yolods.plan.layout import Layout
from yolods.plan.one_f_one_b import bound
from yolods.plan.time.step import OPTIMIZER_TRAFFIC
from yolods.plan.traffic.links import Link

ONE = Layout(imgsz=plans.IMGSZ, micro_batch=4, accumulation=2)
LATE = {"overlapped": False}


def test_one_rank_computes_and_waits_for_nobody() -> None:
    clock = plans.clock()
    step = clock.step(ONE)
    forward, backward = clock.times["fp32"].stages((0, len(plans.graph().nodes)), 4)
    assert step.compute == pytest.approx(2 * float(forward[0] + backward[0]))
    assert step.idle == 0 and step.communication == 0
    moved = OPTIMIZER_TRAFFIC * plans.costs("fp32").parameters
    assert step.optimizer == pytest.approx(moved / (320e9 * 0.8))
    assert step.total == pytest.approx(step.compute + step.optimizer)


def test_a_slow_link_is_waited_for_except_while_something_computes() -> None:
    """Under ZeRO-3, and in a reduction within the backward pass, only what exceeds computation is
    waited for; after that pass everything is."""
    slow = replace(plans.clock().network, within=Link(1e8, 1e-6, "given"))
    clock = replace(plans.clock(), network=slow)
    swift = plans.clock()
    layout = replace(ONE, replicas=2, micro_batch=2, zero_stage=1, overlapped=False)
    early = replace(layout, overlapped=True)
    assert 0.5 < swift.step(early).communication / swift.step(layout).communication < 0.9
    assert clock.step(layout).communication > 10 * swift.step(layout).communication
    third = replace(layout, zero_stage=3)
    slowly, swiftly = clock.step(third), swift.step(third)
    assert swiftly.communication < swift.step(layout).communication
    assert slowly.communication > swiftly.communication


def test_a_pipelines_idle_share_is_that_of_its_schedule() -> None:
    """With stages of unequal times at least the bound for equal ones."""
    layout = Layout(imgsz=plans.IMGSZ, micro_batch=1, accumulation=8, cuts=(9, 20, 40))
    step = plans.clock().step(layout)
    share = step.idle / (step.idle + step.compute)
    assert bound(4, 8) * 0.5 < share
    longer = plans.clock().step(replace(layout, accumulation=64))
    assert longer.idle / (longer.idle + longer.compute) < share


def test_zero_bubble_waits_less_than_1f1b() -> None:
    layout = Layout(imgsz=plans.IMGSZ, micro_batch=1, accumulation=8, cuts=(9, 20, 40))
    plain, split = (plans.clock().step(replace(layout, schedule=each)) for each in ("1f1b", "zb"))
    assert split.compute == plain.compute
    assert split.idle < plain.idle


def test_offloaded_states_are_stepped_at_the_hosts_pace() -> None:
    layout = replace(ONE, zero_stage=1)
    away = plans.clock().step(replace(layout, offload_optimizer=True))
    here = plans.clock().step(layout)
    assert away.optimizer == pytest.approx(here.optimizer * 320 / 16)
    assert away.communication > here.communication


def test_a_reduction_in_a_single_bucket_hides_behind_nothing() -> None:
    """The bucket is full when the backward pass is over."""
    layout = replace(ONE, replicas=2, micro_batch=2, zero_stage=0)
    whole, late = (replace(layout, **each) for each in ({"reduce_bucket": 10**9}, LATE))
    clock = plans.clock()
    assert clock.step(whole).communication == pytest.approx(clock.step(late).communication)
    assert clock.step(layout).communication < clock.step(whole).communication


def test_what_a_cpu_copies_is_never_hidden() -> None:
    """Neither in a reduction within the backward pass nor in what stages send."""
    swift = replace(plans.clock(), network=replace(plans.clock().network, within=Link(1e12, 0.0)))
    near = Link(1e12, 0.0, copying=1e-8)
    clock = replace(swift, network=replace(swift.network, within=near))
    parameters = plans.costs("fp32").parameters
    reduced = clock.step(replace(ONE, replicas=2, zero_stage=0))
    assert reduced.communication == pytest.approx(1e-8 * 4 * parameters, rel=0.01)
    cut = replace(ONE, cuts=(20,))
    before, after = swift.step(cut), clock.step(cut)
    sent = ONE.accumulation * ONE.micro_batch * plans.costs("fp32").crossing[20]
    assert after.communication - before.communication == pytest.approx(1e-8 * sent, rel=0.05)
    assert (after.compute, after.idle) == (before.compute, before.idle)


def test_a_measured_update_is_that_of_a_stages_parameters() -> None:
    """ZeRO shares it among the ranks, but copies instead."""
    clock = replace(plans.clock(), profile=plans.PROFILE)
    for zero in range(3):
        step = clock.step(replace(ONE, zero_stage=zero, replicas=3))
        assert step.optimizer == pytest.approx(plans.PROFILE.optimizer)
    nodes = [each.parameters for each in plans.costs("fp32").nodes]
    largest = max(sum(nodes[:20]), sum(nodes[20:])) / sum(nodes)
    cut = clock.step(replace(ONE, cuts=(20,)))
    assert cut.optimizer == pytest.approx(plans.PROFILE.optimizer * largest)


@pytest.mark.parametrize(("zero", "times"), [(0, 1), (1, 1), (2, 1), (3, ONE.accumulation)])
def test_a_reduction_copies_gradients_once_for_each_time_it_sends_them(
    zero: int, times: int
) -> None:
    layout = replace(ONE, replicas=2, zero_stage=zero)
    before, after = (
        replace(plans.clock(), profile=each).step(layout) for each in (None, plans.PROFILE)
    )
    copied = after.communication - before.communication
    assert copied == pytest.approx(times * plans.PROFILE.reduction, rel=0.02)
    alone = replace(plans.clock(), profile=plans.PROFILE).step(ONE)
    assert alone.communication == 0
