"""Every entry names a class that torch has, arguments that it takes, and rules for what a JSON may
say."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

from yolods.config.optimizers.supported import DEEPSPEED_ADAM, OPTIMIZERS, SupportedOptimizer
from yolods.errors import Faults
from yolods.parsing.rules import check


def class_of(made_by: str) -> type:
    module, _, name = made_by.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("entry", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("momentum", [0.0, 0.937])
def test_an_entry_can_be_built_and_steps(entry: SupportedOptimizer, momentum: float):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = class_of(entry.made_by)([weight], lr=0.1, **entry.arguments(momentum))
    weight.grad = torch.ones(3)
    optimizer.step()
    assert (weight < 1).all()
    assert entry.warms_momentum == ("momentum" in optimizer.param_groups[0])


@pytest.mark.parametrize("entry", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_a_json_may_give_torch_takes(entry: SupportedOptimizer):
    takes = inspect.signature(class_of(entry.made_by).__init__).parameters
    assert set(entry.params) - set(DEEPSPEED_ADAM) <= set(takes)
    assert entry.has_fused == ("fused" in takes)
    assert set(entry.json_arguments) <= set(entry.params)


@pytest.mark.parametrize("name", [name for name, entry in OPTIMIZERS.items() if entry.on_host])
def test_a_kernel_on_the_host_takes_what_its_entry_says(name: str):
    """DeepSpeed's class is read and not imported, which would take seconds."""
    import importlib.util
    from pathlib import Path

    kernel = OPTIMIZERS[name].on_host
    assert kernel.made_by == "deepspeed.ops.adam:DeepSpeedCPUAdam"
    folder = Path(importlib.util.find_spec("deepspeed").submodule_search_locations[0])
    source = (folder / "ops" / "adam" / "cpu_adam.py").read_text()
    signature = source[source.index("def __init__(") :].partition("):")[0]
    for argument in (*kernel.takes, *kernel.arguments):
        assert f"{argument}=" in signature.replace(" ", ""), argument
    assert kernel.arguments == {"adamw_mode": name == "AdamW"}


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("lr", 1e-3, 0),
        ("weight_decay", 0, -0.1),
        ("momentum", 0.9, 1),
        ("betas", [0.9, 0.999], [0.9]),
        ("betas", [0, 0.5], [0.9, 1]),
        ("eps", 1e-8, 0),
        ("nesterov", True, 1),
        ("alpha", 0.99, 1.0),
        ("momentum_decay", 4, -1),
    ],
)
def test_values_out_of_range_are_refused(key: str, good: object, bad: object):
    for entry in (each for each in OPTIMIZERS.values() if key in each.params):
        faults = Faults()
        assert check(entry.params[key], good, key, faults)[0] and not faults
        assert not check(entry.params[key], bad, key, faults)[0]
        assert len(faults) == 1
