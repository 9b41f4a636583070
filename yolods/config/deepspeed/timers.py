"""DeepSpeed's throughput timer: off by default, because it makes the host wait for a GPU.

Source: deepspeed/utils/timer.py, `ThroughputTimer` (0.19.8). DeepSpeed turns it on by default. From
the third step on it waits for the device before and after every micro-batch, so the host cannot
queue work ahead. It prints every `steps_per_print` steps; telemetry shows images per second without
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolods.config.deepspeed.limits import JsonSettings


def resolved_timers(sound: Mapping[str, Any]) -> dict[str, Any]:
    """The "timers" block for DeepSpeed: as given, or off if there is none."""
    return sound["timers"] if _given(sound) else {"throughput": {"enabled": False}}


def timer_costs(settings: JsonSettings, where: str) -> tuple[str, ...]:
    """A line if the JSON turns the timer on where it slows down a GPU.

    Args:
        where: the JSON's name in the line.
    """
    given = _given(settings.sound)
    # Both keys default to true in DeepSpeed.
    waits = (
        bool(given) and given.get("enabled") is not False and given.get("synchronized") is not False
    )
    if not waits or settings.device == "cpu" or settings.pipelined:
        return ()
    return (
        f'{where}: "timers".throughput: the host waits for the GPU before and after every '
        'micro-batch, which slows steps down; "synchronized": false avoids the wait and is less '
        "precise",
    )


def _given(sound: Mapping[str, Any]) -> dict[str, Any]:
    return (sound.get("timers") or {}).get("throughput") or {}
