"""Builds ultralytics' own DetectionModel from a model name or yaml.

YOLOv5 here is ultralytics' YOLOv5u: anchor-free, with a distribution focal loss head and without
objectness.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yolods.config.names.model_name import ModelName, parse_name
from yolods.errors import Faults, UserError, reason_of
from yolods.model.architecture.arguments import NOT_BUILT, check_layers, failing_layer
from yolods.model.architecture.description import read_description
from yolods.parsing.yaml_file import parse_yaml

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

__all__ = ["ModelName", "architecture", "build", "has_plain_head", "parse_name"]


def architecture(name: ModelName, nc: int, channels: int) -> dict[str, Any]:
    """The yaml dictionary from which ultralytics builds this model.

    Raises:
        UserError: the user's yaml does not describe a detection model.
    """
    if name.yaml is not None:
        return {**read_description(name.yaml), "nc": nc, "channels": channels}
    # Found without importing it, because the launcher also calls this.
    package = importlib.util.find_spec("ultralytics")
    assert package is not None and package.origin is not None
    models = Path(package.origin).parent / "cfg" / "models" / "v5"
    file = models / ("yolov5-p6.yaml" if name.p6 else "yolov5.yaml")
    layers = parse_yaml(file.read_text(encoding="utf-8"))
    if name.scale is not None:
        # A file name such as yolov5xx.yaml cannot express this: ultralytics looks up its letters
        # among the known sizes.
        layers["scales"] = {"custom": list(name.scale)}
    layers["scale"] = name.size or "custom"
    return {**layers, "nc": nc, "channels": channels}


def build(layers: dict[str, Any], names: tuple[str, ...]) -> DetectionModel:
    """Build an fp32 DetectionModel on the CPU with random weights from torch's global generator.

    Args:
        layers: what `architecture` returned; contains nc and channels.
        names: class names in the order of their ids.

    Raises:
        UserError: ultralytics cannot build it, or it does not end in a plain Detect head.
    """
    from ultralytics.nn.tasks import DetectionModel

    faults = Faults()
    check_layers(layers, faults)
    faults.raise_if_any()
    try:
        net = DetectionModel(dict(layers), ch=layers["channels"], nc=layers["nc"], verbose=False)
    # A user's yaml can cause any kind of exception.
    except Exception as error:
        raise UserError(f"{NOT_BUILT}: {failing_layer(layers)}{reason_of(error)}") from None
    if not has_plain_head(net):
        raise UserError(
            "the model must end in a plain Detect head (YOLOv5u); other heads and tasks are not "
            "supported"
        )
    net.names = dict(enumerate(names))
    net.nc = layers["nc"]
    return net


def has_plain_head(net: DetectionModel) -> bool:
    """Whether a model ends in YOLOv5u's Detect head, which predicts boxes and suppresses none."""
    from ultralytics.nn.modules.head import Detect

    return type(net.model[-1]) is Detect and getattr(net.model[-1], "one2one_cv2", None) is None
