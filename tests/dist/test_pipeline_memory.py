"""What the stages of a pipeline hold at the fullest moment of a step does not depend on how many
micro-batches it has.

Stage s of P has P - s micro-batches in flight (1F1B) and no more, and what was sent of them is let
go with them. Every allocation of a rank counts, by the sum that torch's profiler shows: what
autograd keeps, what is on its way, and all kernels' own.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.plan_memory_run import count_in_all_threads, flat
from tests.parity.pipes import split_engine
from tests.parity.small import micro_batch
from tests.parity.splits import Case
from tests.ranks import on_ranks
from yolods.distributed.world import Ranks
from yolods.engine.pipeline.engine import PipelineEngine
from yolods.optim.lr_schedule import Step

pytestmark = pytest.mark.slow

CASE = Case(cuts=(4, 9, 17), blocks={"yolods": {"overflow": {"attribution": "off"}}})
"""Four stages. Of a step that may be run again, the first one would also keep the images, in host
memory."""
COUNTS = (4, 8, 32)
"""Micro-batches a step."""
LOSSES = 4 * max(COUNTS)
"""Bytes: the last stage keeps the loss of every micro-batch, one fp32 number, for what names the
culprits."""


def measure(ranks: Ranks, folder: str) -> dict[str, list[int]]:
    """On a rank: bytes at the peak of a step, above those at its beginning, for each of `COUNTS`;
    and for the fewest and the most where what is sent is held to the end of the step."""
    # Gloo's threads let tensors go without an event, more of them on a busy machine.
    count_in_all_threads()
    with split_engine(ranks, CASE, Path(folder)) as engine:
        _peak(engine, COUNTS[0])  # headers and states are made once
        freed = [_peak(engine, count) for count in COUNTS]
        _hoard(engine)
        return {"freed": freed, "hoarded": [_peak(engine, count) for count in COUNTS[::2]]}


def _peak(engine: PipelineEngine, count: int) -> int:
    # A step of as many micro-batches as stages does no forward after its first backward, which
    # would make these.
    for parameter in engine.net.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    step = Step(0, count, 0, (1e-3, 1e-3, 1e-3), 0.9)
    batches = [micro_batch(0) for _ in range(count)]
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        engine.train_step(step, iter(batches))
    tree = flat(profile.profiler.kineto_results.experimental_event_tree())
    events = [event for event in tree if event.name == "[memory]"]
    first = min(events, key=lambda event: event.start_time_ns).extra_fields
    before = first.total_allocated - first.alloc_size
    return max(event.extra_fields.total_allocated for event in events) - before


def _hoard(engine: PipelineEngine) -> None:
    """Let channels go of nothing before they are to let go of everything."""
    for channel in (engine._channels.to_after, engine._channels.to_before):
        if channel is not None:
            drain = channel.drain
            channel.drain = lambda leave=0, drain=drain: None if leave else drain()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[int]]]:
    folder = tmp_path_factory.mktemp("memory")
    call = {"once": "tests.parity.pipes:draw", "folder": str(folder)}
    return on_ranks("tests.dist.test_pipeline_memory:measure", (4,), timeout=120, **call)[4]


@pytest.mark.parametrize("stage", range(4))
def test_a_step_of_32_micro_batches_holds_what_one_of_4_does(
    measured: list[dict[str, list[int]]], stage: int
) -> None:
    peaks = measured[stage]["freed"]
    assert max(peaks) - min(peaks) <= LOSSES


@pytest.mark.parametrize("stage", range(4))
def test_what_is_held_to_the_end_of_the_step_would_show(
    measured: list[dict[str, list[int]]], stage: int
) -> None:
    peaks = measured[stage]["hoarded"]
    assert peaks[1] - peaks[0] > 100 * LOSSES
