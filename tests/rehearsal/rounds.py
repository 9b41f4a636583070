"""Uses an engine on pretended devices and records what happens. Run on ranks by tests/ranks.py."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.parity.small import MICRO, NAMES, SIZE
from tests.rehearsal.engines import WARM, engine_of, stages_of, take_step
from tests.rehearsal.pretended import World
from yolods.checkpoint.state import collect
from yolods.config import Hyper
from yolods.data.spec import read_spec
from yolods.data.splits import SplitOptions, open_split
from yolods.device.host_copy import HostCopy
from yolods.distributed.world import Ranks
from yolods.engine.base import Engine
from yolods.evaluation.evaluator import Evaluator

ACCUMULATIONS = (1, 2)
"""Micro-batches per observed step."""
FILLED = (1, 4)
"""The same for a pipeline of up to four stages, which four fill."""
STEADY = (5, 8)
"""The same for a pipeline's steady phase, in which forward and backward passes alternate: with more
micro-batches than stages, 8 need no more memory than 5."""


@dataclass
class Part:
    """One part of a run."""

    waits: dict[str, int]
    """Number of waits by `file:function`."""
    told: list[str]
    """Each wait with its call stack."""
    peak: int
    """Peak device memory in bytes."""
    held: int
    """Device memory in bytes at the end."""


@dataclass
class Report:
    """The records of one rank."""

    parts: dict[str, Part] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """Device mix-ups, collectives on host tensors and races, also in building the engine."""


def whole_round(ranks: Ranks, within: World, name: str, data: str, **hyper: object) -> Report:
    """Build the engine of ds_configs/`name`.json, train, evaluate, copy, load, roll back and
    export.

    Args:
        data: data yaml, whose validation images are evaluated.
    """
    rounds = _Rounds(within)
    with (
        tempfile.TemporaryDirectory() as folder,
        engine_of(ranks, name, Path(folder), **hyper) as engine,
    ):
        for number in range(WARM):
            assert not take_step(engine, number, 1).skipped
        rounds.take("build", lambda: None)
        for micro_batches in (*FILLED, *STEADY) if stages_of(name) > 1 else ACCUMULATIONS:
            rounds.take(f"step of {micro_batches}", lambda m=micro_batches: _applied(engine, m))
        rounds.take("snapshot", engine.snapshots.take)
        rounds.take("evaluation", lambda: _evaluate(engine, Path(data), Path(folder)))
        copied = rounds.take("checkpoint", lambda: HostCopy().take(collect(engine)))
        # Every rank gets the frozen weights of all stages, as from a checkpoint.
        frozen = ranks.from_main(ranks.to_main(copied["frozen"]))
        whole = {
            **copied,
            "frozen": {name: value for part in frozen for name, value in part.items()},
        }
        rounds.take("load", lambda: engine.load_state(whole))
        rounds.take("roll-back", lambda: engine._load_moving(engine.snapshots.snapshot))
        rounds.take("export", lambda: dict(engine.weights()))
    return rounds.report


class _Rounds:
    def __init__(self, world: World) -> None:
        self._world, self.report = world, Report()

    def take(self, name: str, work: Callable[[], object]) -> object:
        """Do `work` and record it; "build" records everything before the first call."""
        record, ledger = self._world.record, self._world.ledger
        if name != "build":
            record.waits.clear()
        gc.collect()
        ledger.reset_peak()
        result = work()
        self.report.parts[name] = Part(
            record.waits_by_place(), record.told(), ledger.peak, ledger.now
        )
        self.report.faults += [f"{name}: {fault}" for fault in record.faults()]
        record.clear()
        return result


def _applied(engine: Engine, micro_batches: int) -> None:
    result = take_step(engine, WARM, micro_batches)
    assert not result.skipped, result.verdict


def _evaluate(engine: Engine, yaml: Path, folder: Path) -> None:
    """Evaluate as a run does, with a confidence that no box of an untrained model reaches."""
    hyper = Hyper(conf=0.9)
    options = SplitOptions(
        imgsz=SIZE, stride=32, epochs=1, workers=0, local_ranks=1, eval_batch=MICRO
    )
    split = open_split(read_spec(yaml), "val", hyper, options, engine.ranks, augment=False)
    evaluator = Evaluator(
        split.dataset,
        NAMES,
        hyper,
        engine.ranks,
        share=engine.share,
        forward_batch=MICRO,
        save_dir=folder,
    )
    with engine.evaluating():
        evaluator(engine)
