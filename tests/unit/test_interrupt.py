"""Requests to stop are noted and wait; a second Ctrl-C does not. Whole runs:
tests/faults/test_requests.py."""

import os
import signal
import sys
import threading
import time

import pytest

from yolods.system import interrupt


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_is_noted_and_everything_goes_on(number: int) -> None:
    with interrupt.noted(), interrupt.patient():
        assert not interrupt.asked()
        press(number)
        assert interrupt.asked()
        assert interrupt.Stopped().status == 128 + number
    assert not interrupt.asked()


def test_the_launcher_s_sigterm_after_ctrl_c_changes_nothing_and_what_another_rank_was_sent_counts_as_sigterm() -> None:  # fmt: skip  # noqa: E501
    with interrupt.noted(), interrupt.patient():
        press()
        press(signal.SIGTERM)
        assert interrupt.Stopped().status == 130
    assert interrupt.Stopped().status == 143


def test_a_launcher_that_is_gone_is_no_request_but_after_one_it_changes_nothing() -> None:
    with interrupt.noted(), interrupt.patient():
        interrupt.abandon()
        assert interrupt.asked() and interrupt.Stopped().lost
    with interrupt.noted(), interrupt.patient():
        press()
        interrupt.abandon()
        assert not interrupt.Stopped().lost and interrupt.Stopped().status == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_there_is_anything_to_save_it_ends_at_once(number: int) -> None:
    with pytest.raises(interrupt.Stopped) as stopped, interrupt.noted():
        press(number)
        pytest.fail("went on")
    assert stopped.value.status == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_that_python_loses_in_a_callback_is_made_again_and_not_printed(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    class Callback:
        def __del__(self) -> None:
            press(number)

    with pytest.raises(interrupt.Stopped) as stopped, interrupt.noted():
        Callback()
        time.sleep(10)
        pytest.fail("went on")
    assert stopped.value.status == 128 + number
    assert capsys.readouterr().err == ""


def test_after_a_failure_it_stays_noted() -> None:
    """The launcher's SIGTERM must not cut short what is said about it."""
    with interrupt.noted():
        with pytest.raises(ValueError, match="bug"), interrupt.patient():
            raise ValueError("bug")
        press(signal.SIGTERM)


def test_a_second_ctrl_c_acts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), interrupt.noted(), interrupt.patient():
        press()
        press()
        pytest.fail("went on")


@pytest.mark.parametrize("order", ["terminal first", "launcher first", "launcher alone"])
def test_ctrl_c_that_the_launcher_hands_on_is_one_with_the_terminal_s(order: str) -> None:
    with interrupt.noted(), interrupt.patient():
        for number in {
            "terminal first": (signal.SIGINT, interrupt.PASSED_ON, interrupt.PASSED_ON),
            "launcher first": (interrupt.PASSED_ON, interrupt.PASSED_ON),
            "launcher alone": (interrupt.PASSED_ON,),
        }[order]:
            press(number)
        assert interrupt.pressed()
        assert interrupt.Stopped().status == 130
    press(interrupt.PASSED_ON)  # too late: there is nothing to stop any more


def test_ctrl_c_is_held_back_while_a_program_of_ours_imports(run_process) -> None:
    """In a process of its own: of several threads, one that does not hold it back would be given
    it."""
    code = """
import os, signal
from yolods.system import interrupt
seen = []
with interrupt.held():
    os.kill(os.getpid(), signal.SIGINT)
    assert seen == []
    interrupt.heed(lambda number, frame: seen.append(number))
    assert seen == [signal.SIGINT]
"""
    done = run_process([sys.executable, "-c", code])
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_while_libraries_are_imported_ends_the_process_without_a_word(run_process) -> None:
    code = "import os, signal; from yolods.system.interrupt import abrupt\n"
    code += "with abrupt(): os.kill(os.getpid(), signal.SIGINT)"
    done = run_process([sys.executable, "-c", code])
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_outside_it_acts_at_once_as_before() -> None:
    earlier = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupt.noted(), interrupt.patient():
        pass
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == earlier
    with pytest.raises(KeyboardInterrupt):
        press()


def test_what_fails_after_ctrl_c_is_not_an_error_of_its_own() -> None:
    """Another rank has stopped already, and gloo says that the connection was closed."""
    with pytest.raises(KeyboardInterrupt), interrupt.noted(), interrupt.patient():
        press()
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match="a bug"), interrupt.noted(), interrupt.patient():
        raise RuntimeError("a bug")


def test_what_fails_after_sigterm_is() -> None:
    """The launcher sends it, too, when a rank has died."""
    with (
        pytest.raises(RuntimeError, match="Connection closed"),
        interrupt.noted(),
        interrupt.patient(),
    ):
        press(signal.SIGTERM)
        raise RuntimeError("Connection closed by peer")


def test_another_thread_cannot_set_handlers_and_need_not() -> None:
    earlier, results = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with interrupt.noted(), interrupt.patient():
            results.append(signal.getsignal(signal.SIGINT) is earlier)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [True]
