"""The one pass over a step's gradients: exact in every dtype, and without a copy of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from yolods.zero.gradients import ROW, SMALL, Decision, Gradients, squares
from yolods.zero.shards import Span

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SIZES = [1, SMALL, SMALL + 1, ROW - 1, ROW + 1, 2 * ROW, 9 * ROW + 1, 2**20 + 12345]


def drawn(count: int, dtype: torch.dtype, deviation: float = 1.0) -> torch.Tensor:
    return (
        torch.randn(count, generator=torch.Generator().manual_seed(count)).mul_(deviation).to(dtype)
    )


def measured(parts: list[torch.Tensor]) -> torch.Tensor:
    return squares(parts, torch.arange(len(parts)), len(parts))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_are_those_of_fp64(dtype: torch.dtype) -> None:
    parts = [drawn(size, dtype) for size in SIZES]
    exact = torch.stack([part.double().square().sum() for part in parts])
    torch.testing.assert_close(measured(parts).double(), exact, rtol=1e-5, atol=0)


def test_parts_of_a_parameter_are_added_up_in_whatever_dtype_and_order() -> None:
    parts = [
        drawn(5, torch.float32),
        drawn(70000, torch.float16),
        drawn(3, torch.float16),
        drawn(9000, torch.float32),
    ]
    exact = [float(part.double().square().sum()) for part in parts]
    found = squares(parts, torch.tensor([2, 0, 2, 2]), 3)
    assert found.tolist() == pytest.approx(
        [exact[1], 0.0, exact[0] + exact[2] + exact[3]], rel=1e-5
    )


def test_a_gradient_that_no_loss_has_reached_is_none() -> None:
    assert measured([torch.zeros(0), torch.zeros(0, dtype=torch.float16)]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_halves_neither_overflow_nor_vanish_by_themselves(dtype: torch.dtype) -> None:
    large, little = (
        torch.full((ROW + 7,), 6e4, dtype=dtype),
        torch.full((ROW + 7,), 6e-8, dtype=dtype),
    )
    exact = [float(part.double().square().sum()) for part in (large, little)]
    # Equal numbers, whose sums are all rounded one way, are the worst that there is.
    assert measured([large, little]).tolist() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [5, SMALL + 9, 3 * ROW + 1, 9 * ROW + 3])
@pytest.mark.parametrize("bad", ["inf", "-inf", "nan"])
def test_what_is_not_finite_is_told_apart_wherever_it_lies(
    dtype: torch.dtype, size: int, bad: str
) -> None:
    for place in (0, size // 2, size - 1):
        part = drawn(size, dtype)
        part[place] = float(bad)
        found = measured([torch.ones(SMALL * 2, dtype=dtype), part])
        assert float(found[0]) == pytest.approx(SMALL * 2)
        assert found[1].isnan() if bad == "nan" else found[1] == float("inf")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_gradient_is_copied(dtype: torch.dtype) -> None:
    parts = [drawn(2**20, dtype), drawn(2**20 + 1, dtype)]
    with torch.autograd.profiler.profile(profile_memory=True) as seen:
        measured(parts)
    events = seen.kineto_results.events()
    allocated = sum(max(event.nbytes(), 0) for event in events if event.name() == "[memory]")
    assert allocated < 2**16, "a copy in fp32 would be of 8 MiB"


def settled(decision: Decision) -> list[float]:
    """A shard of two parameters, all ones, as an optimizer without a fused kernel gets it."""
    own = SimpleNamespace(
        decision=decision,
        _folded=lambda device: False,
        _spans=[[Span("a", 0, 1, 0), Span("b", 1, 2, 0)]],
    )
    flat = torch.ones(3)
    Gradients._settle(own, flat, 0)  # type: ignore[arg-type]
    return flat.tolist()


def test_a_shard_is_unscaled_and_clipped_where_no_kernel_does_it() -> None:
    assert settled(Decision(factor=0.5)) == [0.5, 0.5, 0.5]
    assert settled(Decision(factor=0.5, limit=0.25)) == [0.25, 0.25, 0.25]
    assert settled(Decision(factors={"a": 0.5, "b": 2.0})) == [0.5, 2.0, 2.0]
    assert settled(Decision()) == [1.0, 1.0, 1.0]
