"""From a model name (or yaml) to ultralytics' own DetectionModel.

YOLOv5 here is ultralytics' YOLOv5u: anchor-free, with a distribution focal loss head and no objectness.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from yolods.errors import UserError, nearest

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

SIZES = ("n", "s", "m", "l", "x")
_ZOO = re.compile(r"^yolov5(?P<size>[nsmlx])u?(?P<p6>6u?|-p6)?$")
_CUSTOM = re.compile(r"^yolov5\[(?P<depth>\d+\.?\d*|\.\d+),\s*(?P<width>\d+\.?\d*|\.\d+)\](?P<p6>6|-p6)?$")


@dataclass(frozen=True)
class ModelName:
    """What a model name says, before anything is built."""

    text: str
    """The name as the user wrote it."""
    p6: bool
    """Whether the model has a fourth level (stride 64)."""
    scale: tuple[float, float, int] | None
    """depth multiple, width multiple, largest channel count; None: one of the yaml's own sizes."""
    size: str | None
    """One of n, s, m, l, x, where the name is of the zoo."""
    yaml: Path | None
    """The user's own model yaml."""

    @property
    def stride(self) -> int:
        """Largest stride in pixels, which the image size has to be a multiple of."""
        return 64 if self.p6 else 32


def parse_name(text: str) -> ModelName:
    """Read `yolov5n`..`yolov5x`, `yolov5n6`..`yolov5x6`, `yolov5[depth,width]`, `yolov5[depth,width]6` or a yaml path.

    Raises:
        UserError: the name is none of these, or its yaml does not exist.
    """
    plain = text.removesuffix(".yaml").removesuffix(".yml")
    if match := _ZOO.match(plain):
        return ModelName(text, bool(match["p6"]), None, match["size"], None)
    if match := _CUSTOM.match(plain):
        depth, width = float(match["depth"]), float(match["width"])
        if not (0 < depth <= 16 and 0 < width <= 16):
            raise UserError(f"--model {text}: depth {depth:g} and width {width:g} have to lie in (0, 16]")
        return ModelName(text, bool(match["p6"]), (depth, width, 1024), None, None)
    if text.endswith((".yaml", ".yml")):
        if not Path(text).is_file():
            raise UserError(f"--model {text}: no such file, and not a size of the zoo (yolov5n.yaml .. yolov5x6.yaml)")
        # Whether it has a fourth level is read from the layers when it is built; until then assume the usual three.
        return ModelName(text, False, None, None, Path(text))
    if text.endswith(".pt"):
        raise UserError(f"--model {text}: give weights by --weights {text}; --model names an architecture")
    known = [f"yolov5{size}{six}" for size in SIZES for six in ("", "6")]
    raise UserError(
        f"--model {text}: unknown model{nearest(text, known)}; "
        "use yolov5n, s, m, l, x (with 6 for four levels), yolov5[depth,width], or a model yaml"
    )


def architecture(name: ModelName, nc: int, channels: int) -> dict[str, Any]:
    """The yaml dictionary that ultralytics builds this model from.

    Raises:
        UserError: the user's yaml does not describe a detection model.
    """
    if name.yaml is not None:
        return {**_read_user_yaml(name.yaml), "nc": nc, "channels": channels}
    from ultralytics.utils import ROOT

    file = ROOT / "cfg" / "models" / "v5" / ("yolov5-p6.yaml" if name.p6 else "yolov5.yaml")
    layers = yaml.safe_load(file.read_text(encoding="utf-8"))
    if name.scale is not None:
        # A file called yolov5xx.yaml cannot say this: ultralytics looks its letters up among the known sizes.
        layers["scales"] = {"custom": list(name.scale)}
    layers["scale"] = name.size or "custom"
    return {**layers, "nc": nc, "channels": channels}


def _read_user_yaml(path: Path) -> dict[str, Any]:
    try:
        layers = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"--model {path}: not valid yaml: {' '.join(str(error).split())}") from None
    missing = [key for key in ("backbone", "head") if not isinstance(layers, dict) or key not in layers]
    if missing:
        raise UserError(f"--model {path}: not a model yaml, it lacks {' and '.join(missing)}")
    layers.setdefault("scale", next(iter(layers["scales"]), "") if layers.get("scales") else "")
    return layers


def build(layers: dict[str, Any], names: tuple[str, ...]) -> DetectionModel:
    """Build an fp32 DetectionModel on the CPU with randomly initialised weights (torch's global RNG decides them).

    Args:
        layers: what `architecture` returned; holds nc and channels.
        names: class names in the order of their ids.

    Raises:
        UserError: ultralytics cannot build it, or it does not end in a plain Detect head.
    """
    from ultralytics.nn.tasks import DetectionModel

    try:
        net = DetectionModel(dict(layers), ch=layers["channels"], nc=layers["nc"], verbose=False)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"the model cannot be built: {type(error).__name__}: {error}") from None
    if not has_plain_head(net):
        raise UserError(
            "the model has to end in a plain Detect head (YOLOv5u); other heads and tasks are not trained here"
        )
    net.names = dict(enumerate(names))
    net.nc = layers["nc"]
    return net


def has_plain_head(net: DetectionModel) -> bool:
    """Whether a model ends in YOLOv5u's Detect head, which predicts boxes only and suppresses none by itself."""
    from ultralytics.nn.modules.head import Detect

    return type(net.model[-1]) is Detect and getattr(net.model[-1], "one2one_cv2", None) is None
