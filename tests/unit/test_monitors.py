"""What DeepSpeed's monitors write stays within the run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from yolods.config.deepspeed.monitors import folder_variables, kept_within

RUN = Path("runs/exp")


@pytest.mark.parametrize("block", ["tensorboard", "csv_monitor"])
@pytest.mark.parametrize("more", [{}, {"output_path": "/elsewhere"}, {"output_path": ""}])
def test_monitors_write_into_the_runs_folder_wherever_the_json_points(
    block: str, more: dict
) -> None:
    settings = {block: {"enabled": True, "job_name": "mine", **more}}
    kept = kept_within(RUN, settings)
    assert kept == {
        block: {"enabled": True, "job_name": "mine", "output_path": "runs/exp/deepspeed"}
    }
    assert settings[block] == {"enabled": True, "job_name": "mine", **more}


@pytest.mark.parametrize(
    ("given", "name"),
    [(None, "flops_profiler.txt"), ("mine.txt", "mine.txt"), ("/elsewhere/mine.txt", "mine.txt")],
)
def test_the_flops_profile_is_a_file_of_the_run_and_not_on_the_screen(
    given: str | None, name: str
) -> None:
    kept = kept_within(RUN, {"flops_profiler": {"enabled": True, "output_file": given}})
    assert kept["flops_profiler"]["output_file"] == f"runs/exp/deepspeed/{name}"


def test_services_without_a_key_for_a_folder_are_told_by_the_environment() -> None:
    on = {"enabled": True}
    assert folder_variables(RUN, {"wandb": on, "comet": on, "tensorboard": on}) == {
        "WANDB_DIR": "runs/exp/deepspeed",
        "COMET_OFFLINE_DIRECTORY": "runs/exp/deepspeed",
    }


@pytest.mark.parametrize(
    "block", ["tensorboard", "csv_monitor", "flops_profiler", "wandb", "comet"]
)
def test_what_is_off_is_left_alone(block: str) -> None:
    settings = {block: {"enabled": False}}
    assert kept_within(RUN, settings) == settings and not folder_variables(RUN, settings)
