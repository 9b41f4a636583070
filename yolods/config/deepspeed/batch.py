"""Batch arithmetic: images a micro-batch, micro-batches a step, images a step. Pure functions of integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from yolods.errors import Faults

DEFAULT_BATCH = 16
"""Images a forward pass over all ranks where nothing says otherwise (ultralytics' `batch`)."""

TRAIN = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"
BATCH_KEYS = (TRAIN, MICRO, ACCUMULATION)
"""DeepSpeed's keys for images a step, images a rank and forward pass, and forward passes a step."""


@dataclass(frozen=True)
class BatchPlan:
    """Batch sizes that multiply out: train_batch = micro x accumulation x ranks."""

    micro: int
    """Images a rank sees in one forward pass."""
    accumulation: int
    """Forward passes an optimizer step, once warm-up is over."""
    accumulation_auto: bool
    """Whether accumulation follows from nbs; warm-up then raises it from 1, as ultralytics does."""
    dp_size: int
    """Data-parallel ranks."""

    @property
    def batch(self) -> int:
        """Images a forward pass over all ranks: --batch-size."""
        return self.micro * self.dp_size

    @property
    def train_batch(self) -> int:
        """Images an optimizer step."""
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
    """Work out what the JSON leaves open. "auto" and a missing key are the same: both are left open.

    Any two of DeepSpeed's three keys determine the third. Otherwise the flag gives images a forward pass, and
    accumulation follows from nbs: max(round(nbs / batch), 1). train_batch_size alone, without the flag, is one forward
    pass a step, as in DeepSpeed.

    Args:
        block: the JSON's top level; its batch keys are positive integers, "auto" or missing.
        batch_size: images a forward pass over all ranks; None: not given.
        said_by: what gave batch_size, for messages: "--batch-size" or a line of a hyp file.
        where: the JSON's name in messages.
        before: the plan of the run that is gone on with. Images a step stay; so do images a micro-batch, where they
            divide those (then losses are the same, and memory), and else images a forward pass.

    Returns:
        the plan; where there was a fault it holds numbers that do not break the rest of the checks.
    """
    train, micro, steps = (None if block.get(key) in (None, "auto") else block[key] for key in BATCH_KEYS)
    known = len(faults)
    if before is not None:
        batch_size = _carried_over(before, micro or before.micro, dp_size, nbs)
    if micro is None:
        micro = _micro(train, steps, batch_size, said_by, dp_size, where, faults)
    elif batch_size is not None and micro * dp_size != batch_size:
        faults.add(
            f"{where}: {MICRO} {micro} x {_ranks(dp_size)} = {micro * dp_size}, but {said_by} says {batch_size}; "
            f'give {said_by} {micro * dp_size}, leave it out, or set {MICRO} to "auto"'
        )
    auto = steps is None and train is None
    if len(faults) > known:
        return BatchPlan(micro=micro or 1, accumulation=steps or 1, accumulation_auto=auto, dp_size=dp_size)
    if auto and before is not None:
        steps = max(before.train_batch // (micro * dp_size), 1)
    elif auto:
        steps = max(round(nbs / (micro * dp_size)), 1)
    elif steps is None:
        steps = max(train // (micro * dp_size), 1)
    if train is not None and train != micro * steps * dp_size:
        faults.add(
            f"{where}: {TRAIN} {train} != {MICRO} {micro} x {ACCUMULATION} {steps} x {_ranks(dp_size)} = "
            f'{micro * steps * dp_size}; set one of them to "auto"'
        )
    return BatchPlan(micro=micro, accumulation=steps, accumulation_auto=auto, dp_size=dp_size)


def _carried_over(before: BatchPlan, micro: int, dp_size: int, nbs: int) -> int:
    """Images a forward pass over other ranks than before."""
    batch = micro * dp_size
    # The optimizer that "auto" stands for is chosen by the larger of nbs and this batch.
    return batch if before.train_batch % batch == 0 and batch <= max(before.batch, nbs) else before.batch


def _micro(
    train: int | None, steps: int | None, batch: int | None, said_by: str, dp_size: int, where: str, faults: Faults
) -> int:
    """Images a rank and forward pass, where the JSON does not say it."""
    if batch is not None:
        if steps is not None and train is not None and batch * steps != train:
            faults.add(
                f"{where}: {TRAIN} {train} / {ACCUMULATION} {steps} = {train / steps:g} images a forward pass, but "
                f'{said_by} says {batch}; set one of them to "auto"'
            )
        return _share(batch, dp_size, said_by, faults)
    if train is None:
        return _share(DEFAULT_BATCH, dp_size, f"the default --batch-size {DEFAULT_BATCH}", faults)
    dealt = dp_size * (steps or 1)
    if train % dealt:
        by_steps = f"{ACCUMULATION} {steps} x " if steps else ""
        faults.add(
            f"{where}: {TRAIN} {train} / ({by_steps}{_ranks(dp_size)}) = {train / dealt:.2f} is not whole; "
            f"{_neighbours(train, dealt)}"
        )
    return max(train // dealt, 1)


def _share(batch: int, dp_size: int, said_by: str, faults: Faults) -> int:
    if batch % dp_size:
        words = said_by if str(batch) in said_by else f"{said_by} {batch}"
        faults.add(
            f"{words} cannot be dealt to {dp_size} ranks: {batch} / {dp_size} = {batch / dp_size:.2f}; "
            f"{_neighbours(batch, dp_size)}"
        )
    return max(batch // dp_size, 1)


def _neighbours(number: int, divisor: int) -> str:
    below, above = number // divisor * divisor, (number // divisor + 1) * divisor
    return f"use {below} or {above}" if below else f"use {above}"


def _ranks(dp_size: int) -> str:
    return f"{dp_size} rank" if dp_size == 1 else f"{dp_size} ranks"
