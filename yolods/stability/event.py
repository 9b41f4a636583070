"""A bad step as a record and as one log line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from yolods.stability.attribution import INPUT, LOSS, Culprit
from yolods.stability.grad_stats import GradStats
from yolods.stability.guard import Verdict
from yolods.stability.record import StepRecord
from yolods.stats import StabilityEvent

_BOX_BRANCH = re.compile(r"\.cv2\.(\d+)\.")
"""Matches a parameter of Detect's box branch; the group is its level.

In C3 layers no number follows `cv2`.
"""
SHOWN_FILES = 3
"""Number of image files in a log line; the record has all of them."""


def event_of(
    record: StepRecord, excluded: Sequence[str] = (), place: Callable[[str], str] = str
) -> StabilityEvent:
    """The record of a step that was not applied, or in which gradients vanished.

    Args:
        excluded: identities of the images that are excluded from now on.
        place: converts an image's identity to what messages show.
    """
    verdict, grad_stats = record.verdict, record.grad_stats
    places = verdict.suspects if not verdict.applied else verdict.vanished
    parameters = tuple(grad_stats.names[place] for place in places) if grad_stats else ()
    levels = _box_levels(parameters) if verdict.applied else ()
    return StabilityEvent(
        step=record.step,
        epoch=record.epoch,
        position=record.position,
        # An applied step has an event only because gradients vanished.
        action="report" if verdict.applied else verdict.action,
        cause=verdict.cause if not verdict.applied else "unassigned" if levels else "vanishing",
        loss=sum(record.loss.values()),
        grad_norm=record.grad_norm,
        usual=None if math.isnan(verdict.usual) else verdict.usual,
        loss_scale=record.loss_scale,
        parameters=parameters,
        culprits=tuple(_described(each, place) for each in record.culprits),
        remedy=_why_unassigned(levels)
        if levels
        else _remedy(record, list(map(place, excluded))) + _silence(verdict, grad_stats),
    )


def _described(culprit: Culprit, place: Callable[[str], str]) -> dict[str, Any]:
    return {**asdict(culprit), "files": tuple(map(place, culprit.files)), "layer": culprit.layer}


def _box_levels(parameters: Sequence[str]) -> tuple[str, ...]:
    """Levels of the head to whose box branches all these parameters belong.

    Empty if any parameter is not part of a box branch.
    """
    found = [_BOX_BRANCH.search(name) for name in parameters]
    return tuple(sorted({match[1] for match in found if match})) if all(found) else ()


def _why_unassigned(levels: Sequence[str]) -> str:
    """Explain why the boxes of a level get no gradient at all, while its classes do.

    This happens in correct runs. On blood cells at 320 pixels, no box is ever assigned to a cell of
    32 pixels, because that level at first predicts boxes of 480 pixels.
    """
    return (
        f"the objects are too small for the boxes of level {', '.join(levels)} of the head (level "
        "0 has the smallest cells); the other levels detect them, and nothing is wrong unless "
        "larger objects must be found"
    )


def _remedy(record: StepRecord, excluded: Sequence[str]) -> str:
    words = {
        "apply": "reported only",
        "skip": "step skipped",
        "rollback": "returned to the last snapshot, continuing after these images",
        "stop": "stopped: the steps did not recover",
    }[record.verdict.action]
    scale, next_scale = record.loss_scale, record.next_scale
    if scale is not None and next_scale is not None and next_scale != scale:
        words += f", loss scale {scale:g} -> {next_scale:g}"
    if excluded:
        words += f", excluded from now on: {', '.join(excluded)}"
    return words


def _silence(verdict: Verdict, grad_stats: GradStats | None) -> str:
    """Explain gradients that are exactly 0, which are not caused by too small numbers."""
    if grad_stats is None or not verdict.vanished or grad_stats.norms[list(verdict.vanished)].any():
        return ""
    return ": they are exactly 0, as for a layer that is disconnected from the loss"


def sentence(event: StabilityEvent) -> str:
    """One line: what happened, where it began, what was done."""
    return f"{_what(event)}{_where(event)}; {event.remedy}"


def _what(event: StabilityEvent) -> str:
    if event.cause == "overflow":
        return f"gradients overflow at loss scale {event.loss_scale:g}"
    if event.cause == "forward":
        return f"the loss is {event.loss:g}"
    if event.cause == "backward":
        at = (
            f" at loss scale {event.loss_scale:g}, which cannot fall"
            if event.loss_scale is not None
            else ""
        )
        return f"gradients are not finite{at}, the loss is {event.loss:.4g}"
    if event.cause == "vanishing":
        return "gradients have vanished"
    if event.cause == "unassigned":
        return "no object has been assigned to some boxes for a long time"
    # Only the two kinds of spikes remain.
    value = event.grad_norm if event.cause == "gradient_spike" else event.loss
    name = "gradient norm" if event.cause == "gradient_spike" else "loss"
    return f"{name} {value:.4g}, {value / event.usual:.3g} times the usual {event.usual:.4g}"


def _where(event: StabilityEvent) -> str:
    if not event.culprits:
        return f": {_some(event.parameters)}" if event.parameters else ""
    first: Mapping[str, Any] = event.culprits[0]
    # Without a pipeline all stages are 0, which says nothing.
    stage = (
        f", stage {first['stage']}"
        if first["stage"] or len({each["stage"] for each in event.culprits}) > 1
        else ""
    )
    told = f", image {_some(first['files'], SHOWN_FILES)}" if first["single_images"] else ""
    others = len(event.culprits) - 1
    more = (
        f" (and {others} more {'micro-batch' if others == 1 else 'micro-batches'})"
        if others
        else ""
    )
    place = f"rank {first['rank']} ({first['host']}){stage}, micro-batch {first['micro_batch']}"
    return f": {_origin(first)}, {place}{told}{more}"


def _origin(culprit: Mapping[str, Any]) -> str:
    """The first bad value, and the place where it appeared."""
    if culprit["name"] == INPUT:
        return f"{culprit['kind']} in the images"
    if culprit["name"] == LOSS:
        return "largest" if culprit["kind"] == "spike" else f"{culprit['kind']} in the loss itself"
    begins = "it grows" if culprit["kind"] == "spike" else culprit["kind"]
    return f"{begins} in the {culprit['phase']} pass of {culprit['name']}"


def _some(names: Sequence[str], shown: int = 2) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
