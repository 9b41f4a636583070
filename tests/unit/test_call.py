"""`train`: what becomes of each end of the launcher, and that the import is light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import yolods
from yolods.api import call
from yolods.telemetry.sinks.feed import FEED_FILE, Feed


class Ended:
    """A launcher that has ended; it names a folder, where it has one."""

    def __init__(self, status: int, folder: Path | None, errors: list[str]) -> None:
        self.status, self.folder, self.errors = status, folder, errors
        self.words: list[str] = []

    def __call__(self, words: list[str], told: Path) -> Ended:
        self.words = words
        if self.folder is not None:
            told.write_text(json.dumps([str(self.folder), "s"]))
        return self

    def __enter__(self) -> Ended:
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait(self, meanwhile) -> int:
        meanwhile()
        return self.status

    def show_errors(self) -> None: ...


@pytest.fixture
def ended(monkeypatch):
    """Has calls end in some way."""

    def end(status: int, folder: Path | None = None, errors: list[str] | None = None) -> Ended:
        launcher = Ended(status, folder, errors or [])
        monkeypatch.setattr(call, "Launcher", launcher)
        return launcher

    return end


def test_a_finished_run_is_returned(ended, tmp_path):
    launcher = ended(0, tmp_path)
    feed = Feed(tmp_path / FEED_FILE)
    feed.add("start", start="s", loggers=["jsonl"], epochs=1, step=0, first_epoch=0)
    losses = {"train_loss": {"box_loss": 1.0}, "val_loss": None, "lr": {}, "seconds": 3.0}
    feed.add("epoch", epoch=0, step=2, metrics=None, fitness=None, **losses)
    feed.add("finish", metrics={"metrics/mAP50(B)": 0.5}, model=None, seconds=4.0)
    seen = []
    done = yolods.train(data="demo", callbacks={"teardown": seen.append})
    assert (done.folder, done.epochs, done.seconds) == (tmp_path, 1, 4.0)
    assert done.metrics == {"metrics/mAP50(B)": 0.5}
    assert launcher.words == ["train", "--data=demo", "--loggers=jsonl"]
    assert len(seen) == 1


def test_a_run_whose_files_are_elsewhere_is_returned_with_its_folder(ended, tmp_path):
    ended(0, tmp_path)
    assert yolods.train(data="demo") == yolods.Trained(tmp_path)


@pytest.mark.parametrize("given", ["wandb", ["wandb"], ("wandb", "jsonl")])
def test_loggers_of_the_caller_are_kept(ended, tmp_path, given):
    launcher = ended(0, tmp_path)
    yolods.train(data="demo", loggers=given)
    assert launcher.words[-1] == "--loggers=wandb,jsonl"


def test_refusals_are_one_exception_without_internals(ended):
    ended(2, errors=["one", "two"])
    with pytest.raises(yolods.CallError) as caught:
        yolods.train(data="demo")
    assert str(caught.value) == "one\ntwo"
    with pytest.raises(yolods.CallError, match="loggers is 5: it must be names"):
        yolods.train(data="demo", loggers=5)
    with pytest.raises(yolods.CallError, match="callbacks is a list"):
        yolods.train(data="demo", callbacks=[])
    with pytest.raises(yolods.CallError, match="epoch: unknown word") as caught:
        yolods.train(epoch=1)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("status", [130, 143, 129])
def test_a_stop_on_request_is_an_interrupt(ended, tmp_path, status):
    ended(status, tmp_path)
    with pytest.raises(KeyboardInterrupt, match=f"status {status}; .*resume="):
        yolods.train(data="demo")


def test_a_failed_run_says_where_its_log_is(ended, tmp_path):
    ended(75, tmp_path)
    with pytest.raises(yolods.RunFailed, match=r"75 \(a rank was lost or stuck\); .*train.log"):
        yolods.train(data="demo")
    ended(1)
    with pytest.raises(yolods.RunFailed, match="before it had a folder") as caught:
        yolods.train(data="demo")
    assert caught.value.folder is None


@pytest.mark.process
def test_importing_yolods_and_its_call_is_light():
    script = (
        "import sys, yolods; few = set(sys.modules); yolods.train; print(*sys.modules); "
        "assert 'yolods.api.call' not in few and 'argparse' not in few"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "yolods.api.call" in loaded
    assert not {"torch", "ultralytics", "deepspeed", "numpy", "cv2"} & loaded
