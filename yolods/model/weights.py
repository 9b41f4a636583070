"""Reads any ultralytics .pt safely, and takes over the weights that fit."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from yolods.compat import local_checkpoints
from yolods.errors import UserError

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

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
    check_file(path)
    from ultralytics.nn.tasks import DetectionModel, torch_safe_load

    try:
        with local_checkpoints():
            # Absolute: ultralytics deletes a damaged file with the bare name of one of its own
            # models and downloads that model.
            checkpoint, _ = torch_safe_load(str(path.absolute()), safe_only=True)
    # Damage raises many kinds of exceptions: zip, pickle, refused class.
    except Exception as error:
        raise UserError(f"--weights {path}: {_UNLOADABLE}: {_one_line(error)}") from None
    net = (
        (checkpoint.get("ema") or checkpoint.get("model")) if isinstance(checkpoint, dict) else None
    )
    # The exact type, because models of other tasks derive from it.
    if type(net) is not DetectionModel:
        raise UserError(
            f"--weights {path}: holds {type(net).__name__}, not an ultralytics detection model"
        )
    return net.float()


def check_file(path: Path) -> None:
    """Refuse a file by its format and by its pickle's class names, without executing anything.

    Raises:
        UserError: the file is missing, not an archive as torch writes it, or an original
            anchor-based yolov5 checkpoint.
    """
    if not path.is_file():
        raise UserError(f"--weights {path}: no such file (weights are never downloaded)")
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"--weights {path}: {_UNLOADABLE}: it is damaged, cut short or another kind of file"
        )
    if _is_original_yolov5(path):
        raise UserError(
            f"--weights {path}: an original anchor-based yolov5 checkpoint. YOLOv5 here is "
            "ultralytics' anchor-free YOLOv5u: its head differs and these weights do not fit. Use "
            "a YOLOv5u file (for example yolov5nu.pt), or train from scratch without --weights"
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


def transfer(net: DetectionModel, source: DetectionModel) -> tuple[int, int]:
    """Copy every weight of `source` that fits into `net`, by name and shape.

    Rows of the class head are matched by class name.

    Returns:
        the number of copied tensors, and the number of tensors of `net`.

    Raises:
        UserError: no tensor fits.
    """
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load(source, verbose=False)
    given = source.state_dict()
    after = net.state_dict()
    # `load` does not report what it copied. A tensor of another shape counts if it changed: class
    # rows, for example.
    taken = {
        name
        for name, tensor in after.items()
        if name in given
        and (given[name].shape == tensor.shape or not torch.equal(tensor, before.get(name, tensor)))
    }
    # Batch counters and the bins of the DFL fit any model and carry no training.
    if not any(
        name in taken and parameter.requires_grad for name, parameter in net.named_parameters()
    ):
        raise UserError("--weights: no tensor of the checkpoint fits this model")
    return len(taken), len(after)
