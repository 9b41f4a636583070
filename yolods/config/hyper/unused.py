"""Reports, once each, hyper-parameters that have no effect because another setting decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from yolods.config.hyper.hyperparameters import Hyper, HyperRead
from yolods.config.optimizers.supported import OPTIMIZERS
from yolods.parsing.rules import shown

_AUTO = (
    "optimizer=auto chooses the optimizer, its learning rate and momentum; name one to use it: "
    "--optimizer SGD"
)

_WARMED = " and ".join(name for name, entry in OPTIMIZERS.items() if entry.warms_momentum)


class _Unused(NamedTuple):
    """A case in which some hyper-parameters have no effect."""

    keys: tuple[str, ...]
    holds: Callable[[Hyper], bool]
    why: str
    verdict: str = "has no effect"


# The order matters: `unused` reports the first case that holds for a key, so that a stronger reason
# comes first.
_CASES = (
    _Unused(("lr0", "warmup_bias_lr"), lambda hyper: hyper.optimizer == "auto", _AUTO),
    _Unused(
        ("momentum",), lambda hyper: hyper.optimizer == "auto" and hyper.warmup_epochs == 0, _AUTO
    ),
    _Unused(
        ("warmup_momentum",),
        lambda hyper: hyper.optimizer != "auto" and not OPTIMIZERS[hyper.optimizer].warms_momentum,
        f"only {_WARMED} have a momentum that is warmed up",
    ),
    _Unused(
        ("warmup_momentum", "warmup_bias_lr"),
        lambda hyper: hyper.warmup_epochs == 0,
        "warmup_epochs is 0: no warm-up",
    ),
    # auto takes AdamW up to 10,000 steps and SGD, whose momentum is warmed up, beyond. The number
    # of steps is unknown before the data set is read.
    _Unused(
        ("momentum", "warmup_momentum"),
        lambda hyper: hyper.optimizer == "auto",
        _AUTO,
        "has no effect in runs of up to 10,000 steps",
    ),
    _Unused(
        ("patience",),
        lambda hyper: not hyper.val,
        "without evaluations (val is false) there is no best epoch",
    ),
    _Unused(
        ("close_mosaic", "mosaic_partners"),
        lambda hyper: not (hyper.mosaic or hyper.mixup or hyper.cutmix or hyper.copy_paste),
        "mosaic, mixup, cutmix and copy_paste are all 0",
    ),
    _Unused(("copy_paste_mode",), lambda hyper: not hyper.copy_paste, "copy_paste is 0"),
)


def unused(read: HyperRead, hyper: Hyper) -> tuple[str, ...]:
    """One line for each value that a user set and that has no effect.

    A default value in a hyp file is not reported, because a copy of ultralytics' default.yaml
    contains every default. A default value on the command line is.

    Args:
        read: where each value was given.
        hyper: the values of the run.
    """
    given = {**read.filed, **read.commanded}
    lines = {}
    for case in _CASES:
        for key in case.keys:
            value = getattr(hyper, key)
            asked = key in read.commanded or (key in read.filed and value != getattr(Hyper, key))
            if asked and case.holds(hyper):
                lines.setdefault(
                    key, f"{given[key]} is {shown(value)}, which {case.verdict}: {case.why}"
                )
    return tuple(lines.values())
