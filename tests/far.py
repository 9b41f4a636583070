"""Tensors that claim to lie on a GPU, for code that copies from one: they note each copy to the
host, and each wait."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch


class Far(torch.Tensor):
    """A CPU tensor, as is all that is computed from it."""

    blocking: ClassVar[int] = 0
    """Copies to the host that wait for the device, each by itself."""
    under_way: ClassVar[int] = 0
    """Copies that nobody has waited for yet."""
    waits: ClassVar[int] = 0
    """Waits for all that is under way."""

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def to(
        self, *where: Any, non_blocking: bool = False, copy: bool = False, **rest: Any
    ) -> torch.Tensor:
        assert where == ("cpu",), where
        Far._note(non_blocking)
        return self.as_subclass(torch.Tensor).clone()

    def cpu(self, *_: Any) -> torch.Tensor:  # type: ignore[override]
        return self.to("cpu")

    @classmethod
    def _note(cls, non_blocking: bool) -> None:
        cls.blocking += not non_blocking
        cls.under_way += non_blocking

    @classmethod
    def synchronize(cls) -> None:
        """The stream's."""
        cls.waits, cls.under_way = cls.waits + 1, 0


def far(values: Any) -> Far:
    """A tensor of these values that claims to lie on a GPU."""
    return torch.as_tensor(values).as_subclass(Far)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> type[Far]:
    """Counts afresh, for tests that import it by name."""
    Far.blocking = Far.under_way = Far.waits = 0
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Far)
    return Far
