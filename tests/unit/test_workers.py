"""yolods.system.workers: results in order, and no process outlives the one that needs it."""

import os
import signal
import time

import psutil
import pytest

from yolods.errors import UserError
from yolods.system import workers as workers_module
from yolods.system.workers import in_threads, in_workers


def slower_first(number: int) -> tuple[int, int]:
    time.sleep(0.05 if number % 4 == 0 else 0)
    return number, os.getpid()


def test_results_come_in_the_order_of_the_items():
    found = list(in_workers(slower_first, range(20), 2, doing="counts"))
    assert [number for number, _ in found] == list(range(20))
    processes = {process for _, process in found}
    assert len(processes) == 2 and os.getpid() not in processes
    alone = in_workers(slower_first, range(3), 1, doing="counts")
    assert {process for _, process in alone} == {os.getpid()}


def test_few_items_are_computed_ahead():
    asked = []

    def items():
        for number in range(100):
            asked.append(number)
            yield number

    found = in_workers(slower_first, items(), 2, doing="counts")
    assert next(found)[0] == 0
    assert len(asked) <= 2 * workers_module.AHEAD
    found.close()


def test_what_the_work_raises_is_raised():
    def refuse(number: int) -> int:
        if number == 3:
            raise UserError("three")
        return number

    found = in_workers(refuse, range(9), 2, doing="counts")
    assert [next(found) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="three"):
        next(found)


def test_a_process_that_dies_is_told():
    def die(number: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(UserError, match="a process that counts died; the usual cause"):
        list(in_workers(die, range(3), 2, doing="counts"))


def test_processes_end_with_the_iterator_and_ignore_requests_to_stop():
    found = in_workers(slower_first, range(100), 2, doing="counts")
    _, process = next(found)
    os.kill(process, signal.SIGINT)
    assert [number for number, _ in (next(found) for _ in range(10))] == list(range(1, 11))
    found.close()
    assert not psutil.pid_exists(process)


def test_processes_end_with_one_that_was_killed():
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        found = in_workers(slower_first, iter(range(10**6)), 2, doing="counts")
        os.write(writing, f"{next(found)[1]}\n".encode())
        time.sleep(60)
    os.close(writing)
    with os.fdopen(reading) as stream:
        process = psutil.Process(int(stream.readline()))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        process.wait(timeout=10)


def test_threads_give_results_in_order_and_compute_few_ahead():
    asked = []

    def items():
        for number in range(100):
            asked.append(number)
            yield number

    found = in_threads(slower_first, items(), 2)
    assert [next(found)[0] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(asked) <= 5 + 2 * workers_module.AHEAD
    found.close()
    assert [number for number, _ in in_threads(slower_first, range(9), 3)] == list(range(9))


def test_what_a_thread_raises_is_raised():
    def refuse(number: int) -> int:
        if number == 3:
            raise UserError("three")
        return number

    with pytest.raises(UserError, match="three"):
        list(in_threads(refuse, range(9), 2))
