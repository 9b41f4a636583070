"""Where a run stands, from one step and one epoch to the next."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from yolods.checkpoint.progress import Progress
from yolods.stability.guard import Verdict
from yolods.stability.record import StepRecord
from yolods.stats import LOSS_NAMES

LR = (0.01, 0.02, 0.03)


def record(
    *losses: float, verdict: Verdict | None = None, replaced: tuple[str, ...] = ()
) -> StepRecord:
    loss = dict(zip(LOSS_NAMES, losses, strict=True))
    return StepRecord(loss=loss, instances=3, verdict=verdict or Verdict(), replaced=replaced)


def stepped(progress: Progress, step: StepRecord, batches: int = 2) -> Progress:
    return progress.after_step(step, samples=8 * batches, batches=batches, lr=LR, seconds=7.5)


def test_a_step_moves_the_run_on() -> None:
    before = Progress(
        position=16, step=1, micro_batches=2, loss_sums=(1.0, 2.0, 3.0), loss_weight=1, replaced=1
    )
    after = stepped(before, record(0.5, 0.25, 0.125, replaced=("a.jpg", "a.jpg")))
    assert (after.position, after.step, after.micro_batches) == (32, 2, 4)
    assert (after.loss_sums, after.loss_weight) == ((2.0, 2.5, 3.25), 3)
    assert (after.lr, after.seconds, after.skipped, after.rollbacks, after.replaced) == (
        LR,
        7.5,
        0,
        0,
        3,
    )
    assert before.step == 1, "a record of its own"


def test_the_mean_weighs_steps_by_their_micro_batches() -> None:
    progress = stepped(
        stepped(Progress(), record(1.0, 1.0, 1.0), batches=1), record(4.0, 4.0, 4.0), batches=2
    )
    assert progress.mean_loss == dict.fromkeys(LOSS_NAMES, 3.0)


@pytest.mark.parametrize(("action", "rollbacks"), [("skip", 0), ("rollback", 1), ("stop", 0)])
def test_a_step_that_was_not_applied_counts_and_leaves_no_trace_in_the_losses(
    action: str, rollbacks: int
) -> None:
    bad = record(math.nan, math.inf, 1.0, verdict=Verdict(action, "forward"))
    after = stepped(stepped(Progress(), record(1.0, 2.0, 3.0)), bad)
    assert (after.step, after.position, after.skipped, after.rollbacks) == (2, 32, 1, rollbacks)
    assert after.mean_loss == dict(zip(LOSS_NAMES, (1.0, 2.0, 3.0), strict=True))


def test_an_epoch_of_skipped_steps_alone_has_losses_of_nothing() -> None:
    after = stepped(Progress(), record(math.nan, 1.0, 1.0, verdict=Verdict("skip", "forward")))
    assert after.mean_loss == dict.fromkeys(LOSS_NAMES, 0.0)


def test_an_epoch_ends_with_its_losses() -> None:
    after = stepped(Progress(epochs_done=2), record(1.0, 1.0, 1.0)).after_epoch()
    assert (after.epochs_done, after.loss_sums, after.loss_weight) == (3, (), 0)
    assert (after.position, after.step) == (16, 1)
    assert after.epoch_ends == ((2, 16),)
    assert stepped(after, record(1.0, 1.0, 1.0)).after_epoch().epoch_ends == ((2, 16), (3, 32))
    assert after.among(10, before=5).epoch_ends == (), "they count images that are gone"


@pytest.mark.parametrize(
    ("fitnesses", "written", "best_epoch"),
    [
        ([0.1, 0.3, 0.2], [0, 1], 1),
        ([0.0, 0.0, 0.0], [0, 1, 2], 2),
        ([0.3, 0.3, 0.2, 0.3], [0, 1, 3], 0),
    ],
)
def test_of_equally_good_epochs_the_last_is_written_and_patience_counts_from_the_first(
    fitnesses: list[float], written: list[int], best_epoch: int
) -> None:
    """As ultralytics' `save_model` and `EarlyStopping` do."""
    progress, found = Progress(), []
    for epoch, fitness in enumerate(fitnesses):
        found += [epoch] if progress.is_as_good(fitness) else []
        progress = progress.after_evaluation(fitness).after_epoch()
    assert found == written
    assert (progress.best_epoch, progress.best_fitness) == (best_epoch, max(fitnesses))


def test_a_checkpoint_gives_it_back() -> None:
    progress = stepped(
        Progress(run="a", image_faults=(("x.jpg", 2),), epoch_ends=((0, 8),), best_fitness=0.5),
        record(1.0, 2.0, 3.0),
    )
    assert Progress.from_json(json.loads(json.dumps(asdict(progress)))) == progress


def test_the_names_of_its_fields_are_those_of_every_checkpoint_so_far() -> None:
    """Another name would leave older checkpoints behind."""
    assert list(asdict(Progress())) == [
        *(
            "run",
            "position",
            "step",
            "micro_batches",
            "epochs_done",
            "loss_sums",
            "loss_weight",
            "lr",
        ),
        *(
            "best_fitness",
            "best_epoch",
            "seconds",
            "skipped",
            "replaced",
            "rollbacks",
            "image_faults",
            "epoch_ends",
        ),
    ]
    old = {
        "position": 8,
        "step": 1,
        "epochs_done": 0,
        "loss_sums": [1.0, 2.0, 3.0],
        "lr": [0.1, 0.1, 0.1],
    }
    assert Progress.from_json(old).loss_sums == (1.0, 2.0, 3.0), (
        "what an older one lacks has its default"
    )
