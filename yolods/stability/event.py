"""A step that went bad, as a record and as one line."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from yolods.stability.attribution import Culprit
from yolods.stability.guard import Verdict
from yolods.stability.reading import Reading
from yolods.stats import StabilityEvent

SHOWN_FILES = 3
"""Image files in a line; the record has all."""


def record(
    verdict: Verdict,
    culprits: Sequence[Culprit],
    reading: Reading | None,
    *,
    step: int,
    epoch: int,
    position: int,
    loss: float,
    grad_norm: float | None,
    loss_scale: float | None,
    next_scale: float | None,
    barred: Sequence[str],
) -> StabilityEvent:
    """Everything about a step that was not applied, or in which gradients vanished.

    Args:
        loss: sum of the loss items.
        grad_norm: global norm before clipping.
        loss_scale: fp16's scale in the step.
        next_scale: and after it.
        barred: images that are left out from now on.
    """
    places = verdict.suspects if not verdict.applied else verdict.vanished
    return StabilityEvent(
        step=step,
        epoch=epoch,
        position=position,
        action="report" if verdict.applied else verdict.action,
        cause="vanishing" if verdict.applied else verdict.cause,
        loss=loss,
        grad_norm=grad_norm,
        usual=None if math.isnan(verdict.usual) else verdict.usual,
        loss_scale=loss_scale,
        parameters=tuple(reading.names[place] for place in places) if reading else (),
        culprits=tuple({**asdict(each), "layer": each.layer} for each in culprits),
        remedy=_remedy(verdict, loss_scale, next_scale, barred),
    )


def _remedy(verdict: Verdict, scale: float | None, next_scale: float | None, barred: Sequence[str]) -> str:
    words = {
        "apply": "reported only",
        "skip": "step skipped",
        "rollback": "back to the last snapshot, and on past these images",
        "stop": "stopped: it did not get better",
    }[verdict.action]
    if scale is not None and next_scale is not None and next_scale != scale:
        words += f", loss scale {scale:g} -> {next_scale:g}"
    if barred:
        words += f", left out from now on: {', '.join(barred)}"
    return words


def sentence(event: StabilityEvent) -> str:
    """One line: what happened, where it began, what was done."""
    return f"{_what(event)}{_where(event)}: {event.remedy}"


def _what(event: StabilityEvent) -> str:
    kinds = ", ".join(sorted({str(each["kind"]) for each in event.culprits} - {"spike"}))
    bad = kinds or "not finite"
    if event.cause == "overflow":
        return f"gradients overflow ({bad}) at loss scale {event.loss_scale:g}"
    if event.cause == "forward":
        return f"the loss is {event.loss:g} ({bad} in the forward pass)"
    if event.cause == "backward":
        at = f" at loss scale {event.loss_scale:g}, which cannot fall" if event.loss_scale is not None else ""
        return f"gradients are {bad}{at}, the loss is {event.loss:.4g}"
    if event.cause == "vanishing":
        return f"gradients have vanished in {_some(event.parameters)}"
    value = event.grad_norm if event.cause == "gradient_spike" else event.loss
    name = "gradient norm" if event.cause == "gradient_spike" else "loss"
    times = f", {value / event.usual:.0f} times the usual {event.usual:.4g}" if value and event.usual else ""
    return f"{name} {value:.4g}{times}"


def _where(event: StabilityEvent) -> str:
    if not event.culprits:
        return f" in {_some(event.parameters)}" if event.parameters and event.cause != "vanishing" else ""
    first: Mapping[str, Any] = event.culprits[0]
    stage = f", stage {first['stage']}" if len({each["stage"] for each in event.culprits}) > 1 or first["stage"] else ""
    files = first["files"]
    told = f", image {_some(files, SHOWN_FILES)}" if first["single_images"] else ""
    more = f", and {len(event.culprits) - 1} micro-batches more" if len(event.culprits) > 1 else ""
    place = f"rank {first['rank']} ({first['host']}), micro-batch {first['micro_batch']}"
    return f" from {first['name']} {first['phase']}, {place}{stage}{told}{more}"


def _some(names: Sequence[str], shown: int = 2) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
