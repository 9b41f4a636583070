"""Services that DeepSpeed reports to find the run's folder; what it prints becomes lines of its
log."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from yolods.engine.monitor_files import announce_folders


def test_services_keep_their_files_in_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", "mine")
    folder = str(tmp_path / "deepspeed")
    announce_folders({"WANDB_DIR": folder, "COMET_OFFLINE_DIRECTORY": folder})
    assert os.environ.pop("WANDB_DIR") == folder
    assert Path(folder).is_dir()
    assert os.environ["COMET_OFFLINE_DIRECTORY"] == "mine", "the user's own"


def test_without_a_service_nothing_is_made(tmp_path: Path) -> None:
    announce_folders({})
    assert not list(tmp_path.iterdir())


def test_what_deepspeed_prints_goes_to_its_log_and_not_between_the_epochs(
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deepspeed.runtime.utils import see_memory_usage
    from deepspeed.utils.comms_logging import CommsLogger
    from deepspeed.utils.timer import SynchronizedWallClockTimer

    from yolods.compat import print_to_the_log

    print_to_the_log()
    logger = logging.getLogger("DeepSpeed")
    monkeypatch.setattr(
        logger, "filters", []
    )  # an earlier test's, which would take the handler away
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, "DeepSpeed"):
            see_memory_usage("After the step", force=True)
            timers = SynchronizedWallClockTimer()
            timers("fwd").start()
            timers("fwd").stop()
            timers.log(["fwd"])
            CommsLogger().log_all()
    finally:
        logger.removeHandler(caplog.handler)
    assert capsys.readouterr().out == ""
    for words in ("After the step", "CPU Virtual Memory", "time (ms) | fwd:", "Comm. Op"):
        assert words in caplog.text
