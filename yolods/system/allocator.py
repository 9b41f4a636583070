"""Lets this process keep the memory that it frees, instead of giving it back to the system."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
_LARGEST = 32 << 20
"""Bytes of the largest array that comes out of kept memory; glibc permits no more."""
_KEPT = 128 << 20
"""Bytes of freed memory that are kept at most."""


def keep_freed_memory() -> bool:
    """Whether arrays of up to 32 MiB come out of kept memory from now on, 128 MiB at most.

    By default glibc returns the memory of images to the system and gets it back page by page for
    the next ones. Nothing changes where the environment sets glibc's limits, or under another C
    library.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _KEPT))
