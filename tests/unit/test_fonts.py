"""Class names in any letters are written with a font of this machine, and letters without one are
told once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from yolods.telemetry.fonts import use_fonts_for
from yolods.telemetry.plots import Painter


@pytest.fixture
def chinese_font(tmp_path: Path) -> Path:
    """A font that has nothing but one Chinese letter."""
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    pen.lineTo((900, 0))
    pen.lineTo((500, 800))
    pen.closePath()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "cat"])
    font.setupCharacterMap({ord("猫"): "cat"})
    font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    font.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 100)})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Only Cats", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "cats.ttf")
    return tmp_path / "cats.ttf"


@pytest.fixture
def no_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with DejaVu Sans alone, and a home whose settings folder of ultralytics is
    empty."""
    import matplotlib
    from matplotlib import font_manager

    from yolods import compat

    monkeypatch.setattr(compat, "_unicode_font", None)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["DejaVu Sans"])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    settings = tmp_path / "home/.config/Ultralytics"
    settings.mkdir(parents=True)
    return settings


def test_chinese_names_are_written_with_the_font_in_ultralytics_settings_folder(
    no_fonts: Path, chinese_font: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import matplotlib
    from ultralytics.utils.plotting import Annotator

    chinese_font.rename(no_fonts / "Arial.Unicode.ttf")
    use_fonts_for("dog 猫")
    annotator = Annotator(np.zeros((32, 32, 3), np.uint8), pil=True, example="{0: '猫'}")
    assert Path(annotator.font.path) == no_fonts / "Arial.Unicode.ttf"
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "Only Cats"]
    assert caplog.text == ""


def test_chinese_names_are_written_with_a_font_of_the_system(
    no_fonts: Path,
    chinese_font: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from matplotlib import font_manager

    from yolods.compat import local_font

    listed = [
        SimpleNamespace(fname=str(file))
        for file in (chinese_font.with_name("a-gone.ttf"), chinese_font)
    ]
    monkeypatch.setattr(
        font_manager, "fontManager", SimpleNamespace(ttflist=listed, addfont=lambda path: None)
    )
    use_fonts_for("猫")
    assert local_font("Arial.Unicode.ttf") == chinese_font
    assert caplog.text == ""


def test_letters_that_no_font_has_are_told_once_with_where_to_put_one(
    no_fonts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Painter(tmp_path, {0: "狗", 1: "Größe", 2: "диск"}, lambda *_: None).close()
    (record,) = caplog.records
    assert "no font on this machine has the letters 狗 of the class names" in record.message
    assert record.message.endswith(f"as Arial.Unicode.ttf in {no_fonts}")
    Painter(tmp_path, {0: "Größe", 1: "диск"}, lambda *_: None).close()
    assert len(caplog.records) == 1


def test_names_in_plain_letters_leave_the_fonts_alone(
    no_fonts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import matplotlib

    from yolods import compat

    use_fonts_for("disc bar")
    assert compat._unicode_font is None
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans"]
    assert caplog.text == ""
