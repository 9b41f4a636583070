"""Reads any ultralytics .pt safely, and takes over the weights that fit."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yolods.compat import local_checkpoints, place_in_file, values_left_in_file
from yolods.errors import UserError
from yolods.system.files import read_at

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

WEIGHTS_FLAG = "--weights "
_UNLOADABLE = "not a loadable ultralytics checkpoint"
_ORIGINAL = re.compile(r"models\.(yolo|common|experimental)( \w+)?")
"""A module of the original repository in a pickle: with a class name, or as its own string."""


def read_pt(path: Path) -> DetectionModel:
    """Load an ultralytics detection model in fp32 without running code from the file.

    Only classes on ultralytics' own allow-list are reconstructed (`torch.load(weights_only=True)`).

    Raises:
        UserError: the file is missing, damaged, an original anchor-based yolov5 checkpoint, or not
            a detection model.
    """
    net = _loaded(path).float()
    _check_sums(path)
    return net


def check_whole(path: Path) -> None:
    """Refuse a file whose tensors cannot be read one at a time, or of which a byte has changed.

    It reads the whole file, so one process does it for all ranks.

    Raises:
        UserError: as `read_pt`.
    """
    PtFile(path)
    _check_sums(path)


def read_structure(path: Path, flag: str = WEIGHTS_FLAG) -> DetectionModel:
    """As `read_pt`, with the values left in the file; `place_in_file` tells where they are.

    Its tensors are on the meta device, or map the file where torch does not note places.

    Args:
        path: the file.
        flag: what a message begins with.

    Raises:
        UserError: as `read_pt`.
    """
    with values_left_in_file():
        return _loaded(path, flag)


class PtFile:
    """An ultralytics .pt whose tensors are read one at a time, when they are asked for.

    It holds the model's structure and nothing else, so a host never has the whole in memory. It
    reads instead of mapping the file, because a mapped file that is cut short or on a lost network
    drive would kill the process with SIGBUS.
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: as `read_pt`.
        """
        self.path = path
        net = read_structure(path)
        self.names: Any = net.names
        """Class names as the file has them, usually {id: name}."""
        self._tensors: dict[str, Tensor] = net.state_dict()
        # One for all reads: memory that is freed between tensors that stay would leave gaps.
        self._room = torch.empty(
            max((_bytes(tensor) for tensor in self._tensors.values()), default=0), dtype=torch.uint8
        )

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each tensor, by its name in the state_dict."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name: str) -> Tensor:
        """The values of one tensor, in the dtype of the file, until the next tensor is read.

        Raises:
            UserError: the file can no longer be read, or is shorter than before.
        """
        listed = self._tensors[name]
        begin = place_in_file(listed)
        if begin is None:  # The file is mapped, as this torch does not note places.
            return listed.clone()
        place = begin + listed.storage_offset() * listed.element_size()
        part = self._room[: _bytes(listed)]
        try:
            missing = read_at(self.path, place, memoryview(part.numpy()))
        except OSError as error:
            raise UserError(f"--weights {self.path}: {error.strerror or error}") from None
        if missing:
            raise UserError(f"--weights {self.path}: the file has become shorter while it was read")
        return part.view(listed.dtype).as_strided(listed.shape, listed.stride())


def _bytes(tensor: Tensor) -> int:
    """Bytes from the first to the last element; a tensor may be a view with gaps."""
    if not tensor.numel():
        return 0
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in sides)) * tensor.element_size()


def _loaded(path: Path, flag: str = WEIGHTS_FLAG) -> DetectionModel:
    """The model of a .pt in the dtype of the file; raises as `read_pt`."""
    check_file(path, flag)
    from ultralytics.nn.tasks import DetectionModel, torch_safe_load

    try:
        with local_checkpoints():
            # Absolute: ultralytics deletes a damaged file with the bare name of one of its own
            # models and downloads that model.
            checkpoint, _ = torch_safe_load(str(path.absolute()), safe_only=True)
    # Damage raises many kinds of exceptions: zip, pickle, refused class.
    except Exception as error:
        raise UserError(f"{flag}{path}: {_UNLOADABLE}: {_one_line(error)}") from None
    net = checkpoint
    if isinstance(checkpoint, dict):
        models = (checkpoint.get(key) for key in ("ema", "model"))
        net = next((model for model in models if model is not None), checkpoint)
    # The exact type, because models of other tasks derive from it.
    if type(net) is not DetectionModel:
        raise UserError(
            f"{flag}{path}: holds {type(net).__name__}, not an ultralytics detection model"
        )
    return net


def check_file(path: Path, flag: str = WEIGHTS_FLAG) -> None:
    """Refuse a file by its format and by its pickle's class names, without executing anything.

    Args:
        path: the file.
        flag: what a message begins with.

    Raises:
        UserError: the file is missing, not an archive as torch writes it, or an original
            anchor-based yolov5 checkpoint.
    """
    if path.is_dir():
        raise UserError(f"{flag}{path}: this is a folder; name a .pt in it")
    if not path.is_file():
        raise UserError(f"{flag}{path}: no such file (weights are never downloaded)")
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{flag}{path}: {_UNLOADABLE}: it is damaged, cut short or another kind of file"
        )
    if _is_original_yolov5(path):
        raise UserError(
            f"{flag}{path}: an original anchor-based yolov5 checkpoint. YOLOv5 here is "
            "ultralytics' anchor-free YOLOv5u: its head differs and these weights do not fit. Use "
            "a YOLOv5u file (for example yolov5nu.pt), or train from scratch without --weights"
        )


def _check_sums(path: Path) -> None:
    """Compare the checksums of an archive's parts, which torch does not.

    A changed weight would otherwise train, as a number or as a nan.

    Raises:
        UserError: a part does not have its checksum, or cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    # Damage raises many kinds of exceptions, an encrypted archive RuntimeError.
    except Exception as error:
        raise UserError(f"{WEIGHTS_FLAG}{path}: {_UNLOADABLE}: {_one_line(error)}") from None
    if damaged:
        raise UserError(
            f"{WEIGHTS_FLAG}{path}: {_UNLOADABLE}: {damaged} in it does not have its checksum, so "
            "the file is damaged; copy it again"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _is_original_yolov5(path: Path) -> bool:
    """Whether the pickle names classes of the original repository (`models.yolo`, ...)."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            operations = pickletools.genops(archive.read(inner))
            return any(
                isinstance(argument, str) and _ORIGINAL.fullmatch(argument)
                for _, argument, _ in operations
            )
    except (zipfile.BadZipFile, StopIteration, ValueError, OSError):
        return False
