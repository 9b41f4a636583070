"""Hyper-parameters that were given and count for nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from yolods.config.hyper.hyperparameters import Hyper, HyperRead
from yolods.config.hyper.unused import unused


def lines(hyper: Hyper, *, commanded: str = "", filed: str = "") -> tuple[str, ...]:
    read = HyperRead(
        hyper,
        {},
        {key: f"--set {key}" for key in commanded.split()},
        {key: f"hyp: {key}" for key in filed.split()},
    )
    return unused(read, hyper)


@pytest.mark.parametrize(
    ("key", "settings", "why"),
    [
        ("lr0", {}, "optimizer=auto chooses"),
        ("warmup_bias_lr", {}, "optimizer=auto chooses"),
        ("momentum", {"warmup_epochs": 0.0}, "optimizer=auto chooses"),
        ("warmup_momentum", {"optimizer": "AdamW"}, "only SGD and RMSprop"),
        ("warmup_bias_lr", {"optimizer": "SGD", "warmup_epochs": 0.0}, "no warm-up"),
        ("patience", {"val": False}, "there is no best epoch"),
        (
            "close_mosaic",
            {"mosaic": 0.0, "mixup": 0.0, "cutmix": 0.0, "copy_paste": 0.0},
            "are all 0",
        ),
        (
            "mosaic_partners",
            {"mosaic": 0.0, "mixup": 0.0, "cutmix": 0.0, "copy_paste": 0.0},
            "are all 0",
        ),
        ("copy_paste_mode", {"copy_paste": 0.0}, "copy_paste is 0"),
    ],
)
def test_a_value_that_another_one_overrules_is_told_once(key, settings, why):
    (line,) = lines(replace(Hyper(), **settings), commanded=key)
    assert line.startswith(f"--set {key} is ") and "which has no effect: " in line and why in line


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("lr0", {"optimizer": "SGD"}),
        ("warmup_momentum", {"optimizer": "SGD"}),
        ("patience", {}),
        ("close_mosaic", {}),
        ("box", {}),
    ],
)
def test_a_value_that_counts_is_not_told(key, settings):
    assert lines(replace(Hyper(), **settings), commanded=key) == ()


def test_a_default_says_something_where_it_was_typed_and_nothing_in_a_file():
    hyper = Hyper()
    assert len(lines(hyper, commanded="lr0")) == 1
    assert lines(hyper, filed="lr0") == ()
    assert lines(replace(hyper, lr0=0.5), filed="lr0") == (
        "hyp: lr0 is 0.5, which has no effect: "
        f"{lines(hyper, commanded='lr0')[0].partition('has no effect: ')[2]}",
    )


def test_momentum_counts_again_in_long_runs():
    (line,) = lines(Hyper(), commanded="momentum")
    assert "has no effect in runs of up to 10,000 steps" in line
