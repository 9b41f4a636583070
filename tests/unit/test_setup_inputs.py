"""The data and the model of a run are opened in the order of what a mistake costs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from yolods.config.hyper.hyperparameters import Hyper
from yolods.distributed.world import Ranks
from yolods.errors import UserError
from yolods.training.setup import inputs as module

RANKS = Ranks(0, 1, 0, "host", torch.device("cpu"))


def configured(**changes: object) -> SimpleNamespace:
    settings = {"hyper": Hyper(), "imgsz": 64, "epochs": 1, "workers": 0, "check_data": True}
    settings |= {"data": "data.yaml", "weights": None, "resume": False, "eval_batch": 4}
    return SimpleNamespace(**{**settings, **changes})


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been done, in order."""
    seen: list[str] = []

    def note(name: str, result: object):
        return lambda *_, **__: (seen.append(name), result)[1]

    spec = SimpleNamespace(names=("a",), channels=3)
    monkeypatch.setattr(module, "read_data", note("yaml", spec))
    monkeypatch.setattr(
        module, "blueprint_of", note("model", SimpleNamespace(grid=32, parameters=7))
    )
    monkeypatch.setattr(module, "prepare_folder", note("disk", None))
    monkeypatch.setattr(
        module,
        "open_split",
        lambda spec, split, hyper, options, ranks, *, augment: (
            seen.append(split),
            (split, options, augment),
        )[1],
    )
    return seen


def test_images_are_looked_at_last(done: list[str]) -> None:
    opened = module.open_inputs(configured(), RANKS)
    assert done == ["yaml", "model", "disk", "train", "val"]
    (_, options, augmented), (_, same, plain) = opened.train, opened.val
    assert (augmented, plain) == (True, False) and options is same
    assert (options.stride, options.check_data, options.eval_batch) == (32, True, 4)


def test_a_disk_without_room_is_told_before_images_are_looked_at(
    done: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(config: object, parameters: int) -> None:
        raise UserError(f"{parameters} parameters do not fit")

    monkeypatch.setattr(module, "prepare_folder", full)
    with pytest.raises(UserError, match="7 parameters"):
        module.open_inputs(configured(), RANKS)
    assert done == ["yaml", "model"]


def test_weights_are_looked_at_before_images_and_not_for_a_resume(
    done: list[str], tmp_path: Path
) -> None:
    missing = tmp_path / "none.pt"
    with pytest.raises(UserError, match="no such file"):
        module.open_inputs(configured(weights=missing), RANKS)
    assert done == ["yaml", "model"]
    module.open_inputs(configured(weights=missing, resume=True), RANKS)
    assert done[-1] == "val"
