"""Arrays and texts in a folder: written once, row by row, and opened without being read.

Each column is one `.npy` file, which all processes of a host map into their memory and share. A
text column is two: the bytes of all texts, and where each of them ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

HEADER = 128
"""Bytes of a column's header. All have one length, because the rows are counted last."""
BUFFER = 1 << 20
"""Bytes of a column that wait in memory before they are written."""


@dataclass(frozen=True)
class ColumnType:
    """The type of one column."""

    dtype: str
    """A numpy dtype with its byte order, such as '<f4'."""
    width: int = 0
    """Numbers per row; 0: one, and the column is one-dimensional."""


TEXT_BYTES, TEXT_ENDS = ColumnType("|u1"), ColumnType("<i8")
"""The two columns of a text column `x`: `x` and `x_end`."""


class ColumnWriter:
    """Writes columns into a new folder. A context manager: leaving it completes the files."""

    def __init__(
        self, folder: Path, columns: Mapping[str, ColumnType], texts: Sequence[str] = ()
    ) -> None:
        """
        Args:
            folder: made here; its parent exists.
            columns: the columns of numbers.
            texts: the names of the text columns.
        """
        folder.mkdir()
        self._folder = folder
        self._kinds = dict(columns)
        for name in texts:
            self._kinds |= {name: TEXT_BYTES, _ends(name): TEXT_ENDS}
        self._files = ExitStack()
        self._streams = {name: self._open(name) for name in self._kinds}
        self._rows = dict.fromkeys(self._kinds, 0)

    def _open(self, name: str) -> BinaryIO:
        stream = self._files.enter_context(open(_file(self._folder, name), "wb", BUFFER))  # noqa: SIM115
        stream.write(bytes(HEADER))
        return stream

    def add(self, name: str, rows: np.ndarray) -> None:
        """Append rows to a column: (n,) or (n, width), of a type that casts safely to its own.

        Raises:
            ValueError: the shape is another.
        """
        kind = self._kinds[name]
        expected = (kind.width,) if kind.width else ()
        if rows.shape[1:] != expected:
            raise ValueError(f"{name}: rows of shape {rows.shape[1:]}, not {expected}")
        cast = np.ascontiguousarray(rows).astype(kind.dtype, casting="safe", copy=False)
        self._streams[name].write(cast.data if cast.size else b"")
        self._rows[name] += len(rows)

    def add_texts(self, name: str, texts: Sequence[str]) -> None:
        """Append texts, which may have surrogates in place of undecodable bytes."""
        coded = [os.fsencode(text) for text in texts]
        lengths = np.array([len(each) for each in coded], np.int64)
        self.add(_ends(name), self._rows[name] + np.cumsum(lengths))
        self.add(name, np.frombuffer(b"".join(coded), np.uint8))

    def rows(self, name: str) -> int:
        """The rows that a column has so far; of a text column, its bytes."""
        return self._rows[name]

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._files:
            for name, stream in self._streams.items() if error is None else ():
                stream.seek(0)
                stream.write(self._header(name))
                stream.flush()
                os.fsync(stream.fileno())

    def _header(self, name: str) -> bytes:
        kind, rows = self._kinds[name], self._rows[name]
        shape = (rows, kind.width) if kind.width else (rows,)
        entries = {"descr": kind.dtype, "fortran_order": False, "shape": shape}
        text = f"{entries!r}".ljust(HEADER - 11) + "\n"
        return npy.magic(1, 0) + (HEADER - 10).to_bytes(2, "little") + text.encode("ascii")


class Columns:
    """The columns of a folder, mapped into memory and read-only.

    All are mapped at once, so that a folder that is removed later stays whole for this process. A
    copy in a forked process shares the memory.
    """

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            OSError, ValueError: a column is missing or not complete.
        """
        self.folder = folder
        self._mapped = {file.stem: _map(file) for file in folder.glob("*.npy")}

    def __getitem__(self, name: str) -> np.ndarray:
        """A column: (n,) or (n, width)."""
        return self._mapped[name]

    @property
    def names(self) -> set[str]:
        """The columns' names; a text column has two."""
        return set(self._mapped)

    def texts(self, name: str) -> Texts:
        """A text column."""
        return Texts(self[name], self[_ends(name)])


def _map(file: Path) -> np.ndarray:
    try:
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
    except EOFError as error:  # numpy's word for an empty file
        raise ValueError(f"{file}: {error}") from error
    # A plain array, because a slice of a memmap takes a microsecond more.
    return mapped.view(np.ndarray)


class Texts(Sequence[str]):
    """A text column as a sequence that makes each text when it is asked for."""

    def __init__(self, coded: np.ndarray, ends: np.ndarray) -> None:
        self._coded, self._ends = coded, ends

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, place: int) -> str:  # type: ignore[override]
        place = range(len(self._ends))[place]
        start = int(self._ends[place - 1]) if place else 0
        return os.fsdecode(self._coded[start : int(self._ends[place])].tobytes())

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self._ends.tolist():
            yield os.fsdecode(self._coded[start:end].tobytes())
            start = end


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.npy"


def _ends(name: str) -> str:
    return f"{name}_end"
