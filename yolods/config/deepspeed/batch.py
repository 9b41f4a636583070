"""Batch arithmetic: images per micro-batch, micro-batches per step, images per step.

Pure functions of integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from yolods.errors import Faults

DEFAULT_BATCH = 16
"""Default of --batch-size: images per forward pass over all ranks (ultralytics' `batch`)."""

TRAIN = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"
BATCH_KEYS = (TRAIN, MICRO, ACCUMULATION)
"""DeepSpeed's keys: images per step, images per rank and forward pass, forward passes per step."""


@dataclass(frozen=True)
class BatchPlan:
    """Batch sizes that multiply out: train_batch = micro x accumulation x ranks."""

    micro: int
    """Images per rank and forward pass."""
    accumulation: int
    """Forward passes per optimizer step, once warm-up is over."""
    accumulation_auto: bool
    """Whether accumulation follows from nbs; warm-up then raises it from 1, as in ultralytics."""
    dp_size: int
    """Data-parallel ranks."""

    @property
    def batch(self) -> int:
        """Images per forward pass over all ranks: --batch-size."""
        return self.micro * self.dp_size

    @property
    def train_batch(self) -> int:
        """Images per optimizer step."""
        return self.batch * self.accumulation


def plan_batches(
    block: dict[str, Any],
    *,
    batch_size: int | None,
    said_by: str,
    dp_size: int,
    nbs: int,
    where: str,
    faults: Faults,
    before: BatchPlan | None = None,
) -> BatchPlan:
    """Compute the batch keys that the JSON leaves open. "auto" means the same as a missing key.

    Any two of DeepSpeed's three keys determine the third. Otherwise the flag gives the images per
    forward pass, and accumulation follows from nbs: max(round(nbs / batch), 1). train_batch_size
    alone, without the flag, means one forward pass per step, as in DeepSpeed.

    Args:
        block: the JSON's top level; its batch keys are positive integers, "auto" or missing.
        batch_size: images per forward pass over all ranks; None: not given.
        said_by: the source of batch_size, for messages: "--batch-size" or a line of a hyp file.
        where: the JSON's name in messages.
        before: the plan of the run being resumed. Its images per step stay the same. Its images per
            micro-batch stay if they divide the images per step, which keeps losses and memory the
            same; otherwise its images per forward pass stay.

    Returns:
        the plan; after a fault, numbers that do not break the remaining checks.
    """
    train, micro, steps = (
        None if block.get(key) in (None, "auto") else block[key] for key in BATCH_KEYS
    )
    known = len(faults)
    if before is not None:
        batch_size = _carried_over(before, micro or before.micro, dp_size, nbs)
    if micro is None:
        micro = _micro(train, steps, batch_size, said_by, dp_size, where, faults)
    elif batch_size is not None and micro * dp_size != batch_size:
        product = f"{MICRO} {micro} x {_ranks(dp_size)} = {micro * dp_size}"
        said, remedy = f"{said_by} is", f"use {said_by} {micro * dp_size}, omit it, or "
        if before is not None:
            said, remedy = "the run's images per forward pass are", ""
        faults.add(f'{where}: {product}, but {said} {batch_size}; {remedy}set {MICRO} to "auto"')
    auto = steps is None and train is None
    if len(faults) > known:
        # The numbers contradict each other: comparing them further would only add faults that
        # follow from the first.
        return BatchPlan(
            micro=micro or 1, accumulation=steps or 1, accumulation_auto=auto, dp_size=dp_size
        )
    if auto and before is not None:
        # Not from nbs: a resumed run keeps its images per step, so that its schedule and optimizer
        # state still fit.
        steps = max(before.train_batch // (micro * dp_size), 1)
    elif auto:
        steps = max(round(nbs / (micro * dp_size)), 1)
    elif steps is None:
        steps = max(train // (micro * dp_size), 1)
    if train is not None and train != micro * steps * dp_size:
        faults.add(
            f"{where}: {TRAIN} {train} != {MICRO} {micro} x {ACCUMULATION} {steps} x "
            f'{_ranks(dp_size)} = {micro * steps * dp_size}; set one of them to "auto"'
        )
    return BatchPlan(micro=micro, accumulation=steps, accumulation_auto=auto, dp_size=dp_size)


def _carried_over(before: BatchPlan, micro: int, dp_size: int, nbs: int) -> int:
    """Images per forward pass when the world size changes on resume."""
    batch = micro * dp_size
    # optimizer=auto is resolved from a number of steps that depends on max(nbs, batch). A batch
    # above both nbs and the old batch could resolve to another optimizer, so the old batch stays in
    # that case.
    return (
        batch
        if before.train_batch % batch == 0 and batch <= max(before.batch, nbs)
        else before.batch
    )


def _micro(
    train: int | None,
    steps: int | None,
    batch: int | None,
    said_by: str,
    dp_size: int,
    where: str,
    faults: Faults,
) -> int:
    """Images per rank and forward pass, where the JSON does not set them."""
    if batch is not None:
        if steps is not None and train is not None and batch * steps != train:
            faults.add(
                f"{where}: {TRAIN} {train} / {ACCUMULATION} {steps} = {train / steps:g} images per "
                f'forward pass, but {said_by} is {batch}; set one of them to "auto"'
            )
        return _share(batch, dp_size, said_by, faults)
    if train is None:
        return _share(DEFAULT_BATCH, dp_size, f"the default --batch-size {DEFAULT_BATCH}", faults)
    dealt = dp_size * (steps or 1)
    if train % dealt:
        by_steps = f"{ACCUMULATION} {steps} x " if steps else ""
        faults.add(
            f"{where}: {TRAIN} {train} / ({by_steps}{_ranks(dp_size)}) = {train / dealt:.2f} is "
            f"not an integer; {_neighbours(train, dealt)}"
        )
    return max(train // dealt, 1)


def _share(batch: int, dp_size: int, said_by: str, faults: Faults) -> int:
    if batch % dp_size:
        words = said_by if str(batch) in said_by else f"{said_by} {batch}"
        faults.add(
            f"{words} cannot be divided evenly among {dp_size} ranks: {batch} / {dp_size} = "
            f"{batch / dp_size:.2f}; {_neighbours(batch, dp_size)}"
        )
    return max(batch // dp_size, 1)


def _neighbours(number: int, divisor: int) -> str:
    below, above = number // divisor * divisor, (number // divisor + 1) * divisor
    return f"use {below} or {above}" if below else f"use {above}"


def _ranks(dp_size: int) -> str:
    return f"{dp_size} rank" if dp_size == 1 else f"{dp_size} ranks"
