"""Resumable checkpoints of a run: written aside, flushed, renamed, then named in `latest`.

    checkpoints/
      latest                     name of the newest complete checkpoint
      ended, stopped             where the run finished, or was stopped; neither while it runs
      step00000128/
        rank0.pt, rank1.pt ...   a rank's shards (fp32 masters, optimizer states, moving average),
                                 running statistics and RNG states
        progress.json            the run's position in its data, epoch and best fitness
        model.json               the architecture and the contents of the shards
        manifest.json            size and checksum of each of these
      .writing/                  being written or removed, or left by a kill; the next save
                                 clears it

A save has three parts: `collect` takes a rank's state, `write_rank` writes it to the disk, and
`publish`, on rank 0 only, turns the ranks' files into the newest checkpoint. Until `latest` names
it, a run resumes from the previous one. With a copy of the state, a thread of every rank does all
but the first part while training continues.

A rank writes what it owns, under the names of parameters and not of DeepSpeed's buffers. So a
checkpoint can be read under any layout, and weights are not stored a second time in the precision
of the computation.
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
"""Longest wait for a checkpoint, or another rank's part: torch's limit for a collective."""
STOP_SECONDS = 60.0
"""The same after Ctrl-C or a user error, which may have ended only one rank."""
GONE_SECONDS = 2.0
"""The same after a failure: a lost rank never delivers its part."""
NOTICED_SECONDS = 1.0
"""Longest wait that is not logged."""

Told = tuple[Sequence[Any] | None, str]
"""A rank's message to rank 0: (fields of its FileRecord, name) or (None, reason), as JSON."""


# Wide: saving, loading and noting the end share one folder and one thread.
class CheckpointStore:
    """The checkpoints of one run folder. `save` and `load` are collectives.

    With a `kv_store`, checkpoints are written in the background: `save` only copies this rank's
    state to the host, and a thread of every rank writes it. Leaving the context waits for the last
    one.
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
            folder: the run's `checkpoints/`.
            keep: number of newest checkpoints to keep.
            model: `architecture`, `names` and `train_args`, for an export without the run;
                `depends`, for a resume. The caller may add keys until the first save.
            keep_best: whether to keep the one of the best epoch as well.
            kv_store: connects the ranks' threads; None: `save` returns when the checkpoint is
                complete.
            run: the run's identity; checkpoints of other runs are not loaded.
            start: the identity of the command that started the run.
        """
        self._folder, self._ranks, self._model = folder, ranks, model
        self._run, self._start = run, start
        self._keep, self._keep_best = keep, keep_best
        # A connection of its own: a call that waits would block other threads on the same one.
        self._kv_store = kv_store.clone() if kv_store is not None else None
        self._copy, self._background, self._saves = HostCopy(leave=UNCHANGED), Background(), 0

    def save(self, engine: Engine, progress: Progress) -> None:
        """Write a checkpoint, or begin to in the background; earlier ones stay intact meanwhile.

        In the background it first waits for the previous one, if that is still being written.

        Raises:
            OSError: on every rank, if any rank could not write; `latest` still names the earlier
                one. In the background it refers to the previous checkpoint, and this one has begun,
                unless it is a TimeoutError.
        """
        model = {**self._model, **engine.layout()}
        if self._kv_store is None:
            with slowly("writing a checkpoint"):
                self._write_all(self._ranks, collect(engine), progress, model)
            return
        self._saves += 1
        self._join(LIMIT_SECONDS)
        fault = self._background.take_fault()
        # One set of buffers: a second one would only let a slow disk fall further behind.
        state = self._copy.take(collect(engine))
        talk = StoreCollectives(
            self._kv_store, self._ranks, "checkpoint", self._saves, LIMIT_SECONDS
        )
        self._background.start(lambda: self._write_all(talk, state, progress, model), "checkpoint")
        if fault is not None:  # raised last, so that a failed save does not prevent this one
            raise fault

    def check(self) -> None:
        """Raise the exception of the last save, once, if it has finished. Local; does not wait.

        Raises:
            OSError: as `save` does.
        """
        if (fault := self._background.take_fault()) is not None:
            raise fault

    def wait(self, seconds: float = LIMIT_SECONDS) -> None:
        """Wait until the last checkpoint is on the disk. Local.

        The other ranks learn from rank 0 that it is complete, so rank 0 may exit only after the
        next collective.

        Raises:
            OSError: why it is not; a TimeoutError if it is still being written.
        """
        self._join(seconds)
        self.check()

    def note_end(self, progress: Progress, status: int = 0) -> None:
        """Rank 0: note that the run ends after this step, for the launcher and a later --resume.

        Args:
            status: exit status: 0 if the run is finished, its final validation included; otherwise
                that of a request to stop.
        """
        end = End(self._run, self._start, progress.step, status)
        with suppress(OSError):
            write_text(self._folder / (STOPPED if status else ENDED), json.dumps(asdict(end)))

    def note_start(self) -> None:
        """Rank 0: remove the note of an end, because the run continues."""
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
                log.warning("%s; the earlier checkpoint is kept", error)

    def _join(self, seconds: float) -> None:
        """Wait for the checkpoint being written, and log it if that takes a while."""
        began = time.monotonic()
        if self._background.join(min(NOTICED_SECONDS, seconds)):
            return
        if self._ranks.is_main and seconds > NOTICED_SECONDS:
            log.warning("a checkpoint is still being written; the run waits for it")
        with slowly("waiting for a checkpoint"):
            done = self._background.join(seconds - NOTICED_SECONDS)
        if not done:
            waited = time.monotonic() - began
            raise TimeoutError(
                f"a checkpoint is still being written after {waited:.0f} s; no longer waiting for "
                "it"
            )

    def _write_all(
        self,
        talk: Ranks | StoreCollectives,
        state: Mapping[str, Any],
        progress: Progress,
        model: Mapping[str, Any],
    ) -> None:
        """Turn the ranks' states into the newest checkpoint. A collective over `talk`.

        Raises:
            OSError: as `save` does.
        """
        main = self._ranks.is_main
        writing = self._folder / WRITING / f"step{progress.step:08d}"
        # Faults travel as values: a rank that raised here would leave the others waiting.
        try:
            fault = talk.from_main(_make_room(writing) if main else None)
            if fault is None:
                told = talk.to_main(self._write(writing, state))
                fault = talk.from_main(
                    self._publish(writing, told, progress, model) if main else None
                )
        except (TimeoutError, ConnectionError) as error:
            fault = str(error)
        if fault is not None:
            raise OSError(f"the checkpoint {writing.name} could not be written: {fault}")

    def _write(self, writing: Path, state: Mapping[str, Any]) -> Told:
        """Write this rank's file; returns its record, or None and the reason."""
        who = self._ranks.name
        try:
            return astuple(write_rank(writing, self._ranks.rank, state)), who
        except (OSError, RuntimeError) as error:  # torch raises RuntimeErrors of its own
            return None, f"{who}: {' '.join(str(error).split())}"

    def _publish(
        self, writing: Path, told: Sequence[Told], progress: Progress, model: Mapping[str, Any]
    ) -> str | None:
        """Rank 0: publish the ranks' files, or remove them and return the reason."""
        fault = next((who for record, who in told if record is None), None)
        try:
            fault = fault or _not_here(writing, told)
            if fault is None:
                files = {
                    rank_file(writing, rank).name: FileRecord(*record)
                    for rank, (record, _) in enumerate(told)
                }
                publish(writing, self._folder, files, progress, model)
                self._prune(writing.name)
        except OSError as error:
            fault = str(error)
        shutil.rmtree(self._folder / WRITING, ignore_errors=True)  # also frees a full disk
        return fault

    def _prune(self, newest: str) -> None:
        """Remove old checkpoints, by one rename each, so that a kill leaves no half of one."""
        for name in set(names_in(self._folder)) - self._kept(newest):
            with suppress(OSError):
                os.replace(self._folder / name, self._folder / WRITING / name)

    def _kept(self, newest: str) -> set[str]:
        """The newest `keep` checkpoints and the best.

        Checkpoints of later steps are from before the run was set back; they are removed first.
        """
        step = step_of(newest)[0]
        names = [
            name for name in names_in(self._folder) if name == newest or step_of(name)[0] != step
        ]
        course = [name for name in names if step_of(name)[0] <= step]
        kept = {*[*(name for name in names if name not in course), *course][-self._keep :]}
        if self._keep_best:
            # Saves during the next epoch know the same best epoch; the first is the one at its end.
            best = {
                name: epoch
                for name in course
                if (epoch := _best_epoch(self._folder / name)) is not None
            }
            kept |= {*sorted(best, key=lambda name: (-best[name], step_of(name)))[:1]}
        return kept

    def find(self) -> Checkpoint:
        """The newest intact checkpoint of this run. A collective.

        Damaged ones and those of other runs are skipped and logged.

        Raises:
            UserError: there is none; one line per damage.
        """
        found = search(self._folder, self._ranks, self._run)
        if found.folder is None:
            raise UserError("\n".join([nothing_in(self._folder), *found.skipped]))
        if self._ranks.is_main and found.skipped:
            for line in found.skipped:
                log.warning("%s", line)
            log.warning("resuming from %s, which is intact", found.folder)
        return Checkpoint(found.folder)

    def load(self, engine: Engine, checkpoint: Checkpoint | None = None) -> Progress:
        """Load a checkpoint into `engine`.

        The result is bit for bit the same under the layout that wrote it. Under another layout,
        weights, optimizer states and moving average are the same, and running statistics are
        averaged over the replicas.

        Args:
            checkpoint: the result of `find`; None: call it.

        Raises:
            UserError: there is none, or it belongs to another model.
        """
        checkpoint = checkpoint or self.find()
        layout = engine.layout()
        # Through JSON, so that tuples compare equal to the lists in the file.
        if all(
            checkpoint.model[key] == json.loads(json.dumps(value)) for key, value in layout.items()
        ):
            state = load_rank(checkpoint.folder, self._ranks.rank)
            _tell_unsent(state, engine, averaged=False)
            engine.load_state({**state, "frozen": checkpoint.frozen()})
            set_rng_state(state["rng"])
        else:
            log.info(
                "%s was written under another layout; its shards are redistributed",
                checkpoint.folder,
            )
            state = recut(checkpoint, engine)
            _tell_unsent(state, engine, averaged=True)
            engine.load_state(state)
        return Progress.from_json(checkpoint.progress)


def _tell_unsent(state: Mapping[str, Any], engine: Engine, *, averaged: bool) -> None:
    """Log what becomes of gradients that the ranks had not sent yet."""
    saved = (state.get("compression") or {}).get("memory", {})
    held = () if engine.compression is None else engine.compression.compressed
    if dropped := len(set(saved) - set(held)):
        log.warning(
            "what the ranks had not sent yet of %d gradients is dropped: they are no longer "
            "compressed",
            dropped,
        )
    if averaged and set(saved) & set(held):
        log.info("every rank gets the mean of what the ranks had not sent yet of their gradients")


def _patience(kind: type[BaseException] | None) -> float:
    """Seconds to wait for the last checkpoint of a run that ends with this exception or None."""
    if kind is None:
        return LIMIT_SECONDS
    return STOP_SECONDS if issubclass(kind, UserError | KeyboardInterrupt) else GONE_SECONDS


def _make_room(writing: Path) -> str | None:
    """Rank 0: make an empty folder to write to, without leftovers of a kill; a fault or None."""
    shutil.rmtree(writing.parent, ignore_errors=True)
    try:
        writing.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return str(error)
    return None


def write_rank(folder: Path, rank: int, state: Mapping[str, Any]) -> FileRecord:
    """Write a rank's state to the disk. Local.

    Raises:
        OSError, RuntimeError: it could not be written.
    """
    # Rank 0 has made the folder, but another host may have cached its absence.
    os.makedirs(folder, exist_ok=True)
    return write_file(rank_file(folder, rank), lambda file: torch.save(dict(state), file))


def publish(
    writing: Path,
    folder: Path,
    files: Mapping[str, FileRecord],
    progress: Progress,
    model: Mapping[str, Any],
) -> None:
    """Turn the ranks' files in `writing` into the newest checkpoint in `folder`.

    Every line reaches the disk before the next one begins, so that `latest` never names a
    checkpoint that a power cut could destroy.

    Raises:
        OSError: `latest` still names a complete checkpoint: the earlier one, or in the last line
            this one.
    """
    about = {
        PROGRESS: write_text(writing / PROGRESS, json.dumps(asdict(progress), indent=2)),
        MODEL: write_text(writing / MODEL, json.dumps(model)),
    }
    write_text(writing / MANIFEST, render_manifest({**files, **about}))
    sync_folder(writing)
    target = folder / writing.name
    if target.exists():  # a run that was set back saves this step again
        _put_aside(target, writing.parent)
    os.replace(writing, target)
    sync_folder(folder)
    sync_folder(folder.parent)  # the first save created `folder`
    replace_text(folder / LATEST, writing.name)


def _put_aside(checkpoint: Path, rubbish: Path) -> None:
    """Rename a checkpoint; under this name it can be loaded until a new one replaces it."""
    old = checkpoint.with_name(checkpoint.name + OLD)
    if old.exists():  # left by a save that was killed after its rename
        os.replace(old, rubbish / old.name)
        shutil.rmtree(rubbish / old.name, ignore_errors=True)  # its name is needed again
    os.replace(checkpoint, old)
    sync_folder(checkpoint.parent)


def _not_here(writing: Path, told: Sequence[Told]) -> str | None:
    """A fault if a rank's file is missing in rank 0's folder: it was written to another disk."""
    for rank, (record, who) in enumerate(told):
        file = rank_file(writing, rank)
        if record is not None and not (
            file.is_file() and file.stat().st_size == FileRecord(*record).size
        ):
            return (
                f"{file.name} of {who} is not in rank 0's {file.parent}: all hosts must share the "
                "run's folder"
            )
    return None


def _best_epoch(folder: Path) -> int | None:
    """The epoch (from 0) that ended at this checkpoint, if it was the best so far; else None."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one need not be kept
        progress = Checkpoint(folder).progress
        if (
            progress["best_fitness"] is not None
            and progress["epochs_done"] == progress["best_epoch"] + 1
        ):
            return progress["best_epoch"]
    return None
