"""`--deepspeed_config auto` of `train`: the plan's best layout for the run's ranks and device.

Only assumed times are used, so that the launcher, which checks the run, and rank 0, which
configures it, come to the same layout. The JSON is in yolods' cache, and its content in the run's
config.json, from which a resume takes it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from yolods.config import RunConfig, cache_dir
from yolods.errors import UserError

if TYPE_CHECKING:
    from yolods.planner.choices import Choice
    from yolods.planner.command import Planner
    from yolods.planner.request import Machines
    from yolods.planner.search import Option

AUTO = "auto"
"""The value of --deepspeed_config that leaves the layout to the plan."""


def settled(
    args: argparse.Namespace,
    build: Callable[[argparse.Namespace], RunConfig],
    *,
    local: int | None = None,
    tell: Callable[[str], object] | None = None,
) -> argparse.Namespace:
    """The flags of `train` with a JSON in place of "auto"; other flags are returned as they are.

    The batch stays as it would be without a JSON, so that the plan changes no result beyond the
    data type. A resume keeps the run's JSON.

    Args:
        build: builds the run's configuration from flags, and raises UserError for their faults.
        local: ranks per host; None: all ranks are on one.
        tell: called with a line about the layout.

    Raises:
        UserError: the flags are wrong, or nothing fits; then with what would.
    """
    named = getattr(args, "deepspeed_config", None)
    if named != AUTO or Path(AUTO).exists():
        return args
    plain = argparse.Namespace(**{**vars(args), "deepspeed_config": None})
    config = build(plain)
    if config.resume:
        return plain
    option, planner, machines = _planned(config, local)
    path = _written(option, planner)
    if tell is not None:
        limit = machines.limits.device
        gib = option.fullest.device / 2**30
        tell(
            f"--deepspeed_config auto: {option.family.label}, {option.layout.precision}, "
            f"{gib:.2f} GiB of {limit / 2**30:.2f} per rank; `yolods plan` shows the others"
        )
    return argparse.Namespace(**{**vars(args), "deepspeed_config": str(path)})


def _planned(config: RunConfig, local: int | None) -> tuple[Option, Planner, Machines]:
    """The best layout for a configuration's model, data, batch and ranks."""
    from yolods.planner.command import Planner
    from yolods.planner.refusal import Refused
    from yolods.planner.request import subject_of

    subject = subject_of(config.model, str(config.data), single_cls=config.hyper.single_cls)
    machines = _machines(config, local or config.deepspeed.world_size)
    planner = Planner(subject, config.hyper.optimizer)
    found = planner.search(_choice(config, machines), machines)
    if found.best is None:
        lines = Refused(found, machines, planner.search, subject.blueprint.grid).lines()
        raise UserError("\n".join(f"--deepspeed_config auto: {line}" for line in lines))
    return found.best, planner, machines


def _machines(config: RunConfig, local: int) -> Machines:
    """This host's devices, for all ranks."""
    from yolods.planner.flags import plan_parser
    from yolods.planner.request import machines_of

    ranks = config.deepspeed.world_size
    hosts = ranks // local if ranks % local == 0 else 1
    args = plan_parser().read(["--ranks", str(ranks), "--hosts", str(hosts)])
    return machines_of(args, (), int(config.device == "cuda"))


def _choice(config: RunConfig, machines: Machines) -> Choice:
    from yolods.config.image_size import single_value_fault
    from yolods.config.names.model_name import parse_name
    from yolods.planner.choices import Choice
    from yolods.planner.request import fast_precisions

    stride = parse_name(config.model).stride
    scale = config.hyper.multi_scale
    return Choice(
        config.imgsz,
        machines.ranks,
        config.deepspeed.train_batch,
        fast_precisions(machines.figures),
        forward_images=config.batch_size,
        sync_bn=config.hyper.sync_bn,
        single_value=single_value_fault(config.imgsz, stride, 1, multi_scale=scale) is not None,
    )


def _written(option: Option, planner: Planner) -> Path:
    """The path of the layout's JSON in the cache, named by its content."""
    from yolods.planner.recipe import recipe_of
    from yolods.system.files import replace_file

    text = json.dumps(recipe_of(option.layout, planner.graph, batch_keys=False), indent=2)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    path = cache_dir() / "plans" / f"{digest}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: file.write(f"{text}\n".encode()), shared=True)
    return path
