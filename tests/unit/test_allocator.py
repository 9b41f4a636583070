"""yolods.system.allocator: freed memory is used again without page faults."""

import ctypes
import os
import resource
import sys

import numpy as np
import pytest

from yolods.system.allocator import _MMAP_THRESHOLD, _TRIM_THRESHOLD, keep_freed_memory

MIB = 1 << 20


def in_a_fork(function) -> int:
    """What a function returns there: a number below 256."""
    if (pid := os.fork()) == 0:
        code = 255
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def pages() -> int:
    """Whether writing the same arrays again and again takes new pages each time."""
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            for size in (3, 9, 20):
                np.ones(size * MIB, np.uint8)
            arrays = [np.ones(20 * MIB, np.uint8) for _ in range(4)]
            del arrays
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return int(faults > 1000)


def pages_of_a_new_process() -> int:
    """As `pages`, with the limits that glibc starts with.

    They rise when large memory is freed, so the tests before this one decide about them.
    """
    mallopt = ctypes.CDLL(None).mallopt
    assert mallopt(_MMAP_THRESHOLD, 128 << 10) and mallopt(_TRIM_THRESHOLD, 128 << 10)
    return pages()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")
def test_freed_memory_is_used_again(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    assert in_a_fork(pages_of_a_new_process) == 1
    assert in_a_fork(lambda: pages() if keep_freed_memory() else 2) == 0


def test_the_environment_wins(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert not keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
