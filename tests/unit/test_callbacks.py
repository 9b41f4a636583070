"""Callbacks under ultralytics' names, out of the lines that a run writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from yolods.api.callbacks import CALLED, Callbacks
from yolods.errors import UserError

START = {"kind": "start", "epochs": 2, "step": 0, "first_epoch": 0, "start": "a"}


def epoch_line(epoch: int, **changed: Any) -> dict[str, Any]:
    return {
        "kind": "epoch",
        "epoch": epoch,
        "step": 3 * (epoch + 1),
        "seconds": 2.0,
        "train_loss": {"box_loss": 1.0},
        "val_loss": {"box_loss": 2.0},
        "metrics": {"metrics/mAP50(B)": 0.5},
        "fitness": 0.5 - 0.1 * epoch,
        "lr": {"lr/pg0": 0.1},
        **changed,
    }


def test_they_are_called_in_ultralytics_order_with_what_is_known():
    seen = []
    given = {name: lambda run, name=name: seen.append((name, run)) for name in CALLED}
    heard = Callbacks(given)
    heard.call("teardown")
    assert seen == [], "nothing before the run has begun"
    finish = {"kind": "finish", "metrics": {"metrics/mAP50(B)": 0.6}, "seconds": 9.0, "model": None}
    lines = [
        START,
        {"kind": "epoch_begin", "epoch": 0},
        {"kind": "scalars", "step": 1, "values": {}},
        epoch_line(0),
        START,  # a restart after a failure
        {"kind": "epoch_begin", "epoch": 1},
        epoch_line(1, metrics=None, val_loss=None, fitness=None),
        finish,
    ]
    for line in lines:
        heard.hear(Path("runs/exp"), line)
    heard.call("teardown")
    assert [name for name, _ in seen] == [
        *("on_pretrain_routine_end", "on_train_start", "on_train_epoch_start"),
        *("on_train_epoch_end", "on_val_end", "on_model_save", "on_fit_epoch_end"),
        *("on_train_epoch_start", "on_train_epoch_end", "on_model_save", "on_fit_epoch_end"),
        *("on_train_end", "teardown"),
    ]
    first, last = seen[6][1], seen[-1][1]
    assert first.metrics == {"metrics/mAP50(B)": 0.5, "val/box_loss": 2.0}
    assert (first.tloss, first.lr, first.step) == ({"train/box_loss": 1.0}, {"lr/pg0": 0.1}, 3)
    assert (last.epoch, last.epochs, last.best_fitness, last.fitness) == (1, 2, 0.5, None)
    assert last.metrics == {"metrics/mAP50(B)": 0.6} and heard.finished
    assert last.best == Path("runs/exp/weights/best.pt") and last.last.name == "last.pt"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"on_fit_epoch_ends": print}, "(did you mean 'on_fit_epoch_end'?)"),
        ({"on_train_batch_end": print}, "on_train_batch_end is not called, because steps run in"),
        ({"on_train_end": "print"}, "on_train_end is 'print': it must be a function"),
        ({"on_train_end": [print, 3]}, "it must be a function"),
        ({3: print}, "callbacks: 3: unknown; there are"),
        ([print], "callbacks is a list: it must be a dict, such as {'on_fit_epoch_end'"),
        (print, "it must be a dict"),
    ],
)
def test_wrong_ones_are_refused(given, told):
    with pytest.raises(UserError) as caught:
        Callbacks(given)
    assert told in str(caught.value)


@pytest.mark.parametrize(("first", "epoch"), [(1, 1), (2, 1)])
def test_a_resume_begins_in_its_epoch_and_keeps_the_last_one_if_none_is_left(first, epoch):
    seen = []
    heard = Callbacks({"on_train_start": seen.append})
    heard.hear(Path("runs/exp"), {**START, "step": 5, "first_epoch": first})
    assert [(run.epoch, run.step) for run in seen] == [(epoch, 5)]


def test_several_functions_of_one_name_and_their_exceptions(tmp_path, capsys):
    calls = []

    def fail(run: object) -> None:
        raise ValueError("mine")

    heard = Callbacks({"on_train_start": [calls.append, fail]})
    with pytest.raises(ValueError, match="mine"):
        heard.hear(tmp_path, START)
    assert len(calls) == 1
    name = "test_several_functions_of_one_name_and_their_exceptions.<locals>.fail"
    line = f"callback on_train_start ({name}) failed: ValueError: mine"
    told = f"{line}; the run stops with a checkpoint"
    assert capsys.readouterr().err == f"yolods: {told}\n"
    assert (tmp_path / "train.log").read_text().endswith(f"ERROR   yolods.telemetry.log: {told}\n")


@pytest.mark.parametrize("name", ["on_train_end", "teardown"])
def test_a_callback_that_fails_after_the_last_step_stops_nothing(name, tmp_path, capsys):
    heard = Callbacks({name: Failing()})
    heard.hear(tmp_path, START)
    with pytest.raises(LookupError):
        heard.hear(tmp_path, {"kind": "finish", "metrics": None, "seconds": 1.0})
        heard.call("teardown")
    assert capsys.readouterr().err == f"yolods: callback {name} (Failing) failed: LookupError\n"


class Failing:
    """A callback that is an object."""

    def __call__(self, run: object) -> None:
        raise LookupError


@pytest.mark.parametrize("reason", [KeyboardInterrupt, SystemExit])
def test_a_callback_that_asks_to_stop_has_not_failed(reason, tmp_path, capsys):
    def leave(run: object) -> None:
        raise reason

    with pytest.raises(reason):
        Callbacks({"on_train_start": leave}).hear(tmp_path, START)
    assert capsys.readouterr().err == "" and not list(tmp_path.iterdir())


def test_every_name_is_ultralytics_own():
    from ultralytics.utils.callbacks.base import default_callbacks

    from yolods.api.callbacks import _ELSEWHERE

    assert set(CALLED) | set(_ELSEWHERE) <= set(default_callbacks)
