"""Times of nodes: a roofline by hand, and a profile split into its passes."""

from __future__ import annotations

import numpy as np
import pytest

from tests import plans
from yolods.plan.cost import TRAFFIC
from yolods.plan.step_profile import StepProfile
from yolods.plan.time.gpus import COMPUTE_EFFICIENCY, GPUS, MEMORY_EFFICIENCY
from yolods.plan.time.nodes import (
    KERNEL_LAUNCH,
    assumed_times,
    measured_times,
    profiled_times,
)


def test_the_roofline_of_the_whole_model_by_hand() -> None:
    costs, gpu = plans.costs("fp16"), GPUS["T4"]
    times = assumed_times(costs, gpu, "fp16")
    forward, backward = times.stages((0, len(costs.nodes)), 3)
    compute = 3 * 3 * costs.flops / (65e12 * COMPUTE_EFFICIENCY)
    memory = 3 * TRAFFIC * costs.activation_bytes / (320e9 * MEMORY_EFFICIENCY)
    launches = 8 * len(costs.nodes) * KERNEL_LAUNCH
    assert forward[0] + backward[0] == pytest.approx(compute + memory + launches, rel=1e-9)
    assert times.source == "assumed"


def test_stages_add_up_to_the_model_and_recomputing_adds_a_forward_pass() -> None:
    costs = plans.costs("fp32")
    times = assumed_times(costs, GPUS["A100"], "fp32")
    whole = times.stages((0, len(costs.nodes)), 2)
    parts = times.stages((0, 5, 20, len(costs.nodes)), 2)
    for one, several in zip(whole, parts, strict=True):
        assert one.sum() == pytest.approx(several.sum(), rel=1e-12)
    again = times.stages((0, len(costs.nodes)), 2, recompute=True)[1]
    assert again == pytest.approx(whole[1] + whole[0])


def test_each_node_is_a_stage_of_its_own() -> None:
    times = assumed_times(plans.costs("fp32"), GPUS["A100"], "fp32")
    count = len(plans.costs("fp32").nodes)
    forward, backward = times.stages(range(count + 1), 2)
    assert times.both(2) == pytest.approx(tuple(forward + backward))


def test_a_profile_keeps_its_sum_and_grows_with_the_images() -> None:
    times = measured_times([0.3, 0.6], 2)
    forward, backward = times.stages((0, 2), 2)
    assert forward[0] + backward[0] == pytest.approx(0.9)
    assert np.allclose(times.stages((0, 1, 2), 4)[0], 2 * times.stages((0, 1, 2), 2)[0])
    assert times.source == "measured"


def test_a_device_without_units_for_a_type_is_refused() -> None:
    with pytest.raises(ValueError, match="T4 does not compute in bf16"):
        assumed_times(plans.costs("fp16"), GPUS["T4"], "bf16")


def test_a_profile_of_steps_keeps_its_passes_and_the_last_stage_has_the_loss() -> None:
    profile = StepProfile((0.1, 0.3), 0.8, 0.05, 0.1, 0.2, images=2, imgsz=64, precision="fp32")
    times = profiled_times(profile)
    forward, backward = times.stages((0, 1, 2), 2)
    assert forward == pytest.approx([0.1, 0.3])
    assert backward == pytest.approx([0.2, 0.6 + 0.05])
    assert times.stages((0, 2), 4)[1] == pytest.approx([1.6 + 0.05])
    assert times.source == "measured"
