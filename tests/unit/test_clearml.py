"""ClearML: which of its calls are made; the package itself is a stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from yolods.telemetry.sinks.clearml import Clearml
from yolods.telemetry.sinks.sink import RunFacts

FACTS = RunFacts("a" * 32, "s", Path("runs/exp"))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> MagicMock:
    """The service's package."""
    stand_in = MagicMock()
    for name in ("clearml",):
        monkeypatch.setitem(sys.modules, name, stand_in)
    for name in ("CLEARML_PROJECT",):
        monkeypatch.delenv(name, raising=False)
    return stand_in


def test_a_known_task_is_gone_on_with(package):
    package.Task.is_offline.return_value = False
    package.Task.get_tasks.return_value = [MagicMock(id="known")]
    Clearml(FACTS)
    assert package.Task.init.call_args.kwargs["continue_last_task"] == "known"
    package.Task.get_tasks.return_value = []
    Clearml(FACTS)
    opened = package.Task.init.call_args.kwargs
    assert opened["continue_last_task"] is False and FACTS.run in opened["tags"]
    assert (opened["project_name"], opened["task_name"]) == ("yolods", "exp")


@pytest.mark.parametrize("offline", [True, False])
def test_its_hooks_are_off_and_the_model_stays_where_it_is(package, tmp_path, offline):
    package.Task.is_offline.return_value = offline
    sink, task = Clearml(FACTS), package.Task.init.return_value
    opened = package.Task.init.call_args.kwargs
    assert not any(value for name, value in opened.items() if name.startswith("auto_"))
    sink.config({"a": {"b": 1, "c": None}})
    task.set_parameters.assert_called_once_with({"a.b": 1})
    sink.scalars({"train/box_loss": 1.0, "epoch": 2.0}, 3)
    calls = [call.args for call in task.get_logger.return_value.report_scalar.call_args_list]
    assert calls == [("train", "box_loss", 1.0, 3), ("epoch", "epoch", 2.0, 3)]
    sink.picture("train/labels", tmp_path / "labels.jpg", 1)
    shown = task.get_logger.return_value.report_image.call_args.kwargs
    assert shown["delete_after_upload"] is False
    sink.finish({"m": 0.5}, tmp_path / "best.pt")
    if offline:
        task.update_output_model.assert_not_called()
    else:
        assert task.update_output_model.call_args.kwargs["auto_delete_file"] is False
    sink.close()
    task.close.assert_called_once_with()
