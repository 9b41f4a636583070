"""The memory of the best layouts as stacked bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yolods.plan.stage_plan import GIB
from yolods.planner.report import MEMORY_TERMS
from yolods.planner.search import Option
from yolods.system.files import replace_file

_COLOURS = {
    "weights": "#1f4e79",
    "gradients": "#2e75b6",
    "states": "#9dc3e6",
    "moving_average": "#7f7f7f",
    "buckets": "#bfbfbf",
    "activations": "#c55a11",
    "loss": "#f4b183",
    "reserve": "#e2e2e2",
}


def draw_memory(path: Path, rows: Sequence[Option], limit: float, title: str) -> None:
    """Draw a bar per layout: the bytes of its fullest rank by term, stacked.

    Args:
        path: the PNG to write; its folder exists.
        rows: the layouts, the best at the top.
        limit: bytes that a rank may use, drawn as a line; infinite: none.
        title: above the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot, whose global state would choose a backend for the whole process.
    figure = Figure(figsize=(9, 1.6 + 0.45 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = [_name(each) for each in rows]
    left = [0.0] * len(rows)
    for term in (each for each in MEMORY_TERMS if each != "host"):
        sizes = [getattr(each.fullest, term) / GIB for each in rows]
        axes.barh(
            range(len(rows)), sizes, left=left, color=_COLOURS[term], label=term.replace("_", " ")
        )
        left = [before + size for before, size in zip(left, sizes, strict=True)]
    if limit < float("inf") and limit / GIB < 4 * max(left):
        axes.axvline(limit / GIB, color="#c00000", linestyle="--", label="limit")
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel("GiB of the fullest rank")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    replace_file(path, lambda file: figure.savefig(file, dpi=120, format="png"), shared=True)


def _name(option: Option) -> str:
    layout = option.layout
    batch = f"{layout.micro_batch} x {layout.accumulation}"
    recompute = ", recompute" if layout.recompute else ""
    return f"{option.family.label}, {layout.precision}\n{batch}{recompute}"
