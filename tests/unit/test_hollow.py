"""Operations without memory have the results that torch's fake tensors have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolods.compat import fake_tensors
from yolods.model.graph.hollow import Hollow, HollowMode, MetaMode, run_hollow


def shape_of(tensor: Tensor) -> tuple[Any, ...]:
    """What a result is known by."""
    bytes_held = tensor.untyped_storage().nbytes()
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, bytes_held


def convolved(layout: torch.memory_format, dtype: torch.dtype) -> list[Tensor]:
    """A convolution, BatchNorm and SiLU, and all gradients."""
    image = torch.empty(5, 3, 8, 8, dtype=dtype).to(memory_format=layout).requires_grad_()
    weight = torch.empty(4, 3, 3, 3, dtype=dtype, requires_grad=True)
    scale, mean = torch.empty(4, requires_grad=True), torch.empty(4)
    found = F.conv2d(image, weight, padding=1)
    found = F.batch_norm(found, mean, mean.clone(), scale, scale, training=True).to(dtype)
    found = F.silu(found, inplace=True)
    found.sum().backward()
    return [found, image.grad, weight.grad, scale.grad]


def rearranged() -> list[Tensor]:
    """Views, parts of them, and what is larger than what is seen of it."""
    whole = torch.empty(4, 6)
    parts = whole.chunk(2, 1)
    return [*parts, parts[1].t(), whole[2:].add(1), torch.cat(parts), whole.expand(3, 4, 6)]


CASES: dict[str, Callable[[], list[Tensor]]] = {
    "fp32": lambda: convolved(torch.contiguous_format, torch.float32),
    "channels-last": lambda: convolved(torch.channels_last, torch.float32),
    "bf16": lambda: convolved(torch.channels_last, torch.bfloat16),
    "views": rearranged,
    "pooled": lambda: [*F.max_pool2d(torch.empty(2, 3, 8, 8), 3, return_indices=True)],
    "numbers": lambda: [torch.empty(3, dtype=torch.int64) * number for number in (2, 2.0, True)],
    "created": lambda: [torch.zeros(3), torch.arange(7), torch.full((2,), 1.5)],
}


@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_fake_tensors(name: str) -> None:
    with fake_tensors():
        fake = CASES[name]()
    with HollowMode():
        first, again = CASES[name](), CASES[name]()
    assert all(type(each) is Hollow and each.device.type == "cpu" for each in again)
    assert [*map(shape_of, again)] == [*map(shape_of, first)] == [*map(shape_of, fake)]


def test_views_share_their_storage_and_changes_in_place_return_their_tensor() -> None:
    with HollowMode():
        for _ in range(2):
            whole = torch.empty(10)
            assert whole[2:4].untyped_storage() is whole.untyped_storage()
            assert whole.add_(1) is whole


def test_autocast_takes_them_for_tensors_of_a_cpu() -> None:
    with HollowMode(), torch.autocast("cpu", torch.bfloat16):
        found = F.linear(torch.empty(2, 3), torch.empty(4, 3))
    assert found.dtype == torch.bfloat16


def test_tensors_on_meta_stay_there() -> None:
    layer = nn.BatchNorm2d(3, device="meta")
    with MetaMode():
        found = [layer(torch.empty(2, 3, 4, 4, device="meta")) for _ in range(2)]
    assert all(type(each) is Tensor and each.is_meta for each in found)
    assert found[1].requires_grad and found[1].shape == (2, 3, 4, 4)


def test_values_on_a_cpu_remain_beside_tensors_on_meta() -> None:
    with HollowMode():
        hollow = torch.zeros(3)
    with MetaMode():
        values = torch.zeros(3) + 1
        moved = values.to("meta")
    assert values.tolist() == [1, 1, 1] and moved.is_meta and hollow.shape == moved.shape


def test_what_depends_on_values_is_refused() -> None:
    with HollowMode(), pytest.raises(RuntimeError):
        bool(torch.empty(1) > 0)


def test_an_operation_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from yolods.model.graph import hollow

    asked, found = [], hollow._found
    monkeypatch.setattr(hollow, "_found", lambda *given: asked.append(given[0]) or found(*given))
    monkeypatch.setattr(hollow, "_RESULTS", {})
    with HollowMode():
        tensors = [torch.empty(4, size) for size in (5, 5, 6)]
        made = [each + 1 for each in tensors]
    assert len(asked) == 4 and made[0].shape == made[1].shape != made[2].shape
    run_hollow(torch.ops.aten.empty.memory_format, ([4, 5],), {"device": torch.device("cpu")})
