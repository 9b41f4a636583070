"""A tar file of a pack: plain, the same bytes from the same members, and written beside its path.

`tar xf` makes an ordinary data set of it: `images/train/x.jpg` and `labels/train/x.txt`.
"""

from __future__ import annotations

import os
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b, sha256
from pathlib import Path, PurePosixPath

from yolods.data.images.listing import IMAGE_SUFFIXES
from yolods.system.files import partial_name, sync_folder

BLOCK, TAR_RECORD = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
"""A member, and a whole file, fill multiples of so many bytes."""
ROOM = 4 * BLOCK
"""Bytes that a sample may need besides its image and its labels, unless its name is long."""
TOP_FOLDERS = ("images", "videos")
"""Folders of data sets, which are not part of a name in a pack."""


@dataclass(frozen=True)
class ShardRecord:
    """A finished tar file."""

    file: str
    """Name in the pack's folder."""
    bytes: int
    sha256: str


class ShardWriter:
    """A tar file that is being written."""

    def __init__(self, path: Path) -> None:
        """`path` is the finished file; its folder exists."""
        self._path, self._partial = path, path.with_name(partial_name(path.name))
        self._file = open(self._partial, "wb", buffering=1 << 20)  # noqa: SIM115
        self._hash = sha256()
        self.size = 0
        """Bytes so far."""

    def add(self, name: str, data: bytes) -> int:
        """Append a file; returns the place of its first byte."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(data), 0o644
        # GNU's format takes names of any length and of any bytes.
        self._write(member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        place = self.size
        self._write(data)
        self._fill(BLOCK)
        return place

    def finish(self) -> ShardRecord:
        """Complete the file and give it its name.

        Raises:
            OSError: the disk is full.
        """
        self._write(bytes(2 * BLOCK))
        self._fill(TAR_RECORD)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._partial, self._path)
        sync_folder(self._path.parent)
        return ShardRecord(self._path.name, self.size, self._hash.hexdigest())

    def abandon(self) -> None:
        """Remove the unfinished file."""
        with suppress(OSError):  # a full disk, which has been reported
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def _fill(self, multiple: int) -> None:
        self._write(bytes(-self.size % multiple))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)


class MemberNames:
    """Names of the images in the tar files of a split, no two of which differ only in the ending.

    Of the name in the source, what lies behind the last folder `images`, or `videos`, and behind a
    folder of the split's name is kept, because labels are looked for by the former word. A name
    without the ending of an image, such as that of a frame, is kept whole.
    """

    def __init__(self, split: str) -> None:
        self._split = split
        self._taken: dict[int, int] = {}
        """How often a name was wanted, by 64 bits of its hash: a name takes more room."""

    def name(self, identity: str, suffix: str) -> str:
        """The next image's name: `images/<split>/...` with the ending `suffix`."""
        stem = self._stem(identity)
        count = self._take(stem)
        while count > 1:
            other = f"{stem}~{count}"
            if self._take(other) == 1:
                stem = other
                break
            count = self._take(stem)
        return f"{stem}{suffix}"

    def _stem(self, identity: str) -> str:
        parts = [part for part in identity.split("/") if part not in ("", ".", "..")]
        folders, last = parts[:-1], parts[-1]
        if top := next((word for word in TOP_FOLDERS if word in folders), None):
            folders = folders[len(folders) - folders[::-1].index(top) :]
        if folders[:1] == [self._split]:
            folders = folders[1:]
        # Hidden files are not found when a folder is searched for images.
        kept = ["_" + part[1:] if part.startswith(".") else part for part in (*folders, last)]
        if PurePosixPath(last).suffix[1:].lower() in IMAGE_SUFFIXES:
            kept[-1] = PurePosixPath(kept[-1]).stem
        return "/".join(("images", self._split, *kept))

    def _take(self, stem: str) -> int:
        digest = blake2b(os.fsencode(stem), digest_size=8).digest()
        key = int.from_bytes(digest, "little")
        self._taken[key] = self._taken.get(key, 0) + 1
        return self._taken[key]
