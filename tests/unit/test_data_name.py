"""Data sets that are named, and where they are stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from yolods.config.names.data_name import shipped_yaml, stores


@pytest.mark.parametrize("name", ["coco8", "coco8.yaml"])
def test_a_yaml_that_ultralytics_ships_is_found_by_its_name(name):
    assert shipped_yaml(Path(name)).name == "coco8.yaml"


@pytest.mark.parametrize("name", ["no_such_set", "folder/coco8.yaml"])
def test_what_it_does_not_ship_and_what_is_a_path_is_not(name):
    assert shipped_yaml(Path(name)) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"datasets_dir": "/sets"}', ["/sets"]),
        ("{", []),
        ("[]", []),
        ('{"datasets_dir": 3}', []),
        (None, []),
    ],
)
def test_a_users_own_folder_comes_before_the_cache(tmp_path, monkeypatch, text, found):
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "theirs"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for place, content in (("theirs", text), ("cache", json.dumps({"datasets_dir": "/nobodys"}))):
        (tmp_path / place / "Ultralytics").mkdir(parents=True)
        if content is not None:
            (tmp_path / place / "Ultralytics" / "settings.json").write_text(content)
    assert stores() == [*map(Path, found), tmp_path / "cache" / "datasets"]
