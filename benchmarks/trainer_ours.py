"""yolods' own run, with notes of every optimizer step: what each rank of `trainer_parity.py`
does."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.trainer_trace import Noted, State, Trace
from yolods.clipping.policy import ClipFactors, Norms
from yolods.distributed.world import Ranks

READ = ("img", "cls", "bboxes", "batch_idx")
"""Of a batch."""


def train(
    ranks: Ranks,
    words: list[str],
    start: str,
    batches: str = "",
    marks: list[int] | None = None,
    switched: Sequence[str] = (),
) -> Trace:
    """On a rank: train to the end as `yolods train` does.

    Args:
        words: flags of `train`.
        start: a .pt of a state_dict, whose weights the run begins with.
        batches: file of a list of batches that are handed in; empty: the run loads its own.
        marks: steps, from 1, after which weights are noted; None: all.
        switched: which of `SWITCHES` are thrown.
    """
    from yolods.config import add_train_arguments, build_run_config
    from yolods.distributed.store import open_store
    from yolods.training.start import start_run
    from yolods.watchdog.watchdog import Watchdog

    parser = argparse.ArgumentParser()
    add_train_arguments(parser)
    config = ranks.main_first(
        lambda: build_run_config(
            parser.parse_args(words), world_size=ranks.size, device="cpu", environ={}
        )
    )
    kv_store = open_store(ranks)
    with Watchdog(kv_store, ranks, config.deepspeed.own.watchdog, config.run_dir) as watchdog:
        run = start_run(config, ranks, kv_store, watchdog)
        begin(run, torch.load(start))
        watch = Watch(run, torch.load(batches) if batches else None, marks)
        for name in switched:
            SWITCHES[name](run)
        with run.telemetry:
            run.fit()
    watch.note_files(config.run_dir)
    return watch.trace


def begin(run: Any, weights: State) -> None:
    """Give a run other weights to begin with, and its moving average as well."""
    engine = run.engine
    engine.adopt(weights)
    average = engine.ema.state_dict()
    engine.ema.load_state_dict(
        {**average, "shards": engine.masters.shards(), "buffers": engine.statistics()}
    )


def _keep_statistics_apart(run: Any) -> None:
    """Rank 0 evaluates and saves with its own."""
    run.engine.average_statistics = lambda: None


def _take_back_last_step(run: Any) -> None:
    """Undo the step that batches beyond the run's end complete."""
    engine, schedule, take = run.engine, run.schedule, run.engine.train_step

    def train_step(step: Any, *rest: Any, **named: Any) -> Any:
        if step.end_batch * schedule.batch <= schedule.total_samples:
            return take(step, *rest, **named)
        before = deepcopy(engine._moving())
        result = take(step, *rest, **named)
        engine._load_moving(before)
        return result

    engine.train_step = train_step


def _round_alike(run: Any) -> None:
    """The optimizer's plain loop, and the factor of clipping from the norm that torch works out in
    fp32."""
    engine = run.engine
    optimizer = engine.masters.inner
    order = [name for name, _ in run.selection.writer.blueprint.meta.named_parameters()]
    optimizer.defaults["fused"] = False
    for group in optimizer.param_groups:
        group["fused"] = False

    policy = engine.stability._policy

    def clip(measured: Norms) -> ClipFactors:
        norms = _torch_norms(engine)
        total = torch.linalg.vector_norm(
            torch.stack([norms[name] for name in order if name in norms])
        )
        return ClipFactors(float(torch.clamp(policy.max_norm / (total + 1e-6), max=1.0)))

    policy.clip = clip


def _torch_norms(engine: Any) -> dict[str, Tensor]:
    """Norms of all parameters' gradients, as `torch.nn.utils.clip_grad_norm_` takes them. A
    collective."""
    from deepspeed.utils import safe_get_full_grad

    named = [(name, each) for name, each in engine.net.named_parameters() if each.requires_grad]
    norms = torch._foreach_norm([safe_get_full_grad(each) for _, each in named])
    mine = dict(zip((name for name, _ in named), norms, strict=True))
    gathered: list[Any] = [None] * engine.ranks.size
    torch.distributed.all_gather_object(gathered, mine)
    return {name: norm for each in gathered for name, norm in each.items()}


SWITCHES = {
    "statistics": _keep_statistics_apart,
    "last step": _take_back_last_step,
    "rounding": _round_alike,
}
"""What yolods does otherwise than ultralytics, and how it is switched off."""


class Watch:
    """Looks at a run; nothing that it computes is changed."""

    def __init__(
        self, run: Any, handed: list[dict[str, Any]] | None, marks: list[int] | None
    ) -> None:
        self._run, self._engine, self._marks = run, run.engine, marks
        self.trace = Trace(start=self._halves()[0] or {})
        self._step, self._judge, self._load = (
            run.engine.train_step,
            run.selection.evaluator,
            run.batches.read,
        )
        self._handed, self._images = handed, 0
        run.engine.train_step, run.batches.read = self.train_step, self.batches
        run.selection.evaluator = run.final.evaluator = self.judge

    def batches(self, progress: Any) -> Iterator[dict[str, Any]]:
        """The run's own, noted; or this rank's parts of those that are handed in."""
        from benchmarks.trainer_theirs import half_of

        share = self._engine.share
        if self._handed is None:
            for batch in self._load(progress):
                self.trace.batches.append({key: batch[key].clone() for key in READ})
                yield batch
        elif share.first_stage:
            # From the first on once more: a run's last step is completed by batches past its end.
            for batch in cycle(self._handed):
                yield half_of(batch, share.dp_rank, share.dp_size)

    def train_step(self, step: Any, *rest: Any, **named: Any) -> Any:
        """The engine's own; notes what it was and did."""
        engine = self._engine
        result = self._step(step, *rest, **named)
        groups = engine.deepspeed.optimizer.param_groups
        noted = Noted(
            batches=step.batches,
            images=step.batches * self._run.schedule.batch,
            epoch=step.epoch,
            lr=tuple(group["lr"] for group in groups),
            decay=tuple(group["weight_decay"] for group in groups),
            momentum=groups[0]["momentum"] if "momentum" in groups[0] else groups[0]["betas"][0],
            items=tuple(result.loss.values()),
            norm=result.grad_norm,
            updates=engine.ema.updates,
        )
        self.trace.steps.append(noted)
        if self._marks is None or len(self.trace.steps) in self._marks:
            noted.states = self._states()
        return result

    def _states(self) -> dict[str, State]:
        weights, statistics = self._halves()
        with self._engine.ema.exchange():
            average, averaged = self._halves()
        own = {
            "statistics": statistics,
            "average": average,
            "weights": weights,
            "average statistics": averaged,
        }
        buffers = self._engine.net.named_buffers()
        own["own statistics"] = {
            name: each.clone() for name, each in buffers if each.is_floating_point()
        }
        return {key: value for key, value in own.items() if value is not None}

    def _halves(self) -> tuple[State | None, State | None]:
        """The model's parameters and floating buffers, on rank 0."""
        whole = dict(self._engine.weights())
        if not whole:
            return None, None
        floats = {
            name: each.contiguous() for name, each in whole.items() if each.is_floating_point()
        }
        counted = {name for name in floats if name.endswith(("running_mean", "running_var"))}
        weights = {name: each for name, each in floats.items() if name not in counted}
        return weights, {name: floats[name] for name in floats if name in counted}

    def judge(self, engine: Any, **named: Any) -> Any:
        """The run's own evaluation; notes what is judged."""
        weights, statistics = self._halves()
        if weights is not None and statistics is not None and not named.get("final"):
            self.trace.judged = weights | statistics
        return self._judge(engine, **named)

    def note_files(self, folder: Path) -> None:
        """What the run has left, on rank 0."""
        from benchmarks.trainer_theirs import floats_of

        if self._engine.ranks.is_main:
            for name in ("best.pt", "last.pt"):
                model = torch.load(folder / "weights" / name, weights_only=False)["model"]
                self.trace.files[name] = floats_of(model.state_dict())
            self.trace.closed = getattr(self._run.batches.dataset, "_close_epoch", None)
