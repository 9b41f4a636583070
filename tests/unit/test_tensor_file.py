"""Files of torch.save read tensor by tensor, and only when a tensor is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from yolods.checkpoint import tensor_file as module
from yolods.checkpoint.tensor_file import FileTensor, as_tensor, open_tensors
from yolods.device.host_copy import fill, host_copy

CONTENT: dict[str, Any] = {
    "flat": torch.arange(50.0),
    "window": torch.arange(40.0)[7:19],
    "half": torch.linspace(-2, 2, 12).bfloat16().view(3, 4),
    "format": torch.arange(120.0).view(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "columns": torch.arange(30).view(5, 6)[:, ::2],
    "count": torch.tensor(7.0),
    "nothing": torch.zeros(0, 3),
    "nested": [{"step": 3, "moment": torch.ones(9)}, (1, ("a", None))],
    "numbers": np.arange(4),
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "READ_ALONG", -1)
    monkeypatch.setattr(module, "READ", 5)
    torch.save(CONTENT, tmp_path / "a.pt")
    return tmp_path / "a.pt"


TENSORS = [name for name, value in CONTENT.items() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("into", [torch.contiguous_format, torch.channels_last])
def test_every_tensor_is_read_as_it_was_written(path: Path, name: str, into: Any) -> None:
    stored, expected = open_tensors(path)[name], CONTENT[name]
    assert isinstance(stored, FileTensor)
    assert (stored.shape, stored.numel()) == (expected.shape, expected.numel())
    assert torch.equal(stored.read(), expected)
    assert stored.read().is_contiguous() == expected.is_contiguous() or name == "columns"
    target = torch.zeros(expected.shape, dtype=torch.float64)
    if expected.ndim == 4:
        target = target.to(memory_format=into)
    fill([target], [stored])
    assert torch.equal(target, expected.double())


@pytest.mark.parametrize("name", TENSORS)
def test_a_part_is_read_without_the_rest(path: Path, name: str) -> None:
    stored, expected = open_tensors(path)[name], CONTENT[name].reshape(-1)
    first, count = len(expected) // 3, len(expected) // 2
    assert torch.equal(stored.piece(first, count), expected[first : first + count])
    with pytest.raises(AssertionError, match="outside"):
        stored.piece(1, len(expected))


def test_a_tensor_keeps_its_values_in_another_shape(path: Path) -> None:
    stored = open_tensors(path)["half"].view_as(torch.zeros(12))
    assert torch.equal(stored.read(), CONTENT["half"].view(-1))


def test_what_is_no_tensor_stays_and_nests(path: Path) -> None:
    content = open_tensors(path)
    assert content["nested"][0]["step"] == 3 and content["nested"][1] == (1, ("a", None))
    assert content["numbers"].tolist() == [0, 1, 2, 3]
    copied = host_copy(content["nested"])
    assert copied[0]["moment"].tolist() == [1] * 9


def test_only_what_may_be_stored_and_is_large_stays_in_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lazy: Callable[[str], bool] = {"flat", "count"}.__contains__
    assert isinstance(open_tensors(path, stored=lazy)["flat"], FileTensor)
    assert torch.equal(open_tensors(path, stored=lazy)["half"], CONTENT["half"])
    monkeypatch.setattr(module, "READ_ALONG", 49)
    content = open_tensors(path, stored=lazy)
    assert isinstance(content["flat"], FileTensor)
    assert as_tensor(content["count"]) is content["count"]
    assert torch.equal(as_tensor(content["flat"]), CONTENT["flat"])


def test_a_file_that_was_cut_short_is_noticed(path: Path) -> None:
    stored = open_tensors(path)["flat"]
    path.write_bytes(path.read_bytes()[: stored._begin + 100])
    assert torch.equal(stored.piece(0, 25), CONTENT["flat"][:25])
    with pytest.raises(OSError, match="ends 100 bytes too early"):
        stored.piece(0, 50)


def test_a_torch_that_does_not_note_where_tensors_are_maps_the_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.notes_places(), "the torch of constraints.txt does"
    monkeypatch.setattr(module, "notes_places", lambda: False)
    content = open_tensors(path)
    for name in TENSORS:
        assert torch.equal(as_tensor(content[name]), CONTENT[name])
