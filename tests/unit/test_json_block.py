"""The JSON's "optimizer" block, and how it meets the hyper-parameters."""

from __future__ import annotations

import pytest

from yolods.config.hyper.hyperparameters import Hyper, HyperRead
from yolods.config.optimizers.json_block import JsonOptimizer, merge_optimizer, read_optimizer
from yolods.errors import Faults

HYPER = Hyper(lr0=0.02, momentum=0.9, weight_decay=0.001)


def read(block) -> tuple[JsonOptimizer | None, list[str]]:
    faults = Faults()
    return read_optimizer(block, HYPER, "ds", faults), list(faults)


def test_what_is_auto_or_missing_comes_from_the_hyper_parameters():
    made, faults = read({"type": "sgd", "params": {"lr": "auto", "nesterov": True}})
    assert not faults and made.name == "SGD"
    assert made.params == {"lr": 0.02, "weight_decay": 0.001, "momentum": 0.9, "nesterov": True}
    made, _ = read({"type": "AdamW", "params": {"betas": [0.8, 0.99]}})
    assert made.params == {"lr": 0.02, "weight_decay": 0.001, "betas": (0.8, 0.99)}


@pytest.mark.parametrize(("params", "name"), [({}, "AdamW"), ({"adam_w_mode": False}, "Adam")])
def test_deepspeeds_adam_is_adamw_unless_told_otherwise(params, name):
    made, faults = read({"type": "Adam", "params": params})
    assert (made.name, faults) == (name, [])
    assert "adam_w_mode" not in made.params


@pytest.mark.parametrize(
    ("block", "fault"),
    [
        (
            {"type": "Lion"},
            "type 'Lion' is not supported, because DeepSpeed has it only as a kernel",
        ),
        ({"type": "Adamm"}, "type 'Adamm' is not supported (did you mean"),
        ({"type": "SGD", "parms": {}}, "unknown key \"parms\" (did you mean 'params'?)"),
        ({"type": "SGD", "params": [1]}, '"optimizer".params is [1]: it must be an object {...}'),
        ({"type": "SGD", "params": {"lr": 2}}, '"optimizer".params.lr is 2: it must be a number'),
        (
            {"type": "SGD", "params": {"momentun": 1}},
            "SGD has no \"momentun\" (did you mean 'momentum'?)",
        ),
        ({"type": "SGD", "params": {"max_grad_norm": 1}}, 'use "gradient_clipping": 1'),
        (
            {"type": "Adam", "params": {"bias_correction": False}},
            "bias_correction false is not supported",
        ),
        (
            {"type": "SGD", "params": {"foreach": True, "fused": True}},
            "foreach and fused are both true",
        ),
        ({"type": "SGD", "params": {"nesterov": True, "momentum": 0}}, "nesterov needs momentum"),
        (
            {"type": "SGD", "params": {"nesterov": True, "dampening": 0.5}},
            "nesterov with dampening 0.5",
        ),
        (
            {"type": "AdamW", "params": {"adam_w_mode": False}},
            'adam_w_mode false with type "AdamW"',
        ),
        ({"type": "SGD", "legacy_fusion": True}, "legacy_fusion is not supported"),
    ],
)
def test_a_fault_names_its_key_and_the_remedy(block, fault):
    _, faults = read(block)
    assert len(faults) == 1 and faults[0].startswith("ds: ") and fault in faults[0]


def test_no_block_is_no_optimizer():
    assert read(None) == (None, [])


def test_the_block_wins_over_a_file_and_not_over_a_command():
    made, _ = read({"type": "SGD", "params": {"lr": 0.1}})
    for commanded, filed, told in (
        ({}, {"lr0": "hyp: lr0"}, "note"),
        ({"lr0": "--set lr0"}, {}, "fault"),
        ({}, {}, ""),
    ):
        faults = Faults()
        hyper, notes = merge_optimizer(HyperRead(HYPER, {}, commanded, filed), made, "ds", faults)
        assert (hyper.optimizer, hyper.lr0, hyper.momentum) == ("SGD", 0.1, 0.9)
        assert [len(notes), len(faults)] == [told == "note", told == "fault"]
    assert merge_optimizer(HyperRead(HYPER, {}, {}, {}), None, "ds", Faults()) == (HYPER, ())
