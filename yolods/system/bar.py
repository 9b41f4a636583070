"""A progress bar for long work."""

from __future__ import annotations

from typing import Any


def counting_bar(what: str, total: int, unit: str, *, shown: bool) -> Any:
    """A tqdm bar, a context manager whose `update` takes the number of units that are done.

    Args:
        what: text before the bar.
        total: number of units.
        unit: what is counted, in the plural.
        shown: whether it is shown if the output goes to a terminal.
    """
    from tqdm import tqdm

    # None hides a bar that goes to a file.
    hidden = None if shown else True
    return tqdm(total=total, desc=what, unit=f" {unit}", leave=False, disable=hidden)
