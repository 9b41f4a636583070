"""What DeepSpeed's monitors write stays within the run's folder; what it prints becomes lines of its log."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from yolods.engine.files import kept_within

RUN = Path("runs/exp")


@pytest.mark.parametrize("block", ["tensorboard", "csv_monitor"])
@pytest.mark.parametrize("more", [{}, {"output_path": "/elsewhere"}, {"output_path": ""}])
def test_monitors_write_into_the_runs_folder_wherever_the_json_points(block: str, more: dict) -> None:
    settings = {block: {"enabled": True, "job_name": "mine", **more}}
    kept = kept_within(RUN, settings)
    assert kept == {block: {"enabled": True, "job_name": "mine", "output_path": "runs/exp/deepspeed"}}
    assert settings[block] == {"enabled": True, "job_name": "mine", **more}


@pytest.mark.parametrize(
    ("given", "name"), [(None, "flops_profiler.txt"), ("mine.txt", "mine.txt"), ("/elsewhere/mine.txt", "mine.txt")]
)
def test_the_flops_profile_is_a_file_of_the_run_and_not_on_the_screen(given: str | None, name: str) -> None:
    kept = kept_within(RUN, {"flops_profiler": {"enabled": True, "output_file": given}})
    assert kept["flops_profiler"]["output_file"] == f"runs/exp/deepspeed/{name}"


def test_services_keep_their_files_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_DIR", raising=False)
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", "mine")
    kept_within(tmp_path, {"wandb": {"enabled": True}, "comet": {"enabled": True}})
    assert os.environ.pop("WANDB_DIR") == str(tmp_path / "deepspeed")
    assert (tmp_path / "deepspeed").is_dir()
    assert os.environ["COMET_OFFLINE_DIRECTORY"] == "mine"


@pytest.mark.parametrize("block", ["tensorboard", "csv_monitor", "flops_profiler", "wandb", "comet"])
def test_what_is_off_is_left_alone(tmp_path: Path, block: str) -> None:
    settings = {block: {"enabled": False}}
    assert kept_within(tmp_path, settings) == settings and not list(tmp_path.iterdir())


def test_what_deepspeed_prints_goes_to_its_log_and_not_between_the_epochs(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepspeed.runtime.utils import see_memory_usage
    from deepspeed.utils.comms_logging import CommsLogger
    from deepspeed.utils.timer import SynchronizedWallClockTimer

    from yolods.compat import print_to_the_log

    print_to_the_log()
    logger = logging.getLogger("DeepSpeed")
    monkeypatch.setattr(logger, "filters", [])  # an earlier test's, which would take the handler away
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
