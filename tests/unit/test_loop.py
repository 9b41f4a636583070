"""The loop: what is done after which step, and what is left where it ends early."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.loops import Lines, Loop, good
from yolods.checkpoint.progress import Progress
from yolods.config.deepspeed.yolods_block import CheckpointPolicy, OverflowConfig, YolodsConfig
from yolods.errors import UserError
from yolods.stability.attribution import INPUT, Culprit
from yolods.stability.guard import Verdict
from yolods.stats import LOSS_NAMES
from yolods.system import interrupt
from yolods.trace.tracing import NoTracing
from yolods.training.loop import is_due


@pytest.fixture(autouse=True)
def _nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loop that fails leaves behind ends with the test."""
    for name in ("_asked", "_patient", "_abandoned"):
        monkeypatch.setattr(interrupt, name, getattr(interrupt, name))


def own(**checkpoint: Any) -> YolodsConfig:
    return YolodsConfig(
        checkpoint=CheckpointPolicy(**checkpoint), overflow=OverflowConfig(quarantine=1)
    )


def culprit(*files: str) -> Culprit:
    return Culprit("forward", INPUT, "nan", 0, "here", 0, 0, 0, files, True)


END = ["judge best.pt", "wait", "note end 0", "close the store"]


def test_a_run_from_its_first_step_to_its_last_validation() -> None:
    loop = Loop().fit()
    assert loop.calls == [
        *("note start", "epoch 1", "read from 0", "step 1", "step 2", "judge epoch 1", "save 2"),
        *("epoch 2", "step 3", "step 4", "judge epoch 2", "save 4", *END),
    ]
    assert [
        (each.step, each.epoch, each.position, each.samples) for each in loop.telemetry.records
    ] == [
        *((1, 0, 4, 4), (2, 0, 8, 4), (3, 1, 12, 4), (4, 1, 16, 4)),
    ]
    progress = loop.store.saved[-1]
    assert (progress.position, progress.step, progress.epochs_done, progress.loss_sums) == (
        16,
        4,
        2,
        (),
    )


def test_a_row_of_results_has_the_epochs_mean_and_its_rates() -> None:
    loop = Loop()
    loop.steps[2] = good(loss_scale=1.0)
    loop.fit()
    first, second = loop.telemetry.epochs
    assert (first.epoch, second.epoch) == (0, 1)
    assert first.train_loss == dict.fromkeys(LOSS_NAMES, 1.0)
    assert first.lr == {"lr/pg0": 0.5, "lr/pg1": 0.5, "lr/pg2": 0.5}
    assert first.images_per_second > 0 and first.is_best


@pytest.mark.parametrize(
    ("policy", "saves"),
    [
        ({"every_epochs": 1}, [3, 6, 9]),
        ({"every_epochs": 2}, [6, 9]),
        ({"every_epochs": 0}, [9]),
        ({"every_epochs": 0, "every_steps": 2}, [2, 4, 8, 9]),
    ],
)
def test_checkpoints_are_written_when_they_are_due_and_at_the_end(
    policy: dict[str, int], saves: list[int]
) -> None:
    """A step that ends an epoch saves by the epochs' rule alone."""
    loop = Loop(samples=12, epochs=3, own=own(**policy)).fit()
    assert [progress.step for progress in loop.store.saved] == saves


@pytest.mark.parametrize(
    ("every", "due"), [(0, []), (1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (-1, [])]
)
def test_what_is_due_every_so_often(every: int, due: list[int]) -> None:
    assert [count for count in range(1, 7) if is_due(every, count)] == due


def test_a_set_smaller_than_a_step_closes_each_of_its_epochs() -> None:
    loop = Loop(samples=3, batch=8, epochs=4).fit()
    assert [call for call in loop.calls if call.startswith(("step", "judge epoch"))] == [
        *("step 1", "judge epoch 1", "judge epoch 2", "step 2", "judge epoch 3", "judge epoch 4"),
    ]


def test_a_run_resumes_between_epochs_that_one_step_ended() -> None:
    """It ended in a traceback once: the losses were gone with the first of these epochs."""
    whole = Loop(samples=3, batch=8, epochs=4).fit()
    between = next(each for each in whole.store.saved if each.epochs_done == 1)
    resumed = Loop(samples=3, batch=8, epochs=4, progress=between).fit()
    assert [each.train_loss for each in resumed.telemetry.epochs] == [
        each.train_loss for each in whole.telemetry.epochs[1:]
    ]
    assert "judge epoch 1" not in resumed.calls and "judge epoch 2" in resumed.calls


def test_losses_that_an_earlier_checkpoint_lacks_are_unknown_and_not_0() -> None:
    before = Progress(position=8, step=1, micro_batches=1, epochs_done=1)
    loop = Loop(samples=3, batch=8, epochs=4, progress=before).fit()
    assert all(math.isnan(loss) for loss in loop.telemetry.epochs[0].train_loss.values())


def test_a_run_that_was_stopped_before_an_evaluation_begins_with_it() -> None:
    before = Progress(position=8, step=2, micro_batches=2, loss_sums=(1.0, 1.0, 1.0), loss_weight=1)
    loop = Loop(progress=before).fit()
    assert loop.calls[:5] == ["note start", "epoch 1", "judge epoch 1", "save 2", "epoch 2"]
    assert loop.calls[5:7] == ["read from 8", "step 3"]


def test_patience_ends_it_with_a_checkpoint_and_the_last_validation() -> None:
    loop = Loop(epochs=5, own=own(every_epochs=0))
    loop.patience = 2
    loop.fit()
    assert loop.calls[-6:] == ["judge epoch 2", "save 4", *END]


def test_an_image_that_is_not_finite_is_left_out_from_the_next_batch_on() -> None:
    loop = Loop(own=own())
    bad = Verdict("skip", "forward")
    loop.steps[1] = good(verdict=bad, culprits=(culprit("a.jpg"),))
    loop.steps[3] = good(verdict=bad, culprits=(culprit("a.jpg"),))
    loop.fit()
    assert loop.calls[2:7] == [
        *("read from 0", "step 1", "skip: step skipped, excluded from now on: /data/a.jpg"),
        *("exclude ['a.jpg']", "read from 4"),
    ]
    assert loop.calls.count("read from 4") == 1 and "read from 12" not in loop.calls, (
        "it is out already"
    )
    assert loop.run.progress.image_faults == (("a.jpg", 2),), (
        "it has to be found again where the set lies elsewhere"
    )
    assert loop.telemetry.events[0].culprits[0]["files"] == ("/data/a.jpg",), (
        "people are told of files"
    )
    assert loop.run.progress.skipped == 2


def test_gradients_that_vanished_are_told_of_in_a_step_that_was_applied() -> None:
    loop = Loop()
    loop.steps[2] = good(verdict=Verdict(vanished=(0,)))
    loop.fit()
    assert [event.action for event in loop.telemetry.events] == ["report"]
    assert loop.run.progress.skipped == 0


def test_a_step_that_ends_the_run_says_why(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    loop.steps[2] = good(verdict=Verdict("stop", "forward"))
    with pytest.raises(UserError) as caught:
        loop.fit()
    file = tmp_path / "stability.jsonl"
    told = f"step 2: the loss is 3; stopped: the steps did not recover ({file} has the full events)"
    assert str(caught.value) == told
    assert loop.calls[-2:] == ["wait", "close the store"], "what is being written is waited for"


def test_a_request_to_stop_saves_and_says_how_to_go_on() -> None:
    loop = Loop()
    loop.steps[1] = good(stop=True)
    with pytest.raises(interrupt.Stopped):
        loop.fit()
    *before, how, end, closed = loop.calls[3:]
    assert before == ["step 1", "save 1", "wait", "stop: SIGTERM: stopped after step 1, in epoch 1"]
    assert how.startswith("stop: to resume: ") and how.endswith("train --resume runs/exp")
    assert (end, closed) == ("note end 143", "close the store")


def test_what_was_saved_last_is_not_saved_again_by_a_request_to_stop() -> None:
    loop = Loop(own=own(every_steps=1))
    loop.steps[2] = good(stop=True)
    with pytest.raises(interrupt.Stopped):
        loop.fit()
    assert [call for call in loop.calls if call.startswith("save")] == ["save 1", "save 2"]


def test_a_request_during_the_last_validation_does_not_save_the_weights_of_best_pt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = Loop(own=own(every_epochs=0))
    loop.store.fault = OSError(
        "the disk is full"
    )  # so that the last step was not saved, and would be

    def stop(*_: Any) -> None:
        raise interrupt.Stopped

    loop.run.final = stop
    with pytest.raises(interrupt.Stopped):
        loop.fit()
    assert [call for call in loop.calls if call.startswith("save")] == ["save 4"]


def test_a_checkpoint_that_cannot_be_written_is_a_line() -> None:
    loop = Loop()
    loop.store.fault = OSError("the disk is full")
    loop.fit()
    assert loop.calls.count("checkpoint: the disk is full; the earlier checkpoint is kept") == 2
    assert loop.calls[-4:] == END


def test_losses_of_skipped_steps_are_left_out_of_the_epoch() -> None:
    loop = Loop()
    nan = good(verdict=Verdict("skip", "forward"))
    loop.steps[1] = type(nan)(
        loss=dict.fromkeys(LOSS_NAMES, math.nan), instances=3, verdict=nan.verdict
    )
    loop.fit()
    assert isinstance(loop.telemetry, Lines)
    assert loop.telemetry.epochs[0].train_loss == dict.fromkeys(LOSS_NAMES, 1.0)


class Traces(NoTracing):
    """Notes what it is asked."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls

    def before_step(self, step: int) -> None:
        self._calls.append(f"trace {step}")

    def finish(self) -> None:
        self._calls.append("trace ends")

    def drop(self) -> None:
        self._calls.append("no trace")


def traced(**more: Any) -> Loop:
    loop = Loop(**more)
    loop.run.tracing = Traces(loop.calls)
    return loop


def test_a_trace_hears_of_each_step_and_ends_before_the_last_validation() -> None:
    calls = traced(epochs=1).fit().calls
    assert calls[3:] == [
        *("trace 1", "step 1", "trace 2", "step 2", "judge epoch 1", "save 2", "trace ends", *END)
    ]


def test_a_run_that_stops_has_no_trace() -> None:
    loop = traced()
    loop.steps[2] = good(stop=True)
    with pytest.raises(interrupt.Stopped):
        loop.fit()
    assert "no trace" in loop.calls and "trace ends" not in loop.calls


def test_a_rehearsal_takes_steps_and_nothing_else() -> None:
    loop = traced(epochs=1)
    loop.run.rehearse(3, epoch=2)  # beyond the end of the run
    assert loop.calls == [
        *("read from 16", "trace 1", "step 1", "trace 2", "step 2", "trace 3", "step 3"),
        "trace ends",
    ]
    assert not loop.store.saved and not loop.telemetry.records and not loop.telemetry.epochs
    loop = traced()
    loop.steps[1] = good(stop=True)
    with pytest.raises(interrupt.Stopped):
        loop.run.rehearse(3)
    assert loop.calls == ["read from 0", "trace 1", "step 1"]
