"""What a plan is asked for: the model, the data, the machines, and where each number comes from."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from yolods.config import DEMO, cache_dir
from yolods.config.image_size import single_value_fault, size_fault
from yolods.config.names.data_name import shipped_yaml
from yolods.config.names.model_name import parse_name
from yolods.config.optimizers.supported import OPTIMIZERS
from yolods.errors import Faults, UserError, nearest
from yolods.hosts.hostfile import MOST_SLOTS, Host
from yolods.model.architecture.build import architecture
from yolods.model.blueprint import Blueprint
from yolods.plan.memory.boxes import BoxCounts, box_counts
from yolods.plan.stage_plan import GIB
from yolods.plan.step_profile import StepProfile
from yolods.plan.time.gpus import CPU, GPUS, GpuFigures, gpu_called, gpu_named
from yolods.plan.time.routes import Network
from yolods.plan.traffic.links import Link, nominal
from yolods.planner.choices import Choice, divisors
from yolods.planner.search import Limits
from yolods.system.humanize import plural

USED = 0.9
"""Share of a GPU's memory that a rank may use; the rest is for CUDA's context and NCCL. A pipeline
without "memory_gib" has the same limit (engine/build_pipeline.py)."""
NOMINAL_IMAGES = 64
"""Default images per step: ultralytics' nbs."""
MOST_IMAGES = 2**17
"""Most images per step, more than COCO's train2017 has. A pipeline's simulation takes time for
each micro-batch."""
COCO = BoxCounts(4 * 7.3, 93 + 3 * 7)
"""Assumed boxes per mosaic of four images: COCO train2017 has 7.3 boxes per image, at most 93."""
LINK_EFFICIENCY = 0.7
"""Assumed share of the bandwidth within a host that collectives reach."""
NETWORK = 12.5e9
"""Assumed bytes per second between hosts of GPUs: 100 Gbit/s."""
OFFICE = 1.25e8
"""Assumed bytes per second between hosts that compute on CPUs: 1 Gbit/s."""
LATENCY = {"cuda": (2e-6, 1.4e-5), "cpu": (1e-4, 2e-4)}
"""Assumed seconds of a message within a host and between hosts. For GPUs, NCCL's own assumptions
for NVLink and for a network are of this size (nccl, src/graph/tuning.cc); for CPUs, gloo's."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """Where the ranks run."""

    hosts: int
    """Number of hosts."""
    ranks: int
    """Ranks of all hosts."""
    device: str
    """cpu or cuda."""
    figures: GpuFigures
    """The device's figures."""
    memory: float
    """Bytes of a device."""
    memory_source: str
    """measured, given or published."""
    host_memory: float
    """Bytes of a host; infinite if unknown."""
    network: Network
    """The links."""
    here: bool
    """Whether ranks run on devices of this machine, which can be measured."""
    profiles: Mapping[str, StepProfile] = field(default_factory=dict)
    """Measured steps of ranks on CPUs, by precision."""

    @property
    def slots(self) -> int:
        """Ranks per host."""
        return self.network.slots

    @property
    def limits(self) -> Limits:
        """What a rank may use."""
        used = USED if self.device == "cuda" else 1.0
        shared = self.device == "cpu"
        return Limits(self.memory * used, self.host_memory / self.slots, shared=shared)


@dataclass(frozen=True)
class Subject:
    """The model and what is known of its data."""

    model: str
    """As for --model."""
    blueprint: Blueprint
    """The model without weights."""
    boxes: BoxCounts
    """Boxes per training sample."""
    boxes_source: str
    """Where they come from, for people."""


def machines_of(args: argparse.Namespace, hosts: Sequence[Host], gpus: int) -> Machines:
    """The machines that the flags describe.

    Args:
        args: result of `plan_flags`.
        hosts: the hosts of the hostfile, or this machine.
        gpus: GPUs of this machine.

    Raises:
        UserError: numbers that do not fit together, or an unknown GPU.
    """
    faults = Faults()
    for flag in ("ranks", "hosts", "gpu_memory", "host_memory"):
        _positive(f"--{flag.replace('_', '-')}", getattr(args, flag), faults)
    for value in args.link or ():
        _positive("--link", value, faults)
    if args.link and len(args.link) > 2:
        faults.add(f"--link has {len(args.link)} values: between hosts, and within one, are 2")
    count, ranks = _counts(args, hosts, faults)
    figures, memory, source = CPU, math.inf, "given"
    with faults.caught():
        figures, memory, source = _device(args, gpus)
    faults.raise_if_any()
    device = "cpu" if figures is CPU else "cuda"
    if device == "cpu":
        # What ranks on CPUs compute with is their host's memory.
        host, source = (args.host_memory * GIB, "given") if args.host_memory else (_ram(), source)
        memory = host / max(ranks // count, 1)
    return Machines(
        hosts=count,
        ranks=ranks,
        device=device,
        figures=figures,
        memory=memory,
        memory_source=source,
        host_memory=(args.host_memory or math.inf) * GIB,
        network=network_of(args, figures, count, ranks // count),
        here=args.gpu is None and args.ranks is None and args.gpu_memory is None,
    )


def subject_of(model: str, data: str | None, *, single_cls: bool = False) -> Subject:
    """The model with the classes of the data, and the data's boxes.

    Args:
        data: a data yaml, "demo", or None: COCO's classes and boxes are assumed.
        single_cls: whether all classes become one.

    Raises:
        UserError: the model or the data cannot be read.
    """
    name = parse_name(model)
    if data is None:
        layers = architecture(name, 80, 3)
        names = tuple(f"class{place}" for place in range(80))
        return Subject(model, Blueprint(layers, names, 0), COCO, "assumed: those of COCO")
    from yolods.data.demo import ensure_demo
    from yolods.data.spec import read_spec

    path = ensure_demo(cache_dir()) if data == DEMO else _yaml(data)
    spec = read_spec(path)
    names = ("item",) if single_cls else spec.names
    blueprint = Blueprint(architecture(name, len(names), spec.channels), names, 0)
    if spec.needs_download:
        return Subject(model, blueprint, COCO, "assumed: those of COCO")
    from yolods.data.scan import scan

    labels = scan(spec, "train", cache=cache_dir() / "index", single_cls=single_cls).labels
    found = labels.index.columns["box"]
    boxes = box_counts(labels.counts, found[:, 3] * found[:, 4])
    source = f"of {spec.yaml.name}: {labels.totals.boxes} on {plural(len(labels), 'image')}"
    return Subject(model, blueprint, boxes, source)


def choice_of(args: argparse.Namespace, subject: Subject, machines: Machines) -> Choice:
    """What the layouts of the plan have in common.

    Raises:
        UserError: the image size does not fit the model, or numbers are not positive.
    """
    faults, grid, ranks = Faults(), subject.blueprint.grid, machines.ranks
    for flag in ("--images-per-step", "--top", "--stages"):
        _positive(flag, getattr(args, flag[2:].replace("-", "_")), faults)
    if (args.images_per_step or 0) > MOST_IMAGES:
        faults.add(f"--images-per-step {args.images_per_step}: at most {MOST_IMAGES} are planned")
    if args.stages and args.stages > 0 and ranks % args.stages:
        faults.add(
            f"--stages {args.stages} do not divide {plural(ranks, 'rank')}: {ranks} / "
            f"{args.stages} = {ranks / args.stages:.2f}; use "
            f"{', '.join(map(str, divisors(ranks)))}"
        )
    if (args.stages or 1) > 1 and (args.zero or 0) > 1:
        faults.add(
            f"--stages {args.stages} with --zero {args.zero}: a pipeline has ZeRO stage 0 or 1"
        )
    if args.imgsz < 1:
        _positive("--imgsz", args.imgsz, faults)
    elif fault := size_fault(args.imgsz, grid, args.model or "this model", "--imgsz"):
        faults.add(fault)
    known = ("auto", *OPTIMIZERS)
    if args.optimizer not in known:
        faults.add(
            f"--optimizer {args.optimizer}: unknown{nearest(args.optimizer, known)}; known: "
            f"{', '.join(known)}"
        )
    precisions = tuple(dict.fromkeys(args.precision or fast_precisions(machines.figures)))
    for each in precisions:
        if machines.figures.peak(each) is None:
            faults.add(f"--precision {each}: {_no_units(machines.figures, each)}")
    faults.raise_if_any()
    stride = int(max(subject.blueprint.strides))
    return Choice(
        args.imgsz,
        ranks,
        args.images_per_step or math.ceil(NOMINAL_IMAGES / ranks) * ranks,
        precisions,
        single_value=single_value_fault(args.imgsz, stride, 1) is not None,
        stages=args.stages,
        zero_stage=args.zero,
        recompute=None if args.recompute is None else args.recompute == "on",
    )


def fast_precisions(figures: GpuFigures) -> tuple[str, ...]:
    """The data types to choose from; fp16 only without bf16, which needs no loss scale."""
    half = "bf16" if figures.bf16 else "fp16"
    return ("fp32", half) if (figures.peak(half) or 0.0) > figures.fp32 else ("fp32",)


def _no_units(figures: GpuFigures, precision: str) -> str:
    known = ", ".join(each for each in ("fp32", "bf16", "fp16") if figures.peak(each))
    return f"{figures.name} has no units for {precision}; it computes in {known}"


def _counts(args: argparse.Namespace, hosts: Sequence[Host], faults: Faults) -> tuple[int, int]:
    """Hosts and ranks."""
    if args.ranks is None:
        if args.hosts is not None:
            faults.add(f"--hosts {args.hosts} needs --ranks: the number of ranks of all hosts")
        sizes = {len(host.chosen) for host in hosts}
        if len(sizes) > 1:
            faults.add(
                "the hosts have different numbers of slots: "
                f"{', '.join(f'{host.name} {len(host.chosen)}' for host in hosts[:8])}; a plan "
                "needs the same number on all, so choose slots with --include or --num_gpus"
            )
        return len(hosts), sum(len(host.chosen) for host in hosts)
    count = args.hosts or 1
    if args.ranks > 0 and count > 0 and args.ranks % count:
        below = args.ranks // count * count
        faults.add(
            f"--ranks {args.ranks} do not divide among --hosts {count}: {args.ranks} / {count} = "
            f"{args.ranks / count:.2f}; use {f'{below} or ' if below else ''}{below + count}"
        )
    if args.ranks > MOST_SLOTS * max(count, 1):
        faults.add(f"--ranks {args.ranks}: a host has at most {MOST_SLOTS}")
    return max(count, 1), max(args.ranks, 1)


def _device(args: argparse.Namespace, gpus: int) -> tuple[GpuFigures, float, str]:
    """The device's figures, its memory, and where that number comes from."""
    given = args.gpu_memory * GIB if args.gpu_memory else None
    if args.gpu is not None:
        figures = gpu_named(args.gpu)
        return figures, given or figures.memory, "given" if given else "published"
    if gpus and (found := this_gpu()):
        product, shown = found
        figures = gpu_called(product, shown) or replace(GPUS["L40S"], name=product)
        return figures, given or shown, "given" if given else "measured"
    if given:
        return GPUS["A100"], given, "given"
    return CPU, math.inf, "measured"


def this_gpu() -> tuple[str, float] | None:
    """Product name and bytes of this machine's first GPU, by nvidia-smi; None: it shows none."""
    if not shutil.which("nvidia-smi"):
        return None
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        shown = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, total = shown.stdout.partition("\n")[0].rpartition(",")
    return (name.strip(), float(total) * 2**20) if total.strip().isdigit() else None


def _ram() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def network_of(
    args: argparse.Namespace,
    figures: GpuFigures,
    hosts: int,
    slots: int,
    measured: Link | None = None,
) -> Network:
    """The links: measured, given in Gbit/s, or assumed. A single number means the slowest link.

    Args:
        args: result of `plan_flags`.
        figures: of the device.
        hosts: number of hosts.
        slots: ranks of a host.
        measured: the link between hosts, if it was measured.
    """
    cpu = figures is CPU
    near, far = LATENCY["cpu" if cpu else "cuda"]
    between = measured or Link(OFFICE if cpu else NETWORK, far, "assumed")
    # gloo copies as much within a host.
    within = Link(figures.peer * LINK_EFFICIENCY, near, "assumed", between.copying)
    given = [nominal(rate * 1e9, far) for rate in args.link or ()]
    if len(given) == 2:
        between, within = given[0], replace(given[1], latency=near)
    elif given and hosts > 1:
        between = given[0]
    elif given:
        within = replace(given[0], latency=near)
    return Network(within, between, max(slots, 1))


def _positive(flag: str, value: float | None, faults: Faults) -> None:
    if value is not None and not (value > 0 and math.isfinite(value)):
        faults.add(f"{flag} {value:g}: it must be above 0")


def _yaml(data: str) -> Path:
    path = Path(data)
    if path.is_file():
        return path
    if not path.exists() and (shipped := shipped_yaml(path)):
        return shipped
    raise UserError(
        f"--data {data}: "
        f"{'this is a folder; name the yaml in it' if path.is_dir() else 'no such file'}"
    )


def machine_line(machines: Machines) -> str:
    """The machines in words."""
    return (
        f"{plural(machines.ranks, 'rank')} on {plural(machines.hosts, 'host')}, "
        f"{machines.figures.name}"
    )
