"""Formats numbers for people."""

from __future__ import annotations


def amount(files: int, size: int) -> str:
    """Number of files and their size."""
    return f"{plural(files, 'file')}, {size_text(size)}"


def plural(count: int, word: str) -> str:
    """A number and its noun, in the plural unless it is 1."""
    return f"{count} {word}{'s' * (count != 1)}"


def size_text(size: float) -> str:
    """Bytes, in the largest unit up to GiB that keeps the value at 1 or above."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def age_text(seconds: float) -> str:
    """A duration, in the largest unit of which it has at least two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock_text(seconds: float) -> str:
    """A duration as minutes:seconds, from an hour on as hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
