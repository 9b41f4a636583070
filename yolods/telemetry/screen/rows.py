"""Rows of the screen's tables: those of ultralytics on a wide terminal, shorter ones else."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

from yolods.stats import LOSS_NAMES

TRAIN_TITLES = ("Epoch", "GPU_mem", *LOSS_NAMES, "Instances", "Size")
VAL_TITLES = ("Class", "Images", "Instances", "Box(P", "R", "mAP50", "mAP50-95)")
WIDE = 130
"""Columns from which ultralytics' rows and the bar behind them fit into a line."""


@dataclass(frozen=True)
class Rows:
    """Rows of both tables in one set of column widths."""

    train_widths: tuple[int, ...]
    val_widths: tuple[int, ...]

    @property
    def train_header(self) -> str:
        """The titles of the training table."""
        return _cells(TRAIN_TITLES, self.train_widths)

    @property
    def val_header(self) -> str:
        """The titles of the validation table."""
        return _cells(VAL_TITLES, self.val_widths)

    def train(
        self, epoch: str, memory: str, losses: Sequence[float], batch: tuple[int, int] | None
    ) -> str:
        """A row of the training table.

        Args:
            losses: the mean loss items, in the order of LOSS_NAMES.
            batch: boxes and image size of the last batch; None: there was none in this start.
        """
        last = ("-", "-") if batch is None else [f"{value:.4g}" for value in batch]
        shown = [f"{value:.4g}" for value in losses]
        return _cells((epoch, memory, *shown, *last), self.train_widths)

    def val(self, name: str, images: int, instances: int, values: Sequence[float]) -> str:
        """A row of the validation table; a name that is too long is cut on a narrow terminal."""
        room = self.val_widths[0]
        if self is NARROW and len(name) > room:
            name = f"{name[: room - 1]}…"
        numbers = [str(images), str(instances), *(f"{value:.3g}" for value in values)]
        return _cells((name, *numbers), self.val_widths)


# ultralytics' widths, whose users know these columns.
ULTRALYTICS = Rows((11,) * 7, (22, *(11,) * 6))
# 61 and 69 columns, so that 80 have room for the number of batches and a time.
NARROW = Rows((8, 8, 10, 10, 10, 10, 5), (14, 8, 10, 9, 9, 9, 10))


def _cells(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True))


def columns_of(stream: TextIO) -> float:
    """The width of a stream's terminal; inf if the terminal does not tell it."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):  # a stream without a descriptor, or one that is closed
        columns = shutil.get_terminal_size().columns
    return columns or math.inf
