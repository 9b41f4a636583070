"""Which tensors of a model come from a given .pt, and how: by name, shape and class name.

Source: ultralytics nn/tasks.py 8.4.190, `BaseModel.load` and `_remap_cls_by_names`, which need both
models in memory. One thing is left out: for another number of classes ultralytics also replaces the
hidden layers of the class branch by those of the file, in their widths. The model would then be
another than the one that its yaml describes, and that checkpoints and .pt files are written for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yolods.errors import UserError
from yolods.model.weights import PtFile

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

_Copy = Callable[[Tensor, Tensor], None]
"""Copies from a tensor of the file (second) into one of the model (first)."""
_FIRST = "model.0.conv.weight"
"""The weight that also fits with other numbers of channels."""


class WeightTransfer:
    """Copies a file's weights into a model, one tensor at a time."""

    def __init__(
        self, target: DetectionModel, names: Sequence[str], file: PtFile, *, by_name: bool = True
    ) -> None:
        """Decide about every tensor; nothing is read yet.

        Args:
            target: the model, or its like on the meta device.
            names: its class names in the order of their ids.
            by_name: whether to match rows of the class head by class name.

        Raises:
            UserError: no tensor fits.
        """
        self._file = file
        wanted, given = target.state_dict(), file.shapes
        rows = _rows_by_name(names, file.names) if by_name else None
        by_row = {} if rows is None else dict.fromkeys(_class_layers(target, len(names)), rows)
        ways = {
            name: _way(name, tensor.shape, given[name], by_row.get(name))
            for name, tensor in wanted.items()
            if name in given
        }
        self._ways = {name: way for name, way in ways.items() if way is not None}
        self.note = f"Transferred {len(self._ways)}/{len(wanted)} tensors from {file.path}"
        """A line for the log."""
        # Batch counters and the bins of the DFL fit any model and carry no training.
        if not any(
            name in self._ways and parameter.requires_grad
            for name, parameter in target.named_parameters()
        ):
            raise UserError("--weights: no tensor of the checkpoint fits this model")

    def replaces(self, name: str) -> bool:
        """Whether all elements of a tensor come from the file."""
        return self._ways.get(name) is _copy_all

    @torch.no_grad()
    def fill(self, name: str, tensor: Tensor) -> None:
        """Copy what the file has for the model's tensor `name` into `tensor`.

        Raises:
            UserError: the file can no longer be read.
        """
        if name in self._ways:
            self._ways[name](tensor, self._file.read(name))


def _way(
    name: str, shape: torch.Size, given: torch.Size, rows: Mapping[int, int] | None
) -> _Copy | None:
    """How a tensor of shape `given` gets into one of shape `shape`; None: not at all."""
    if rows is not None and shape[1:] == given[1:]:
        return partial(_copy_rows, rows)
    if shape == given:
        return _copy_all
    if name == _FIRST and shape[2:] == given[2:]:
        return _copy_channels
    return None


def _copy_all(into: Tensor, value: Tensor) -> None:
    into.copy_(value)


def _copy_rows(rows: Mapping[int, int], into: Tensor, value: Tensor) -> None:
    into[list(rows)] = value[list(rows.values())].to(into.dtype)


def _copy_channels(into: Tensor, value: Tensor) -> None:
    """Fill as many channels as both have; a single input channel gets the sum over the file's."""
    outputs, inputs = (min(pair) for pair in zip(into.shape[:2], value.shape[:2], strict=True))
    value = value[:outputs].float()
    into[:outputs, :inputs] = value.sum(1, keepdim=True) if inputs == 1 else value[:, :inputs]


def _rows_by_name(ours: Sequence[str], theirs: Any) -> dict[int, int] | None:
    """Row of the file for each of our classes that it has.

    None: rows stay in their order, because they agree, because no name does, or because one side
    has numbers in place of names.
    """
    if not isinstance(theirs, dict):
        return None
    for names in (dict(enumerate(ours)), theirs):
        if all(str(row) == str(name) for row, name in names.items()):
            return None
    places = {_plain(name): row for row, name in theirs.items()}
    plain = [_plain(name) for name in ours]
    rows = {row: places[name] for row, name in enumerate(plain) if name in places}
    agree = len(ours) == len(theirs) and rows == {row: row for row in range(len(ours))}
    return None if agree or not rows else rows


def _plain(name: object) -> str:
    return str(name).strip().lower()


def _class_layers(net: DetectionModel, classes: int) -> Iterator[str]:
    """Names of the weights that have one row per class."""
    for level, branch in enumerate(net.model[-1].cv3):
        if branch[-1].out_channels == classes:
            last = f"model.{len(net.model) - 1}.cv3.{level}.{len(branch) - 1}"
            yield from (f"{last}.weight", f"{last}.bias")
