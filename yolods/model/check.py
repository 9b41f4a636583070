"""Checks a model against a run's settings, without building the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from yolods.config.image_size import single_value_fault, size_fault
from yolods.config.names.model_name import parse_name
from yolods.errors import Faults
from yolods.model.architecture.build import architecture
from yolods.model.blueprint import Blueprint
from yolods.model.freezing import check_frozen

if TYPE_CHECKING:
    from yolods.config import RunConfig


def blueprint_of(config: RunConfig, names: tuple[str, ...], channels: int) -> Blueprint:
    """The run's blueprint, checked against its image size, batch and frozen layers.

    Args:
        names: class names in the order of their ids.
        channels: image channels.

    Raises:
        UserError: all faults, one line each.
    """
    faults = Faults()
    blueprint = on_paper(config, names, channels)
    check_fit(blueprint, config, faults)
    check_freeze(blueprint, config, faults)
    faults.raise_if_any()
    return blueprint


def on_paper(config: RunConfig, names: tuple[str, ...], channels: int) -> Blueprint:
    """The run's blueprint, unchecked.

    Raises:
        UserError: the model cannot be built.
    """
    return Blueprint(
        architecture(parse_name(config.model), len(names), channels), names, config.seed
    )


def check_fit(blueprint: Blueprint, config: RunConfig, faults: Faults) -> None:
    """Refuse an image size or a batch that the model does not support."""
    for fault in (
        size_fault(config.imgsz, blueprint.grid, "this model", "--imgsz"),
        _single_value(config, blueprint),
    ):
        if fault:
            faults.add(fault)


def check_freeze(blueprint: Blueprint, config: RunConfig, faults: Faults) -> None:
    """Refuse settings that would freeze nothing, or everything."""
    weights = [weight for weight, _ in blueprint.meta.named_parameters()]
    check_frozen(
        config.hyper.freeze, weights, blueprint.layers, parse_name(config.model).text, faults
    )


def _single_value(config: RunConfig, blueprint: Blueprint) -> str | None:
    """Refuse a batch with one value per channel.

    Uses the largest stride and not `grid`: in a user's yaml it may be below 32, which makes more
    cells.
    """
    return single_value_fault(
        config.imgsz,
        int(max(blueprint.strides)),
        config.deepspeed.micro_batch,
        multi_scale=config.hyper.multi_scale,
        ranks=config.deepspeed.dp_size if config.hyper.sync_bn else 1,
    )
