"""Hyper-parameters that were given and will not be used, because another one decides: each is said once."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from yolods.config.hyper.hyperparameters import Hyper, HyperRead
from yolods.config.optimizers.supported import OPTIMIZERS
from yolods.parsing.rules import shown

_AUTO = "optimizer=auto chooses the optimizer, its learning rate and momentum; name one to use it: --optimizer SGD"

_WARMED = " and ".join(name for name, entry in OPTIMIZERS.items() if entry.warms_momentum)


class _Unused(NamedTuple):
    """A case in which some values count for nothing."""

    keys: tuple[str, ...]
    holds: Callable[[Hyper], bool]
    why: str
    verdict: str = "is not used"


_CASES = (
    _Unused(("lr0", "warmup_bias_lr"), lambda hyper: hyper.optimizer == "auto", _AUTO),
    _Unused(("momentum",), lambda hyper: hyper.optimizer == "auto" and hyper.warmup_epochs == 0, _AUTO),
    _Unused(
        ("warmup_momentum",),
        lambda hyper: hyper.optimizer != "auto" and not OPTIMIZERS[hyper.optimizer].warms_momentum,
        f"only {_WARMED} have a momentum that is warmed up",
    ),
    _Unused(
        ("warmup_momentum", "warmup_bias_lr"), lambda hyper: hyper.warmup_epochs == 0, "warmup_epochs is 0: no warm-up"
    ),
    _Unused(
        ("momentum", "warmup_momentum"),
        lambda hyper: hyper.optimizer == "auto",
        _AUTO,
        "is not used up to 10,000 steps",
    ),
    _Unused(("patience",), lambda hyper: not hyper.val, "without evaluations (val is false) there is no best epoch"),
    _Unused(
        ("close_mosaic",),
        lambda hyper: not (hyper.mosaic or hyper.mixup or hyper.cutmix or hyper.copy_paste),
        "mosaic, mixup, cutmix and copy_paste are all 0",
    ),
    _Unused(("copy_paste_mode",), lambda hyper: not hyper.copy_paste, "copy_paste is 0"),
)


def unused(read: HyperRead, hyper: Hyper) -> tuple[str, ...]:
    """A line for each value that a user gave and that counts for nothing.

    A default in a hyp file says nothing, as copies of ultralytics' default.yaml hold them all; one that was typed does.

    Args:
        read: where each was given.
        hyper: the values that the run has.
    """
    given = {**read.filed, **read.commanded}
    lines = {}
    for case in _CASES:
        for key in case.keys:
            value = getattr(hyper, key)
            asked = key in read.commanded or (key in read.filed and value != getattr(Hyper, key))
            if asked and case.holds(hyper):
                lines.setdefault(key, f"{given[key]} is {shown(value)}, which {case.verdict}: {case.why}")
    return tuple(lines.values())
