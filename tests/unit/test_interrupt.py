"""Ctrl-C waits for the end of a batch; a second one does not. Whole runs: tests/faults/test_interrupt.py."""

import os
import signal
import threading

import pytest

from yolods import interrupt


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_it_waits_for_the_next_check():
    passed = []
    with pytest.raises(KeyboardInterrupt), interrupt.between_batches():
        interrupt.check()
        press()
        passed.append("the batch went on")
        interrupt.check()
        passed.append("not here")
    assert passed == ["the batch went on"]


def test_a_second_one_acts_at_once():
    with pytest.raises(KeyboardInterrupt), interrupt.between_batches():
        press()
        press()
        pytest.fail("went on")


def test_outside_it_acts_at_once_as_before():
    earlier = signal.getsignal(signal.SIGINT)
    with interrupt.between_batches():
        pass
    assert signal.getsignal(signal.SIGINT) is earlier
    with pytest.raises(KeyboardInterrupt):
        press()
    interrupt.check()


def test_what_fails_after_it_is_not_an_error_of_its_own():
    """Another rank has stopped already, and gloo says that the connection was closed."""
    with pytest.raises(KeyboardInterrupt), interrupt.between_batches():
        press()
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match="a bug"), interrupt.between_batches():
        raise RuntimeError("a bug")


def test_another_thread_cannot_set_handlers_and_need_not():
    earlier, results = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with interrupt.between_batches():
            results.append(signal.getsignal(signal.SIGINT) is earlier)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [True]
