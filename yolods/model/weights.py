"""Plain .pt files: reading any ultralytics checkpoint safely, and writing ones that `ultralytics.YOLO()` loads."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Mapping
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from yolods.compat import local_checkpoints
from yolods.errors import UserError
from yolods.system.files import replace_file

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

_UNLOADABLE = "not a loadable ultralytics checkpoint"
_ORIGINAL = re.compile(r"models\.(yolo|common|experimental)( \w+)?")
"""A module of the original repository as a pickle names it: with a class behind it, or in a string of its own."""


def read_pt(path: Path) -> DetectionModel:
    """Load the fp32 model of an ultralytics detection checkpoint without running code from the file.

    Only classes on ultralytics' own allow-list are reconstructed (`torch.load(weights_only=True)`).

    Raises:
        UserError: missing, damaged, an original anchor-based yolov5 checkpoint, or not a detection model.
    """
    check_file(path)
    from ultralytics.nn.tasks import DetectionModel, torch_safe_load

    try:
        with local_checkpoints():
            # Absolute, because a damaged file whose bare name is one of ultralytics' own is deleted and downloaded.
            checkpoint, _ = torch_safe_load(str(path.absolute()), safe_only=True)
    except Exception as error:  # every kind of damage ends here: zip, pickle, refused class
        raise UserError(f"--weights {path}: {_UNLOADABLE}: {_one_line(error)}") from None
    net = (checkpoint.get("ema") or checkpoint.get("model")) if isinstance(checkpoint, dict) else None
    if type(net) is not DetectionModel:  # models of other tasks are made of it
        raise UserError(f"--weights {path}: holds {type(net).__name__}, not an ultralytics detection model")
    return net.float()


def check_file(path: Path) -> None:
    """Refuse what can be told from the outside of a file and from its pickle's class names; nothing is executed.

    Raises:
        UserError: missing, not an archive as torch writes them, or an original anchor-based yolov5 checkpoint.
    """
    if not path.is_file():
        raise UserError(f"--weights {path}: no such file (weights are never downloaded)")
    if not zipfile.is_zipfile(path):
        raise UserError(f"--weights {path}: {_UNLOADABLE}: it is damaged, cut short or another kind of file")
    if _is_original_yolov5(path):
        raise UserError(
            f"--weights {path}: an original anchor-based yolov5 checkpoint. YOLOv5 here is ultralytics' anchor-free "
            "YOLOv5u: its head differs and these weights do not fit. Use a YOLOv5u file (for example yolov5nu.pt), "
            "or train from scratch by leaving --weights out"
        )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _is_original_yolov5(path: Path) -> bool:
    """Whether the pickle inside names classes of the original repository: `models.yolo`, `models.common`."""
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            operations = pickletools.genops(archive.read(inner))
            return any(isinstance(argument, str) and _ORIGINAL.fullmatch(argument) for _, argument, _ in operations)
    except (zipfile.BadZipFile, StopIteration, ValueError, OSError):
        return False


def transfer(net: DetectionModel, source: DetectionModel) -> tuple[int, int]:
    """Copy every weight of `source` whose name and shape fit into `net`; class rows are matched by class name.

    Returns:
        how many tensors were taken over, and how many `net` has.

    Raises:
        UserError: not a single tensor fits.
    """
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load(source, verbose=False)
    given = source.state_dict()
    after = net.state_dict()
    taken = {
        name
        for name, tensor in after.items()
        if name in given and (given[name].shape == tensor.shape or not torch.equal(tensor, before.get(name, tensor)))
    }
    # Counters of batches and the bins of the DFL fit any model, and teach it nothing.
    if not any(name in taken and parameter.requires_grad for name, parameter in net.named_parameters()):
        raise UserError("--weights: no tensor of the checkpoint fits this model")
    return len(taken), len(after)


def write_pt(
    path: Path, skeleton: DetectionModel, weights: Mapping[str, Tensor], facts: Mapping[str, Any], *, half: bool = True
) -> None:
    """Write a checkpoint that `YOLO(path)` loads with nothing but ultralytics installed; atomically.

    Args:
        path: target; it is replaced in one rename, after the bytes are on the disk.
        skeleton: a plain CPU model of the same architecture; its weights are overwritten.
        weights: state_dict of the model, floating tensors in fp32; stored as fp16, as ultralytics does.
        facts: further top-level entries (epoch, train_args, train_metrics, ...).
        half: store fp16; else fp32.

    Raises:
        OSError: the disk is full or not writable; the earlier file is left whole.
    """
    skeleton.load_state_dict(dict(weights), strict=True)
    model = deepcopy(skeleton).to(memory_format=torch.contiguous_format).eval()
    model = model.half() if half else model
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            torch.nan_to_num_(tensor)
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
    save_atomically(path, content)


def save_atomically(path: Path, content: object) -> None:
    """`torch.save` beside `path`, flushed to the disk, then renamed over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: torch.save(content, file))


def plain_copy(net: nn.Module) -> DetectionModel:
    """A CPU copy of a freshly built model, to be the skeleton of later `write_pt` calls."""
    return deepcopy(net).cpu()
