"""A rank's transfers by the rules of ZeRO and of the pipeline.

tests/dist/test_transfers.py compares them with the calls of real ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pytest

from yolods.model.architecture.build import architecture, parse_name
from yolods.model.graph.graph import build_graph, live
from yolods.plan.cost import Cost, cost
from yolods.plan.layout import PERSISTENT, Layout
from yolods.plan.traffic.transfers import (
    HEADER_BYTES,
    LABEL_BYTES,
    SUMS,
    Transfer,
    rounds,
    sent_bytes,
    transfers,
)

SIZE = 64


@lru_cache
def costs_of(name: str = "yolov5n", dtype_bytes: int = 4) -> Cost:
    return cost(build_graph(architecture(parse_name(name), 3, 3), split=True), SIZE, dtype_bytes)


def elements() -> list[int]:
    """Of the parameters that are trained."""
    named = costs_of().graph.skeleton.named_parameters()
    return [parameter.numel() for name, parameter in named if ".dfl" not in name]


def of_kind(found: Sequence[Transfer], kind: str) -> list[Transfer]:
    return [each for each in found if each.kind == kind]


def volume(found: Sequence[Transfer]) -> int:
    return sum(each.bytes for each in found)


def zero(stage: int, **changed: object) -> tuple[Transfer, ...]:
    layout = Layout(imgsz=SIZE, replicas=2, zero_stage=stage, **changed)
    (found,) = transfers(costs_of(), layout)
    return found


@pytest.mark.parametrize(
    ("stage", "once", "times"),
    [(0, True, 1), (1, True, 1), (2, True, 1), (2, False, 4), (3, True, 4)],
)
def test_gradients_are_reduced_once_a_step_or_once_a_micro_batch(
    stage: int, once: bool, times: int
) -> None:
    found = of_kind(zero(stage, accumulation=4, reduce_bucket=10**7, once=once), "reduce")
    operation = ("all_reduce", "exchange", "exchange", "reduce_scatter")[stage]
    assert {each.operation for each in found} == {operation}
    whole = 4 * sum(elements())
    # ZeRO-3 pads each of some hundred gradients by less than one element per rank.
    assert times * whole <= volume(found) <= times * (whole + 4 * len(elements()))
    assert sum(each.calls for each in found) == times


@pytest.mark.parametrize("stage", [1, 2])
def test_updated_weights_are_gathered_by_group(stage: int) -> None:
    (found,) = of_kind(zero(stage, accumulation=4, gather_bucket=1000), "gather")
    whole = 4 * sum(elements())
    assert found.calls == 3 and whole <= found.bytes < whole + 3 * 4 * 4


def test_zero3_gathers_large_weights_with_every_micro_batch_and_small_ones_once() -> None:
    large, small = of_kind(zero(3, accumulation=4), "gather")
    sizes = elements()
    assert large.bytes == 4 * 4 * sum(count for count in sizes if count > PERSISTENT)
    assert small.calls == 1
    # Detect's bins are frozen, but they are parameters.
    assert small.bytes >= 4 * (16 + sum(count for count in sizes if count <= PERSISTENT))


def test_zero3_makes_at_most_ten_calls_for_yolov5n() -> None:
    assert sum(each.calls for each in zero(3)) <= 10


def test_a_model_of_more_than_a_thousand_million_is_gathered_again_backward() -> None:
    graph = build_graph(architecture(parse_name("yolov5[3,3]6"), 3, 3), split=True)
    huge = Cost(graph, SIZE, 2, (None,) * len(graph.nodes), {}, ())  # type: ignore[arg-type]
    whole = sum(parameter.numel() for parameter in graph.skeleton.parameters())
    assert whole > 1e9
    layout = Layout(imgsz=SIZE, replicas=2, zero_stage=3, precision="bf16")
    large, _ = of_kind(transfers(huge, layout)[0], "gather")
    # The last 500 million have been used less than a thousand million elements before.
    assert 2 * whole < large.bytes < 2 * (2 * whole - 4e8)


def test_buckets_make_more_calls_and_no_more_bytes() -> None:
    (one,) = of_kind(zero(1, reduce_bucket=10**7), "reduce")
    (many,) = of_kind(zero(1, reduce_bucket=300_000), "reduce")
    assert one.calls == 1 and many.bytes == one.bytes
    assert many.bytes / 4 / 300_000 < many.calls < 2 * many.bytes / 4 / 300_000


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_by_default_five_sixths_are_on_their_way_early(stage: int) -> None:
    """The last bucket is sent after the backward pass; none has more than a sixth."""
    (found,) = of_kind(zero(stage), "reduce")
    assert 6 <= found.calls <= 10
    (late,) = of_kind(zero(stage, overlapped=False), "reduce")
    assert late.calls == 1 and late.bytes == found.bytes


@pytest.mark.parametrize(
    ("stage", "settings", "times"),
    [
        (1, {}, 2),
        (1, {"owned": False}, 3),
        (2, {}, 2),
        (2, {"once": False}, 5),
        (2, {"owned": False}, 9),
    ],
)
def test_what_zero_sends_in_a_step_of_four_micro_batches(
    stage: int, settings: dict[str, bool], times: int
) -> None:
    """In units of the half of all gradients, which each of two ranks owns."""
    found = [each for each in zero(stage, accumulation=4, **settings) if each.kind != "ours"]
    assert sum(map(sent_bytes, found)) == pytest.approx(times * 2 * sum(elements()), rel=1e-4)


def test_low_precision_halves_and_autocast_halves_only_convolutions() -> None:
    full, half = zero(1), zero(1, precision="bf16")
    for kind in ("reduce", "gather"):
        assert volume(of_kind(half, kind)) == volume(of_kind(full, kind)) / 2
    cast = zero(1, autocast="bf16")
    assert volume(of_kind(cast, "gather")) == volume(of_kind(full, "gather"))
    named = costs_of().graph.skeleton.named_parameters()
    norms = sum(each.numel() for name, each in named if ".bn." in name)
    assert volume(of_kind(cast, "reduce")) == 2 * sum(elements()) + 2 * norms
    unchanged = zero(0, autocast="bf16")
    assert volume(of_kind(unchanged, "reduce")) == volume(of_kind(zero(0), "reduce"))


def test_offloading_changes_nothing_between_ranks() -> None:
    assert zero(2, offload_optimizer=True) == zero(2)
    assert zero(3, offload_param=True) == zero(3)


def test_a_single_rank_sends_nothing() -> None:
    assert transfers(costs_of(), Layout(imgsz=SIZE, zero_stage=3)) == ((),)


def test_what_a_pipeline_sends() -> None:
    costs = costs_of()
    cut = costs.graph.nodes_of(13).start
    layout = Layout(
        imgsz=SIZE, micro_batch=2, accumulation=3, replicas=2, zero_stage=1, cuts=(cut,)
    )
    first, last = transfers(costs, layout, boxes=1.5)
    activations, labels = of_kind(first, "boundary")
    (gradients,) = of_kind(last, "boundary")
    assert activations.bytes == gradients.bytes == 3 * 2 * costs.crossing[cut]
    assert activations.calls == 3 * len(live(costs.graph, cut))
    assert labels.bytes == 3 * (HEADER_BYTES + 2 * 1.5 * LABEL_BYTES)
    reduced = [volume(of_kind(stage, "reduce")) for stage in (first, last)]
    assert sum(reduced) == 4 * sum(elements()) and all(reduced)
    numbers = [of_kind(stage, "ours") for stage in (first, last)]
    assert numbers[0] == numbers[1] and numbers[0][0].ranks == 4
    assert numbers[0][0].bytes == 4 * (SUMS + len(elements()))


def test_sync_bn_sums_two_moments_and_a_count_forward_and_backward() -> None:
    plain, synced = zero(0), zero(0, sync_bn=True, accumulation=2)
    (own,) = [each for each in of_kind(synced, "ours") if each not in plain]
    named = costs_of().graph.skeleton.named_parameters()
    channels = [each.numel() for name, each in named if name.endswith(".bn.weight")]
    assert own.calls == 2 * 2 * len(channels)
    assert own.bytes == 2 * 2 * 4 * sum(2 * count + 1 for count in channels)


def test_frozen_layers_send_no_gradients() -> None:
    layout = Layout(imgsz=SIZE, replicas=2, zero_stage=0)
    (frozen,) = transfers(costs_of(), layout, frozen=10)
    named = costs_of().graph.skeleton.named_parameters()
    left = [
        each.numel() for name, each in named if ".dfl" not in name and int(name.split(".")[1]) >= 10
    ]
    assert volume(of_kind(frozen, "reduce")) == 4 * sum(left)


def test_bytes_of_rings() -> None:
    """2 (N - 1) / N of a tensor for an all-reduce, half of it for each of its halves."""
    reduced = Transfer("reduce", "all_reduce", 1200, 1, 4)
    assert sent_bytes(reduced) == 1800 and rounds(reduced) == 6
    scattered = Transfer("reduce", "reduce_scatter", 1200, 1, 4)
    assert sent_bytes(scattered) == 900 and sent_bytes(scattered, backend="gloo") == 1800
    gathered = Transfer("gather", "all_gather", 1200, 1, 4)
    assert sent_bytes(gathered) == sent_bytes(gathered, backend="gloo") == 900
    sent = Transfer("boundary", "send", 1200, 3, 2)
    assert sent_bytes(sent) == 1200 and rounds(sent) == 1
