"""What a run's checkpoints depend on, and where a resumed run continues."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from yolods.checkpoint.progress import Progress
from yolods.checkpoint.read import Checkpoint
from yolods.config import RunConfig
from yolods.data.augment.partner_choice import PartnerChoice, choose_partners
from yolods.data.index.fingerprint import samples_of
from yolods.data.source import by_identity
from yolods.data.splits import Split
from yolods.errors import Faults
from yolods.optim.lr_schedule import Schedule
from yolods.optim.optimizers import OptimizerChoice
from yolods.training.checks.resume_check import (
    Comparison,
    Depends,
    check_before_start,
    compare,
    depends_on,
    finished,
    is_over,
    read_depends,
)
from yolods.training.setup.inputs import Inputs

log = logging.getLogger(__name__)


def refuse_changes(config: RunConfig) -> None:
    """Refuse a resume for what can be compared without the data.

    Raises:
        UserError: one line per change.
    """
    faults = Faults()
    check_before_start(config, faults)
    faults.raise_if_any()


@dataclass(frozen=True)
class Footing:
    """The facts that a run's checkpoints depend on, compared with those of the checkpoint."""

    record: dict[str, Any]
    """The record to store in this run's checkpoints."""
    choice: OptimizerChoice
    """The optimizer; a resumed run keeps the one that it has."""
    partners: PartnerChoice
    """Where mosaic partners come from; a resumed run keeps that as well."""
    comparison: Comparison
    """The differences from the checkpoint's record; none for a new run."""


def find_footing(
    config: RunConfig, inputs: Inputs, choice: OptimizerChoice, checkpoint: Checkpoint | None
) -> Footing:
    """Rank 0: collect what the run depends on and log what has changed since the checkpoint.

    Args:
        choice: the optimizer that a new run would use.

    Raises:
        UserError: one line per change that prevents a resume, or the run is finished.
    """
    train = inputs.train
    partners = choose_partners(config.hyper, train.scan, config.imgsz, train.dataset.channels)
    now = _depends(config, inputs, choice, partners)
    if checkpoint is None:
        return Footing(now.record(), choice, partners, Comparison())
    before = read_depends(checkpoint.model)
    comparison = compare(before, now, config.checkpoints.parent, config.data)
    _refuse_resume(config, checkpoint.progress, comparison)
    for line in comparison.notes:
        log.warning("%s", line)
    # `auto` chooses by the number of steps; after a change of epochs or images it could switch the
    # optimizer, whose moments would then be missing.
    if config.hyper.optimizer == "auto" and before.optimizer:
        now, choice = replace(now, optimizer=before.optimizer), OptimizerChoice(**before.optimizer)
    if config.hyper.mosaic_partners == "auto":
        now = replace(now, partners=before.partners)
        partners = PartnerChoice(before.partners, "as the run began")
    return Footing(now.record(), choice, partners, comparison)


def _depends(
    config: RunConfig, inputs: Inputs, choice: OptimizerChoice, partners: PartnerChoice
) -> Depends:
    """What the checkpoints of this start depend on."""
    return depends_on(
        config,
        names=inputs.blueprint.names,
        architecture=inputs.blueprint.layers,
        optimizer={**asdict(choice), "arguments": dict(choice.arguments)},
        partners=partners.partners,
        train=samples_of(inputs.train.scan.labels),
        val=samples_of(inputs.val.scan.labels),
    )


def _refuse_resume(config: RunConfig, progress: Mapping[str, Any], comparison: Comparison) -> None:
    """Raise UserError if the run is finished or has changed too much."""
    faults = Faults()
    if is_over(config, progress["step"], progress["epochs_done"]) and not config.only_traced:
        faults.add(finished(config))
    for line in comparison.faults:
        faults.add(line)
    faults.raise_if_any()


def placed(progress: Progress, comparison: Comparison, schedule: Schedule) -> Progress:
    """The position of a resumed run in its train set, whose images may have changed."""
    images, before = schedule.samples, comparison.images_before
    if before is None and not progress.fits(images, schedule.batch * schedule.accumulation):
        log.warning("the number of train images has changed: the current epoch starts over")
        progress = progress.among(images, None)
    elif before not in (None, images):
        progress = progress.among(images, before)
    if comparison.judged_on_others:
        progress = replace(progress, best_fitness=None, best_epoch=progress.epochs_done)
    return progress


def with_identities(progress: Progress, train: Split) -> Progress:
    """The progress with image faults by identity; old checkpoints have them by path."""
    data = train.dataset
    faults = by_identity(dict(progress.image_faults), data.im_files, data.source)
    return replace(progress, image_faults=tuple(sorted(faults.items())))
