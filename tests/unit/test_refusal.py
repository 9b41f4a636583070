"""Where nothing fits, what would is named, and it does fit."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

from tests import plans
from yolods.planner.choices import Choice
from yolods.planner.refusal import Refused
from yolods.planner.request import GIB, Machines
from yolods.planner.search import Found, search_layouts

GRID = 32
CHOICE = Choice(plans.IMGSZ, 2, 8, ("fp32",))


def search(choice: Choice, machines: Machines) -> Found:
    return search_layouts(choice, plans.clock(), plans.memory_of, machines.limits)


def refused(choice: Choice, machines: Machines) -> list[str]:
    found = search(choice, machines)
    assert found.best is None
    return Refused(found, machines, search, GRID).lines()


def test_the_memory_that_is_named_does_fit() -> None:
    small = plans.machines(2, 5 * plans.MIB)
    lines = refused(CHOICE, small)
    assert lines[0].startswith("no layout fits; the nearest is ")
    named = next(line for line in lines if "--gpu-memory" in line)
    enough = float(re.search(r"--gpu-memory ([\d.]+)", named)[1])  # type: ignore[index]
    assert search(CHOICE, replace(small, memory=enough * GIB)).best is not None
    assert re.search(r": ([\d.]+) MiB / 0.9 = (?!\1)[\d.]+ MiB$", named)
    assert "searched down to 1 image" in "\n".join(lines)


def test_ranks_on_cpus_have_their_hosts_memory() -> None:
    small = replace(plans.machines(2, 5 * plans.MIB), device="cpu")
    (named,) = (line for line in refused(CHOICE, small) if line.startswith("it would fit with "))
    assert re.search(r"--host-memory [\d.]+: [\d.]+ MiB x 2 ranks = [\d.]+ MiB$", named)


def test_the_least_micro_batch_that_was_searched_is_named() -> None:
    choice = replace(CHOICE, single_value=True)
    lines = refused(choice, plans.machines(2, 5 * plans.MIB))
    assert "micro-batches were searched down to 2 images" in "\n".join(lines)


def test_the_ranks_that_are_named_do_fit() -> None:
    """On more ranks a pipeline has more stages, each with less."""
    little = plans.machines(2, 16 * plans.MIB)
    lines = refused(CHOICE, little)
    line = next(each for each in lines if "would do" in each)
    ranks = int(re.match(r"(\d+) ranks", line)[1])  # type: ignore[index]
    assert search(replace(CHOICE, ranks=ranks), replace(little, ranks=ranks)).best is not None


def test_a_given_batch_is_refused_with_one_that_fits() -> None:
    choice = replace(CHOICE, forward_images=8)
    machines = plans.machines(2, 40 * plans.MIB)
    line = next(each for each in refused(choice, machines) if "--batch-size" in each)
    images = int(re.search(r"--batch-size (\d+)", line)[1])  # type: ignore[index]
    assert search(replace(choice, forward_images=images), machines).best is not None


def test_images_that_do_not_divide_are_refused_with_the_neighbours() -> None:
    choice = replace(CHOICE, images=3, stages=1)
    (line,) = refused(choice, plans.machines(2))
    assert "3 images per step do not divide among 2 replicas" in line
    assert "use --images-per-step 2 or 4" in line


def test_other_obstacles_than_the_division_are_named() -> None:
    fp16 = replace(CHOICE, precisions=("fp16",), stages=1, zero_stage=0)
    assert refused(fp16, plans.machines(2)) == ["fp16 needs ZeRO 1 or above"]
    lone = replace(CHOICE, images=2, stages=1, single_value=True)
    (line,) = refused(lone, plans.machines(2))
    assert "use --images-per-step 4 or more" in line


def test_the_image_size_that_is_named_is_the_largest_that_fits() -> None:
    def by_size(choice: Choice, machines: Machines, most: int) -> Found:
        limits = replace(machines.limits, device=1e12 if choice.imgsz <= most else 1.0)
        # The tiny model's costs are known at one size only.
        small = replace(choice, imgsz=plans.IMGSZ)
        found = search_layouts(small, plans.clock(), plans.memory_of, limits)
        return replace(found, choice=choice)

    choice = replace(CHOICE, imgsz=640)
    again = partial(by_size, most=416)
    found = again(choice, plans.machines(2))
    lines = Refused(found, plans.machines(2), again, GRID).lines()
    assert any(line.startswith("--imgsz 416 would fit") for line in lines)
