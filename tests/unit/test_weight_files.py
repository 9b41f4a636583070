"""last.pt, best.pt and epochN.pt: when each is written, what it says of itself, and a disk that is
full."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from yolods.training import weight_files as module
from yolods.training.weight_files import WeightsWriter

EVALUATION = SimpleNamespace(metrics={"metrics/mAP50(B)": 0.5}, fitness=0.25)


class Written:
    """A writer whose .pt files hold what they would say of themselves."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, save_period: int = -1
    ) -> None:
        self.said: list[str] = []
        self.facts: list[dict[str, Any]] = []
        self.folder = folder / "weights"
        self.folder.mkdir()
        hyper = SimpleNamespace(as_ultralytics=lambda: {"lr0": 0.01}, save_period=save_period)
        about = {
            "model": "yolov5n",
            "data": Path("x.yaml"),
            "epochs": 9,
            "batch_size": 4,
            "imgsz": 64,
        }
        config = SimpleNamespace(run_dir=folder, hyper=hyper, **about)
        telemetry = SimpleNamespace(event=lambda kind, text, warn: self.said.append(text))
        monkeypatch.setattr(module, "write_pt", self._write_pt)
        self.writer = WeightsWriter(config, SimpleNamespace(skeleton=None), telemetry)

    def _write_pt(self, path: Path, skeleton: Any, weights: Any, facts: dict[str, Any]) -> None:
        self.facts.append(facts)
        path.write_text(str(weights))

    def files(self) -> dict[str, str]:
        return {file.name: file.read_text() for file in self.folder.iterdir()}


def test_what_is_written_after_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Written(tmp_path, monkeypatch, save_period=2)
    for epoch, is_best in enumerate((True, False, True, False)):
        run.writer.write_epoch({"of": epoch}, epoch, None, best_fitness=0.1, is_best=is_best)
    assert run.files() == {
        "last.pt": "{'of': 3}",
        "best.pt": "{'of': 2}",
        "epoch2.pt": "{'of': 1}",
        "epoch4.pt": "{'of': 3}",
    }


@pytest.mark.parametrize("save_period", [-1, 0])
def test_without_a_period_no_epoch_has_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_period: int
) -> None:
    run = Written(tmp_path, monkeypatch, save_period)
    run.writer.write_epoch({}, 0, None, best_fitness=None, is_best=False)
    assert set(run.files()) == {"last.pt"}


def test_a_pt_says_what_ultralytics_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Written(tmp_path, monkeypatch)
    run.writer.write_epoch({}, 4, EVALUATION, best_fitness=0.3, is_best=False)
    run.writer.write_epoch({}, 5, None, best_fitness=0.3, is_best=False)
    judged, unjudged = run.facts
    assert (judged["epoch"], judged["best_fitness"]) == (4, 0.3)
    assert judged["train_metrics"] == {"metrics/mAP50(B)": 0.5, "fitness": 0.25}
    assert unjudged["train_metrics"] == {}
    name = {
        "name": tmp_path.name,
        "data": "x.yaml",
        "model": "yolov5n",
        "task": "detect",
        "mode": "train",
    }
    assert judged["train_args"] == {"lr0": 0.01, "epochs": 9, "batch": 4, "imgsz": 64, **name}


def test_best_pt_alone_is_replaced_by_better_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Written(tmp_path, monkeypatch)
    run.writer.write_epoch({"of": 4}, 4, EVALUATION, best_fitness=0.3, is_best=True)
    run.writer.replace_best({"of": "anew"}, 4, EVALUATION, 0.4)
    assert run.files() == {"last.pt": "{'of': 4}", "best.pt": "{'of': 'anew'}"}
    assert (run.facts[-1]["epoch"], run.facts[-1]["best_fitness"]) == (4, 0.4)


def test_a_full_disk_is_reported_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(28, "No space left on device")
    run = Written(tmp_path, monkeypatch)
    run.writer.write_epoch({"of": 0}, 0, None, best_fitness=None, is_best=True)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(module, "write_pt", fail)
    run.writer.write_epoch({"of": 1}, 1, None, best_fitness=None, is_best=True)
    assert run.files() == {"last.pt": "{'of': 0}", "best.pt": "{'of': 0}"}
    assert run.said == [f"{run.folder} could not be written, the earlier files are kept: {error}"]
