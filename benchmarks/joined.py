"""Records that hold runs of several days: a table whose rows end with their run, and a section
about every run."""

from __future__ import annotations

import re
from collections.abc import Sequence

RUN = "## Run of "
"""Before the date of a run, in the head of its section."""


def joined(
    before: str, rows: Sequence[Sequence[str]], section: str
) -> tuple[list[list[str]], list[str]]:
    """A record's rows and sections with those of a new run among them.

    Args:
        before: the record as it is; empty for none.
        rows: cells of the new run's rows, the first what the row is about, the last the run's date
            in UTC; they take the places of older ones.
        section: about the new run, headed by `RUN` and its date.

    Returns:
        cells of all rows, and the sections of the runs that they come from.
    """
    table, *sections = re.split(f"^(?={RUN})", before, flags=re.MULTILINE)
    old = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in re.findall(r"^\|.* UTC \|$", table, re.M)
    ]
    every = {row[0]: list(row) for row in [*old, *rows]}
    dates = {row[-1] for row in every.values()}
    kept = [each.strip() for each in sections if each.partition("\n")[0].removeprefix(RUN) in dates]
    return [*every.values()], [*kept, section.strip()]
