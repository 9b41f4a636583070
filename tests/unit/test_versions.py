"""Versions that a checkpoint carries."""

from __future__ import annotations

import platform
from importlib.metadata import version

import yolods
from yolods.system import versions as module
from yolods.system.versions import PACKAGES, versions


def test_the_versions_are_those_that_are_installed():
    found = versions()
    assert list(found) == ["yolods", "python", *PACKAGES]
    assert found["yolods"] == yolods.__version__ and found["python"] == platform.python_version()
    assert {name: found[name] for name in PACKAGES} == {name: version(name) for name in PACKAGES}


def test_a_package_without_metadata_has_an_unknown_version(monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("no-such-package-here",))
    assert versions()["no-such-package-here"] == "unknown"
