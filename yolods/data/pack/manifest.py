"""What a finished pack consists of: `pack.json`, and `SHA256SUMS` for `sha256sum -c`.

`pack.json` is written last, so that a folder with it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from yolods.data.index.table import Index
from yolods.data.pack.sample import PACK_COLUMNS
from yolods.data.pack.shard import ShardRecord
from yolods.errors import Faults, UserError
from yolods.system.files import replace_text
from yolods.system.humanize import plural, size_text

PACK_FORMAT = 1
"""Version of the folder's layout."""
PACK_FILE, SUMS_FILE, INDEX_FOLDER = "pack.json", "SHA256SUMS", "index"
READ_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class PackRecord:
    """The content of pack.json."""

    split: str
    """'train', 'val' or 'test'."""
    settings: dict[str, Any]
    """All that decides about the bytes, beside the images."""
    images: int
    boxes: int
    image_bytes: int
    """Bytes of the stored images."""
    duplicates: int
    """Images whose original bytes are those of an earlier one."""
    shards: tuple[ShardRecord, ...]
    index: dict[str, str] = field(default_factory=dict)
    """sha256 of each file of the index, by its name in the pack."""

    @property
    def bytes(self) -> int:
        """Bytes of the tar files."""
        return sum(shard.bytes for shard in self.shards)

    def sums(self) -> dict[str, str]:
        """sha256 of every file but SHA256SUMS, by its name in the pack."""
        shards = {shard.file: shard.sha256 for shard in self.shards}
        return {**shards, **self.index, PACK_FILE: sha256(self._text().encode()).hexdigest()}

    def write(self, folder: Path) -> None:
        """Write both files."""
        lines = (f"{digest}  {name}\n" for name, digest in self.sums().items())
        replace_text(folder / SUMS_FILE, "".join(lines))
        replace_text(folder / PACK_FILE, self._text())

    def _text(self) -> str:
        return json.dumps({"format": PACK_FORMAT, **asdict(self)}, indent=1) + "\n"


def read_record(folder: Path) -> PackRecord:
    """The record of a finished pack.

    Raises:
        UserError: there is none, it is damaged, or its format is another.
    """
    file = folder / PACK_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        version = found.pop("format")
        if version == PACK_FORMAT:
            shards = tuple(ShardRecord(**each) for each in found.pop("shards"))
            return PackRecord(**found, shards=shards)
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a finished pack: {PACK_FILE} is missing; run the same `yolods pack` "
            "again, which goes on where it was stopped"
        ) from None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error!r}); copy the pack again") from None
    raise UserError(
        f"{folder} has format {version}, and this version of yolods reads format {PACK_FORMAT}; "
        "pack the data again with `yolods pack ... --overwrite`"
    )


def pack_index(folder: Path, notes: Path | None = None) -> Index:
    """The index of a finished pack.

    Args:
        folder: of the pack.
        notes: as for `Index`.

    Raises:
        UserError: it is damaged.
    """
    try:
        index = Index(folder / INDEX_FOLDER, notes)
        rows = {len(index.columns[name]) for name in PACK_COLUMNS} | {len(index.ids)}
        if rows == {index.counts.images}:
            return index
        fault = f"{index.counts.images} images, and columns of {sorted(rows)}"
    except (OSError, ValueError, TypeError, KeyError) as error:
        fault = repr(error)
    raise UserError(f"{folder / INDEX_FOLDER} is damaged ({fault}); copy the pack again")


def check_shards(folder: Path, record: PackRecord) -> None:
    """Compare the lengths of the tar files with the record, without reading them.

    Raises:
        UserError: a line for each that is missing or of another length.
    """
    faults = Faults()
    for shard in record.shards:
        file = folder / shard.file
        try:
            length = file.stat().st_size
        except OSError as error:
            faults.add(f"{file}: {error.strerror}; copy the pack again")
            continue
        if length != shard.bytes:
            faults.add(f"{file} has {length} bytes instead of {shard.bytes}; copy the pack again")
    faults.raise_if_any()


def hash_file(file: Path, seen: Callable[[int], Any] = lambda _: None) -> str:
    """sha256 of a file; `seen` is called with the number of bytes that were read."""
    digest = sha256()
    with file.open("rb") as stream:
        while data := stream.read(READ_AT_ONCE):
            digest.update(data)
            seen(len(data))
    return digest.hexdigest()


def check_sums(folder: Path, seen: Callable[[int], Any]) -> Iterator[str]:
    """The names of files whose bytes are not those that SHA256SUMS says.

    Args:
        folder: a finished pack.
        seen: as for `hash_file`.

    Raises:
        UserError: SHA256SUMS cannot be read.
    """
    sums = folder / SUMS_FILE
    try:
        lines = sums.read_text(encoding="utf-8").splitlines()
        expected = dict(reversed(line.split("  ", 1)) for line in lines)
    except (OSError, ValueError) as error:
        raise UserError(f"{sums} cannot be read ({error}); copy the pack again") from None
    for name in read_record(folder).sums().keys() - expected.keys():
        yield name
    for name, digest in expected.items():
        try:
            if hash_file(folder / name, seen) != digest:
                yield name
        except OSError:
            yield name


def pack_size(folder: Path) -> int:
    """Bytes that `check_sums` reads."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def record_line(record: PackRecord) -> str:
    """A pack in one line."""
    line = (
        f"{plural(record.images, 'image')}, {record.boxes} boxes, {size_text(record.bytes)} in "
        f"{plural(len(record.shards), 'tar file')}"
    )
    if record.duplicates:
        line += f"; {plural(record.duplicates, 'image')} equal to an earlier one"
    return line
