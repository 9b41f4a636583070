"""What ranks note of the exception that has ended them, and what a launcher reads of it."""

from __future__ import annotations

import pytest

from yolods.errors import UserError
from yolods.watchdog.failures import is_connection, noted_in, read_failures


def fail(folder, error: BaseException, start: str = "s1") -> None:
    with pytest.raises(type(error)), noted_in(folder, start):
        raise error


def test_a_failure_is_noted_and_read_once(tmp_path):
    fail(tmp_path, ValueError("at 0x7f12ab"))
    (found,) = read_failures(tmp_path, "s1")
    assert (found.type, found.text) == ("ValueError", "at 0x")
    assert found.place.startswith(__file__)
    assert read_failures(tmp_path, "s1") == set()


def test_of_another_start_nothing_is_told_and_a_damaged_note_is_passed_over(tmp_path):
    fail(tmp_path, ValueError("x"), start="s0")
    (tmp_path / "logs" / "failed-host-1.json").write_text("{")
    assert read_failures(tmp_path, "s1") == set()


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt()])
def test_a_users_mistake_and_a_request_to_stop_are_not_noted(tmp_path, error):
    fail(tmp_path, error)
    assert not (tmp_path / "logs").exists()


def test_without_a_launcher_nothing_is_written(tmp_path):
    with pytest.raises(ValueError), noted_in(None, None):
        raise ValueError
    with pytest.raises(ValueError), noted_in(tmp_path, None):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("Connection reset by peer"), True),
        (ConnectionResetError("broken pipe"), True),
        (RuntimeError("shapes do not match"), False),
        (UserError("gloo is not there"), False),
        (ValueError("connection closed"), False),
    ],
)
def test_a_lost_connection_tells_of_another_rank(error, lost):
    assert is_connection(error) == lost


def test_a_port_that_is_taken_is_known_by_what_its_error_says(tmp_path):
    fail(tmp_path, RuntimeError("EADDRINUSE, message: address already in use"))
    (found,) = read_failures(tmp_path, "s1")
    assert found.port_taken
