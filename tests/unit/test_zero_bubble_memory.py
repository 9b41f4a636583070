"""What a stage holds at the fullest moment of a step under zero-bubble, beside 1F1B.

A stage plays its passes alone, and torch's profiler counts every allocation. tests/dist/
test_pipeline_memory.py counts those of real ranks under 1F1B.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from yolods.engine.pipeline.split_backward import SplitPasses, divide, run_weights
from yolods.plan.one_f_one_b import instructions
from yolods.plan.zero_bubble import all_divided, passes

STAGES = 4
COUNTS = {"1f1b": (8, 32), "zb": (8, 10, 16, 48)}
"""Micro-batches. Of few, zero-bubble divides all backward passes; of many, those after the last F.
"""


def block() -> nn.Module:
    """As a detector's: what is kept is the convolution's input, BatchNorm's and SiLU's."""
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU())


def peak(stage: int, count: int, schedule: str) -> int:
    """Bytes at the fullest moment of a step, above those at its beginning."""
    net, collector = nn.Sequential(*(block() for _ in range(4))), SplitPasses()
    if schedule == "zb":
        divide(net, collector)
    for each in net.parameters():
        each.grad = torch.zeros_like(each)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        play(net, collector, stage, count, schedule)
    events = [
        each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"
    ]
    held = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def play(net: nn.Module, collector: SplitPasses, stage: int, count: int, schedule: str) -> None:
    """Run a stage's passes in their order."""
    flights: dict[int, tuple[Tensor, Tensor, list]] = {}
    deferred: dict[int, list] = {}
    order = (passes if schedule == "zb" else instructions)(STAGES, stage, count)
    for kind, number in order:
        if kind == "F":
            given = torch.zeros(2, 8, 32, 32, requires_grad=True)
            with collector.collecting() if ("W", number) in order else nullcontext([]) as parts:
                flights[number] = given, net(given), parts
            del given, parts
        elif kind == "B":
            given, output, deferred[number] = flights.pop(number)
            output.backward(torch.ones_like(output))
            del given, output
        else:
            run_weights(deferred.pop(number))


@pytest.fixture(scope="module")
def peaks() -> dict[tuple[int, int, str], int]:
    return {
        (stage, count, schedule): peak(stage, count, schedule)
        for stage in range(STAGES)
        for schedule, counts in COUNTS.items()
        for count in counts
    }


def test_more_micro_batches_need_no_more_memory(peaks: dict[tuple[int, int, str], int]):
    assert [all_divided(STAGES, count) for count in COUNTS["zb"]] == [True, True, False, False]
    for stage in range(STAGES):
        for schedule, few, many in (("1f1b", 8, 32), ("zb", 8, 10), ("zb", 16, 48)):
            assert peaks[stage, few, schedule] == peaks[stage, many, schedule]


def test_no_stage_needs_more_than_the_first_one_does_under_1f1b(
    peaks: dict[tuple[int, int, str], int],
):
    first = peaks[0, 8, "1f1b"]
    for stage in range(STAGES):
        assert peaks[stage, 8, "zb"] <= first
    assert peaks[STAGES - 1, 8, "1f1b"] < peaks[STAGES - 1, 8, "zb"]


def test_where_no_weights_part_waits_every_stage_needs_what_it_does_under_1f1b(
    peaks: dict[tuple[int, int, str], int],
):
    for stage in range(STAGES):
        assert peaks[stage, 16, "zb"] <= peaks[stage, 8, "1f1b"]
