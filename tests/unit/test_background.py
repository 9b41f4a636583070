"""Work beside the training: it ends, it fails where it is asked for, and only one piece goes on at
a time."""

from __future__ import annotations

import threading

import pytest

from yolods.checkpoint.background import Background


def test_nothing_begun_is_done_and_has_not_failed():
    background = Background()
    assert background.join(0) and background.take_fault() is None


def test_a_failure_waits_until_it_is_asked_for_and_is_told_once():
    background = Background()
    background.start(lambda: 1 / 0, "work")
    assert background.join(10)
    assert isinstance(background.take_fault(), ZeroDivisionError)
    assert background.take_fault() is None
    background.start(lambda: None, "more")
    assert background.join(10) and background.take_fault() is None


def test_work_that_goes_on_is_waited_for_no_longer_than_said_and_has_no_second_beside_it():
    background, end = Background(), threading.Event()
    background.start(end.wait, "slow")
    try:
        assert not background.join(0.01)
        assert background.take_fault() is None
        with pytest.raises(AssertionError, match="one task at a time"):
            background.start(lambda: None, "second")
    finally:
        end.set()
    assert background.join(10)
