"""The picture is a PNG with a bar per layout."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests import plans
from yolods.planner.choices import Choice
from yolods.planner.picture import draw_memory
from yolods.planner.search import Limits, search_layouts


@pytest.mark.slow
def test_more_layouts_make_a_higher_picture(tmp_path: Path) -> None:
    choice = Choice(plans.IMGSZ, 4, 16, ("fp32",))
    limits = Limits(1e12)
    rows = search_layouts(choice, plans.clock(), plans.memory_of, limits).ranked
    heights = []
    for count in (2, 6):
        path = tmp_path / f"{count}.png"
        draw_memory(path, rows[:count], limits.device, "a plan")
        with Image.open(path) as image:
            assert image.format == "PNG"
            colours = image.convert("RGB").getcolors(1 << 24)
            assert colours is not None and len(colours) > 10
            heights.append(image.height)
    assert heights[0] < heights[1]
