"""Whether files can be written to a folder: the reason and its remedy for each kind of place."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from yolods.errors import UserError
from yolods.system import access
from yolods.system.access import check_writable

ANOTHER = "name another"


def fault(folder) -> str:
    """What is told about a folder, without its name."""
    with pytest.raises(UserError) as caught:
        check_writable(folder, ANOTHER)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder}: ")


def test_folders_that_are_there_and_that_can_be_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for name in (tmp_path, tmp_path / "new", tmp_path / "new/deep", tmp_path / "link/new"):
        check_writable(name, ANOTHER)
    check_writable(access.Path("new/deep"), ANOTHER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link"]


def test_a_file_and_what_would_be_below_it(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert fault(file) == f"it is not a folder; {ANOTHER}"
    for below in (file / "below", file / "below/more"):
        assert fault(below) == f"{file} is not a folder; {ANOTHER}"


def test_links_that_lead_nowhere(tmp_path):
    link, loop = tmp_path / "link", tmp_path / "loop"
    link.symlink_to("gone/x")
    loop.symlink_to(loop)
    for path in (link, link / "below"):
        assert fault(path) == f"{link} is a link to gone/x, which is not there; {ANOTHER}"
    assert fault(loop) == f"loop: Too many levels of symbolic links; {ANOTHER}"


def test_a_name_that_is_too_long(tmp_path):
    assert fault(tmp_path / ("n" * 300)) == f"{'n' * 40}: File name too long; {ANOTHER}"


def test_no_right_to_write(tmp_path, monkeypatch):
    """Root has every right, so the system's answer is played."""
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    for path in (tmp_path, tmp_path / "new/deep"):
        told = f"this user may not write to {tmp_path}; grant access to it, or {ANOTHER}"
        assert fault(path) == told


def test_no_right_to_look(tmp_path, monkeypatch):
    def look(path, real=os.stat):
        if access.Path(path).is_relative_to(tmp_path / "secret/x"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "stat", look)
    told = f"this user may not look below {tmp_path / 'secret'}; grant access to it, or {ANOTHER}"
    assert fault(tmp_path / "secret/x") == told


def test_a_file_system_that_is_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    told = f"{tmp_path} is on a file system that is read-only; {ANOTHER}"
    assert fault(tmp_path / "new") == told
