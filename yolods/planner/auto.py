"""`--deepspeed_config auto` and `--batch-size auto` of `train`: what the plan chooses for the run's
ranks and device.

Only assumed times are used, so that the launcher, which checks the run, and rank 0, which
configures it, come to the same layout. The JSON is in yolods' cache, and its content in the run's
config.json, from which a resume takes it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from yolods.config import RunConfig, cache_dir
from yolods.config.flags import AUTO_BATCH
from yolods.config.names.recipes import AUTO
from yolods.errors import UserError
from yolods.system.humanize import plural

if TYPE_CHECKING:
    from yolods.planner.choices import Choice
    from yolods.planner.command import Planner
    from yolods.planner.request import Machines
    from yolods.planner.search import Option

_GIB = 2**30


def settled(
    args: argparse.Namespace,
    build: Callable[[argparse.Namespace], RunConfig],
    *,
    local: int | None = None,
    tell: Callable[[str], object] | None = None,
) -> argparse.Namespace:
    """The flags of `train` with a JSON and a batch in place of "auto"; other flags are returned as
    they are.

    Images per step stay as they would be without a JSON, so that the plan changes no result beyond
    the data type and the images that share BatchNorm's statistics. A resume keeps the run's own.

    Args:
        build: builds the run's configuration from flags, and raises UserError for their faults.
        local: ranks per host; None: all ranks are on one.
        tell: called with a line about what was chosen.

    Raises:
        UserError: the flags are wrong, or nothing fits; then with what would.
    """
    auto_json = getattr(args, "deepspeed_config", None) == AUTO and not Path(AUTO).exists()
    auto_batch = getattr(args, "batch_size", None) == AUTO_BATCH
    if not (auto_json or auto_batch):
        return args
    say = tell or (lambda line: None)
    left = {"deepspeed_config": None} if auto_json else {}
    left |= {"batch_size": None} if auto_batch else {}
    plain = argparse.Namespace(**{**vars(args), **left})
    if auto_json and getattr(args, "resume", None):
        say("--deepspeed_config auto is ignored: --resume keeps the layout of the run")
    config = build(plain)
    if config.resume:
        return plain
    say("planning the layout")
    if auto_json:
        option, planner, machines = _planned(config, local, any_batch=auto_batch, tell=say)
        left["deepspeed_config"] = str(_written(option, planner))
    else:
        option, machines = _filled(config, local)
    layout = option.layout
    if auto_batch:
        left["batch_size"] = layout.micro_batch * layout.replicas
    for line in _told(option, machines, auto_json, auto_batch):
        say(line)
    return argparse.Namespace(**{**vars(args), **left})


def _told(option: Option, machines: Machines, auto_json: bool, auto_batch: bool) -> Iterator[str]:
    """A line for each choice, with its memory and where that number comes from.

    Args:
        auto_json: whether the layout was chosen.
        auto_batch: whether the batch was chosen.
    """
    layout, limits = option.layout, machines.limits
    taken = max(map(limits.taken, option.memory)) / _GIB
    memory = f"{taken:.2f} GiB of {limits.device / _GIB:.2f} per rank"
    if auto_json:
        yield (
            f"--deepspeed_config auto: {option.family.label}, {layout.precision}, {memory}; "
            "`yolods plan` shows the others"
        )
    if auto_batch:
        source = f"{machines.figures.name}, {machines.memory_source}"
        if machines.device == "cpu":
            source = "its share of this host's memory; on a CPU, more images are not faster"
        yield (
            f"--batch-size auto: {layout.micro_batch * layout.replicas} images = "
            f"{layout.micro_batch} x {layout.replicas}; a step accumulates {layout.accumulation}: "
            f"{layout.images} images; predicted {memory} ({source})"
        )


def _filled(config: RunConfig, local: int | None) -> tuple[Option, Machines]:
    """The configuration's own layout with the most images per forward pass that fit, of those that
    divide the images of a step (nbs).

    Raises:
        UserError: not even the fewest fit, or there is a pipeline.
    """
    from yolods.plan.layout import layout_of
    from yolods.planner.choices import micro_batches
    from yolods.planner.command import Planner
    from yolods.planner.request import subject_of
    from yolods.planner.search import Option

    if config.deepspeed.pipeline is not None:
        raise UserError(
            "--batch-size auto: in a pipeline, the micro-batches of a step decide how long stages "
            "idle; write a number, or add --deepspeed_config auto, which chooses both"
        )
    if named := [f"{key} {value}" for key, value in config.deepspeed.fixed_batches.items()]:
        raise UserError(
            f"--batch-size auto: {config.deepspeed.path} has {' and '.join(named)}, so that there "
            'is nothing to choose; write "auto" there, or omit the flag'
        )
    subject = subject_of(config.model, str(config.data), single_cls=config.hyper.single_cls)
    machines = _machines(config, local or config.deepspeed.world_size)
    planner = Planner(subject, config.hyper.optimizer)
    layout, limits = layout_of(config), machines.limits
    choice = _choice(config, machines, any_batch=True)
    for micro in micro_batches(choice, layout.replicas):
        tried = replace(
            layout, micro_batch=micro, accumulation=choice.images // layout.replicas // micro
        )
        memory = planner.memory(tried, machines)
        if not limits.over(memory):
            return Option(tried, memory, None), machines
    need = max(map(limits.taken, memory)) / _GIB
    raise UserError(
        f"--batch-size auto: even {plural(micro, 'image')} per rank would take {need:.2f} GiB of "
        f"{limits.device / _GIB:.2f} GiB ({machines.figures.name}, {machines.memory_source}); "
        "choose a smaller --imgsz or --model, or --deepspeed_config auto"
    )


def _planned(
    config: RunConfig,
    local: int | None,
    *,
    any_batch: bool,
    tell: Callable[[str], object],
) -> tuple[Option, Planner, Machines]:
    """The best layout for a configuration's model, data, batch and ranks."""
    from yolods.planner.command import Planner
    from yolods.planner.request import subject_of

    subject = subject_of(config.model, str(config.data), single_cls=config.hyper.single_cls)
    machines = _machines(config, local or config.deepspeed.world_size)
    planner = Planner(subject, config.hyper.optimizer)
    found = planner.search(_choice(config, machines, any_batch=any_batch), machines)
    if found.best is None:
        lines = planner.refusal(found, machines, tell)
        raise UserError("\n".join(f"--deepspeed_config auto: {line}" for line in lines))
    return found.best, planner, machines


def _machines(config: RunConfig, local: int) -> Machines:
    """This host's devices, for all ranks."""
    from yolods.planner.flags import plan_flags
    from yolods.planner.request import machines_of

    ranks = config.deepspeed.world_size
    hosts = ranks // local if ranks % local == 0 else 1
    args = plan_flags().read(["--ranks", str(ranks), "--hosts", str(hosts)])
    return machines_of(args, (), int(config.device == "cuda"))


def _choice(config: RunConfig, machines: Machines, *, any_batch: bool) -> Choice:
    """What the layouts have in common.

    Args:
        any_batch: whether the images per forward pass are open; those of a step are then nbs,
            rounded up to a multiple of the ranks.
    """
    from yolods.config.image_size import single_value_fault
    from yolods.config.names.model_name import parse_name
    from yolods.planner.choices import Choice
    from yolods.planner.request import fast_precisions

    stride = parse_name(config.model).stride
    scale = config.hyper.multi_scale
    ranks = machines.ranks
    return Choice(
        config.imgsz,
        ranks,
        math.ceil(config.hyper.nbs / ranks) * ranks if any_batch else config.deepspeed.train_batch,
        fast_precisions(machines.figures),
        forward_images=None if any_batch else config.batch_size,
        sync_bn=config.hyper.sync_bn,
        single_value=single_value_fault(config.imgsz, stride, 1, multi_scale=scale) is not None,
    )


def _written(option: Option, planner: Planner) -> Path:
    """The path of the layout's JSON in the cache, named by its content."""
    from yolods.planner.recipe import recipe_of
    from yolods.system.files import replace_text

    text = json.dumps(recipe_of(option.layout, planner.graph, batch_keys=False), indent=2)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    path = cache_dir() / "plans" / f"{digest}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, f"{text}\n", shared=True)
    except OSError as error:
        raise UserError(
            f"--deepspeed_config auto: {path} cannot be written: {error.strerror or error}; set "
            "YOLODS_CACHE to a writable folder"
        ) from error
    return path
