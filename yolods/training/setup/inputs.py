"""The data of a run and the model that it trains, on every rank."""

from __future__ import annotations

from dataclasses import dataclass

from yolods.config import RunConfig
from yolods.data.classes import class_names
from yolods.data.spec import DataSpec
from yolods.data.splits import Split, SplitOptions, open_split, read_data
from yolods.distributed.world import Ranks
from yolods.model.blueprint import Blueprint
from yolods.model.check import blueprint_of
from yolods.model.weights import check_whole
from yolods.training.setup.run_files import prepare_folder


@dataclass(frozen=True)
class Inputs:
    """What a run trains, and on which images."""

    spec: DataSpec
    """The data yaml."""
    blueprint: Blueprint
    """The model, with the names of its classes."""
    options: SplitOptions
    """How images are read, the same for both splits."""
    train: Split
    """The train images, augmented."""
    val: Split
    """The validation images."""


def open_inputs(config: RunConfig, ranks: Ranks) -> Inputs:
    """Read the data yaml, build the model on paper, and open both splits. A collective.

    The order: cheap checks first, so that a mistake costs seconds and not the time of a scan.

    Raises:
        UserError: on every rank: a fault in data, model or weights, or the disk has no room for the
            run.
    """
    spec, hyper = read_data(config.data, ranks), config.hyper
    blueprint = blueprint_of(config, class_names(spec.names, hyper), spec.channels)
    weights = None if config.resume else config.weights
    if weights is not None:
        # Rank 0 alone, so that a damaged file is reported once.
        ranks.main_first(lambda: check_whole(weights))
    ranks.main_first(lambda: prepare_folder(config, blueprint.parameters))
    options = _split_options(config, blueprint.grid, ranks)
    train = open_split(spec, "train", hyper, options, ranks, augment=True)
    val = open_split(spec, "val", hyper, options, ranks, augment=False)
    return Inputs(spec, blueprint, options, train, val)


def _split_options(config: RunConfig, stride: int, ranks: Ranks) -> SplitOptions:
    """How the run reads images, the same for both splits.

    Args:
        stride: pixels; the sides of images are multiples of it.
    """
    return SplitOptions(
        imgsz=config.imgsz,
        stride=stride,
        epochs=config.epochs,
        workers=config.workers,
        check_data=config.check_data,
        local_ranks=ranks.local_size,
        eval_batch=config.eval_batch,
    )
