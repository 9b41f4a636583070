"""results.csv: one row per epoch, in the format of ultralytics, so that its readers work."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from yolods.stats import LOSS_NAMES, METRIC_NAMES, EpochStats
from yolods.system.files import replace_text


def columns(lr_names: Sequence[str]) -> list[str]:
    """The column names of results.csv with these learning-rate columns (`lr/pg0`, ...)."""
    train = [f"train/{name}" for name in LOSS_NAMES]
    val = [f"val/{name}" for name in LOSS_NAMES]
    return ["epoch", "time", *train, *METRIC_NAMES, *val, *lr_names]


def row(stats: EpochStats) -> dict[str, float]:
    """The values of a row by column; nan for those that an epoch without evaluation lacks.

    Losses and metrics are first rounded to 5 decimals, because ultralytics does so before it prints
    %.6g.
    """
    values: dict[str, float] = {"epoch": stats.epoch + 1, "time": stats.seconds}
    values |= {f"train/{name}": round(float(stats.train_loss[name]), 5) for name in LOSS_NAMES}
    values |= {name: round(_get(stats.metrics, name), 5) for name in METRIC_NAMES}
    values |= {f"val/{name}": round(_get(stats.val_loss, name), 5) for name in LOSS_NAMES}
    return values | {name: float(value) for name, value in stats.lr.items()}


def _get(values: Mapping[str, float] | None, name: str) -> float:
    return math.nan if values is None else float(values[name])


class ResultsTable:
    """The results.csv of a run, appended to by one process."""

    def __init__(self, path: Path, start_epoch: int = 0) -> None:
        """Take over `path` for a run whose next epoch is `start_epoch` (from 0).

        Rows of that epoch and later ones are removed: the run got further than its last checkpoint.
        If `start_epoch` is 0, the whole file is.

        Raises:
            OSError: the file cannot be written.
        """
        self.path = path
        self.earlier: dict[str, list[float]] = {}
        """The rows that stay, by column."""
        self._columns: list[str] | None = None
        if not path.exists():
            return
        if start_epoch == 0:
            path.unlink()
            return
        header, rows = _parse(path)
        # The file counts epochs from 1, so `start_epoch` is the last row that stays.
        kept = [cells for cells in rows if 1 <= float(cells[0]) <= start_epoch]
        if header:
            # The file's own columns: a resume with other parameter groups must not mix two formats.
            self._columns = header
            self.earlier = _by_column(header, kept)
            replace_text(path, "".join(",".join(cells) + "\n" for cells in [header, *kept]))
        else:
            path.unlink()

    def append(self, stats: EpochStats) -> None:
        """Add an epoch's row in one write, so that a kill leaves a complete row or none.

        Raises:
            OSError: the file cannot be written.
        """
        values = row(stats)
        head = ""
        if self._columns is None:
            self._columns = columns(list(stats.lr))
            head = ",".join(self._columns) + "\n"
        line = ",".join(f"{values.get(name, math.nan):.6g}" for name in self._columns)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{head}{line}\n")


def read_results(path: Path) -> dict[str, list[float]]:
    """The columns of the file, from complete rows: a kill may truncate the last line."""
    return _by_column(*_parse(path))


def _by_column(header: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    return {name: [float(cells[i]) for cells in rows] for i, name in enumerate(header)}


def _parse(path: Path) -> tuple[list[str], list[list[str]]]:
    """The header and the complete numeric rows. A last line without a newline is incomplete."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines()))
    if not lines or lines[0][:1] != ["epoch"]:
        return [], []
    header = [cell.strip() for cell in lines[0]]
    return header, [
        cells for cells in lines[1:] if len(cells) == len(header) and all(map(_is_number, cells))
    ]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
