"""The pretended device detects every planted fault, and none without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forks import forked
from tests.ranks import on_ranks
from tests.rehearsal.planted import NO_WAITS, WAITS

DEVICE = "tests.rehearsal.pretended:pretended_device"
HERE = "tests/rehearsal/planted.py"


def planted(name: str, within: str = DEVICE, size: int = 1) -> Any:
    """The result of a function of planted.py on rank 0."""
    return on_ranks(f"tests.rehearsal.planted:{name}", (size,), within=within)[size][0]


def test_the_host_waits_where_cuda_would_make_it_and_nowhere_else() -> None:
    seen = planted("waits_of")
    counts = {name: sum(places.values()) for name, places in seen.items()}
    assert counts == dict.fromkeys(WAITS, 1) | {"each of two": 2} | dict.fromkeys(NO_WAITS, 0)
    # The planted code is in lambdas, which `waits_of` calls.
    assert {place for places in seen.values() for place in places} == {f"{HERE}:waits_of"}


def test_mixups_and_collectives_of_host_tensors_are_seen() -> None:
    seen = planted("mixed_up")
    mixups = {name: record.mixups.total() for name, record in seen.items()}
    collectives = {name: record.host_collectives.total() for name, record in seen.items()}
    assert {name for name, count in mixups.items() if count} == {
        *("sum of both", "one list", "into the host's", "fused", "numpy")
    }
    assert {name for name, count in collectives.items() if count} == {"host collective"}


def test_streams_that_use_the_same_memory_in_no_order_are_a_race() -> None:
    assert {name for name, count in planted("races_of").items() if count} == {
        *(
            "side_reads_unordered",
            "host_reads_too_early",
            "host_rewrites_too_early",
            "collective_unordered",
        )
    }


def test_the_bytes_of_the_device_are_those_of_the_storages_that_live() -> None:
    before, one, view, after, peak = planted("bytes_of")
    assert (one - before, view - before, after - before, peak - before) == (4096, 4096, 0, 4096)


def test_autocast_casts_by_the_lists_of_cuda() -> None:
    low, high = torch.bfloat16, torch.float32
    assert planted("cast") == {
        "convolution": low,
        "matmul": low,
        "convolution on the host": high,
        "relu": low,
        "softmax": high,
        "sum": high,
        "sum with its dtype": low,
        "exp": high,
        "upsampled": high,
        "scattered": high,
        "padded": low,
        "switched off": high,
        "after": high,
        "gradient": high,
    }


def test_a_fault_in_a_step_of_an_engine_is_seen_where_it_is() -> None:
    seen = planted("faults_in_a_step")
    plain = seen["nothing"]
    assert not plain.faults()
    more = {
        place: count - plain.waits_by_place().get(place, 0)
        for place, count in seen["item"].waits_by_place().items()
        if count != plain.waits_by_place().get(place, 0)
    }
    assert more == {f"{HERE}:forgotten_item": 1} and not seen["item"].faults()
    (mixup,) = seen["mix-up"].mixups
    assert mixup.place == f"{HERE}:forgotten_device"
    (collective,) = seen["host collective"].host_collectives
    assert collective.place == f"{HERE}:forgotten_collective"


def test_streams_that_wait_for_nothing_race() -> None:
    found = planted("waits_taken_out", size=2)
    assert found["as it is"] == 0
    assert found["taken out"] > 0


def test_a_script_runs_on_a_pretended_device_and_hears_of_its_waits(tmp_path: Path) -> None:
    script, screen = tmp_path / "script.py", tmp_path / "screen"
    script.write_text(
        "import sys, torch\n"
        "value = torch.full((2,), float(sys.argv[1]), device='cuda')\n"
        "print(value.device, value.sum().item())\n"
        "value + torch.ones(2)\n"
    )
    assert (
        forked(
            "tests.rehearsal.planted:as_a_script",
            {"script": str(script)},
            screen=screen,
            timeout=60,
        )
        == 0
    )
    told = screen.read_text()
    assert "cuda:0 14.0" in told
    assert "1 x item at script.py:<module> (script.py:3" in told
    assert (
        "mix-up, 1 x: add of the device's tensors and the host's (2,) at script.py:<module> "
        "(script.py:4" in told
    )


@pytest.mark.parametrize("size", [1, 2])
def test_a_gpu_that_deepspeed_is_told_to_leave_alone_is_left_alone(size: int) -> None:
    seen = planted("beside_an_unused_gpu", "tests.rehearsal.pretended:unused_device", size)
    assert (seen["ranks"], seen["weights"], seen["peak"]) == ("cpu", {"cpu"}, 0)
    assert all(value > 0 for value in seen["loss"].values())
