"""What can happen to checkpoints, done to them on purpose: kills and power cuts while one is
written, damage, no disk.

Saves that are to die run in a forked child, in which every call that changes the disk is counted,
and the n-th is the last. A kill leaves what was written. A power cut takes away as well what was
not flushed: contents of files, names in folders. Small and read-only disks are tmpfs in a mount
namespace of the child's own, so nothing stays mounted.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import random
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.stores import ALONE, MODEL, WEIGHTS, Engine
from yolods.checkpoint.names import LATEST, PROGRESS
from yolods.checkpoint.names import MODEL as MODEL_FILE
from yolods.checkpoint.store import WRITING, CheckpointStore, Progress
from yolods.checkpoint.verify import MANIFEST, names_in, step_of
from yolods.distributed.store import open_store

COUNTED = ("open", "write", "fsync", "close", "replace", "mkdir", "unlink", "rmdir")
"""Calls of `os` that a save and what it clears away consist of."""
MODES = ("before", "half", "after", "power cut")
"""When the n-th call is the last: before it, with half of what it was to write, after it, and with
the lights out."""
FILES = ("rank0.pt", PROGRESS, MODEL_FILE, MANIFEST, LATEST)
DAMAGES = ("truncated", "flipped bit", "missing")
KINDS = ("kill", "power cut", *DAMAGES, "full disk", "read-only")
KEEP = 4
NUMBERS = 20_000
"""Of the checkpoint's largest tensor: some pages of a small disk."""
DISK_BYTES = 4 << 20
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where trials are quick. What a power cut takes is worked out here and does not hang on the
disk."""
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 32, 0x4000, 0x40000


class NoDiskHere(Exception):
    """This machine does not let a test mount a disk of its own; says why."""


@dataclass(frozen=True)
class Outcome:
    """Of one trial."""

    kind: str
    """One of KINDS."""
    what: str
    """What was done, in words."""
    wrong: tuple[str, ...]
    """Everything that did not go as it has to; empty if all did."""


class Stepped(Engine):
    """An engine whose weights tell the step, and that is larger than a page."""

    def __init__(self, step: int) -> None:
        super().__init__(weights={name: value + step for name, value in WEIGHTS.items()})
        self.bulk = torch.rand(NUMBERS, generator=torch.Generator().manual_seed(step))

    def state(self) -> dict[str, Any]:
        """With the large tensor."""
        return {**super().state(), "frozen": {"bulk": self.bulk}}


def store_in(folder: Path, *, beside: bool = False) -> CheckpointStore:
    """As a run would have it, in one process.

    Args:
        beside: as one that trains while a thread writes.
    """
    kv_store = open_store(ALONE) if beside else None
    return CheckpointStore(
        folder, ALONE, keep=KEEP, keep_best=False, model=MODEL, kv_store=kv_store
    )


def save(folder: Path, step: int, *, beside: bool = False) -> None:
    """Write the checkpoint of a step, to the end; `beside` as for `store_in`."""
    store = store_in(folder, beside=beside)
    store.save(Stepped(step), Progress(step=step))
    store.wait()


# Dying while writing


class LastCall:
    """Ends this process at a call of `os`; knows until then what a power cut would take away."""

    def __init__(self, number: int, mode: str, rng: random.Random) -> None:
        """
        Args:
            number: of the call, from 0; one that is not reached counts the calls.
            mode: one of MODES.
            rng: decides what a power cut takes.
        """
        self.calls, self._number, self._mode, self._rng = 0, number, mode, rng
        self._real = {name: getattr(os, name) for name in COUNTED}
        self._paths: dict[int, Path] = {}
        self._unflushed: set[Path] = set()
        """Files that have content which is not on the disk."""
        self._names: list[tuple[Path, Path | None, bytes | None]] = []
        """Names not on the disk, in order: the name, where it came from by a rename, what it named
        before."""

    def arm(self) -> None:
        """From here on."""
        for name in COUNTED:
            setattr(os, name, lambda *given, _name=name, **named: self._call(_name, given, named))

    def _call(self, name: str, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        last = self.calls == self._number
        self.calls += 1
        if last and self._mode == "half" and name == "write":
            self._real["write"](given[0], given[1][: len(given[1]) // 2])
        if last and self._mode in ("before", "half"):
            os.kill(os.getpid(), signal.SIGKILL)
        note = self._before(name, given) if not named else None
        try:
            result = self._real[name](*given, **named)
        except OSError:  # as when there is nothing to clear away
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            raise
        if not named:
            self._after(name, given, result, note)
        if last:
            if self._mode == "power cut":
                self._cut()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def _before(self, name: str, given: tuple[Any, ...]) -> Any:
        if name == "open":
            return os.path.lexists(given[0])
        target = Path(given[1]) if name == "replace" else None
        return target.read_bytes() if target and target.is_file() else None

    def _after(self, name: str, given: tuple[Any, ...], result: Any, note: Any) -> None:
        if name == "open":
            self._paths[result] = path = Path(given[0])
            if not note:
                self._names.append((path, None, None))
        elif name == "write":
            self._unflushed.add(self._paths[given[0]])
        elif name == "fsync":
            path = self._paths[given[0]]
            self._unflushed.discard(path)
            self._names = [
                entry for entry in self._names if not (path.is_dir() and entry[0].parent == path)
            ]
        elif name == "replace":
            source, target = map(Path, given)

            def moved(path: Path) -> Path:
                return target / path.relative_to(source) if path.is_relative_to(source) else path

            self._unflushed = {moved(path) for path in self._unflushed}
            self._names = [
                (moved(path), origin, old) for path, origin, old in self._names if path != source
            ]
            self._names.append((target, source, note))

    def _cut(self) -> None:
        share = self._rng.choice((0.3, 0.6, 1.0))
        for path in sorted(self._unflushed):
            if path.is_file() and self._rng.random() < share:
                os.truncate(path, self._rng.randrange(path.stat().st_size + 1) // 2)
        for path, origin, old in reversed(self._names):
            if not os.path.lexists(path) or self._rng.random() >= share:
                continue
            if path.is_dir():
                if (
                    origin.exists()
                ):  # its new owner's rename was flushed, and so was this one before it
                    continue
                origin.parent.mkdir(parents=True, exist_ok=True)
                self._real["replace"](path, origin)
            elif old is not None:
                path.write_bytes(old)
            else:
                self._real["unlink"](path)


def in_child(work: Callable[[], Any]) -> tuple[Any, int]:
    """Do `work` in a forked process: what it returned, as JSON gives it back, and the signal that
    ended it, or 0.

    Raises:
        AssertionError: it raised; with its traceback.
    """
    reading, writing = os.pipe()
    close, write = os.close, os.write  # the child may put others in their place
    pid = os.fork()
    if not pid:
        try:
            answer = {"result": work()}
        except NoDiskHere as error:
            answer = {"none": str(error)}
        except BaseException:
            answer = {"raised": traceback.format_exc()}
        write(writing, json.dumps(answer).encode())
        os._exit(0)
    close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    answer = json.loads(text or '{"result": null}')
    if "none" in answer:
        raise NoDiskHere(answer["none"])
    assert "raised" not in answer, answer["raised"]
    return answer["result"], max(-ended, 0)


def dying_save(
    folder: Path, step: int, number: int, mode: str, seed: int, *, beside: bool = False
) -> int:
    """Save in a child that ends at its call `number`; gives how many calls it made, or -1 where it
    was killed."""

    def work() -> int:
        last = LastCall(number, mode, random.Random(seed))
        last.arm()
        save(folder, step, beside=beside)
        return last.calls

    result, ended = in_child(work)
    assert ended in (0, signal.SIGKILL) and (result is None) == bool(ended), (result, ended)
    return -1 if result is None else result


def calls_of_a_save() -> int:
    """How many calls of `os` a save makes that is not the first and has an old checkpoint to
    remove."""
    with folder_with(KEEP) as folder:
        return dying_save(folder, KEEP + 1, 1 << 30, "before", 0)


# Damage


def damage(path: Path, how: str, rng: random.Random) -> str:
    """Do one of DAMAGES to a file; says what exactly."""
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
        return f"{path.name} removed"
    if how == "truncated":
        size = rng.randrange(len(content))
        os.truncate(path, size)
        return f"{path.name} cut to {size} of {len(content)} bytes"
    place, bit = rng.randrange(len(content)), rng.randrange(8)
    path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
    return f"bit {bit} of byte {place} of {path.name} flipped"


# Disks


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[bool], None]]:
    """In a child: a disk of DISK_BYTES at `folder`; gives a function that makes it read-only, or
    writable again.

    Raises:
        NoDiskHere: this machine does not permit it.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(kind: bytes | None, place: Path, flags: int, options: bytes | None) -> None:
        if libc.mount(b"none", str(place).encode(), kind, ctypes.c_ulong(flags), options):
            raise NoDiskHere(f"mount: {os.strerror(ctypes.get_errno())}")

    if libc.unshare(CLONE_NEWNS) and libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
        raise NoDiskHere(f"no mount namespace of one's own: {os.strerror(ctypes.get_errno())}")
    mount(None, Path("/"), MS_REC | MS_PRIVATE, None)
    folder.mkdir(parents=True, exist_ok=True)
    mount(b"tmpfs", folder, 0, f"size={DISK_BYTES}".encode())
    yield lambda yes: mount(
        None, folder, MS_REMOUNT | (MS_RDONLY if yes else 0), f"size={DISK_BYTES}".encode()
    )


def fill(folder: Path, room: int) -> Path:
    """Leave no more than `room` bytes of a disk; gives the file that takes the rest."""
    facts, filler = os.statvfs(folder), folder / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(facts.f_bavail * facts.f_bsize - room, 1))
    return filler


# Trials


@contextmanager
def folder_with(count: int) -> Iterator[Path]:
    """A run's `checkpoints/`, with those of steps 1 to `count`."""
    with tempfile.TemporaryDirectory(prefix="yolods-checkpoints-", dir=IN_MEMORY) as parent:
        folder = Path(parent) / "checkpoints"
        for step in range(1, count + 1):
            save(folder, step)
        yield folder


def load(folder: Path) -> tuple[int, list[str], list[str]]:
    """The step that is loaded, what the log says about it, and what is wrong with what was
    loaded."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("yolods.checkpoint.store")
    logger.addHandler(handler)
    engine = Stepped(0)
    try:
        step = store_in(folder).load(engine).step
    finally:
        logger.removeHandler(handler)
    expected, got = Stepped(step), engine.loaded
    same = torch.equal(got["frozen"]["bulk"], expected.bulk)
    same &= all(map(torch.equal, got["masters"], expected.held))
    return step, lines, [] if same else [f"what was loaded is not what step {step} saved"]


def check(folder: Path, allowed: set[int], named: list[str]) -> list[str]:
    """Load, and then save and load again; everything that is wrong.

    Args:
        allowed: steps that may be loaded.
        named: what the log has to name.
    """
    try:
        step, lines, wrong = load(folder)
    except Exception as error:
        return [f"nothing was loaded: {error!r}"]
    if step not in allowed:
        wrong.append(f"step {step} was loaded instead of {sorted(allowed)}")
    wrong += [
        f"{name} is not named in {lines}"
        for name in named
        if not any(f"{name}: " in line for line in lines)
    ]
    wrong += [f"more than a line: {line!r}" for line in lines if "\n" in line]
    return wrong + check_next(folder)


def check_next(folder: Path) -> list[str]:
    """Whether the next save works, is loaded without a word, and leaves the folder clean."""
    save(folder, 1000)
    step, lines, wrong = load(folder)
    if step != 1000 or lines:
        wrong.append(f"the save after that gave step {step}, with {lines}")
    # A file that replaces another is beside it for a moment; the next one of its name goes over a
    # leftover.
    left = [each.name for each in folder.iterdir() if each.name.startswith(".")]
    return wrong + ([f"left behind: {left}"] if left else [])


def killed(
    number: int,
    mode: str,
    seed: int,
    count: int = KEEP,
    harm: str | None = None,
    *,
    again: bool = False,
    beside: bool = False,
) -> Outcome:
    """A save that dies at a call, on top of `count` checkpoints; then, maybe, damage to the newest
    of them.

    Args:
        again: it is of the last step, which was saved already.
        beside: a thread writes it, as in a run.
    """
    rng = random.Random(seed)
    kind = mode if mode == "power cut" else "kill"
    with folder_with(count) as folder:
        calls = dying_save(folder, count if again else count + 1, number, mode, seed, beside=beside)
        what, named = (
            f"{mode} at call {number}" if calls < 0 else f"no kill, {calls} calls only",
            [],
        )
        newest = int((folder / LATEST).read_text().removeprefix("step"))
        allowed = {newest}
        wrong = [] if newest in (count, count + 1) else [f"latest names step {newest}"]
        if harm:
            where = folder / f"step{newest:08d}" / rng.choice(FILES[:-1])
            what += f", then {damage(where, harm, rng)}"
            # One that is whole, and that `latest` did not name yet, comes to its right.
            named, allowed = (
                [str(where)],
                {max({step_of(name)[0] for name in names_in(folder)} - {newest})},
            )
        return Outcome(kind, what, tuple(wrong + check(folder, allowed, named)))


def damaged(how: str, seed: int, file: str | None = None) -> Outcome:
    """One to three of the newest checkpoints are damaged, each in one file; `latest` too, at times
    or if asked for."""
    rng = random.Random(seed)
    with folder_with(KEEP) as folder:
        harmed = rng.randrange(1, KEEP) if file != LATEST else 0
        places = [
            folder
            / f"step{KEEP - place:08d}"
            / (file if file and not place else rng.choice(FILES[:-1]))
            for place in range(harmed)
        ]
        allowed = {KEEP - harmed}
        named = [str(place) for place in places]
        if file == LATEST or rng.random() < 0.25:
            places.append(folder / LATEST)
            named.append(str(folder / LATEST))
            allowed = (
                allowed if harmed else set(range(1, KEEP + 1))
            )  # a flipped bit can name another that is there
        what = ", ".join(f"{place.parent.name}/{damage(place, how, rng)}" for place in places)
        return Outcome(how, what, tuple(check(folder, allowed, named)))


def on_a_small_disk(kind: str, seed: int, *, beside: bool = False) -> Outcome:
    """A save to a disk that is full after some pages, or that has become read-only; `beside` as for
    `killed`.

    Raises:
        NoDiskHere: this machine does not let a test mount one.
    """
    with tempfile.TemporaryDirectory(prefix="yolods-disk-") as parent:
        (what, wrong), ended = in_child(
            lambda: _on_a_small_disk(kind, random.Random(seed), Path(parent) / "disk", beside)
        )
    return Outcome(kind, what, (*wrong, *([f"ended by signal {ended}"] if ended else [])))


def _on_a_small_disk(
    kind: str, rng: random.Random, disk: Path, beside: bool
) -> tuple[str, list[str]]:
    with small_disk(disk) as read_only:
        folder = disk / "checkpoints"
        count = rng.randrange(1, KEEP + 1)
        for step in range(1, count + 1):
            save(folder, step)
        size = sum(
            4096 * -(-file.stat().st_size // 4096)
            for file in (folder / f"step{count:08d}").iterdir()
        )
        room = rng.randrange(size)
        if kind == "full disk":
            filler, what, reason = fill(disk, room), f"{room} bytes free", "No space left on device"
        else:
            if rng.random() < 0.5:  # a kill left something that cannot be cleared away now
                (folder / WRITING / f"step{count + 1:08d}").mkdir(parents=True)
            read_only(True)
            filler, what, reason = None, f"read-only after {count} saves", "Read-only file system"
        wrong = _refused(folder, count + 1, reason, beside)
        step, lines, more = load(folder)
        wrong += more + (
            [f"step {step} was loaded, with {lines}"] if (step, lines) != (count, []) else []
        )
        if filler:
            filler.unlink()
        else:
            read_only(False)
        return what, wrong + check_next(folder)


def _refused(folder: Path, step: int, reason: str, beside: bool) -> list[str]:
    """What is wrong with how a save says that it failed."""
    try:
        save(folder, step, beside=beside)
    except OSError as error:
        said = str(error)
        whole = (
            said.startswith(f"the checkpoint step{step:08d} could not be written: ")
            and reason in said
        )
        return [] if whole and "\n" not in said else [f"it says {said!r}"]
    return ["the save does not say that it failed"]


def trial(seed: int, calls: int) -> Outcome:
    """A random one; KINDS in turn.

    Args:
        calls: of a save, as `calls_of_a_save` says.

    Raises:
        NoDiskHere: it needs a disk of its own, and cannot have one.
    """
    rng = random.Random(f"trial {seed}")
    kind = KINDS[seed % len(KINDS)]
    if kind in DAMAGES:
        return damaged(kind, rng.randrange(1 << 30), FILES[seed // len(KINDS) % len(FILES)])
    if kind in ("full disk", "read-only"):
        return on_a_small_disk(kind, rng.randrange(1 << 30))
    mode = kind if kind == "power cut" else rng.choice(MODES[:-1])
    harm = rng.choice((None, *DAMAGES))
    return killed(
        rng.randrange(calls), mode, rng.randrange(1 << 30), rng.choice((KEEP - 1, KEEP)), harm
    )
