"""Reads files of `torch.save` tensor by tensor, so that none is ever whole in memory.

Mapping a file into memory would do this as well, but all pages that were read would count as
memory of the process, until the kernel needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolods.compat import notes_places, place_in_file
from yolods.device.host_copy import fill
from yolods.device.stored import Stored
from yolods.system.files import read_at

READ = 1 << 24
"""Elements per read: 64 MiB in fp32."""
READ_ALONG = 1 << 16
"""Elements of a tensor that is not worth a read of its own."""


class FileTensor(Stored):
    """A tensor in a file, contiguous or with strides."""

    def __init__(self, path: Path, like: Tensor, begin: int) -> None:
        """
        Args:
            path: the file, which has to exist until the tensor has been read.
            like: on the meta device.
            begin: position of the tensor's first element in the file, in bytes.
        """
        super().__init__(like)
        self._path, self._begin = path, begin

    def view_as(self, other: Tensor) -> FileTensor:
        """The same values in the shape of `other`, which has as many elements."""
        return FileTensor(self._path, self.like.view(other.shape), self._begin)

    def write_to(self, target: Tensor) -> None:
        """See `Stored.write_to`."""
        if not (self.like.is_contiguous() and target.is_contiguous()):
            fill([target], [self._strided().view_as(target)])
            return
        for start in range(0, self.numel(), READ):
            here = target.view(-1)[start : start + READ]
            fill([here], [self.piece(start, len(here))])

    def piece(self, start: int, count: int) -> Tensor:
        """`count` of the flattened tensor's elements from `start` on, in new memory.

        Raises:
            OSError: the file cannot be read, or ends too early.
        """
        assert 0 <= start <= start + count <= self.numel(), "outside of the tensor"
        if not self.like.is_contiguous():
            return self._strided().reshape(-1)[start : start + count].clone()
        return self._elements(start, count)

    def _strided(self) -> Tensor:
        """The whole tensor with its strides."""
        if not self.numel():
            return torch.empty_like(self.like, device="cpu")
        steps = zip(self.like.shape, self.like.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in steps)
        return self._elements(0, extent).as_strided(self.like.shape, self.like.stride())

    def _elements(self, start: int, count: int) -> Tensor:
        values = torch.empty(count, dtype=self.like.dtype)
        if not count:
            return values
        room = memoryview(values.view(torch.uint8).numpy())
        begin = self._begin + start * self.like.element_size()
        if missing := read_at(self._path, begin, room):
            raise OSError(f"{self._path} ends {missing} bytes too early")
        return values


def open_tensors(path: Path, *, stored: Callable[[str], bool] = lambda _: True) -> Any:
    """The content of a file of `torch.save`, in which FileTensors stand for larger tensors.

    `weights_only` is off because it refuses the numpy arrays in RNG states; a run wrote the file
    itself, so unpickling it is safe.

    Args:
        path: the file.
        stored: whether the tensors under this key of the file's dictionary may be FileTensors.
    """

    def at_once(like: Tensor) -> Tensor:
        return as_tensor(file_tensor(path, like))

    def if_small(like: Tensor) -> Tensor | FileTensor:
        return at_once(like) if like.numel() <= READ_ALONG else file_tensor(path, like)

    return {
        key: _walk(value, if_small if stored(key) else at_once)
        for key, value in load_places(path).items()
    }


def load_places(path: Path) -> Any:
    """The content of a file of `torch.save`, with tensors on the meta device for `file_tensor`."""
    if not notes_places():
        return torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    return torch.load(path, map_location="meta", weights_only=False)


def file_tensor(path: Path, like: Tensor) -> Tensor | FileTensor:
    """What stands for a tensor whose values were left in the file."""
    begin = place_in_file(like)
    if begin is None:
        return like
    return FileTensor(path, like, begin + like.storage_offset() * like.element_size())


def _walk(value: Any, each: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return each(value)
    if isinstance(value, dict):
        return {key: _walk(one, each) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_walk(one, each) for one in value)
    return value


def as_tensor(tensor: Tensor | Stored) -> Tensor:
    """The tensor, read if it is stored."""
    return tensor.read() if isinstance(tensor, Stored) else tensor
