"""Gives each run a folder of its own: claims it, locks it, moves an earlier run's files away.

    a new run      creates its folder, with a number in the name if the name is taken
    --exist-ok     takes the existing folder and moves an earlier run's files to a subfolder
    --resume       takes the run's folder as it is

If several processes create one folder, mkdir succeeds for only one of them, on network file systems
as well. While a run is active, its launcher and its rank 0 share a lock on a file in the folder. A
start needs that lock exclusively, so it is refused while either process lives. The kernel releases
the lock however a process ends.
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
"""The file that an active run holds locked; its text names the process and the time."""
EARLIER_FOLDER = "earlier"
"""Subfolder to which --exist-ok moves an earlier run's files: earlier/, earlier2/ and so on."""
OUTPUTS = (
    *(
        CONFIG_FILE,
        "checkpoints",
        "weights",
        "logs",
        "train.log",
        "results.csv*",
        "results.png",
        "problems.txt",
    ),
    *(partial_name(name) for name in (CONFIG_FILE, "results.csv", "stability.jsonl")),
    *("stability.jsonl", "events.out.tfevents.*", "labels.jpg", "train_batch*.jpg"),
    *("telemetry.jsonl", "wandb", "mlruns", "mlflow.db", "comet"),
    *(
        "val_batch*.jpg",
        "Box*_curve.png",
        "confusion_matrix*.png",
        "predictions.json",
        "metrics.json",
        "deepspeed",
        "trace.json",
        "trace.png",
        "trace",
    ),
)
"""Patterns of all that a run writes into its folder. CONFIG_FILE comes first: without it the folder
can no longer be resumed, even if moving the rest fails."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of file systems without locks. Two starts with --exist-ok, or --resume, are not kept apart
there."""


class Claim:
    """This process' lock on a run's folder, from `take` or `join` to the end of the context."""

    def __init__(self) -> None:
        self.put_aside: Path | None = None
        """Folder to which an earlier run's files were moved; None: there were none."""
        self._handle: int | None = None
        self._taken: Path | None = None
        """The folder, if this process claimed it with `take`."""
        self._made: list[Path] = []
        """The folders that this process created for the claim, innermost first."""
        self._refused = False

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if kind is not None and issubclass(kind, UserError):
            self.refuse()
        if self._handle is not None and self._taken is not None:
            self._tidy(self._taken)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def take(self, config: RunConfig) -> RunConfig:
        """Claim a folder for the run.

        Returns:
            the configuration with the claimed folder, and with identities if it had none.

        Raises:
            UserError: another run is using the folder, or the folder cannot be written.
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
            # Exclusive until here, to refuse a second start; shared from now on, so that rank 0 can
            # join.
            self._share(config.run_dir)
        return replace(config, start=start, run=config.run if config.resume else start)

    def join(self, config: RunConfig) -> RunConfig:
        """Share the lock on the folder that the launcher claimed for this run.

        Raises:
            UserError: as for `take`.
        """
        with writable(config.run_dir):
            # A user may have removed the folder between two starts.
            config.run_dir.mkdir(parents=True, exist_ok=True)
            self._handle = _open(config.run_dir)
            self._share(config.run_dir)
        return config

    def refuse(self) -> None:
        """Note that the user was told why this start is refused.

        Its log then repeats that, and goes with a folder that was created for it, unless the run
        had begun. A `UserError` that ends the context means the same.
        """
        self._refused = True

    def _new(self, project: Path, name: str) -> Path:
        """Create the first folder of that name, with a number if needed, that nobody has taken."""
        for folder in numbered(project / name):
            if self._make(folder):
                return folder
        raise AssertionError("numbers do not end")

    def _make(self, folder: Path) -> bool:
        """Create a folder and lock it; False if another process was first."""
        missing = [folder.parent, *folder.parent.parents]
        missing = [each for each in missing if not each.exists()]
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            return False
        # A start with --exist-ok may find and lock the new folder between mkdir and the lock; it
        # then counts as taken.
        with suppress(_Taken):
            self._own(folder)
            self._made = [folder, *missing]
        return bool(self._made)

    def _own(self, folder: Path) -> None:
        """Lock a folder exclusively."""
        self._handle = _open(folder)
        # A run that ends unlinks its lock file (`_tidy`). A lock on the unlinked file excludes
        # nobody: open it again.
        while not self._lock(folder, fcntl.LOCK_EX):
            os.close(self._handle)
            self._handle = _open(folder)
        self._taken = folder
        text = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}"
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)

    def _share(self, folder: Path) -> None:
        """Downgrade to a shared lock, which the other processes of this run can hold, too."""
        self._lock(folder, fcntl.LOCK_SH)

    def _lock(self, folder: Path, how: int) -> bool:
        """Lock the open file; returns whether it is still in the folder.

        Raises:
            _Taken: another run holds the lock.
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
                f"{folder}: another run is using this folder ({holder}); wait until it ends, or "
                f"choose another --name (if that process no longer exists: rm {folder / LOCK})"
            ) from None
        return os.fstat(self._handle).st_nlink > 0  # 0: a run that just ended has unlinked the file

    def _tidy(self, folder: Path) -> None:
        """Remove the lock file, and the folder of a start that came to nothing, which frees its
        name."""
        with suppress(OSError, _Taken):
            # A rank may outlive its launcher; its shared lock makes this raise, and the lock file
            # stays.
            self._lock(folder, fcntl.LOCK_EX)
            (folder / LOCK).unlink()
            if self._made and not (folder / CONFIG_FILE).exists():
                _remove_start(folder, logs=self._refused)
                for each in self._made:
                    each.rmdir()


class _Taken(UserError):
    """Another run is using the folder."""


def _remove_start(folder: Path, *, logs: bool) -> None:
    """Remove what a start writes into its folder before a run begins; other files stay."""
    for file in (folder / "train.log", *folder.glob("logs/rank*.log")) if logs else ():
        file.unlink(missing_ok=True)
    for name in ("weights", "logs"):
        with suppress(OSError):  # it is not there, or not empty
            (folder / name).rmdir()


def make_folder(wanted: Path, exist_ok: bool = False) -> Path:
    """Create `wanted`, or if it exists, the same name with the first free number from 2 on.

    Of several processes that do so at once, each gets a folder of its own: mkdir succeeds for one.

    Args:
        exist_ok: whether to return `wanted` even if it exists.

    Returns:
        the folder.

    Raises:
        OSError: the folder cannot be created.
    """
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for folder in numbered(wanted):
        try:
            folder.mkdir(exist_ok=exist_ok)
        except FileExistsError:
            if exist_ok:  # a file has the name
                raise
            continue
        return folder
    raise AssertionError("numbers do not end")


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Turn an OSError in the block into a UserError of one line that names the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; choose another folder with "
            "--project"
        ) from None


def outputs_in(folder: Path) -> list[Path]:
    """Files that a run wrote into a folder; without a user's own files and empty folders."""
    found = [path for pattern in OUTPUTS for path in sorted(folder.glob(pattern))]
    return [path for path in found if not path.is_dir() or any(path.iterdir())]


def _put_aside(folder: Path) -> Path | None:
    """Move an earlier run's files to a subfolder, which is returned; None: there were none."""
    left = outputs_in(folder)
    if not left:
        return None
    place = make_folder(folder / EARLIER_FOLDER)
    for path in left:
        path.rename(place / path.name)
    return place


def _holder(handle: int) -> str:
    """The text of the lock file, for up to 1 s: the holder writes it just after locking."""
    for _ in range(20):
        if text := os.pread(handle, 200, 0).decode(errors="replace").strip():
            return text
        time.sleep(0.05)
    return "another start"


def _open(folder: Path) -> int:
    return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
