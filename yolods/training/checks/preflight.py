"""Checks of a training run before any process starts; all faults are reported together."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from functools import partial

from yolods import __version__
from yolods.config import RunConfig, build_run_config
from yolods.config.names.model_name import parse_name
from yolods.data.classes import check_classes, class_names
from yolods.data.spec import DataSpec, read_spec
from yolods.errors import Faults
from yolods.planner.auto import settled
from yolods.training.checks.resume_check import check_before_start

Tell = Callable[[str], object]


def check_train(
    args: argparse.Namespace, world_size: int, device: str, tell: Tell | None = None
) -> RunConfig:
    """The configuration of the requested run. Imports torch only if the model or the weights need a
    check.

    Args:
        args: the parsed flags of `train`, with the faults found in them.
        world_size: number of ranks.
        device: "cpu" or "cuda".
        tell: called with a line for the user before the import of torch, which takes seconds.

    Raises:
        UserError: all faults of flags, JSON, data, model and weights, one per line.
    """
    check = partial(
        build_run_config,
        world_size=world_size,
        device=device,
        check_files=partial(check_files, tell=tell),
    )
    return check(settled(args, check, tell=tell))


def check_files(config: RunConfig, faults: Faults, tell: Tell | None = None) -> None:
    """Add the faults of data, model, weights, and the checkpoint to resume from.

    Args:
        tell: as for `check_train`.
    """
    # With faults in flags or JSON, defaults replace the refused values; a check of the model
    # against them would report faults that the user does not have.
    sound = not faults
    if config.resume:
        check_before_start(config, faults)
    spec = _read_data(config, faults)
    model, weights = _model_matters(config, sound, faults), _weights_matter(config)
    if model or weights:
        from yolods.telemetry.log import quiet_dependencies

        quiet_dependencies(logging.WARNING)
        if tell is not None:
            tell(
                f"version {__version__}: checking {'the model' if model else 'the weights'} before "
                "the start"
            )
    if model:
        # A faulty yaml is replaced by one class, so that the model's faults are reported too.
        names, channels = (("item",), 3) if spec is None else (spec.names, spec.channels)
        with faults.caught():
            _check_model(config, class_names(names, config.hyper), channels, sound, faults)
    if weights:
        _check_weights(config, faults)


def _read_data(config: RunConfig, faults: Faults) -> DataSpec | None:
    """The content of the data yaml; None for the demo, and for a yaml with faults."""
    if config.is_demo:
        if config.hyper.classes is not None:
            from yolods.data.demo import NAMES  # imports OpenCV

            with faults.caught():
                check_classes(NAMES, config.data, config.hyper.classes)
        return None
    if not (config.resume or config.data.is_file()):  # reported with the flag
        return None
    with faults.caught():
        spec = read_spec(config.data)
        check_classes(spec.names, spec.yaml, config.hyper.classes)
        return spec
    return None


def _model_matters(config: RunConfig, sound: bool, faults: Faults) -> bool:
    """Whether the model needs a check: a yaml of the user, frozen layers or pipeline stages can be
    wrong.

    Args:
        sound: whether sizes, batch and layout are the user's, and not defaults that replace faulty
            values.
    """
    with faults.caught():
        own = parse_name(config.model).yaml is not None
        return (
            own
            or config.hyper.freeze is not None
            or (sound and config.deepspeed.pipeline is not None)
        )
    return False


def _check_model(
    config: RunConfig, names: tuple[str, ...], channels: int, sound: bool, faults: Faults
) -> None:
    from yolods.model.check import check_fit, check_freeze, on_paper

    blueprint, before = on_paper(config, names, channels), len(faults)
    check_freeze(blueprint, config, faults)
    if sound:
        check_fit(blueprint, config, faults)
    if sound and config.deepspeed.pipeline is not None and len(faults) == before:
        from yolods.plan.stage_plan import check_stages, counted

        check_stages(counted(blueprint, config), config)


def _weights_matter(config: RunConfig) -> bool:
    """Whether there are weights to read; a missing file is reported with the flag."""
    return not config.resume and config.weights is not None and config.weights.is_file()


def _check_weights(config: RunConfig, faults: Faults) -> None:
    from yolods.model.weights import check_whole

    assert config.weights is not None
    with faults.caught():
        check_whole(config.weights)
