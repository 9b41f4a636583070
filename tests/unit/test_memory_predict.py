"""Properties that every prediction of a rank's memory has; tests/parity/test_plan_memory.py has the
comparison with real runs."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest

from yolods.model.architecture.build import architecture, parse_name
from yolods.model.blueprint import Blueprint
from yolods.plan.layout import Layout
from yolods.plan.memory import predict
from yolods.plan.memory.boxes import BoxCounts
from yolods.plan.memory.predict import MemoryModel
from yolods.plan.memory.states import parameters_of

PLAIN = Layout(
    imgsz=64, micro_batch=2, accumulation=2, replicas=2, reduce_bucket=1000, gather_bucket=1000
)


@lru_cache
def model(boxes: int = 5, device: str = "cuda") -> MemoryModel:
    blueprint = Blueprint(architecture(parse_name("yolov5n"), 3, 3), ("a", "b", "c"), seed=0)
    return MemoryModel(blueprint, boxes=BoxCounts(boxes, boxes), device=device)


def device(layout: Layout) -> int:
    (rank,) = model().ranks(layout)
    return rank.device


def test_a_pipeline_has_a_prediction_per_stage() -> None:
    ranks = model().ranks(replace(PLAIN, cuts=(15, 40), accumulation=4))
    assert len(ranks) == 3
    # Under 1F1B earlier stages hold more micro-batches.
    assert ranks[0].activations > ranks[1].activations > 0


def test_zero_bubble_keeps_what_waits_for_its_weights_part() -> None:
    """The last stage most of all; the first one holds no more than under 1F1B. Of many
    micro-batches nothing waits."""

    def both(count: int) -> list[list[int]]:
        layout = replace(PLAIN, cuts=(15, 40), accumulation=count)
        ranks = (model().ranks(replace(layout, schedule=each)) for each in ("1f1b", "zb"))
        return [[rank.activations for rank in each] for each in ranks]

    plain, split = both(6)
    assert split[0] == plain[0]
    assert split[2] > plain[2]
    plain, split = both(12)
    assert split == plain


def test_the_second_backward_pass_finds_whole_gradients() -> None:
    """Also where no forward pass comes between: a step of as many micro-batches as are in flight.
    On a CPU this stage is fullest in its last convolution, whose weights are large and whose
    gradients are the first to arrive."""
    found, cut = model(device="cpu"), 17
    layout = replace(PLAIN, zero_stage=0, replicas=1, cuts=(cut,), recompute=4)
    two, three = (found.ranks(replace(layout, accumulation=count))[0] for count in (2, 3))
    whole = 4 * parameters_of(found.graph, range(cut)).total
    assert two.gradients == three.gradients == whole
    # It also has a micro-batch less in flight.
    assert two.activations < three.activations


def test_more_sharding_needs_less() -> None:
    needs = [device(replace(PLAIN, zero_stage=stage, replicas=8)) for stage in (0, 1, 2)]
    assert needs == sorted(needs, reverse=True)


def test_recomputation_needs_less() -> None:
    assert device(replace(PLAIN, imgsz=256, recompute=-1)) < device(replace(PLAIN, imgsz=256))


def test_offloading_empties_the_device() -> None:
    (plain,), (moved,) = (
        model().ranks(replace(PLAIN, offload_optimizer=offload)) for offload in (False, True)
    )
    assert moved.device < plain.device
    assert moved.host > plain.host


def test_the_fullest_moment_can_be_the_loss() -> None:
    (rank,) = model(boxes=2000).ranks(replace(PLAIN, zero_stage=0))
    assert rank.loss > 0


def test_a_bucket_is_allocated_whole() -> None:
    (small,), (large,) = (
        model().ranks(replace(PLAIN, replicas=1, reduce_bucket=bucket))
        for bucket in (1000, 10_000_000)
    )
    assert large.buckets - small.buckets == 4 * 9_999_000


def test_only_replicas_exchange_buckets() -> None:
    """Of which two are under way, by copies, while the next one fills."""
    bucket = 1_000_000
    (alone,), (pair,) = (
        model().ranks(replace(PLAIN, replicas=replicas, reduce_bucket=bucket))
        for replicas in (1, 2)
    )
    assert alone.buckets == 4 * bucket < pair.buckets


def test_a_layout_of_a_known_kind_is_not_traced_again(monkeypatch: pytest.MonkeyPatch) -> None:
    device(PLAIN)
    model().ranks(replace(PLAIN, cuts=(20,)))
    for name in ("trace_detector", "trace_nodes", "trace_recomputed", "trace_stage"):
        monkeypatch.delattr(predict, name)
    for stage in (0, 1, 2, 3):
        device(replace(PLAIN, zero_stage=stage, micro_batch=3, accumulation=5, replicas=16))
    for cut in range(5, 50, 5):
        model().ranks(replace(PLAIN, cuts=(cut,), accumulation=8))


def test_what_a_recomputing_stage_needs_at_least_is_below_what_it_needs() -> None:
    """A search dismisses layouts by it, so it must never be above."""
    found = model()
    for layout in (
        Layout(imgsz=64, cuts=(20,), recompute=4, accumulation=3, micro_batch=2),
        Layout(imgsz=64, cuts=(9, 31), recompute=6, accumulation=4, precision="bf16"),
    ):
        pairs = zip(found.least(layout), found.ranks(layout), strict=True)
        for least, exact in pairs:
            assert 0 < least.device <= exact.device
            assert least.host == exact.host
