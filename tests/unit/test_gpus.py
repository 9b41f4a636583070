"""GPUs by name, and the figures that follow from their datasheets."""

from __future__ import annotations

import pytest

from yolods.errors import UserError
from yolods.plan.time.gpus import CPU, GPUS, gpu_called, gpu_named


@pytest.mark.parametrize(
    ("typed", "name"),
    [("a100", "A100"), ("A100-40gb", "A100-40GB"), ("rtx4090", "RTX 4090"), ("4090", "RTX 4090")],
)
def test_names_are_read_in_any_spelling(typed: str, name: str) -> None:
    assert gpu_named(typed).name == name


def test_an_unknown_gpu_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"--gpu H1000: .*did you mean 'H100'.*known: V100, "):
        gpu_named("H1000")


def test_a_drivers_name_finds_the_gpu_of_its_memory() -> None:
    """NVIDIA's drivers write these names."""
    found = gpu_called("NVIDIA A100-SXM4-40GB", 40960 * 2**20)
    assert found is not None and found.name == "A100-40GB"
    found = gpu_called("NVIDIA A100-SXM4-80GB", 81920 * 2**20)
    assert found is not None and found.name == "A100"
    found = gpu_called("NVIDIA GeForce RTX 4090", 24564 * 2**20)
    assert found is not None and found.name == "RTX 4090"
    assert gpu_called("AMD Instinct MI300X", 1e11) is None


def test_peaks_are_ordered_as_hardware_is() -> None:
    """Half types are at least twice as fast as fp32, or missing; an unknown type has no peak."""
    for gpu in GPUS.values():
        assert gpu.fp16 is not None and gpu.fp16 >= 1.9 * gpu.fp32
        assert gpu.bf16 in (None, gpu.fp16)
        assert gpu.peer >= gpu.host or gpu.peer == gpu.host
        assert gpu.bandwidth > gpu.peer
    assert {name for name, gpu in GPUS.items() if gpu.bf16 is None} == {"V100", "V100-16GB", "T4"}
    assert CPU.fp16 is None


def test_a_roofline_turns_where_peak_and_bandwidth_meet() -> None:
    """FLOPs per byte at the ridge: NVIDIA states 139 for a V100 in fp16 (deep learning guide)."""
    v100 = GPUS["V100"]
    assert v100.fp16 is not None
    assert v100.fp16 / v100.bandwidth == pytest.approx(139, rel=0.01)
