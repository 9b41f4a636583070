"""What messages tell a user to type, by how yolods was started."""

from __future__ import annotations

import pytest

from yolods import cli
from yolods.config.flags import foreign
from yolods.system.invocation import SCRIPT, launch_command, script

RESUME = ("train", "--resume", "runs/a b")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "yolods launch train --resume 'runs/a b'"),
        ({SCRIPT: "./launch.sh"}, "./launch.sh train --resume 'runs/a b'"),
        ({SCRIPT: "/a clone/launch.sh"}, "'/a clone/launch.sh' train --resume 'runs/a b'"),
    ],
)
def test_a_command_begins_as_the_start_did(environ: dict[str, str], expected: str) -> None:
    assert launch_command(*RESUME, environ=environ) == expected


def test_without_launch_sh_nothing_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv(SCRIPT, raising=False)
    assert script() is None
    assert cli.main(["--help"]) == 0
    assert cli.main(["train", "--data", "demo", "--hostfile", "h"]) == 2
    told = [*capsys.readouterr(), foreign("nnodes") or ""]
    assert all("`yolods launch`" in text or "yolods launch train" in text for text in told)
    assert not [text for text in told if "launch.sh" in text]


def test_with_launch_sh_messages_name_it_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv(SCRIPT, "../yolods/launch.sh")
    assert cli.main(["--help"]) == 0
    assert cli.main(["train", "--data", "demo", "--hostfile", "h"]) == 2
    told = [*capsys.readouterr(), foreign("nnodes") or ""]
    assert [text for text in told if "../yolods/launch.sh" not in text] == []
