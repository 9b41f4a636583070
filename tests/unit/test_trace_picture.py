"""The picture of a step: it shows every rank, and a pipeline's passes twice."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.traced import call, part, record
from yolods.trace.picture import draw_trace, typical_step
from yolods.trace.schedule import as_run, ideal

COLOURS = {"forward": (46, 117, 182), "backward": (197, 90, 17), "waits": (217, 217, 217)}


def stage(place: int, begin: float) -> object:
    return record(
        part(0, begin, "boundary", 0),
        part(begin, begin + 1, "forward", 0),
        part(begin + 1, begin + 4, "backward", 0),
        part(begin + 4, 6, "the screen"),
        rank=place,
        stage=place,
        calls=[call(0, begin, peer=0, waited=begin)],
    )


def share(path: Path, kind: str) -> float:
    """Share of the picture in one colour."""
    with Image.open(path) as image:
        points = image.convert("RGB").resize((400, 300), Image.Resampling.NEAREST)
        found = np.asarray(points) == COLOURS[kind]
    return float(found.all(axis=2).mean())


def test_ranks_and_schedules_are_drawn(tmp_path: Path) -> None:
    stages = [stage(0, 0.5), stage(1, 1.5)]
    plan = ideal(as_run(stages, 4), "1f1b")
    draw_trace(tmp_path / "a.png", stages, 4, "step 4")
    draw_trace(tmp_path / "b.png", stages, 4, "step 4", stages, plan)
    for kind in COLOURS:
        assert share(tmp_path / "a.png", kind) > 0.01, kind
    with Image.open(tmp_path / "a.png") as one, Image.open(tmp_path / "b.png") as both:
        more = both.height / one.height
    # The passes are drawn twice more, and the ranks' waits are not.
    before, both = ({kind: share(tmp_path / f"{name}.png", kind) for kind in COLOURS}
                    for name in "ab")  # fmt: skip
    assert both["backward"] * more > 1.4 * before["backward"]
    assert both["waits"] * more < 1.1 * before["waits"]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_the_median_step_is_drawn() -> None:
    lengths = {4: 9.0, 5: 2.0, 6: 3.0}
    parts, now = [], 0.0
    for step, seconds in lengths.items():
        parts.append(part(now, now + seconds, "forward", step=step))
        now += seconds
    assert typical_step([record(*parts)]) == 6
