"""The layouts to choose from: complete, divisible, with buckets no larger than the gradients."""

from __future__ import annotations

from dataclasses import replace

from tests import plans
from yolods.planner.choices import (
    Choice,
    Family,
    Layouts,
    divisors,
    families,
    family_of,
    micro_batches,
    obstacle,
)

CHOICE = Choice(plans.IMGSZ, 4, 16, ("fp32", "fp16"))


def test_families_are_all_divisors_with_what_a_pipeline_allows() -> None:
    found = families(CHOICE, 100)
    assert {each.stages for each in found} == {1, 2, 4}
    assert {each.zero_stage for each in found if each.stages > 1} == {0, 1}
    assert not any(each.offload_optimizer for each in found if each.stages > 1)
    assert {each.stages for each in families(CHOICE, 3)} == {1, 2}
    only = families(replace(CHOICE, stages=2, zero_stage=1), 100)
    assert only == (Family(2, 1),)


def test_a_step_always_has_the_images_asked_for() -> None:
    layouts = Layouts(CHOICE, plans.clock(), 1e12)
    for family in families(CHOICE, layouts.nodes):
        for layout in layouts.of(family):
            assert (layout.images, layout.ranks) == (16, 4)
            assert family_of(layout) == family


def test_micro_batches_divide_and_leave_batchnorm_two_values() -> None:
    assert micro_batches(CHOICE, 2) == (8, 4, 2, 1)
    assert micro_batches(replace(CHOICE, single_value=True), 2) == (8, 4, 2)
    assert micro_batches(CHOICE, 3) == ()
    assert micro_batches(replace(CHOICE, forward_images=8), 2) == (4,)
    assert micro_batches(replace(CHOICE, forward_images=1), 2) == ()


def test_an_empty_family_has_its_own_reason() -> None:
    lone = replace(CHOICE, images=4, imgsz=32, single_value=True)
    for choice, family, why in (
        (replace(CHOICE, images=6), Family(1, 0), "6 images do not divide among 4 replicas"),
        (lone, Family(1, 0), "4 images / 4 replicas = 1 image per micro-batch"),
        (lone, Family(1, 0), "use --images-per-step 8 or more"),
        (replace(CHOICE, forward_images=6), Family(1, 1), "6 images per pass do not divide"),
        (replace(CHOICE, precisions=("fp16",)), Family(1, 0), "fp16 needs ZeRO 1 or above"),
        (CHOICE, Family(4, 0), "a stage would have no weights to train"),
    ):
        assert why in obstacle(choice, family)


def test_cuts_balance_time_and_the_leaner_ones_memory() -> None:
    layouts = Layouts(CHOICE, plans.clock(), 1.0)
    layout = next(iter(layouts.of(Family(2, 0))))
    forward, backward = (
        plans.clock().times["fp32"].stages((0, *layout.cuts, layouts.nodes), layout.micro_batch)
    )
    slowest = max(forward + backward)
    for cut in range(1, layouts.nodes):
        each = plans.clock().times["fp32"].stages((0, cut, layouts.nodes), layout.micro_batch)
        # Balanced with the transfers of the cuts, at four images.
        assert slowest <= max(each[0] + each[1]) * 1.05
    leaner = layouts.leaner(layout)
    assert leaner is None or leaner.cuts != layout.cuts
    assert layouts.leaner(replace(layout, cuts=())) is None


def test_recomputing_and_zero_bubble_exclude_each_other() -> None:
    found = list(Layouts(CHOICE, plans.clock(), 1e12).of(Family(2, 0)))
    assert {each.schedule for each in found} == {"1f1b", "zb"}
    assert not any(each.recompute for each in found if each.schedule == "zb")
    without = replace(CHOICE, recompute=False)
    assert not any(
        each.recompute for each in Layouts(without, plans.clock(), 1e12).of(Family(2, 0))
    )


def test_fp16_needs_zero() -> None:
    found = Layouts(CHOICE, plans.clock(), 1e12).of(Family(1, 0))
    assert {each.precision for each in found} == {"fp32"}


def test_divisors() -> None:
    assert divisors(12) == (1, 2, 3, 4, 6, 12)
    assert divisors(16) == (1, 2, 4, 8, 16)
    # A loop over all numbers up to this prime would take a minute.
    assert divisors(1_000_000_007) == (1, 1_000_000_007)
