"""Puts faster steps into a pipeline of ultralytics; its samples stay the same bit for bit."""

from __future__ import annotations

from typing import Any

from ultralytics.data.augment import (
    Albumentations,
    BaseMixTransform,
    Compose,
    CopyPaste,
    CutMix,
    Format,
    MixUp,
    Mosaic,
    RandomFlip,
    RandomHSV,
    RandomPerspective,
)

from yolods.data.augment.finish import Finish
from yolods.data.augment.scratch import Scratch
from yolods.data.augment.warped_mosaic import WarpedMosaic

_KNOWN = (Compose, MixUp, CutMix, Albumentations, RandomHSV, RandomFlip, RandomFlip, Format)
"""Types of the steps of a training pipeline."""


def quicken(pipeline: Compose, scratch: Scratch) -> Compose:
    """Replace steps of a training pipeline where it has the steps that are known here.

    Args:
        pipeline: ultralytics' `v8_transforms` with its `Format`; it is changed.
        scratch: arrays that samples are made in.
    """
    steps = pipeline.transforms
    if tuple(map(type, steps)) == _KNOWN:
        hsv, *flips, form = steps[-4:]
        steps[-4:] = [Finish(hsv, flips, form, scratch)]
        parts = parts_of(pipeline)
        four = not any(map(_needs_three, parts))
        for part in parts:
            if isinstance(part, Compose):
                _join(part, scratch, four=four)
    return pipeline


def _join(compose: Compose, scratch: Scratch, *, four: bool) -> None:
    """Replace a mosaic and the warp behind it."""
    steps = [step for step in compose.transforms if not _is_idle(step)]
    if tuple(map(type, steps[:2])) != (Mosaic, RandomPerspective):
        return
    mosaic, affine = steps[:2]
    if mosaic.n == 4 and affine.size is not None:
        compose.transforms[:] = [WarpedMosaic(mosaic, affine, scratch, four=four), *steps[2:]]


def _is_idle(step: Any) -> bool:
    """Whether a step does nothing, and draws no random number either."""
    return isinstance(step, CopyPaste) and not step.p


def _needs_three(part: Any) -> bool:
    """Whether a step behind the warp looks at colours, which then must not have a fourth
    channel."""
    if isinstance(part, Albumentations):
        return part.transform is not None
    return isinstance(part, BaseMixTransform) and not isinstance(part, Mosaic) and part.p > 0


def parts_of(pipeline: Compose) -> list[Any]:
    """Every step of a pipeline once, also those inside other steps."""
    found: dict[int, Any] = {}
    ahead = [pipeline]
    while ahead:
        step = ahead.pop()
        if step is not None and id(step) not in found:
            found[id(step)] = step
            ahead += [*getattr(step, "transforms", ()), getattr(step, "pre_transform", None)]
    return list(found.values())
