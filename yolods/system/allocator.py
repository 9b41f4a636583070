"""Whether this process keeps the memory that it frees, or gives it back to the system."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""
_LARGEST = 32 << 20
"""Bytes of the largest array that comes out of kept memory; glibc permits no more."""
_KEPT = 128 << 20
"""Bytes of freed memory that are kept at most."""
_TRIMMED = 16 << 20
"""Bytes of a tensor that is worth a walk over the free memory."""


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


def trim_before(size: int) -> None:
    """Return all free memory to the system before a tensor of `size` bytes is made, if it is large.

    Large tensors of different sizes that come one after the other leave gaps that the next one does
    not fit: walking over the weights of a model, a process grew by four times its largest tensor.
    Takes milliseconds. Does nothing under another C library.
    """
    if size < _TRIMMED:
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
