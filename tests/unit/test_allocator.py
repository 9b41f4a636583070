"""yolods.system.allocator: freed memory is used again without page faults, or given back."""

import ctypes
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from yolods.system.allocator import (
    _MMAP_THRESHOLD,
    _TRIM_THRESHOLD,
    keep_freed_memory,
    trim_before,
)

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


def resident() -> int:
    """Bytes of this process' resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kept_before(size: int) -> int:
    """MiB of freed memory that stay after `trim_before(size)`; 100 MiB were freed, in gaps."""
    assert ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 32 << 20)
    arrays = [np.ones(MIB, np.uint8) for _ in range(200)]
    gaps = arrays[::2]
    held = resident() - 100 * MIB
    del arrays[::2]
    del gaps
    trim_before(size)
    return max(resident() - held, 0) // MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone")
def test_gaps_are_given_back_before_large_memory_is_taken():
    assert in_a_fork(lambda: kept_before(MIB)) > 80
    assert in_a_fork(lambda: kept_before(16 * MIB)) < 20


def test_without_glibc_nothing_is_given_back(monkeypatch):
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: asked.append(name) or object())
    trim_before(1 << 30)
    assert asked == [None]
