"""Where the cache is."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolods.errors import OwnError
from yolods.system import folders
from yolods.system.folders import cache_dir, ultralytics_folders


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"YOLODS_CACHE": "/own", "XDG_CACHE_HOME": "/shared"}, "/own"),
        ({"YOLODS_CACHE": "", "XDG_CACHE_HOME": "/shared"}, "/shared/yolods"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/her/.cache/yolods"),
        ({}, "/home/her/.cache/yolods"),
    ],
)
def test_a_folder_of_our_own_comes_before_a_shared_one_and_that_before_the_home(
    monkeypatch, environ, expected
):
    monkeypatch.setattr(folders, "home", lambda: Path("/home/her"))
    assert cache_dir(environ) == Path(expected)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    monkeypatch.setattr(folders, "home", lambda: None)
    with pytest.raises(OwnError, match="set YOLODS_CACHE"):
        cache_dir({})
    assert cache_dir({"YOLODS_CACHE": "/own"}) == Path("/own")


def test_a_users_ultralytics_is_looked_for_where_it_says_and_last_where_it_is_by_default():
    found = ultralytics_folders({"YOLO_CONFIG_DIR": "/a", "XDG_CONFIG_HOME": ""})
    assert found == [Path("/a/Ultralytics"), Path.home() / ".config" / "Ultralytics"]
