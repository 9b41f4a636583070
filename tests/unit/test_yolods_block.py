"""The "yolods" block of a DeepSpeed JSON."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from yolods.config.deepspeed.yolods_block import YolodsConfig, read_yolods_block
from yolods.errors import Faults


def read(block) -> tuple[YolodsConfig, list[str]]:
    faults = Faults()
    return read_yolods_block(block, "ds", faults), list(faults)


@pytest.mark.parametrize("block", [None, {}])
def test_without_a_word_all_is_as_by_default(block):
    assert read(block) == (YolodsConfig(), [])


def test_every_default_keeps_to_its_own_rule_and_comes_back_from_json():
    written = json.loads(json.dumps(YolodsConfig().as_dict()))
    assert read(written) == (YolodsConfig(), [])
    assert set(written) == {field.name for field in fields(YolodsConfig)}


def test_a_setting_moves_and_the_others_stay():
    made, faults = read({"clipping": {"policy": "ZScore"}, "watchdog": {"enabled": False}})
    assert not faults
    assert (made.clipping.policy, made.watchdog.enabled) == ("zscore", False)
    assert (made.overflow, made.checkpoint) == (YolodsConfig().overflow, YolodsConfig().checkpoint)


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        ({"cliping": {}}, "ds: \"yolods\": unknown key 'cliping' (did you mean 'clipping'?)"),
        (
            {"clipping": {"policy": "norm"}},
            "ds: \"yolods\".clipping.policy is 'norm': it must be one of global_norm",
        ),
        (
            {"checkpoint": {"keep": 0}},
            'ds: "yolods".checkpoint.keep is 0: it must be a whole number of at least 1',
        ),
        (
            {"overflow": {"spike_ratio": 1}},
            'ds: "yolods".overflow.spike_ratio is 1: it must be a number above 1',
        ),
        (
            {"compression": {"rank": 0}},
            'ds: "yolods".compression.rank is 0: it must be a whole number in [1, 64]',
        ),
        (
            {"compression": {"kind": "topk"}},
            "ds: \"yolods\".compression.kind is 'topk': it must be one of none, powersgd",
        ),
        (
            {"compression": {"min_savings": 2}},
            "ds: \"yolods\".compression: unknown key 'min_savings' (did you mean 'min_saving'?)",
        ),
        (
            {"compression": {"min_saving": 0.5}},
            'ds: "yolods".compression.min_saving is 0.5: it must be a number of at least 1',
        ),
        ({"watchdog": True}, 'ds: "yolods".watchdog is true: it must be an object of settings'),
    ],
)
def test_a_fault_names_the_whole_key(block, fault):
    made, faults = read(block)
    assert len(faults) == 1 and faults[0].startswith(fault)
    assert made == YolodsConfig()
