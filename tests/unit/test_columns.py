"""Columns on disk: what is written is what is mapped, whatever the types, sizes and letters."""

from __future__ import annotations

import numpy as np
import pytest

from yolods.data.index.columns import BUFFER, Columns, ColumnType, ColumnWriter

KINDS = {"shape": ColumnType("<i4", 2), "end": ColumnType("<i8"), "rows": ColumnType("<f4", 5)}


def test_columns_are_what_was_written_and_any_numpy_reads_them(tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.random((n, 5), np.float32) for n in (3, 0, 70_000, 1)]
    with ColumnWriter(tmp_path / "x", KINDS) as writer:
        for part in parts:
            writer.add("rows", part)
            writer.add("end", np.array([writer.rows("rows")]))
        writer.add("shape", np.array([[480, 640]], np.int32))
    assert sum(part.nbytes for part in parts) > BUFFER
    columns = Columns(tmp_path / "x")
    assert np.array_equal(columns["rows"], np.concatenate(parts))
    assert columns["end"].tolist() == [3, 3, 70_003, 70_004]
    for name, kind in KINDS.items():
        whole = np.load(tmp_path / "x" / f"{name}.npy")
        assert whole.dtype == kind.dtype and np.array_equal(whole, columns[name])
    with pytest.raises(ValueError, match="read-only"):
        columns["rows"][0] = 0


def test_texts_come_back_with_every_letter_that_a_file_name_may_have(tmp_path):
    names = ["a.jpg", "", "é漢字.jpg", "line\nbreak", "\udcff.jpg", "b" * 300]
    with ColumnWriter(tmp_path / "x", {}, ["name"]) as writer:
        writer.add_texts("name", names[:2])
        writer.add_texts("name", names[2:])
    texts = Columns(tmp_path / "x").texts("name")
    assert list(texts) == names
    assert [texts[place] for place in range(len(names))] == names
    assert texts[-1] == names[-1] and "a.jpg" in texts
    with pytest.raises(IndexError):
        texts[len(names)]


def test_a_column_without_rows(tmp_path):
    with ColumnWriter(tmp_path / "x", KINDS, ["name"]):
        pass
    columns = Columns(tmp_path / "x")
    assert columns["rows"].shape == (0, 5) and list(columns.texts("name")) == []


def test_what_does_not_fit_is_refused_and_what_was_not_completed_cannot_be_opened(tmp_path):
    with pytest.raises(ValueError, match="shape"), ColumnWriter(tmp_path / "x", KINDS) as writer:
        writer.add("shape", np.zeros((1, 3), np.int32))
    with pytest.raises((ValueError, OSError)):
        Columns(tmp_path / "x")
    with pytest.raises(TypeError), ColumnWriter(tmp_path / "y", KINDS) as writer:
        writer.add("shape", np.zeros((1, 2), np.float32))
