"""JSON files as users write them."""

from __future__ import annotations

import pytest

from yolods.errors import Faults
from yolods.parsing.json_file import parse_json, read_json


def read(tmp_path, text: str | bytes) -> tuple[dict | None, list[str]]:
    file, faults = tmp_path / "ds.json", Faults()
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_json(file, "ds", faults), list(faults)


def test_an_object_is_read_with_a_byte_order_mark_or_without(tmp_path):
    for start in (b"", b"\xef\xbb\xbf"):
        assert read(tmp_path, start + b'{"a": {"b": [1]}}') == ({"a": {"b": [1]}}, [])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            '{\n"a": 1,\n}',
            "line 3 column 1: expecting property name enclosed in double quotes: `}`; trailing "
            "comma",
        ),
        ("{'a': 1}", "`{'a': 1}`; JSON strings need \", not '"),
        ('{\n// why\n"a": 1}', "`// why`; JSON has no comments"),
        ('{"a": NaN}', "NaN is not JSON; use a finite number"),
        ("[1]", "it must contain one object {...}"),
        ("", "line 1 column 1: expecting value: ``"),
        ("[" * 100_000, "it is nested too deeply"),
        (b"\xff", "cannot be read"),
    ],
)
def test_what_is_none_is_told_with_its_place_and_the_usual_reason(tmp_path, text, fault):
    found, lines = read(tmp_path, text)
    assert found is None and len(lines) == 1
    assert lines[0].startswith("ds: ") and fault in lines[0]


def test_a_key_that_stands_twice_is_told_and_the_last_one_counts(tmp_path):
    assert read(tmp_path, '{"a": 1, "b": {"c": 1, "c": 2}}') == (
        {"a": 1, "b": {"c": 2}},
        ['ds: duplicate key "c" in one block; keep one'],
    )


def test_a_file_that_is_not_there(tmp_path):
    faults = Faults()
    assert read_json(tmp_path / "none.json", "ds", faults) is None
    assert list(faults) == ["ds: no such file"]


def test_deep_nesting_is_an_error_of_the_value():
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)
