"""Resumable checkpoints of a run: written beside, flushed, renamed; `latest` names only what is whole.

    checkpoints/
      latest                     name of the newest whole checkpoint
      ended, stopped             where the run has come to its end, or was stopped; neither while it goes on
      step00000128/
        rank0.pt, rank1.pt ...   a rank's shards (fp32 masters, optimizer states, moving average), statistics, RNGs
        progress.json            where the run stood
        model.json               the architecture, and what the shards are made of
        manifest.json            size and checksum of each of these
      .writing/                  one being written or removed, or left over from a kill; the next save clears it

A save is three parts: `collect` takes a rank's state, `write_rank` puts it on the disk, and `publish`, by rank 0 alone,
makes of what the ranks wrote the newest checkpoint. Until `latest` names it, a run goes on from the one before. With a
copy of the state, all after the first part is done by a thread of every rank while the next steps are taken.

A rank writes what it owns, under the names of parameters and not of DeepSpeed's buffers: so a checkpoint can be read
under any layout, and weights are not stored a second time in the precision they compute in.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch

from yolods.checkpoint.background import Background
from yolods.checkpoint.checked_files import FileRecord, write_file, write_text
from yolods.checkpoint.names import LATEST, MODEL, PROGRESS
from yolods.checkpoint.progress import Progress
from yolods.checkpoint.read import Checkpoint, load_rank, rank_file
from yolods.checkpoint.state import UNCHANGED, collect, recut, set_rng_state
from yolods.checkpoint.verify import (
    ENDED,
    MANIFEST,
    OLD,
    STOPPED,
    End,
    names_in,
    nothing_in,
    render_manifest,
    search,
    step_of,
)
from yolods.device.host_copy import HostCopy
from yolods.distributed.phases import slowly
from yolods.distributed.store import KeyValueStore
from yolods.distributed.store_collectives import StoreCollectives
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.errors import UserError
from yolods.system.files import replace_text, sync_folder

log = logging.getLogger(__name__)

WRITING = ".writing"
LIMIT_SECONDS = 1800.0
"""Longest wait for a checkpoint to be written, or for another rank's part of it: as torch's for a collective."""
STOP_SECONDS = 60.0
"""The same where a run is stopped by Ctrl-C or a user's mistake, perhaps on one rank alone."""
GONE_SECONDS = 2.0
"""The same after a failure: where that is a rank that is gone, its part will not come."""
NOTICED_SECONDS = 1.0
"""Waits up to here are not worth a line."""

Told = tuple[Sequence[Any] | None, str]
"""What a rank tells rank 0 of its file, as JSON gives it back: the fields of a FileRecord, or None; and who, or why."""


# Wide: saving, loading and noting the end share one folder and one thread.
class CheckpointStore:
    """The checkpoints of one run folder. `save` and `load` are collectives.

    With a store, checkpoints are written beside the training: `save` only copies this rank's state to the host, and a
    thread of every rank writes it. Leaving the store as a context waits for the one that is being written.
    """

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        *,
        keep: int,
        model: dict[str, Any],
        keep_best: bool = True,
        kv_store: KeyValueStore | None = None,
        run: str = "",
        start: str = "",
    ) -> None:
        """
        Args:
            folder: `checkpoints/` of the run.
            keep: how many of the newest to leave.
            model: `architecture`, `names` and `train_args`, for an export without the run; `depends`, for a resume.
            keep_best: whether to leave the one of the best epoch as well.
            kv_store: over which the ranks' threads talk; None: a save is done when it returns.
            run: the run's identity; checkpoints of another are not loaded.
            start: of the command that has started it.
        """
        self._folder, self._ranks, self._model = folder, ranks, model
        self._run, self._start = run, start
        self._keep, self._keep_best = keep, keep_best
        self._kv_store = kv_store.clone() if kv_store is not None else None
        self._copy, self._background, self._saves = HostCopy(leave=UNCHANGED), Background(), 0

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write a checkpoint, or begin to; the earlier ones stay whole until it is.

        With a store it waits for the one before, if that is still being written.

        Raises:
            OSError: on every rank, if any rank could not write; `latest` still names the earlier one. With a store it
                is about the one before, and this one has been begun, unless it is a TimeoutError.
        """
        model = {**self._model, **engine.layout()}
        if self._kv_store is None:
            with slowly("writing a checkpoint"):
                self._write_all(self._ranks, collect(engine), progress, model)
            return
        self._saves += 1
        self._join(LIMIT_SECONDS)
        fault = self._background.take_fault()
        # One set of buffers: a second one would let a disk that is too slow fall behind further, and no more.
        state = self._copy.take(collect(engine))
        talk = StoreCollectives(self._kv_store, self._ranks, "checkpoint", self._saves, LIMIT_SECONDS)
        self._background.start(lambda: self._write_all(talk, state, progress, model), "checkpoint")
        if fault is not None:
            raise fault

    def check(self) -> None:
        """Raise what the last save failed with, if it has ended and this was not told yet. Local; does not wait.

        Raises:
            OSError: as `save` does.
        """
        if (fault := self._background.take_fault()) is not None:
            raise fault

    def wait(self, seconds: float = LIMIT_SECONDS) -> None:
        """Wait until the last checkpoint is on the disk. Local.

        The other ranks hear of it from rank 0, which may leave once they have: after the next collective.

        Raises:
            OSError: it is not, and why; a TimeoutError if it is still being written.
        """
        self._join(seconds)
        self.check()

    def note_end(self, progress: Progress, status: int = 0) -> None:
        """Rank 0: the run ends after this step with such an exit status: it was stopped on request, or (0) has nothing
        left to do, its last evaluation included."""
        end = End(self._run, self._start, progress.step, status)
        with suppress(OSError):
            write_text(self._folder / (STOPPED if status else ENDED), json.dumps(asdict(end)))

    def note_start(self) -> None:
        """Rank 0: the run goes on."""
        for name in (ENDED, STOPPED):
            with suppress(OSError):
                (self._folder / name).unlink(missing_ok=True)

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            self.wait(_patience(kind))
        except OSError as error:
            if self._ranks.is_main:
                log.warning("%s; the earlier checkpoint stays", error)

    def _join(self, seconds: float) -> None:
        """Wait for what is being written, and say so if that takes a while."""
        began = time.monotonic()
        if self._background.join(min(NOTICED_SECONDS, seconds)):
            return
        if self._ranks.is_main and seconds > NOTICED_SECONDS:
            log.warning("a checkpoint is still being written; the run waits for it")
        with slowly("waiting for a checkpoint"):
            done = self._background.join(seconds - NOTICED_SECONDS)
        if not done:
            waited = time.monotonic() - began
            raise TimeoutError(f"a checkpoint is still being written after {waited:.0f} s; it is waited for no longer")

    def _write_all(
        self, talk: Ranks | StoreCollectives, state: Mapping[str, Any], progress: Progress, model: Mapping[str, Any]
    ) -> None:
        """From the ranks' states to the newest checkpoint. A collective by way of `talk`.

        Raises:
            OSError: as `save` does.
        """
        main = self._ranks.is_main
        writing = self._folder / WRITING / f"step{progress.step:08d}"
        try:
            fault = talk.from_main(_make_room(writing) if main else None)
            if fault is None:
                told = talk.to_main(self._write(writing, state))
                fault = talk.from_main(self._publish(writing, told, progress, model) if main else None)
        except (TimeoutError, ConnectionError) as error:
            fault = str(error)
        if fault is not None:
            raise OSError(f"the checkpoint {writing.name} could not be written: {fault}")

    def _write(self, writing: Path, state: Mapping[str, Any]) -> Told:
        """Write this rank's file; gives what it has to be, or None and why not."""
        who = self._ranks.name
        try:
            return astuple(write_rank(writing, self._ranks.rank, state)), who
        except (OSError, RuntimeError) as error:  # torch has RuntimeErrors of its own for what it cannot store
            return None, f"{who}: {' '.join(str(error).split())}"

    def _publish(self, writing: Path, told: Sequence[Told], progress: Progress, model: Mapping[str, Any]) -> str | None:
        """Rank 0: publish what the ranks wrote, or clear it away and return why."""
        fault = next((who for record, who in told if record is None), None)
        try:
            fault = fault or _not_here(writing, told)
            if fault is None:
                files = {rank_file(writing, rank).name: FileRecord(*record) for rank, (record, _) in enumerate(told)}
                publish(writing, self._folder, files, progress, model)
                self._prune(writing.name)
        except OSError as error:
            fault = str(error)
        shutil.rmtree(self._folder / WRITING, ignore_errors=True)  # after a full disk its bytes are needed
        return fault

    def _prune(self, newest: str) -> None:
        """Remove what need not be kept, in one rename each: a kill leaves no half of a checkpoint under its name."""
        for name in set(names_in(self._folder)) - self._kept(newest):
            with suppress(OSError):
                os.replace(self._folder / name, self._folder / WRITING / name)

    def _kept(self, newest: str) -> set[str]:
        """The last K, and the best. Those past the newest are of a course that the run has left: they go first."""
        step = step_of(newest)[0]
        names = [name for name in names_in(self._folder) if name == newest or step_of(name)[0] != step]
        course = [name for name in names if step_of(name)[0] <= step]
        kept = {*[*(name for name in names if name not in course), *course][-self._keep :]}
        if self._keep_best:
            # Saves within the next epoch know the same best epoch: the first of them is the one at its end.
            best = {name: epoch for name in course if (epoch := _best_epoch(self._folder / name)) is not None}
            kept |= {*sorted(best, key=lambda name: (-best[name], step_of(name)))[:1]}
        return kept

    def find(self) -> Checkpoint:
        """The newest whole checkpoint of this run. A collective.

        What is damaged, or another run's, is left out and named in the log.

        Raises:
            UserError: there is none, with a line for each damage.
        """
        found = search(self._folder, self._ranks, self._run)
        if found.folder is None:
            raise UserError("\n".join([nothing_in(self._folder), *found.skipped]))
        if self._ranks.is_main and found.skipped:
            for line in found.skipped:
                log.warning("%s", line)
            log.warning("the run goes on from %s, which is whole", found.folder)
        return Checkpoint(found.folder)

    def load(self, engine: Engine, checkpoint: Checkpoint | None = None) -> Progress:
        """Bring `engine` to a checkpoint: bit for bit under the layout that wrote it, and under another with the same
        weights, optimizer states and average, and running statistics averaged over the replicas.

        Args:
            checkpoint: what `find` returned; None: what it finds.

        Raises:
            UserError: there is none, or it is of another model.
        """
        checkpoint = checkpoint or self.find()
        layout = engine.layout()
        if all(checkpoint.model[key] == json.loads(json.dumps(value)) for key, value in layout.items()):
            state = load_rank(checkpoint.folder, self._ranks.rank)
            engine.load_state({**state, "frozen": checkpoint.frozen()})
            set_rng_state(state["rng"])
        else:
            log.info("%s was written under another layout; its shards are cut anew", checkpoint.folder)
            engine.load_state(recut(checkpoint, engine))
        return Progress.from_json(checkpoint.progress)


def _patience(kind: type[BaseException] | None) -> float:
    """Seconds that a run which ends, with an exception or without, waits for its last checkpoint."""
    if kind is None:
        return LIMIT_SECONDS
    return STOP_SECONDS if issubclass(kind, UserError | KeyboardInterrupt) else GONE_SECONDS


def _make_room(writing: Path) -> str | None:
    """Rank 0: an empty folder to write to, or what is wrong; leftovers of a kill go."""
    shutil.rmtree(writing.parent, ignore_errors=True)
    try:
        writing.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return str(error)
    return None


def write_rank(folder: Path, rank: int, state: Mapping[str, Any]) -> FileRecord:
    """Put a rank's state on the disk. Needs no other rank.

    Raises:
        OSError, RuntimeError: it could not be written.
    """
    # Rank 0 has made the folder; a host that has cached its absence sees it only now.
    os.makedirs(folder, exist_ok=True)
    return write_file(rank_file(folder, rank), lambda file: torch.save(dict(state), file))


def publish(
    writing: Path, folder: Path, files: Mapping[str, FileRecord], progress: Progress, model: Mapping[str, Any]
) -> None:
    """Make what the ranks wrote to `writing` the newest checkpoint in `folder`.

    Each line is on the disk before the next begins: `latest` cannot name what a power cut would take away.

    Raises:
        OSError: `latest` still names a whole checkpoint, the earlier one or at the very end this one.
    """
    about = {
        PROGRESS: write_text(writing / PROGRESS, json.dumps(asdict(progress), indent=2)),
        MODEL: write_text(writing / MODEL, json.dumps(model)),
    }
    write_text(writing / MANIFEST, render_manifest({**files, **about}))
    sync_folder(writing)
    target = folder / writing.name
    if target.exists():  # a run that was set back saves a step again
        _put_aside(target, writing.parent)
    os.replace(writing, target)
    sync_folder(folder)
    sync_folder(folder.parent)  # the first save has made `folder`
    replace_text(folder / LATEST, writing.name)


def _put_aside(checkpoint: Path, rubbish: Path) -> None:
    """Give a checkpoint another name, under which it loads until a new one has taken its place."""
    old = checkpoint.with_name(checkpoint.name + OLD)
    if old.exists():  # of a save that was killed after this one had taken its place
        os.replace(old, rubbish / old.name)
        shutil.rmtree(rubbish / old.name, ignore_errors=True)  # the one put aside next will go there too
    os.replace(checkpoint, old)
    sync_folder(checkpoint.parent)


def _not_here(writing: Path, told: Sequence[Told]) -> str | None:
    """Which rank's file is not in rank 0's folder: it went to another disk under the same path."""
    for rank, (record, who) in enumerate(told):
        file = rank_file(writing, rank)
        if record is not None and not (file.is_file() and file.stat().st_size == FileRecord(*record).size):
            return f"{file.name} of {who} is not in rank 0's {file.parent}: every host has to share the run's folder"
    return None


def _best_epoch(folder: Path) -> int | None:
    """The epoch (from 0) after which a checkpoint was written, if none before it had been better; else None."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one is not worth keeping
        progress = Checkpoint(folder).progress
        if progress["best_fitness"] is not None and progress["epochs_done"] == progress["best_epoch"] + 1:
            return progress["best_epoch"]
    return None
