"""The grammar of model names: the model that a name, a weights file's name or a yaml means."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from yolods.errors import UserError, nearest

MODEL_SIZES = ("n", "s", "m", "l", "x")
_FOUR_LEVELS = r"(?P<p6>6u?|u?-p6|u6)?"
_ZOO = re.compile(rf"^yolov5(?P<size>[{''.join(MODEL_SIZES)}])u?{_FOUR_LEVELS}$")
_CUSTOM = re.compile(
    rf"^yolov5\[(?P<depth>\d+\.?\d*|\.\d+),\s*(?P<width>\d+\.?\d*|\.\d+)\]{_FOUR_LEVELS}$"
)
_LARGEST = 16


@dataclass(frozen=True)
class ModelName:
    """A parsed model name, before anything is built."""

    text: str
    """The name as the user wrote it."""
    p6: bool
    """Whether the model has a fourth level (stride 64). False for a user's yaml, whose levels are
    known only when it is built."""
    scale: tuple[float, float, int] | None
    """Depth multiple, width multiple, largest channel count; None: one of the yaml's own sizes."""
    size: str | None
    """One of n, s, m, l, x for a model of ultralytics; else None."""
    yaml: Path | None
    """The user's own model yaml."""

    @property
    def stride(self) -> int:
        """Largest stride in pixels; the image size must be a multiple of it. A user's yaml may have
        a larger one."""
        return 64 if self.p6 else 32


def parse_name(text: str) -> ModelName:
    """Read `yolov5n`..`yolov5x`, `yolov5n6`..`yolov5x6`, `yolov5[depth,width]`,
    `yolov5[depth,width]6` or a yaml path.

    Raises:
        UserError: the name is none of these, or its yaml does not exist.
    """
    if found := _built_in(text.removesuffix(".yaml").removesuffix(".yml"), text):
        return found
    if text.endswith((".yaml", ".yml")):
        if not Path(text).is_file():
            raise UserError(
                f"--model {text}: no such file, and not a model of ultralytics (yolov5n.yaml .. "
                "yolov5x6.yaml)"
            )
        return ModelName(text, False, None, None, Path(text))
    if text.endswith(".pt"):
        raise UserError(
            f"--model {text}: use --weights {text} for weights; --model names an architecture"
        )
    known = [f"yolov5{size}{six}" for size in MODEL_SIZES for six in ("", "6")]
    raise UserError(
        f"--model {text}: unknown model{nearest(text, known)}; "
        "use yolov5n, s, m, l, x (with 6 for four levels), yolov5[depth,width], or a model yaml"
    )


def name_of_weights(file: Path) -> str | None:
    """The `--model` in a weights file's name; anything may follow a dash.

    `yolov5nu.pt` is a yolov5n, `yolov5n-p6.pt` and `yolov5n6-coco.pt` are a yolov5n6.
    """
    # The longest part that is a name wins: "yolov5n-p6-coco" is a yolov5n-p6, not a yolov5n.
    words = file.stem.split("-")
    for end in range(len(words), 0, -1):
        plain = "-".join(words[:end])
        if found := _built_in(plain, plain):
            return f"yolov5{found.size}{'6' if found.p6 else ''}" if found.size else plain
    return None


def _built_in(plain: str, text: str) -> ModelName | None:
    """Parse a name of ultralytics or `yolov5[depth,width]`; `text` is the name as written."""
    if match := _ZOO.match(plain):
        return ModelName(text, bool(match["p6"]), None, match["size"], None)
    if match := _CUSTOM.match(plain):
        depth, width = float(match["depth"]), float(match["width"])
        if not (0 < depth <= _LARGEST and 0 < width <= _LARGEST):
            raise UserError(
                f"--model {text}: depth {depth:g} and width {width:g} must be in (0, {_LARGEST}]"
            )
        return ModelName(text, bool(match["p6"]), (depth, width, 1024), None, None)
    return None
