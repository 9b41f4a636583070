"""What services have in common."""

from pathlib import Path

from yolods.telemetry.sinks.sink import RunFacts, flat


def test_nested_settings_become_dotted_names() -> None:
    nested = {"a": 1, "b": {"c": None, "d": {"e": [1, 2]}}, "f": {}}
    assert flat(nested) == {"a": 1, "b.c": None, "b.d.e": [1, 2]}


def test_a_run_is_called_by_its_folder() -> None:
    assert RunFacts("r", "s", Path("runs/exp3")).name == "exp3"
