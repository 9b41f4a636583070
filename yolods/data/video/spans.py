"""Writes many numbers as a few spans."""

from __future__ import annotations

from collections.abc import Iterable

MOST_SPANS = 5


def span_text(numbers: Iterable[int]) -> str:
    """Numbers for a message, such as "3, 5-8, 12": sorted, `MOST_SPANS` spans at most."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number <= found[-1][-1] + 1:
            found[-1][1:] = [number]
        else:
            found.append([number])
    more = ", ..." if len(found) > MOST_SPANS else ""
    return ", ".join("-".join(map(str, span)) for span in found[:MOST_SPANS]) + more
