"""`train`: one training run, started and restarted by the launcher as on the command line."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from yolods.api.callbacks import Callback, Callbacks
from yolods.api.follow import Follower
from yolods.api.launcher import Launcher
from yolods.api.outcome import CallError, RunFailed, Trained
from yolods.api.words import flags_of
from yolods.errors import UserError
from yolods.launch.supervisor import MEANINGS

_FEED = "jsonl"
"""The logger that a call follows."""
_REFUSED, _STOPPED = 2, (129, 130, 143)
"""Exit statuses: a user's error, and a stop on request with a checkpoint."""


def train(
    *, callbacks: Mapping[str, Callback | Iterable[Callback]] | None = None, **words: Any
) -> Trained:
    """Train a detector, as `yolods launch train` does, and wait for it.

    The words are the flags, with `_` for `-`: `data`, `model`, `epochs`, `imgsz`, `batch_size`,
    `deepspeed_config`, `resume`, the launcher's `num_gpus` and `hostfile`, and so on; or any
    hyper-parameter, such as `lr0`. The ranks are processes of their own. Their output appears where
    `print` prints. Ctrl-C, or the interrupt of a notebook, stops them with a checkpoint.

    Args:
        callbacks: functions by ultralytics' names (`callbacks.CALLED`), which get a `Moment`. They
            are called in this process while the ranks go on; an exception stops the run.
        words: flags and hyper-parameters; None means not given.

    Returns:
        the run's folder and its metrics.

    Raises:
        CallError: wrong words, values or files, one line each.
        RunFailed: the run did not finish.
        KeyboardInterrupt: the run was interrupted.
    """
    try:
        heard = Callbacks({} if callbacks is None else callbacks)
        flags = _followed(words)
    except UserError as error:
        raise CallError(str(error)) from None
    with tempfile.TemporaryDirectory(prefix="yolods-") as place:
        told = Path(place) / "run"
        follower = Follower(told, heard.hear)
        with Launcher(["train", *flags], told) as launcher:
            try:
                status = launcher.wait(follower.poll)
            finally:
                heard.call("teardown")
            if status == _REFUSED:
                raise CallError("\n".join(launcher.errors) or _ended(status, follower.folder))
            launcher.show_errors()
    return _outcome(status, follower.folder, heard)


def _followed(words: Mapping[str, Any]) -> list[str]:
    """The flags, with the logger that a call follows; raises UserError as `flags_of` does."""
    given = words.get("loggers")
    if not isinstance(given, str | Iterable | None):
        raise UserError(f"loggers is {given!r}: it must be names, such as 'wandb,mlflow'")
    names = [] if given is None else given.split(",") if isinstance(given, str) else list(given)
    return flags_of({**words, "loggers": list(dict.fromkeys([*names, _FEED]))})


def _outcome(status: int, folder: Path | None, heard: Callbacks) -> Trained:
    """The result of a run that was not refused."""
    if status in _STOPPED:
        raise KeyboardInterrupt(_ended(status, folder))
    if status or folder is None:
        raise RunFailed(_ended(status, folder), status=status, folder=folder)
    now = heard.moment
    if now is None or not heard.finished:
        return Trained(folder)
    return Trained(folder, dict(now.metrics), now.epoch + 1, now.seconds)


def _ended(status: int, folder: Path | None) -> str:
    """One line about a run that did not finish."""
    meaning = f" ({MEANINGS[status]})" if status in MEANINGS else ""
    text = f"the run ended with status {status}{meaning}"
    if folder is None:
        return f"{text} before it had a folder; the lines above say why"
    return f"{text}; {folder / 'train.log'} says why, and train(resume={str(folder)!r}) goes on"
