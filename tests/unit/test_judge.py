"""How the JSON's "fp16" block becomes the rules of the loss scale."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from yolods.engine.judge import build_stability, scale_rules
from yolods.stability.scale import ScaleRules
from yolods.stability.step import StockStability


def layout(block: dict | None, ceiling: float = 2.0**24) -> SimpleNamespace:
    own = SimpleNamespace(overflow=SimpleNamespace(max_loss_scale=ceiling, handling="stock"))
    return SimpleNamespace(raw={} if block is None else {"fp16": block}, own=own, pipeline=None, zero_stage=1)


def test_without_a_word_the_rules_are_deepspeeds_defaults():
    for block in (None, {}, {"loss_scale_window": "auto", "hysteresis": None}):
        assert scale_rules(layout(block)) == ScaleRules()


@pytest.mark.parametrize(
    ("key", "value", "name", "expected"),
    [
        ("initial_scale_power", 12, "initial", 4096.0),
        ("loss_scale_window", 50, "window", 50),
        ("hysteresis", 4, "hysteresis", 4),
        ("consecutive_hysteresis", True, "consecutive", True),
        ("min_loss_scale", 8, "floor", 8.0),
        ("loss_scale", 128, "static", 128.0),
        ("loss_scale", 0, "static", None),
    ],
)
def test_each_key_of_the_block_moves_one_rule(key, value, name, expected):
    rules = scale_rules(layout({key: value}))
    assert getattr(rules, name) == expected
    others = [each for each in vars(rules) if each != name]
    assert [getattr(rules, each) for each in others] == [getattr(ScaleRules(), each) for each in others]


def test_the_ceiling_is_ours():
    assert scale_rules(layout({}, ceiling=2.0**20)).ceiling == 2.0**20


def test_stock_handling_leaves_the_engine_as_it_is():
    engine = SimpleNamespace(optimizer=SimpleNamespace(loss_scaler="theirs"))
    made = build_stability(engine, None, layout({}), SimpleNamespace(size=1), None)
    assert isinstance(made, StockStability)
    assert vars(engine) == {"optimizer": SimpleNamespace(loss_scaler="theirs")}
