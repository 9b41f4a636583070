"""A progress bar is drawn on a terminal, if it is wanted, and nowhere else."""

from __future__ import annotations

import io
import sys

import pytest

from yolods.system.bar import counting_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "shown", "drawn"),
    [(Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)],
)
def test_it_is_drawn_where_it_is_wanted(monkeypatch, stream, shown, drawn):
    monkeypatch.setattr(sys, "stderr", stream)
    with counting_bar("checking train", 4, "images", shown=shown) as bar:
        bar.update(3)
        bar.refresh()
    text = stream.getvalue()
    assert ("checking train:" in text and "3/4" in text and "images" in text) == drawn
    assert drawn or text == ""
