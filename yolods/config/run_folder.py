"""A run's folder is one run's: claimed by one start, held while it goes on, cleared of what an earlier run has left.

    a new run      makes its folder; where the name is taken, that of the next number
    --exist-ok     takes the folder that is there, and puts aside what an earlier run has left in it
    --resume       takes the run's folder as it is

Of several processes that make one folder, mkdir lets one through, on a network's file system as well. While a run goes
on, its launcher and its rank 0 share a lock on a file in the folder; a start has to have that lock for itself alone,
so it is refused as long as either lives. Whatever way a process ends, the kernel lets go of its lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from yolods.config.run import CONFIG_FILE, RunConfig, numbered
from yolods.errors import UserError
from yolods.system.files import partial_name

LOCK = ".lock"
"""The file whose lock a run holds while it goes on; its text says which process has claimed the folder, and when."""
EARLIER_FOLDER = "earlier"
"""Where --exist-ok puts aside what was there: the first time earlier/, then earlier2/ and so on."""
OUTPUTS = (
    *(CONFIG_FILE, "checkpoints", "weights", "logs", "train.log", "results.csv*", "results.png", "problems.txt"),
    *(partial_name(name) for name in (CONFIG_FILE, "results.csv", "stability.jsonl")),
    *("stability.jsonl", "events.out.tfevents.*", "labels.jpg", "train_batch*.jpg"),
    *("val_batch*.jpg", "Box*_curve.png", "confusion_matrix*.png", "predictions.json", "metrics.json", "deepspeed"),
)
"""All that a run writes into its folder, first of all what makes it one that can be resumed."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What file systems without locks answer; there two starts with --exist-ok, or --resume, are not kept apart."""


class Claim:
    """This process' hold on the folder of a run, from `take` or `join` to the end of the context."""

    def __init__(self) -> None:
        self.put_aside: Path | None = None
        """Where that is now which an earlier run had left in the folder."""
        self._handle: int | None = None
        self._taken: Path | None = None
        """The folder, where it is this process that has claimed it."""
        self._made: list[Path] = []
        """The folders that it has made for that, innermost first."""

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._handle is not None and self._taken is not None:
            self._tidy(self._taken)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def take(self, config: RunConfig) -> RunConfig:
        """Claim a folder for the run.

        Returns:
            the configuration with the folder that it got, and with identities where it had none.

        Raises:
            UserError: another run goes on there, or the folder cannot be written.
        """
        start = config.start or uuid.uuid4().hex
        with writable(config.run_dir):
            if config.resume:
                self._own(config.run_dir)
            elif config.exist_ok and not self._make(config.run_dir):
                self._own(config.run_dir)
                self.put_aside = _put_aside(config.run_dir)
            elif not config.exist_ok:
                config = replace(config, run_dir=self._new(config.project, config.name))
            self._share(config.run_dir)
        return replace(config, start=start, run=config.run if config.resume else start)

    def join(self, config: RunConfig) -> RunConfig:
        """Share in what the launcher has claimed for this run.

        Raises:
            UserError: as `take`.
        """
        with writable(config.run_dir):
            config.run_dir.mkdir(parents=True, exist_ok=True)  # a person may have removed it between two starts
            self._handle = _open(config.run_dir)
            self._share(config.run_dir)
        return config

    def _new(self, project: Path, name: str) -> Path:
        """The first folder of that name and a number that nobody has."""
        for folder in numbered(project / name):
            if self._make(folder):
                return folder
        raise AssertionError("numbers do not end")

    def _make(self, folder: Path) -> bool:
        """Make a folder and lock it; False where another process was first."""
        missing = [folder.parent, *folder.parent.parents]
        missing = [each for each in missing if not each.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            return False
        with suppress(_Taken):  # by a start with --exist-ok, which came upon it between these two calls
            self._own(folder)
            self._made = [folder, *missing]
        return bool(self._made)

    def _own(self, folder: Path) -> None:
        """Lock a folder for this process alone."""
        self._handle = _open(folder)
        while not self._lock(folder, fcntl.LOCK_EX):
            os.close(self._handle)
            self._handle = _open(folder)
        self._taken = folder
        text = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}"
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)

    def _share(self, folder: Path) -> None:
        """Let those in who belong to this run."""
        self._lock(folder, fcntl.LOCK_SH)

    def _lock(self, folder: Path, how: int) -> bool:
        """Whether the file is still in the folder, of which this process has the lock now.

        Raises:
            _Taken: another run has it.
        """
        assert self._handle is not None
        try:
            fcntl.flock(self._handle, how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return True
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = _holder(self._handle)
            os.close(self._handle)
            self._handle = None
            raise _Taken(
                f"{folder}: a run goes on there ({holder}); wait for its end, or choose another --name "
                f"(if that process is no more: rm {folder / LOCK})"
            ) from None
        return os.fstat(self._handle).st_nlink > 0  # else a run has just come to its end

    def _tidy(self, folder: Path) -> None:
        """Take the lock's file away, and of a start that has come to nothing the folder: its name is for the next."""
        with suppress(OSError, _Taken):
            self._lock(folder, fcntl.LOCK_EX)  # a rank may have outlived its launcher
            (folder / LOCK).unlink()
            if self._made and {each.name for each in folder.iterdir()} <= {"weights"}:
                with suppress(FileNotFoundError):
                    (folder / "weights").rmdir()
                for each in self._made:
                    each.rmdir()


class _Taken(UserError):
    """Another run goes on in the folder."""


def make_folder(wanted: Path, exist_ok: bool = False) -> Path:
    """Make a folder that no other process makes at the same moment: `wanted`, or where that is taken the next number's.

    Args:
        exist_ok: whether `wanted` is given back even if it was there.

    Raises:
        OSError: it cannot be made.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for folder in numbered(wanted):
        try:
            folder.mkdir(exist_ok=exist_ok)
        except FileExistsError:
            if exist_ok:
                raise
            continue
        return folder
    raise AssertionError("numbers do not end")


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say what is wrong with a folder in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}; choose another place by --project"
        ) from None


def outputs_in(folder: Path) -> list[Path]:
    """What a run has left in a folder; not what a person has put there, nor folders without content."""
    found = [path for pattern in OUTPUTS for path in sorted(folder.glob(pattern))]
    return [path for path in found if not path.is_dir() or any(path.iterdir())]


def _put_aside(folder: Path) -> Path | None:
    """Move what an earlier run has left in `folder` to a folder below it; None: there was nothing."""
    left = outputs_in(folder)
    if not left:
        return None
    place = make_folder(folder / EARLIER_FOLDER)
    for path in left:
        path.rename(place / path.name)
    return place


def _holder(handle: int) -> str:
    """Who has the lock, as it says so itself: a moment after it has taken it."""
    for _ in range(20):
        if text := os.pread(handle, 200, 0).decode(errors="replace").strip():
            return text
        time.sleep(0.05)
    return "another start"


def _open(folder: Path) -> int:
    return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
