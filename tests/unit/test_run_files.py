"""A run's folder before its first step: whether it can be written, and has room."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from yolods.errors import UserError
from yolods.training.setup import run_files


@pytest.mark.parametrize(("free", "enough"), [(120_000_000, True), (119_999_999, False)])
def test_disk_space(tmp_path, monkeypatch, free, enough):
    """One million parameters x 40 bytes x (2 kept checkpoints and the one being written)."""
    monkeypatch.setattr(run_files.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    if enough:
        run_files._check_space(tmp_path, 1_000_000, 2)
        return
    with pytest.raises(UserError) as caught:
        run_files._check_space(tmp_path, 1_000_000, 2)
    assert str(caught.value) == (
        f"{tmp_path}: 0.11 GiB are free, but 3 checkpoints of 1.0 M parameters x 40 bytes need "
        "0.11 GiB; free some space, or choose another --project"
    )


@pytest.mark.parametrize(
    ("error", "reason"), [(PermissionError(13, "Permission denied"), "Permission denied")]
)
def test_a_folder_that_cannot_be_written(error, reason):
    with pytest.raises(UserError) as caught, run_files.writable(Path("runs/exp")):
        raise error
    assert (
        str(caught.value)
        == f"cannot write to runs/exp: {reason}; choose another folder with --project"
    )
