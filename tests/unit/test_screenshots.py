"""Pictures of the docs: what is put together, and what is refused before a run is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from benchmarks import browser, screenshots

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_is_its_curves_above_its_first_row_of_predictions(tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1000), "white").save(tmp_path / "results.png")
    grid = Image.new("RGB", (800, 800), "blue")
    grid.paste("red", (0, 0, 800, 200))
    grid.save(tmp_path / "val_batch0_pred.jpg")
    joined = screenshots.run_picture(tmp_path)
    assert joined.size == (1000, 750)
    red, _, blue = joined.getpixel((500, 740))
    assert red > 200 > 50 > blue


def test_the_page_shows_every_picture_that_is_made() -> None:
    page = (ROOT / "docs" / "inspection.md").read_text(encoding="utf-8")
    for name in screenshots.PAGES:
        assert f"images/tensorboard_{name}.png" in page
        assert (screenshots.IMAGES / f"tensorboard_{name}.png").is_file()


def test_without_a_browser_nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(browser.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit):
        screenshots.main([])
    assert "chromium" in capsys.readouterr().err


def test_a_browser_that_fails_is_told_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 1"):
        browser.page("/bin/false", "about:blank", tmp_path)


def test_a_limit_of_addresses_is_a_reason_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser.shutil, "which", lambda name: "/usr/bin/chromium")
    monkeypatch.setattr(browser.resource, "getrlimit", lambda kind: (9 * 2**30, 9 * 2**30))
    assert browser.why_no_browser() == "ulimit -v is 9 GiB, but Chromium reserves 64 GiB"
    monkeypatch.setattr(browser.resource, "getrlimit", lambda kind: (-1, -1))
    assert browser.why_no_browser() is None
