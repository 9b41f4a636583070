"""`yolods plan`: from flags to the report, the JSON and the picture."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

from yolods.config.run import DEFAULT_MODEL
from yolods.errors import UserError
from yolods.launch.args import LaunchFlags
from yolods.launch.command import hosts_of
from yolods.model.graph.graph import Graph, build_graph
from yolods.plan.cost import Cost, cost
from yolods.plan.layout import Layout
from yolods.plan.memory.predict import MemoryModel
from yolods.plan.memory.terms import RankMemory
from yolods.plan.stage_plan import DTYPE_BYTES
from yolods.plan.step_profile import StepsOf
from yolods.plan.time.nodes import NodeTimes, assumed_times, measured_times, profiled_times
from yolods.plan.time.step import Clock
from yolods.planner.choices import Choice
from yolods.planner.links.link_test import measure_links
from yolods.planner.picture import draw_memory
from yolods.planner.recipe import check_recipe, recipe_of, refuse_existing
from yolods.planner.refusal import Refused
from yolods.planner.report import plan_json, render_plan
from yolods.planner.request import (
    Machines,
    Subject,
    choice_of,
    machines_of,
    network_of,
    subject_of,
)
from yolods.planner.search import Found, Option, search_layouts
from yolods.system.files import replace_text


@dataclass(frozen=True, eq=False)
class Planner:
    """Searches layouts of one model, and keeps what a search needs again."""

    subject: Subject
    optimizer: str
    """Name of the optimizer; auto counts as the larger of the two that it chooses between."""
    measured: bool = False
    """Whether to measure nodes on this machine's device instead of assuming their times."""

    @cached_property
    def graph(self) -> Graph:
        """The model's nodes."""
        return build_graph(self.subject.blueprint.meta)

    @cached_property
    def _memory(self) -> dict[str, MemoryModel]:
        name = "AdamW" if self.optimizer == "auto" else self.optimizer
        return {
            device: MemoryModel(
                self.subject.blueprint, boxes=self.subject.boxes, optimizer=name, device=device
            )
            for device in ("cpu", "cuda")
        }

    def clock(self, choice: Choice, machines: Machines) -> Clock:
        """The times of a choice's layouts on some machines."""
        costs = {each: self._cost(choice.imgsz, each) for each in choice.precisions}
        times = {each: self._times(costs[each], each, machines) for each in choice.precisions}
        return Clock(
            costs,
            times,
            machines.figures,
            machines.network,
            boxes=self.subject.boxes.mean,
            backend="nccl" if machines.device == "cuda" else "gloo",
            profile=next(iter(machines.profiles.values()), None),
        )

    def search(self, choice: Choice, machines: Machines) -> Found:
        """The best layouts."""
        clock = self.clock(choice, machines)
        memory = self._memory[machines.device]
        return search_layouts(choice, clock, memory.ranks, machines.limits, memory.least)

    def refusal(self, found: Found, machines: Machines, tell: Callable[[str], object]) -> list[str]:
        """Why nothing fits, and what would, which takes further searches.

        Args:
            tell: called with a line before them.
        """
        tell("no layout fits; searching for what would")
        return Refused(found, machines, self.search, self.subject.blueprint.grid).lines()

    def memory(self, layout: Layout, machines: Machines) -> tuple[RankMemory, ...]:
        """The predicted memory of one rank of every stage."""
        return self._memory[machines.device].ranks(layout)

    def _cost(self, imgsz: int, precision: str) -> Cost:
        return cost(self.graph, imgsz, DTYPE_BYTES[precision])

    def _times(self, costs: Cost, precision: str, machines: Machines) -> NodeTimes:
        profile = machines.profiles.get(precision)
        if profile is not None and profile.imgsz == costs.imgsz:
            return profiled_times(profile)
        if not (self.measured and machines.here and machines.device == "cuda"):
            return assumed_times(costs, machines.figures, precision)
        return _profile(self.graph, costs.imgsz, precision)


@lru_cache(maxsize=8)
def _profile(graph: Graph, imgsz: int, precision: str) -> NodeTimes:
    """The nodes' times on this machine's GPU, of as many images as fit, at most 8."""
    import torch

    from yolods.plan.profile import measure

    for images in (8, 4, 2):
        try:
            seconds = measure(graph, imgsz, images, torch.device("cuda"), precision)
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
        else:
            return measured_times(seconds, images)
    return measured_times(measure(graph, imgsz, 1, torch.device("cuda"), precision), 1)


def run_plan(
    args: argparse.Namespace,
    flags: LaunchFlags,
    gpus: int,
    *,
    tell: Callable[[str], object],
    show: Callable[[str], object],
) -> None:
    """Run the command.

    Args:
        args: result of `plan_flags`.
        flags: the launcher's flags, which name the hosts.
        gpus: GPUs of this machine.
        tell: called with lines about the progress.
        show: called with the result, before files are written.

    Raises:
        UserError: wrong flags; nothing fits, then with what would; a file cannot be written.
    """
    _refuse(args, flags)
    hosts = () if args.ranks is not None else hosts_of(flags, gpus=0 if flags.hostfile else gpus)
    machines = machines_of(args, hosts, gpus)
    subject = subject_of(args.model or DEFAULT_MODEL, args.data)
    choice = choice_of(args, subject, machines)
    planner = Planner(subject, args.optimizer, measured=True)
    if args.links:
        steps = _steps_of(planner, choice, machines) if machines.device == "cpu" else None
        found = measure_links(flags, gpus=gpus, say=tell, steps=steps)
        shape = machines.figures, machines.hosts, machines.slots
        network = network_of(args, *shape, measured=found.slowest)
        machines = replace(machines, network=network, profiles=found.profiles)
    if machines.here and machines.device == "cuda":
        tell("measuring the model's nodes on this GPU")
    found = planner.search(choice, machines)
    if found.best is None:
        raise UserError("\n".join(planner.refusal(found, machines, tell)))
    clock, best = planner.clock(choice, machines), found.best
    if args.json:
        show(json.dumps(plan_json(found, clock, subject, machines, top=args.top), indent=2))
    else:
        show("\n".join(render_plan(found, clock, subject, machines, top=args.top)))
    title = f"{subject.model} at {choice.imgsz}, {choice.images} images per step"
    title += f", {machines.ranks} ranks of {machines.figures.name}"
    rows, limit = found.ranked[: args.top], machines.limits.device
    if args.out is not None:
        with _writes(args.out, "--out", exist_ok=args.exist_ok):
            write_recipe(args.out, best, planner, _words(args), machines.device)
        tell(f"wrote {args.out}: {best.family.label}, {best.layout.precision}")
    if args.plot is not None:
        with _writes(args.plot, "--plot", exist_ok=args.exist_ok):
            draw_memory(args.plot, rows, limit, title)
        tell(f"wrote {args.plot}")


def _refuse(args: argparse.Namespace, flags: LaunchFlags) -> None:
    """Refuse flags that contradict each other, and files that cannot be written.

    Raises:
        UserError: the first fault.
    """
    for path, flag in ((args.out, "--out"), (args.plot, "--plot")):
        if path is not None:
            refuse_existing(path, flag, exist_ok=args.exist_ok)
    if args.out is not None and args.plot is not None and args.out.resolve() == args.plot.resolve():
        raise UserError(f"--out and --plot both name {args.out}; name two files")
    if args.ranks is not None and flags.hostfile is not None:
        raise UserError(
            f"--ranks {args.ranks} and {flags.hostfile_by}{flags.hostfile} both say where ranks "
            "run; keep one"
        )


@contextmanager
def _writes(path: Path, flag: str, *, exist_ok: bool) -> Iterator[None]:
    """Refuses what `refuse_existing` does, as a file may have appeared since the first look; and
    what fails while the block writes the file."""
    refuse_existing(path, flag, exist_ok=exist_ok)
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written: {error.strerror or error}") from error


def _steps_of(planner: Planner, choice: Choice, machines: Machines) -> StepsOf:
    """What a rank on a CPU measures: a micro-batch of as many images as fit, at most 4."""
    subject = planner.subject
    least = 2 if choice.single_value else 1
    fitting = (
        images
        for images in (4, 2)
        if not machines.limits.over(
            planner.memory(Layout(imgsz=choice.imgsz, micro_batch=images, zero_stage=0), machines)
        )
    )
    return StepsOf(
        subject.model,
        len(subject.blueprint.names),
        planner.graph.channels,
        choice.imgsz,
        next(fitting, least),
        round(subject.boxes.mean),
        choice.precisions,
    )


def write_recipe(
    path: Path,
    option: Option,
    planner: Planner,
    words: Sequence[str],
    device: str,
    *,
    batch_keys: bool = True,
) -> None:
    """Write a layout's JSON, after `train`'s own parser has read it.

    Args:
        path: the JSON; replaced if it exists.
        words: the flags of `train` besides --deepspeed_config.
        batch_keys: see `recipe_of`.

    Raises:
        UserError: `train` would refuse it.
    """
    text = json.dumps(recipe_of(option.layout, planner.graph, batch_keys=batch_keys), indent=2)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / path.name
        draft.write_text(f"{text}\n", encoding="utf-8")
        check_recipe(draft, option.layout, planner.subject.blueprint, words, device)
    replace_text(path, f"{text}\n", shared=True)


def _words(args: argparse.Namespace) -> list[str]:
    """The flags of `train` for this plan."""
    words = ["--data", args.data or "demo", "--model", args.model or DEFAULT_MODEL]
    words += ["--imgsz", str(args.imgsz)]
    return words if args.optimizer == "auto" else [*words, "--optimizer", args.optimizer]
