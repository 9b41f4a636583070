"""A log of the storages that operations allocate: their bytes, and when each begins and ends."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class StorageLog(TorchDispatchMode):
    """Within: every storage that operations allocate, with its first and its last moment.

    A moment is the number of beginnings and endings before it. What a kernel allocates for itself
    is not seen, but can be told.
    """

    def __init__(
        self,
        before: Callable[[], None] | None = None,
        workspace: Callable[[Any, tuple[Any, ...]], tuple[int, int]] | None = None,
        *,
        device: str = "cpu",
        run: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any] | None = None,
    ) -> None:
        """
        Args:
            before: called before every operation.
            workspace: returns the bytes that an operation with these arguments allocates and frees
                beside its results: for any number of images, and in addition for several.
            device: kind of device whose storages are logged; those of hollow tensors are on "meta".
            run: runs an operation with these arguments; None: torch does.
        """
        super().__init__()
        self._before, self._workspace, self._device = before, workspace, device
        self._run = run
        self.now = 0
        """The present moment."""
        self.sizes: list[int] = []
        """Bytes of each storage, in the order of their beginnings."""
        self.born: list[int] = []
        """The moment at which each begins."""
        self.dead: list[int] = []
        """The moment at which each ends; -1 while it lives."""
        self.for_several: list[int] = []
        """Numbers of the storages that a single image does not need."""
        self._known: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = (
            weakref.WeakKeyDictionary()
        )

    def leave_out(self, *tensors: Tensor) -> None:
        """Do not count the storages of these tensors, however often operations return them."""
        for tensor in tensors:
            number = self._known.setdefault(tensor.untyped_storage(), -1)
            if number >= 0:
                self.sizes[number] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and log what it allocates."""
        if self._before is not None:
            self._before()
        kwargs = kwargs or {}
        result = func(*args, **kwargs) if self._run is None else self._run(func, args, kwargs)
        for each in result if isinstance(result, list | tuple) else (result,):
            if isinstance(each, Tensor):
                self._log(each.untyped_storage())
        if self._workspace is not None:
            self._use(*self._workspace(func, args))
        return result

    def held(self) -> np.ndarray:
        """(moments + 1,) int64 bytes that exist at each moment; 0 after the last one."""
        dead = np.array(self.dead, np.int64)
        return held_bytes(
            np.array(self.sizes, np.int64),
            np.array(self.born, np.int64),
            np.where(dead < 0, self.now, dead),
            self.now,
        )

    def _use(self, always: int, for_several: int) -> None:
        """Log what an operation allocates and frees; both at once."""
        first = len(self.sizes)
        if always:
            self._begin(always)
        if for_several:
            self.for_several.append(len(self.sizes))
            self._begin(for_several)
        for number in range(first, len(self.sizes)):
            self._end(number)

    def _log(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known or storage.device.type != self._device:
            return
        self._known[storage] = len(self.sizes)
        weakref.finalize(storage, self._end, len(self.sizes))
        self._begin(storage.nbytes())

    def _begin(self, size: int) -> None:
        self.sizes.append(size)
        self.born.append(self.now)
        self.dead.append(-1)
        self.now += 1

    def _end(self, number: int) -> None:
        self.dead[number] = self.now
        self.now += 1


def held_bytes(sizes: np.ndarray, born: np.ndarray, dead: np.ndarray, length: int) -> np.ndarray:
    """(length + 1,) int64 bytes that exist at each moment.

    A storage counts from the moment of its beginning to that before its end.
    """
    changes = np.zeros(length + 1, np.int64)
    np.add.at(changes, born, sizes)
    np.add.at(changes, dead, -sizes)
    return changes.cumsum()
