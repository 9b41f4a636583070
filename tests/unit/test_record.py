"""The record of a step: its curves, and the errand of a new one, from where it is computed to the
event file."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from tests.loops import Loop
from tests.unit.test_controller_waits import Passes, judged_by
from yolods.stability.controller import StockStability
from yolods.stability.guard import Verdict
from yolods.stability.record import StepRecord
from yolods.stats import LOSS_NAMES
from yolods.system import interrupt
from yolods.telemetry import RunTelemetry
from yolods.telemetry.board.names import board_tag, image_tag

LOSS = dict(zip(LOSS_NAMES, (1.0, 2.0, 3.0), strict=True))


def placed(**fields: Any) -> StepRecord:
    values = {
        "loss": LOSS,
        "instances": 3,
        "grad_norm": 8.0,
        "norm_after": 2.0,
        "data_seconds": 0.5,
        **fields,
    }
    return StepRecord(**values).placed(
        step=7, epoch=1, position=40, samples=16, imgsz=64, seconds=2.0
    )


TIMES = {"time/images_per_second": 8.0, "time/data_share": 0.25}


def test_the_curves_of_a_step() -> None:
    scalars = {"lr/pg0": 0.1, "lr/pg1": 0.2, "lr/pg2": 0.3, "optim/momentum": 0.9}
    assert placed(loss_scale=1024.0, scalars=scalars).curves() == {
        **scalars,
        **TIMES,
        "optim/loss_scale": 1024.0,
        "optim/skipped_share": 0.0,
        "train/box_loss": 1.0,
        "train/cls_loss": 2.0,
        "train/dfl_loss": 3.0,
        "optim/grad_norm": 8.0,
        "optim/grad_norm_after_clipping": 2.0,
        "optim/clip_factor": 0.25,
    }


def test_a_skipped_step_has_no_curve_of_what_means_nothing() -> None:
    record = placed(verdict=Verdict("skip", "overflow"), grad_norm=math.inf, norm_after=None)
    assert record.skipped
    assert record.curves() == {**TIMES, "optim/loss_scale": None, "optim/skipped_share": 1.0}


@pytest.mark.parametrize(("norm", "after"), [(None, None), (0.0, 0.0), (2.0, None)])
def test_nothing_is_divided_by_a_norm_that_there_is_not(
    norm: float | None, after: float | None
) -> None:
    assert "optim/clip_factor" not in placed(grad_norm=norm, norm_after=after).curves()


def test_a_place_in_the_run_is_given_to_a_copy() -> None:
    first = StepRecord(loss=LOSS, instances=3, scalars={"lr/pg0": 0.1})
    second = first.placed(step=7, epoch=1, position=40, samples=16, imgsz=64, seconds=2.0)
    assert (second.step, second.epoch, second.position, second.samples, second.imgsz) == (
        7,
        1,
        40,
        16,
        64,
    )
    assert (first.step, first.scalars) == (0, {"lr/pg0": 0.1})
    assert second.scalars == {"lr/pg0": 0.1, "time/images_per_second": 8.0, "time/data_share": 0.0}


class Errand(StockStability):
    """The toy: `after_step` has one more line than the real one."""

    def after_step(self, record: StepRecord) -> StepRecord:
        record = super().after_step(record)
        record.scalars["toy/boxes_twice"] = 2.0 * record.instances
        return record


class Whole(Passes):
    """An engine whose passes cost nothing, for a whole run."""

    def training(self) -> None:
        """There is no model."""


def drawn(
    folder: Path, stability: StockStability, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[float]]:
    """Every curve that a run of two epochs leaves, its values in the order of its steps."""
    for name in ("_asked", "_patient", "_abandoned"):
        monkeypatch.setattr(interrupt, name, getattr(interrupt, name))

    def telemetry(_: list[str]) -> RunTelemetry:
        names = {0: "disc"}
        options = {
            "epochs": 2,
            "images_per_epoch": 8,
            "batch_size": 4,
            "plots": False,
            "stream": io.StringIO(),
        }
        return RunTelemetry(folder, names=names, **options)

    loop = Loop(folder, engine=Whole(stability), telemetry=telemetry)
    with loop.telemetry:
        loop.fit()
    reader = EventAccumulator(str(folder))
    reader.Reload()
    scalars = [
        tag for tag in reader.Tags()["tensors"] if reader.SummaryMetadata(tag).data_class == 1
    ]
    return {
        tag: [float(tensor_util.make_ndarray(event.tensor_proto)) for event in reader.Tensors(tag)]
        for tag in scalars
    }


RATES = {f"lr/pg{place}" for place in range(3)} | {"optim/momentum"}
MEASURED = {"optim/skipped_share", *(f"train/{name}" for name in LOSS_NAMES), *TIMES}
LOADER = {f"data/loader_{name}" for name in ("images_per_second", "decode_share", "wait_share")}
OF_EPOCHS = {"epoch", "time/images_per_second_epoch", "memory/peak_gib_rank0", *LOADER}
EVERY_RUN = {board_tag(name) for name in RATES | MEASURED | OF_EPOCHS} | {
    image_tag(f"train/{name}") for name in LOSS_NAMES
}


def test_a_new_curve_is_one_line_where_its_value_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the engine's step through the loop to the event file, and nothing on the way has heard
    of it."""
    before = drawn(tmp_path / "before", judged_by("stock"), monkeypatch)
    stock = judged_by("stock")
    after = drawn(tmp_path / "after", Errand(stock._engine, 1, by_hand=False), monkeypatch)
    assert set(before) == EVERY_RUN, "the names are those of every run so far"
    assert after.pop("toy/boxes_twice") == [10.0] * 4
    assert set(after) == set(before)
    assert after["optimizer/lr_pg0"] == [0.5] * 4 and after["optimizer/momentum"] == pytest.approx(
        [0.9] * 4
    )


def test_the_own_handling_draws_norms_and_how_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolods.stability import controller as module

    monkeypatch.setattr(
        module, "squares", lambda parts, places, count: parts[0].new_tensor([9.0, 16.0])
    )
    curves = drawn(tmp_path, judged_by("own"), monkeypatch)
    assert set(curves) == EVERY_RUN | {
        f"optimizer/{name}" for name in ("grad_norm", "grad_norm_after_clipping", "clip_factor")
    }
    assert curves["optimizer/grad_norm"] == [5.0] * 4
    reader = EventAccumulator(str(tmp_path))
    reader.Reload()
    assert "gradients/log10_norm_of_all" in reader.Tags()["tensors"]
