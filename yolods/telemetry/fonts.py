"""Chooses fonts for the class names in a run's pictures."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from yolods.compat import UNICODE_FONT, use_local_font
from yolods.system.folders import ultralytics_folders

_log = logging.getLogger("yolods.plots")


def use_fonts_for(text: str) -> None:
    """Make ultralytics and matplotlib write `text` with local fonts; warn once about letters that
    no font has.

    A font that the user has put into a folder of ultralytics' settings as Arial.Unicode.ttf comes
    first, then DejaVu Sans (Latin, Greek, Cyrillic and Arabic), then any other font with more of
    the letters.
    """
    import matplotlib
    from matplotlib import font_manager

    letters = {ord(letter) for letter in text if not letter.isascii() and not letter.isspace()}
    plain = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    best, missing = _best_font(letters, plain)
    use_local_font(best if letters else None)
    if best != plain:
        font_manager.fontManager.addfont(str(best))
        matplotlib.rcParams["font.family"] = [
            "DejaVu Sans",
            font_manager.FontProperties(fname=str(best)).get_name(),
        ]
    if missing:
        shown = "".join(map(chr, sorted(missing)[:10])) + ("..." if len(missing) > 10 else "")
        _log.warning(
            "no font on this machine has the letters %s of the class names, so pictures show "
            "boxes; save a font that has them as %s in %s",
            shown,
            UNICODE_FONT,
            ultralytics_folders()[-1],
        )


def _best_font(letters: set[int], plain: Path) -> tuple[Path, set[int]]:
    """The first font with the most of the letters, and the letters that it lacks; `plain` if none
    has any."""
    best, missing = plain, letters
    for font in _candidates(plain):
        if not missing:
            break
        if len(lacking := letters - _letters_of(font)) < len(missing):
            best, missing = font, lacking
    return best, missing


def _candidates(plain: Path) -> Iterator[Path]:
    from matplotlib import font_manager

    yield from (
        file for folder in ultralytics_folders() if (file := folder / UNICODE_FONT).is_file()
    )
    yield plain
    yield from (
        Path(name) for name in sorted({entry.fname for entry in font_manager.fontManager.ttflist})
    )


def _letters_of(font: Path) -> set[int]:
    """The code points of a font; empty if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return {*FT2Font(str(font)).get_charmap()}
    except (OSError, RuntimeError, ValueError):  # bitmap fonts of emoji, deleted files
        return set()
