"""The charts of TensorBoard's Custom Scalars: curves that belong together, in one chart each."""

from __future__ import annotations

import re
from collections.abc import Iterable

_CHARTS = (
    ("Training", "mAP50 and mAP50-95", r"Metrics/mAP"),
    ("Training", "precision and recall", r"Metrics/(precision|recall)"),
    ("Training", "box loss: train, val", r"Loss/box_"),
    ("Training", "cls loss: train, val", r"Loss/cls_"),
    ("Training", "dfl loss: train, val", r"Loss/dfl_"),
    ("By images", "mAP50 and mAP50-95 over images", r"by_images/mAP"),
    ("By images", "box loss over images", r"by_images/loss_box_"),
    ("By images", "cls loss over images", r"by_images/loss_cls_"),
    ("By images", "dfl loss over images", r"by_images/loss_dfl_"),
    ("Ranks", "seconds per step of each rank", r"ranks/seconds_rank\d"),
    ("Ranks", "memory of each rank in GiB: peak, planned", r"memory/(peak|planned)_gib_"),
    ("Communication", "MB per step: sent, needed", r"communication/(sent|needed)_mb$"),
    ("Communication", "seconds per step by kind", r"communication/seconds"),
    ("Communication", "shares: still, hidden, held, waiting", r"communication/\w+_share$"),
    ("Pipeline", "idle share and its bound", r"pipeline/idle"),
    ("Pipeline", "seconds per step of each stage", r"pipeline/seconds_stage\d"),
    ("Optimizer", "gradient norm before and after clipping", r"optimizer/grad_norm"),
    ("Optimizer", "learning rates", r"optimizer/lr_"),
    ("Data", "shares of time that ranks wait for images", r"data/(loader_)?wait_share"),
)
"""(category, title, pattern of the tags), in the order on the screen."""

Charts = dict[str, dict[str, list[object]]]
"""As torch's `add_custom_scalars` takes it: charts by title, by category."""


def charts_of(tags: Iterable[str]) -> Charts:
    """The charts that show at least one of these tags, so that none is empty."""
    known, charts = list(tags), Charts()
    for category, title, pattern in _CHARTS:
        if any(re.match(pattern, tag) for tag in known):
            charts.setdefault(category, {})[title] = ["Multiline", [pattern]]
    return charts
