"""The picture of one traced step: every rank's time by kind of work, and a pipeline's schedule as
it ran beside the one without delays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yolods.system.files import replace_file
from yolods.trace.record import RankRecord
from yolods.trace.schedule import Pass, as_run, idle_share, makespan
from yolods.trace.shares import KINDS_OF_WORK, stretches

_COLOURS = {
    "forward": "#2e75b6",
    "backward": "#c55a11",
    "weights": "#f4b183",
    "collectives": "#7030a0",
    "waits": "#d9d9d9",
    "loader": "#548235",
    "optimizer": "#bf9000",
    "rest": "#7f7f7f",
}
_LETTERS = {"F": "forward", "B": "backward", "W": "weights"}
_LABELLED = 16
"""Micro-batches up to which a bar has its number."""
_MOST_RANKS = 32
"""Ranks that are drawn: the first ones."""


def typical_step(records: Sequence[RankRecord]) -> int:
    """The traced step of median duration on the first rank, without what follows it."""
    first = records[0]
    steps = sorted(first.steps(), key=lambda step: first.own_end(step) - first.bounds(step)[0])
    return steps[len(steps) // 2]


def draw_trace(
    path: Path,
    records: Sequence[RankRecord],
    step: int,
    title: str,
    stages: Sequence[RankRecord] = (),
    plan: Sequence[Sequence[Pass]] = (),
) -> None:
    """Write the picture of a step.

    Args:
        path: the PNG to write, as a whole; its folder exists.
        step: the one to draw.
        title: above the picture.
        stages: the ranks of a pipeline's replica, by stage; (): there is no pipeline.
        plan: their passes without delays.

    Raises:
        OSError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    shown = records[:_MOST_RANKS]
    heights = [len(shown), *([len(stages), len(stages)] if stages else [])]
    # Without pyplot, whose global state would choose a backend for the whole process.
    figure = Figure(
        figsize=(11, 1.6 + 0.42 * sum(heights) + 0.6 * len(heights)), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_ranks(panels[0], shown, step)
    panels[0].set_title(title, fontsize=10)
    colours = [kind for kind in _COLOURS if stages or kind != "weights"]
    if stages:
        real = as_run(stages, step)
        _draw_passes(panels[1], real, makespan(real), "as they ran")
        _draw_passes(panels[2], plan, makespan(real), "without delays")
    names = {"weights": "weights' part"}
    patches = [Patch(color=_COLOURS[kind], label=names.get(kind, kind)) for kind in colours]
    figure.legend(
        handles=patches, ncols=len(patches), fontsize=8, loc="outside lower center", frameon=False
    )
    replace_file(path, lambda file: figure.savefig(file, dpi=110, format="png"))


def _draw_ranks(axes: Any, records: Sequence[RankRecord], step: int) -> None:
    start = min(record.bounds(step)[0] for record in records)
    for row, record in enumerate(records):
        found = [each for each in stretches(record) if each.part.step == step]
        for kind in KINDS_OF_WORK:
            spans = [((e.begin - start) * 1e3, e.seconds * 1e3) for e in found if e.kind == kind]
            axes.broken_barh(spans, (row - 0.4, 0.8), facecolors=_COLOURS[kind])
    axes.set_xlim(0, max(record.own_end(step) - start for record in records) * 1e3)
    _settle(axes, [f"rank {record.rank}" for record in records], "ms of the step")


def _draw_passes(axes: Any, rows: Sequence[Sequence[Pass]], longest: float, name: str) -> None:
    micro_batches = 1 + max((each.what[1] for row in rows for each in row), default=0)
    for place, row in enumerate(rows):
        for each in row:
            axes.barh(
                place,
                each.busy * 1e3,
                left=each.begin * 1e3,
                height=0.8,
                color=_COLOURS[_LETTERS[each.what[0]]],
                edgecolor="white",
                linewidth=0.5,
            )
            if micro_batches <= _LABELLED and each.busy > longest / 60:
                middle = (each.begin + each.busy / 2) * 1e3
                axes.text(
                    middle,
                    place,
                    str(each.what[1]),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white",
                )
    axes.set_xlim(0, max(longest, makespan(rows)) * 1e3)
    _settle(axes, [f"stage {place}" for place in range(len(rows))], "ms")
    axes.set_title(
        f"passes {name}: {makespan(rows) * 1e3:.1f} ms, {idle_share(rows):.0%} idle", fontsize=9
    )


def _settle(axes: Any, names: Sequence[str], unit: str) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(unit, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
