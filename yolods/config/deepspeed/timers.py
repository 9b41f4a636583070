"""DeepSpeed's throughput timer: off unless the JSON asks for it, since on a GPU it makes the host wait.

Source: deepspeed/utils/timer.py, `ThroughputTimer` (0.19.8). It is on by default, and from the third step on it waits
for the device before and after every micro-batch, so that the host cannot run ahead. What it prints comes every
`steps_per_print` steps, and telemetry shows images per second without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from yolods.config.deepspeed.limits import JsonSettings


def resolved_timers(sound: Mapping[str, Any]) -> dict[str, Any]:
    """The "timers" block for DeepSpeed: as it was given, and off where nothing was."""
    return sound["timers"] if _given(sound) else {"throughput": {"enabled": False}}


def timer_costs(settings: JsonSettings, where: str) -> tuple[str, ...]:
    """A line where the timer was asked for and slows a GPU down.

    Args:
        where: the JSON's name in the line.
    """
    given = _given(settings.sound)
    # DeepSpeed's defaults of both keys are true.
    waits = bool(given) and given.get("enabled") is not False and given.get("synchronized") is not False
    if not waits or settings.device == "cpu" or settings.pipelined:
        return ()
    return (
        f'{where}: "timers".throughput: the host waits for the GPU before and after every micro-batch, and steps get '
        'slower; "synchronized": false measures without it, less exactly',
    )


def _given(sound: Mapping[str, Any]) -> dict[str, Any]:
    return (sound.get("timers") or {}).get("throughput") or {}
