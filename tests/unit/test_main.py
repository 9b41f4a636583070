"""How `python -m yolods` leaves: with which status, and with nothing of the interpreter's
teardown."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

import pytest

from yolods import __main__ as entry
from yolods import cli
from yolods.system import streams


class Left(BaseException):
    """In the place of the process' end."""


def status_of(monkeypatch: pytest.MonkeyPatch, ended: int | BaseException) -> int:
    """The exit status where the command line returns or raises this. The module is
    yolods.__main__."""

    def main() -> int:
        if isinstance(ended, BaseException):
            raise ended
        return ended

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(streams, "open_all", lambda: None)
    monkeypatch.setattr(cli, "main", main)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Left) as left:
        entry.run()
    return left.value.args[0]


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (0, 0),
        (75, 75),
        (KeyboardInterrupt(), 130),
        (SystemExit(), 0),  # argparse, after --help
        (SystemExit(2), 2),
        (SystemExit("no such thing"), 1),
    ],
)
def test_the_status_is_the_command_s(
    monkeypatch, capsys, ended: int | BaseException, status: int
) -> None:
    assert status_of(monkeypatch, ended) == status
    assert capsys.readouterr() == ("", "")


def test_what_nobody_foresaw_is_shown_and_is_a_failure(monkeypatch, capsys) -> None:
    assert status_of(monkeypatch, ZeroDivisionError("of ours")) == 1
    assert capsys.readouterr().err.endswith("ZeroDivisionError: of ours\n")


def test_a_screen_that_is_gone_does_not_change_the_status_and_the_other_is_still_written(
    monkeypatch,
) -> None:
    written = []

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise OSError(32, "Broken pipe")

    class Kept(io.StringIO):
        def flush(self) -> None:
            written.append(self.getvalue())

    kept: Any = Kept("last words")
    monkeypatch.setattr(sys, "stdout", Gone())
    monkeypatch.setattr(sys, "stderr", kept)
    assert status_of(monkeypatch, 3) == 3
    assert written == ["last words"]
