"""`yolods.train`: from words to a finished run, an interrupt in between, and what is told
meanwhile."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

import yolods
from tests import forks
from tests.tiny import make_dataset
from yolods.api import launcher
from yolods.stats import METRIC_NAMES
from yolods.telemetry.sinks.feed import FEED_FILE, lines_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]

SMALL = {"model": "yolov5[0.1,0.1]", "imgsz": 64, "batch_size": 4, "workers": 0, "plots": False}

EPOCHS = 8
"""Enough for an interrupt in the first to arrive before the last."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to train in, where starts are forked."""
    monkeypatch.chdir(tmp_path)
    for name, value in forks.environment().items():
        monkeypatch.setenv(name, value)
    # Not in the module `subprocess` itself, by which the fork server is started.
    forked = SimpleNamespace(Popen=forks.Popen, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(launcher, "subprocess", forked)
    return tmp_path


def test_a_call_is_interrupted_and_goes_on(place: Path, capsys: pytest.CaptureFixture) -> None:
    data = make_dataset(place / "data", train=8, val=4)
    called: list[tuple[str, int]] = []

    def note(name: str):
        return lambda run: called.append((name, run.epoch))

    def interrupt(run) -> None:
        assert run.tloss["train/box_loss"] > 0 and run.save_dir == place / "runs" / "exp"
        if run.epoch == 0:
            signal.raise_signal(signal.SIGINT)

    told = {
        name: [note(name)]
        for name in ("on_train_start", "on_train_epoch_end", "on_train_end", "teardown")
    }
    told["on_fit_epoch_end"] = [note("on_fit_epoch_end"), interrupt]
    with pytest.raises(KeyboardInterrupt):
        yolods.train(data=data, epochs=EPOCHS, **SMALL, callbacks=told)
    assert "Ctrl-C: stopped after step" in capsys.readouterr().out
    assert called[:3] == [("on_train_start", 0), ("on_train_epoch_end", 0), ("on_fit_epoch_end", 0)]
    assert called[-1][0] == "teardown"
    feed = place / "runs" / "exp" / FEED_FILE
    done = [line["epoch"] for line in lines_of(feed.read_bytes()) if line["kind"] == "epoch"]

    called.clear()
    told["on_fit_epoch_end"] = [note("on_fit_epoch_end")]
    result = yolods.train(resume=place / "runs" / "exp", callbacks=told)
    assert called[0] == ("on_train_start", done[-1] + 1), "where the run continues"
    assert called[-2][0] == "on_train_end"
    ended = [epoch for name, epoch in called if name == "on_fit_epoch_end"]
    assert ended == list(range(done[-1] + 1, EPOCHS)), "each epoch once, over both calls"
    points = [
        (tag, line["step"])
        for line in lines_of(feed.read_bytes())
        if line["kind"] == "scalars"
        for tag in line["values"]
    ]
    assert len(points) == len(set(points)), "each scalar once, over the resume as well"
    assert result.folder == place / "runs" / "exp" and result.epochs == EPOCHS
    assert result.best.is_file() and result.last.is_file()
    assert set(METRIC_NAMES) <= set(result.metrics)
    assert "mAP50" in str(result)


def test_a_callback_that_fails_is_what_is_said_to_have_stopped_the_run(
    place: Path, capsys: pytest.CaptureFixture
) -> None:
    def broken(run) -> None:
        raise ValueError("mine")

    data = make_dataset(place / "data", train=8, val=4)
    told = {"on_train_epoch_end": broken}
    with pytest.raises(ValueError, match="mine"):
        yolods.train(data=data, epochs=EPOCHS, **SMALL, callbacks=told)
    shown, run = capsys.readouterr(), place / "runs" / "exp"
    failed = "callback on_train_epoch_end (test_a_callback_that_fails_is_what_is_said_to_have_"
    (line,) = [line for line in shown.err.splitlines() if "callback" in line]
    assert line.startswith(f"yolods: {failed}") and "failed: ValueError: mine; the run" in line
    assert "SIGTERM: stopped after step" in shown.out and "Ctrl-C" not in shown.out
    log = (run / "train.log").read_text()
    assert log.index(failed) < log.index("SIGTERM: stopped after step")
    assert list((run / "checkpoints").glob("step*"))


def test_what_the_launcher_refuses_is_raised_with_all_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(yolods.CallError) as caught:
        yolods.train(data="nowhere.yaml", epochs=0, imgsz=65)
    shown = str(caught.value).splitlines()
    assert len(shown) == 3
    assert "--data nowhere.yaml: no such file" in shown
    assert "error" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
