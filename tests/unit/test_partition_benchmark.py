"""The benchmark's targets hold, and its picture of DeepSpeed is the published one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.partition import (
    BALANCED,
    CASES,
    FLOPS,
    LINKED,
    STAGES,
    TARGETS,
    _types,
    costs_of,
    deepspeeds,
    misses,
    ours,
)

pytestmark = pytest.mark.slow

STOCK = {
    # max / mean FLOPs of a stage in 2, 4, 8 stages: by parameters, and by FLOPs on whole layers
    "yolov5x": ((1.06, 1.82, 2.08), (1.04, 1.04, 1.39)),
    "yolov5x6": ((1.09, 1.90, 3.52), (1.00, 1.02, 1.37)),
    "yolov5[2.0,2.0]6": ((1.05, 2.00, 3.69), (1.00, 1.09, 1.52)),
}


@pytest.mark.parametrize(("name", "imgsz"), CASES)
def test_targets_and_stock(name, imgsz):
    fine, whole = costs_of(name, imgsz)
    for place, stages in enumerate(STAGES):
        mine = {line.method: line for line in ours(fine, stages)}
        stock = {line.method: line for line in deepspeeds(whole, stages, types=False)}
        assert misses(list(mine.values()), stages) == []
        assert mine[BALANCED].imbalance <= TARGETS.get(stages, 1.01)
        assert mine[LINKED].unevenness <= TARGETS.get(stages, 1.01)
        assert max(mine[BALANCED].peak, mine[LINKED].peak) <= mine[FLOPS].peak
        assert mine[LINKED].slowest <= 1.01 * min(
            line.slowest for line in [*mine.values(), *stock.values()]
        )
        by_parameters, by_flops = (column[place] for column in STOCK[name])
        assert stock["DeepSpeed parameters"].imbalance == pytest.approx(by_parameters, abs=0.006)
        assert stock["partition_balanced on FLOPs"].imbalance == pytest.approx(by_flops, abs=0.006)


def test_every_choice_of_layer_types_is_tried_once():
    _, whole = costs_of("yolov5n", 64)
    tried = dict(_types(whole))
    assert len(tried) == 2 ** len({"C3", "Concat", "Conv", "Detect", "SPPF", "Upsample"}) - 1
    assert sum(tried["C3",]) == 8
    assert sum(tried["Concat", "Detect"]) == 5


def test_a_missed_target_is_named():
    fine, _ = costs_of("yolov5n", 64)
    balanced, linked, flops = (
        replace(line, imbalance=1.0, unevenness=1.0, peak=8.0) for line in ours(fine, 4)
    )
    assert misses([balanced, linked, flops], 4) == []
    assert misses([replace(balanced, imbalance=1.051), linked, flops], 4) == [
        f"{BALANCED}: max / mean 1.051 > 1.05"
    ]
    assert misses([balanced, replace(linked, unevenness=1.2), flops], 8) == [
        f"{LINKED}: max / mean 1.200 > 1.15"
    ]
    assert misses([balanced, replace(linked, peak=9.0), flops], 4) == [
        f"{LINKED}: peak above that of the cut by FLOPs alone"
    ]
