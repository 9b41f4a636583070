"""Models larger than a host: what a rank holds in host memory while a ZeRO-3 run is built, and
whether its numbers are those of a model that was built whole.

    python benchmarks/large_models.py [--model 'yolov5[2,2]6'] [--record benchmarks/large_models.md]

Two forked ranks on this machine's CPU. A rank's peak is VmHWM, which the kernel keeps for each
process and resets on request, minus what was resident before: what the imports hold does not count.
On a CPU the states of the optimizer, which a GPU would hold, are in host memory too. Therefore the
peak is read twice: when the model is divided among the ranks, and when the engine exists.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.hardware import describe
from tests import forks
from tests.parity.small import NAMES, SAMPLES, configure, micro_batch
from tests.ranks import on_ranks
from yolods.checkpoint.pt_file import write_pt
from yolods.config import RunConfig
from yolods.distributed.world import Ranks
from yolods.engine.build import build_engine, build_zero, plan_schedule
from yolods.engine.zero_engine import ZeroEngine
from yolods.model.architecture.build import architecture, build, parse_name
from yolods.model.blueprint import Blueprint
from yolods.model.initialise import initialise
from yolods.model.weights import read_pt
from yolods.optim.optimizers import OptimizerChoice

MIB = 2**20
OTHER_NAMES = ("Dog", "bird", "cat")
"""Classes of the given weights: of ours, two in another order and one not at all."""
RANKS = 2
CHOICE = OptimizerChoice("SGD", 0.01, 0.937, 0.0)


@dataclass(frozen=True)
class Case:
    """A way in which a run starts."""

    precision: str = "fp32"
    weights: str | None = None
    """A .pt, or None for initial values."""
    offload: bool = False
    """Whether `offload_param` keeps the divided weights in host memory."""
    recompute: bool = False
    sync_bn: bool = False
    freeze: int | None = None

    @property
    def title(self) -> str:
        """A few words."""
        extras = ("offload_param" * self.offload, "recompute" * self.recompute)
        others = ("sync_bn" * self.sync_bn, "frozen" * (self.freeze is not None))
        start = "from --weights" if self.weights else "from scratch"
        return ", ".join(filter(None, (self.precision, start, *extras, *others)))

    def config(self, model: str, folder: Path, rank: int) -> RunConfig:
        """The run's configuration, as the command line gives it."""
        zero = {"stage": 3, "reduce_bucket_size": 1_000_000}
        if self.offload:
            zero["offload_param"] = {"device": "cpu"}
        block = {"zero_optimization": zero, "gradient_clipping": 10.0}
        if self.precision != "fp32":
            block[self.precision] = {"enabled": True}
        if self.recompute:
            block["activation_checkpointing"] = {"number_checkpoints": 5}
        # One per rank: a rank must not read what another is writing.
        file = folder / f"rank{rank}.json"
        file.write_text(json.dumps(block))
        hyper = {"optimizer": "SGD", "lr0": 0.01, "sync_bn": self.sync_bn}
        if self.freeze is not None:
            hyper["freeze"] = self.freeze
        config = configure(file, RANKS, model=model, **hyper)
        return replace(config, weights=None if self.weights is None else Path(self.weights))


def blueprint_of(model: str, names: tuple[str, ...] = NAMES, seed: int = 0) -> Blueprint:
    """The blueprint of a model of the zoo."""
    return Blueprint(architecture(parse_name(model), len(names), 3), names, seed)


def write_weights(path: str, model: str) -> int:
    """Write a .pt of other classes, in fp16 as ultralytics does."""
    blueprint = blueprint_of(model, OTHER_NAMES, seed=7)
    net = build(blueprint.layers, OTHER_NAMES)
    initialise(net, net.stride, len(OTHER_NAMES), 7)
    write_pt(Path(path), net, net.state_dict().items(), {})
    return 0


def whole_engine(model: str, config: RunConfig, ranks: Ranks) -> ZeroEngine:
    """The engine of a model that every rank builds whole; weights are ultralytics' own `load`."""
    blueprint = blueprint_of(model)
    net = build(blueprint.layers, NAMES)
    initialise(net, net.stride, len(NAMES), 0)
    if config.weights is not None:
        net.load(read_pt(config.weights), verbose=False)
    return build_engine(net, config, CHOICE, ranks)


def layered_engine(model: str, config: RunConfig, ranks: Ranks) -> ZeroEngine:
    """The engine as a run builds it."""
    return build_zero(blueprint_of(model), config, CHOICE, ranks)[0]


WAYS = {"whole": whole_engine, "layers": layered_engine}


# Numbers


def compare(ranks: Ranks, model: str, cases: list[dict[str, Any]], folder: str) -> list[list[str]]:
    """On a rank: for each case, what differs between the two ways at the start and after steps."""
    found = []
    for case in cases:
        given = Case(**case)
        one, other = (_numbers(way, model, given, ranks, Path(folder)) for way in WAYS.values())
        assert one.keys() == other.keys()
        found.append([name for name in one if not torch.equal(one[name], other[name])])
    return found


def _numbers(
    way: Any, model: str, case: Case, ranks: Ranks, folder: Path
) -> dict[str, torch.Tensor]:
    config = case.config(model, folder, ranks.rank)
    engine = way(model, config, ranks)
    engine.training()
    found = {f"start of {name}": value for name, value in _state(engine).items()}
    schedule = plan_schedule(config, CHOICE, SAMPLES)
    for number in range(2):
        step = schedule.step_at(number * schedule.batch * schedule.accumulation)
        first = number * step.batches
        mine = [
            micro_batch((first + place) * ranks.size + ranks.rank) for place in range(step.batches)
        ]
        record = engine.train_step(step, iter(mine))
        found[f"loss {number}"] = torch.tensor(list(record.loss.values()))
        found[f"norm {number}"] = torch.tensor(record.grad_norm)
    found |= _state(engine)
    engine.deepspeed.destroy()
    return found


def _state(engine: ZeroEngine) -> dict[str, torch.Tensor]:
    """This rank's weights, statistics and average."""
    parts = {name: each.ds_tensor[: _held(each)] for name, each in engine.net.named_parameters()}
    buffers = dict(engine.net.named_buffers())
    masters = {f"master {place}": each for place, each in enumerate(engine.masters.shards())}
    copies = {name: each.detach().clone() for name, each in {**parts, **buffers}.items()}
    return copies | {name: _unpadded(each, engine, name) for name, each in masters.items()}


def _held(parameter: Any) -> int:
    """Elements of this rank's part without the padding, which nobody sets."""
    part = parameter.ds_tensor.ds_numel
    return max(min(part, parameter.ds_numel - part * parameter.ds_zero_partition_rank), 0)


def _unpadded(shard: torch.Tensor, engine: ZeroEngine, name: str) -> torch.Tensor:
    start, kept = 0, []
    for each in engine.masters.members()[int(name.split()[1])]:
        kept.append(shard.view(-1)[start : start + _held(each)])
        start += each.ds_tensor.ds_numel
    return torch.cat(kept).clone()


# Memory


@dataclass(frozen=True)
class Memory:
    """What a rank held beyond the imports, in bytes."""

    shard: int
    """Its part of the weights, in the dtype of training."""
    largest: int
    """The largest parameter in fp32."""
    divided: int
    """Peak until the model was divided."""
    kept: int
    """Resident when it was divided."""
    states: int
    """Tensors of weights, masters, gradients and average that the finished engine holds."""
    engine: int
    """Peak from then on until the engine was there."""
    seconds: float
    """CPU seconds until the model was divided."""


def measure(
    ranks: Ranks, model: str, case: dict[str, Any], way: str, folder: str, broadcast: bool = True
) -> dict[str, Any]:
    """On a rank: build the engine of a case, and see what it takes."""
    import deepspeed

    given = Case(**case)
    config = given.config(model, Path(folder), ranks.rank)
    largest = max(each.numel() for each in blueprint_of(model).meta.parameters()) * 4
    begin, divided, theirs = time.process_time(), [], deepspeed.initialize

    def initialize(**settings: Any) -> Any:
        divided.extend((peak(), resident(), time.process_time() - begin))
        reset_peak()
        return theirs(**settings)

    reset_peak()
    before = resident()
    silent = mock.patch("deepspeed.comm.broadcast") if not broadcast else nullcontext()
    with mock.patch.object(deepspeed, "initialize", initialize), silent:
        engine = WAYS[way](model, config, ranks)
    after = peak()
    parts = [each.ds_tensor for each in engine.net.parameters()]
    # Gradients are fp32 by default, in the sizes of the masters.
    held = sum(each.numel() * 4 for each in engine.masters.shards())
    shard = sum(each.numel() * each.element_size() for each in parts)
    return asdict(
        Memory(
            *(shard, largest, divided[0] - before, divided[1] - before),
            *(shard + 3 * held, after - before, divided[2]),
        )
    )


def reset_peak() -> None:
    """Let the peak begin at what is resident now."""
    # 5: see "clear_refs" in Documentation/filesystems/proc.rst of Linux.
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Largest resident memory of this process since `reset_peak`, in bytes."""
    return _status("VmHWM")


def resident() -> int:
    """Resident memory of this process in bytes."""
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


# The record


LIMIT = 250 * MIB
"""What a rank may hold beyond its shard and the largest parameter."""
HEAD = """# Models larger than a host

{command}

Two forked gloo ranks on this machine's CPU, ZeRO-3. Other jobs shared the cores, so bytes and CPU
seconds are given and no wall times.

{conditions}
"""
PEAKS = """
## Host memory of a rank while {model} is built

MiB beyond what was resident before; the larger of the two ranks. `divided`: peak until all layers
are divided among the ranks, which is all that a host with GPUs holds. Its limit is the shard + the
largest parameter in fp32 + 250 MiB. `engine`: peak from there until the engine exists; on a CPU
this includes what a GPU would hold, of which `states` are the shards of weights, masters, gradients
and average.

| start | built | shard | largest | divided | limit | states | engine | CPU s to divide |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
"""
NUMBERS = """
## Numbers of {model}

Every rank builds the model whole (weights by ultralytics' own `load`) and layer by layer, and takes
two steps: differing tensors among weights, statistics, masters, average, losses and norms.

| start | tensors that differ, by rank |
| --- | --- |
"""


def peak_rows(model: str, cases: list[Case], ways: list[str], folder: str) -> list[str]:
    """A row of the record per case and way."""
    rows = []
    for case, way in product(cases, ways):
        given = {"model": model, "case": asdict(case), "way": way, "folder": folder}
        found = on_ranks("benchmarks.large_models:measure", (RANKS,), timeout=900, **given)[RANKS]
        each = [Memory(**rank) for rank in found]
        top = {name: max(getattr(one, name) for one in each) for name in asdict(each[0])}
        limit = top["shard"] + top["largest"] + LIMIT
        names = ("shard", "largest", "divided")
        cells = [*(top[name] for name in names), limit, top["states"], top["engine"]]
        text = " | ".join(f"{cell / MIB:,.0f}" for cell in cells)
        rows.append(f"| {case.title} | {way} | {text} | {top['seconds']:.1f} |")
        print(rows[-1], flush=True)
    return rows


def number_rows(model: str, cases: list[Case], folder: str) -> list[str]:
    """A row of the record per case."""
    rows = []
    for case in cases:
        given = {"model": model, "cases": [asdict(case)], "folder": folder}
        found = on_ranks("benchmarks.large_models:compare", (RANKS,), timeout=900, **given)[RANKS]
        counts = ", ".join(", ".join(names[:3]) or "none" for (names,) in found)
        rows.append(f"| {case.title} | {counts} |")
        print(rows[-1], flush=True)
    return rows


def starts(weights: str) -> list[Case]:
    """All starts: precision x initial or given weights x with or without `offload_param`."""
    values = product(("fp32", "bf16"), (None, weights), (False, True))
    return [Case(precision, given, offload) for precision, given, offload in values]


def _given(folder: str, model: str) -> str:
    path = str(Path(folder) / f"{model.replace('[', '-').replace(']', '-')}.pt")
    call = {"path": path, "model": model}
    screen = Path(folder) / "screen"
    code = forks.forked("benchmarks.large_models:write_weights", call, screen=screen, timeout=900)
    if code != 0:
        raise RuntimeError(screen.read_text(encoding="utf-8", errors="replace"))
    return path


def main() -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="yolov5[2,2]6", help="whose memory is measured")
    parser.add_argument("--small", default="yolov5n", help="whose numbers are compared")
    parser.add_argument("--starts", type=int, help="only this many of the eight starts")
    parser.add_argument("--ways", nargs="+", default=["layers"], choices=[*WAYS])
    parser.add_argument("--record", type=Path, help="file to write")
    options = parser.parse_args()
    # A busy machine needs longer for the imports than the tests allow.
    forks.START_SECONDS = 900.0
    with tempfile.TemporaryDirectory(prefix="yolods-large-") as folder:
        command = f"    python benchmarks/large_models.py {' '.join(sys.argv[1:])}".rstrip()
        text = HEAD.format(command=command, conditions="\n".join(describe([0, 1])))
        text += NUMBERS.format(model=options.small)
        cases = starts(_given(folder, options.small))[: options.starts]
        text += "\n".join(number_rows(options.small, cases, folder)) + "\n"
        text += PEAKS.format(model=options.model)
        cases = starts(_given(folder, options.model))[: options.starts]
        text += "\n".join(peak_rows(options.model, cases, options.ways, folder)) + "\n"
    if options.record:
        options.record.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
