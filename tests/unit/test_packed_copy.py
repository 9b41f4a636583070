"""Small tensors in one copy."""

from __future__ import annotations

import torch

from yolods.device.packed_copy import pack, send, unpack

TENSORS = [
    torch.arange(6).view(2, 3),
    torch.tensor([1.5, -2.0]),
    torch.tensor(7.0),
    torch.empty(0, 4),
    torch.tensor([True, False, True]),
]


def test_what_is_packed_comes_out_with_its_shape_type_and_values():
    parcel = pack(TENSORS, pinned=False)
    assert parcel.dtype == torch.uint8 and len(parcel) == 6 * 8 + 3 * 4 + 3
    for tensor, found in zip(TENSORS, unpack(parcel, TENSORS), strict=True):
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(found, tensor)


def test_a_tensor_that_is_not_contiguous_is_packed_in_its_order():
    tensor = torch.arange(6).view(2, 3).t()
    (found,) = unpack(pack([tensor], pinned=False), [tensor])
    assert torch.equal(found, tensor)


def test_on_the_host_nothing_is_copied():
    assert all(
        one is other for one, other in zip(send(TENSORS, torch.device("cpu")), TENSORS, strict=True)
    )


def test_to_a_device_they_go_as_one():
    sent = send(TENSORS, torch.device("meta"))
    assert [each.shape for each in sent] == [each.shape for each in TENSORS]
    assert len({each.untyped_storage()._cdata for each in sent}) == 1
