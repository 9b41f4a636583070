"""Plain .pt files that `ultralytics.YOLO()` loads, written and read tensor by tensor.

A file of `torch.save` is a zip archive: `data.pkl` is a pickle of the model in which numbers stand
for the tensors' memory, and `data/<number>` holds the bytes of each, uncompressed and aligned, so
that they can be mapped (torch/serialization.py, `_save`, 2.13). `torch.save` needs the whole model
in memory. Here the pickle is made from a model without memory, and then each tensor's record is
written when the tensor arrives, whatever its turn.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch
from torch import Tensor, nn

from yolods.checkpoint.tensor_file import as_tensor, file_tensor
from yolods.model.weights import read_structure
from yolods.system.allocator import trim_before
from yolods.system.files import replace_file

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

ALIGNED = 64
"""Bytes: torch aligns records, so that tensors mapped from a file are aligned."""
STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}
"""What the format calls memory by the dtype of the tensor."""
_REBUILD = torch.empty(0).__reduce_ex__(2)[0]
_REBUILD_PARAMETER = nn.Parameter(torch.empty(0)).__reduce_ex__(2)[0]
"""The functions that build a tensor and a parameter again."""
LOCAL_HEADER, LARGE_HEADER = 30, 20
"""Bytes of a record's header in a zip archive without its name, and more if it is large."""
LARGE_BYTES = 1 << 30
"""Bytes from which a record counts as large; a plain header holds sizes below 4 GiB."""


def write_pt(
    path: Path,
    skeleton: DetectionModel,
    weights: Iterable[tuple[str, Tensor]],
    facts: Mapping[str, Any],
    *,
    half: bool = True,
) -> None:
    """Write a checkpoint that `YOLO(path)` loads with only ultralytics installed; atomically.

    Args:
        path: target; replaced in one rename after the bytes are on the disk.
        skeleton: the model, best on the meta device; its weights are not used.
        weights: every tensor of the model's state_dict in any order, floating-point ones in fp32;
            one at a time is held.
        facts: further top-level entries (epoch, train_args, train_metrics, ...).
        half: whether to store fp16, as ultralytics does; otherwise fp32.

    Raises:
        OSError: the disk is full or not writable; the earlier file stays whole.
        RuntimeError: a tensor is missing, unknown or of another shape; likewise.
    """
    model = deepcopy(skeleton).eval()
    model = model.half() if half else model
    model.criterion = None
    model.args = dict(facts.get("train_args", {}))
    import ultralytics

    content = {
        "epoch": -1,
        "best_fitness": None,
        "model": model,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": model.args,
        "date": datetime.now(timezone.utc).isoformat(),
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        **facts,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: _write(file, content, model, weights))


def _write(
    file: BinaryIO, content: Any, model: nn.Module, weights: Iterable[tuple[str, Tensor]]
) -> None:
    named = model.state_dict(keep_vars=True)
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    places = {name: pickler.numbers[id(tensor)] for name, tensor in named.items()}
    with zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", pickled.getvalue())
        for name, data in _frame().items():
            _add(archive, name, data)
        for number, tensor in enumerate(pickler.tensors):
            if number not in places.values():  # an attribute, such as the strides
                _add(archive, f"data/{number}", _bytes(tensor))
        for name, value in weights:
            number = places.pop(name, None)
            if number is None or value.shape != named[name].shape:
                raise RuntimeError(f"{name} {tuple(value.shape)} does not belong to the model")
            _add(archive, f"data/{number}", _bytes(_stored(value, named[name].dtype)))
            del value  # not held while the next one is made
    if places:
        raise RuntimeError(f"{', '.join(places)}: missing in the weights to write")


class _Pickler(pickle.Pickler):
    """Pickles tensors with or without memory as `torch.save` does, and numbers them."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, protocol=torch.serialization.DEFAULT_PROTOCOL)
        self.tensors: list[Tensor] = []
        """What `data/0`, `data/1`, ... are."""
        self.numbers: dict[int, int] = {}
        """The same by the tensor's identity."""

    def persistent_id(self, value: Any) -> Any:
        """What stands for a tensor's memory in the pickle."""
        if not isinstance(value, _Memory):
            return None
        tensor = value.tensor
        number = self.numbers[id(tensor)]
        return "storage", STORAGES[tensor.dtype], str(number), "cpu", tensor.numel()

    def reducer_override(self, value: Any) -> Any:
        """How a tensor is built again: as in torch/_tensor.py, `_reduce_ex_internal`."""
        if not isinstance(value, Tensor | _Plain):
            return NotImplemented
        if isinstance(value, nn.Parameter):
            about = _Plain(value), value.requires_grad, OrderedDict()
            return _REBUILD_PARAMETER, about
        tensor = value.parameter if isinstance(value, _Plain) else value
        self.numbers[id(tensor)] = len(self.tensors)
        self.tensors.append(tensor)
        strides = torch.empty(tensor.shape, device="meta").stride()
        about = _Memory(tensor), 0, tuple(tensor.shape), strides, False, OrderedDict()
        return _REBUILD, about


class _Memory:
    """Stands for the memory of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _Plain:
    """Stands for the tensor within a parameter."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A value as the file holds it."""
    if not value.is_floating_point():
        return value.to(dtype)
    # Values beyond fp16's range become inf; a loaded model must compute with finite numbers.
    return torch.nan_to_num(value.to(dtype))


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy())


OTHER = ("data.pkl", ".format_version", ".data/serialization_id")
"""Records of torch's format that are different here, or missing. The version would promise that the
tensors come in the order of their numbers, and with what torch's own writer puts between them, from
which readers may calculate where they are. The identity is a hash of all records."""


def _frame() -> dict[str, bytes]:
    """The records of torch's format that do not depend on the content."""
    empty = io.BytesIO()
    torch.save({}, empty)
    with zipfile.ZipFile(empty) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
        return {name: archive.read(f"archive/{name}") for name in names if name not in OTHER}


def _add(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """Write a record, uncompressed and aligned, with its checksum."""
    record = zipfile.ZipInfo(f"archive/{name}")
    large = len(data) >= LARGE_BYTES
    begin = archive.start_dir + LOCAL_HEADER + len(record.filename) + LARGE_HEADER * large
    # An extra field, of which readers skip what they do not know: its name, its length, and as many
    # bytes as move the data to a multiple of the alignment. torch's has the same name.
    missing = -(begin + 4) % ALIGNED
    record.extra = b"FB" + missing.to_bytes(2, "little") + b"Z" * missing
    with archive.open(record, "w", force_zip64=large) as entry:
        entry.write(data)


class PtWeights(Mapping[str, Tensor]):
    """The state_dict of a .pt that this run wrote; each tensor is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: the file is missing or damaged, or names other classes than ultralytics'.
        """
        named = read_structure(path, flag="").state_dict()
        self._tensors = {name: file_tensor(path, like) for name, like in named.items()}

    def __getitem__(self, name: str) -> Tensor:
        stored = self._tensors[name]
        trim_before(4 * stored.numel())
        return as_tensor(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)
