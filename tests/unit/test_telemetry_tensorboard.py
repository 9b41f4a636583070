"""What TensorBoard reads back from a run folder, by its own reader."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from tests.sent import communication
from yolods.stability.grad_stats import GradStats
from yolods.stability.guard import Verdict
from yolods.stability.record import StepRecord
from yolods.stats import LOSS_NAMES, METRIC_NAMES, EpochStats
from yolods.telemetry.tensorboard import TensorBoardWriter, model_table


def step_record(
    step: int, *, skipped: bool = False, momentum: float | None = 0.9, **changes: object
) -> StepRecord:
    values: dict[str, object] = {
        "loss": dict.fromkeys(LOSS_NAMES, 10.0 / step),
        "grad_norm": 2.0,
        "loss_scale": 65536.0,
        "data_seconds": 0.125,
        "instances": 7,
        "verdict": Verdict("skip", "overflow") if skipped else Verdict(),
        "scalars": {"lr/pg0": 0.001 * step, "optim/momentum": momentum},
    }
    record = StepRecord(**{**values, **changes})
    return record.placed(step=step, epoch=0, position=step * 16, samples=16, imgsz=64, seconds=0.5)


def epoch_stats(epoch: int, position: int | None = None) -> EpochStats:
    return EpochStats(
        epoch=epoch,
        position=32 * (epoch + 1) if position is None else position,
        seconds=1.0,
        train_loss=dict.fromkeys(LOSS_NAMES, 2.5),
        val_loss=dict.fromkeys(LOSS_NAMES, 3.0),
        metrics=dict(zip(METRIC_NAMES, (0.9, 0.8, 0.7, 0.6), strict=True)),
        fitness=0.6,
        lr={"lr/pg0": 0.01},
        images_per_second=41.5,
        is_best=True,
    )


def events(run_dir: Path) -> EventAccumulator:
    reader = EventAccumulator(str(run_dir))
    reader.Reload()
    return reader


def curve(reader: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [
        (e.step, round(float(tensor_util.make_ndarray(e.tensor_proto)), 5))
        for e in reader.Tensors(tag)
    ]


def texts(reader: EventAccumulator, tag: str) -> list[str]:
    return [
        tensor_util.make_ndarray(each.tensor_proto).item().decode()
        for each in reader.Tensors(f"{tag}/text_summary")
    ]


def test_curves_of_steps_and_epochs_share_the_axis_of_steps(tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path, steps_per_epoch=2)
    for step in (1, 2):
        board.step(step_record(step))
    board.epoch_end(epoch_stats(0))
    board.close()
    reader = events(tmp_path)
    assert curve(reader, "Loss/box_train") == [(1, 10.0), (2, 5.0)]
    assert curve(reader, "optimizer/lr_pg0") == [(1, 0.001), (2, 0.002)]
    assert curve(reader, "optimizer/grad_norm") == [(1, 2.0), (2, 2.0)]
    assert curve(reader, "stability/loss_scale") == [(1, 65536.0), (2, 65536.0)]
    assert curve(reader, "data/images_per_second") == [(1, 32.0), (2, 32.0)]
    assert curve(reader, "data/wait_share_of_step") == [(1, 0.25), (2, 0.25)]
    assert curve(reader, "Loss/cls_val") == [(2, 3.0)]
    assert curve(reader, "Metrics/mAP50-95") == [(2, 0.6)]
    assert curve(reader, "data/epoch") == [(2, 1.0)]


def test_a_long_epoch_is_thinned_to_means(tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path, steps_per_epoch=200)
    for step in range(1, 11):
        board.step(step_record(step, loss=dict.fromkeys(LOSS_NAMES, float(step))))
    board.close()
    assert curve(events(tmp_path), "Loss/box_train") == [(4, 2.5), (8, 6.5), (10, 9.5)]


def test_skipped_steps_and_absent_numbers_leave_no_false_points(tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    board.step(
        step_record(1, skipped=True, grad_norm=math.inf, loss=dict.fromkeys(LOSS_NAMES, math.nan))
    )
    board.step(step_record(2, grad_norm=None, loss_scale=None))
    board.close()
    reader = events(tmp_path)
    assert curve(reader, "Loss/box_train") == [(2, 5.0)]
    assert curve(reader, "stability/skipped_share") == [(1, 1.0), (2, 0.0)]
    assert curve(reader, "stability/loss_scale") == [(1, 65536.0)]
    assert "optimizer/grad_norm" not in reader.Tags()["tensors"]


def test_resume_hides_what_was_written_past_the_checkpoint(tmp_path: Path) -> None:
    first = TensorBoardWriter(tmp_path, steps_per_epoch=2)
    for step in range(1, 7):
        first.step(step_record(step))
    first.epoch_end(epoch_stats(2))
    first.close()
    resumed = TensorBoardWriter(tmp_path, steps_per_epoch=2, start_step=4)
    resumed.step(step_record(5, loss=dict.fromkeys(LOSS_NAMES, 0.5)))
    resumed.close()
    reader = events(tmp_path)
    assert curve(reader, "Loss/box_train") == [
        (1, 10.0),
        (2, 5.0),
        (3, 3.33333),
        (4, 2.5),
        (5, 0.5),
    ]
    assert curve(reader, "Loss/box_val") == [], "the epoch that ended at step 6 has not been yet"


def test_texts_and_hyper_parameters_live_in_the_run_itself(tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    config = {"hyp": {"lr0": 0.01}, "freeze": None, "path": Path("x")}
    board.start(config, "| layer |\n| --- |\n| Conv |", config, ["2 ranks on cpu", "Batch 16"])
    board.step(step_record(1))
    board.finish(epoch_stats(0).metrics)
    board.close()
    assert [file for file in tmp_path.iterdir() if file.is_dir()] == [], (
        "no second run in a sub-folder"
    )
    reader = events(tmp_path)
    text = (
        tensor_util.make_ndarray(reader.Tensors("config/text_summary")[0].tensor_proto)
        .item()
        .decode()
    )
    assert json.loads(text.strip("`").removeprefix("json"))["hyp"] == {"lr0": 0.01}
    assert texts(reader, "Layout") == ["```\n2 ranks on cpu\nBatch 16\n```"]
    from tensorboard.plugins.hparams import plugin_data_pb2

    def content(name: str) -> plugin_data_pb2.HParamsPluginData:
        raw = reader.SummaryMetadata(f"_hparams_/{name}").plugin_data.content
        return plugin_data_pb2.HParamsPluginData.FromString(raw)

    hyper = content("session_start_info").session_start_info.hparams
    assert hyper["hyp.lr0"].number_value == 0.01
    assert hyper["freeze"].string_value == "None"
    metrics = [info.name.tag for info in content("experiment").experiment.metric_infos]
    assert "final/mAP50-95" in metrics
    assert curve(reader, "final/mAP50-95") == [(1, 0.6)]
    assert content("session_end_info").session_end_info.status == 1, "success"


def test_a_picture_goes_in_as_the_bytes_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "train_batch0.jpg"
    Image.new("RGB", (30, 20), (200, 10, 10)).save(file)
    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    board.picture("train/batch0", file, step=5)
    board.close()
    event = events(tmp_path).Tensors("images/train_batch0")[0]
    width, height, data = tensor_util.make_ndarray(event.tensor_proto)
    assert (event.step, width, height, data) == (5, b"30", b"20", file.read_bytes())
    assert Image.open(io.BytesIO(data)).size == (30, 20)


def det_metrics(classes: int) -> SimpleNamespace:
    """Two of `classes` classes have labels: precision falls to 0.5 as recall rises to 1 with a
    lower threshold."""
    confidence = np.linspace(0, 1, 1000)
    return SimpleNamespace(
        names={i: f"class {i}" for i in range(classes)},
        ap_class_index=np.array([0, 2]),
        nt_per_class=np.array([10, 0, 30] + [0] * (classes - 3)),
        box=SimpleNamespace(
            p_curve=np.stack([0.5 + confidence / 2] * 2), r_curve=np.stack([1 - confidence] * 2)
        ),
    )


def test_pr_curves_over_confidence(tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    board.pr_curves(det_metrics(3), final=False)
    board.close()
    reader = events(tmp_path)
    assert set(reader.Tags()["tensors"]) == {"pr/class 0", "pr/class 2", "pr/all classes"}
    true, wrong, _, missed, precision, recall = tensor_util.make_ndarray(
        reader.Tensors("pr/class 2")[0].tensor_proto
    )
    assert len(recall) == 127
    assert (true[0], wrong[0], missed[0]) == (30, 30, 0), (
        "at threshold 0 all 30 are found, and as many that are not"
    )
    assert (precision[0], recall[0]) == (0.5, 1.0)
    assert (true[-1], wrong[-1], missed[-1]) == (0, 0, 30)
    middle = true[63] / (true[63] + wrong[63])
    assert middle == pytest.approx(precision[63], abs=1e-5)


@pytest.mark.parametrize(("final", "curves"), [(False, 1), (True, 3)])
def test_many_classes_have_single_pr_curves_in_the_end_only(
    tmp_path: Path, final: bool, curves: int
) -> None:
    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    board.pr_curves(det_metrics(80), final=final)
    board.close()
    assert len(events(tmp_path).Tags()["tensors"]) == curves


def test_model_table_lists_layers_and_their_sum() -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel("yolov5n.yaml", nc=3, verbose=False)
    rows = model_table(model).splitlines()
    assert len(rows) == len(model.model) + 3
    assert [cell.strip() for cell in rows[2].split("|")[1:-1]] == ["0", "-1", "1,760", "Conv"]
    assert rows[14].split("|")[2].strip() == "[-1, 6]", "a Concat names both of its sources"
    assert f"**{sum(p.numel() for p in model.parameters()):,}**" in rows[-1]


def test_each_rank_has_a_curve_and_the_slowest_stands_out(tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    board.ranks({0: 0.5, 1: 0.5, 2: 0.75})
    board.close()
    read = events(tmp_path)
    assert curve(read, "ranks/slowest_to_median") == [(0, 1.5)]
    assert curve(read, "ranks/seconds_rank2") == [(0, 0.75)]


def test_what_ranks_send_has_curves_by_rank_and_by_boundary(tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    board.communication(communication(needed=1e6))
    board.close()
    read = events(tmp_path)
    assert curve(read, "communication/needed_mb") == [(0, 1.0)]
    assert curve(read, "communication/held_share") == [(0, 0.375)]
    assert curve(read, "communication/waiting_share") == [(0, 0.0625)]
    assert curve(read, "communication/ranks/sent_mb_rank1") == [(0, 3.0)]
    assert curve(read, "communication/ranks/held_share_rank1") == [(0, 0.5)]
    assert curve(read, "communication/ranks/waiting_share_rank0") == [(0, 0.125)]
    assert curve(read, "communication/ranks/between_steps_mb_rank0") == [(0, 7.0)]
    assert curve(read, "communication/boundaries/mb_rank0_to_rank1") == [(0, 2.0)]


def test_an_optimizer_without_a_momentum_has_no_curve_of_it(tmp_path):
    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    board.step(step_record(1, momentum=None))
    board.close()
    tags = events(tmp_path).Tags()["tensors"]
    assert "optimizer/momentum" not in tags and "optimizer/lr_pg0" in tags


def test_runs_with_other_batches_have_an_axis_of_images_in_common(tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path, steps_per_epoch=2, images_per_epoch=32)
    for step in (1, 2):
        board.step(step_record(step))
    board.epoch_end(epoch_stats(0))
    board.close()
    reader = events(tmp_path)
    assert curve(reader, "by_images/loss_box_train") == [(16, 10.0), (32, 5.0)]
    assert curve(reader, "by_images/loss_box_val") == [(32, 3.0)]
    assert curve(reader, "by_images/mAP50-95") == [(32, 0.6)]


def test_a_resume_writes_the_curves_over_images_again_from_results(tmp_path: Path) -> None:
    """Opening the file hides what is numbered above the checkpoint's step, thus nearly all of
    them."""
    first = TensorBoardWriter(tmp_path, steps_per_epoch=2, images_per_epoch=32)
    for step in range(1, 7):
        first.step(step_record(step))
        if step % 2 == 0:
            first.epoch_end(epoch_stats(step // 2 - 1))
    first.close()
    history = {"epoch": [1.0, 2.0], "metrics/mAP50(B)": [0.7, 0.7], "val/box_loss": [3.0, math.nan]}
    resumed = TensorBoardWriter(
        tmp_path, steps_per_epoch=2, images_per_epoch=32, start_step=4, history=history
    )
    resumed.step(step_record(5))
    resumed.close()
    reader = events(tmp_path)
    assert curve(reader, "by_images/mAP50") == [(32, 0.7), (64, 0.7)]
    assert curve(reader, "by_images/loss_box_val") == [(32, 3.0)], "nan is no point"
    assert curve(reader, "by_images/loss_box_train") == [(80, 2.0)]


def test_an_epoch_has_the_images_of_its_last_step_which_may_reach_into_the_next(
    tmp_path: Path,
) -> None:
    """Its validation stood before the last of the steps that it judges."""
    first = TensorBoardWriter(tmp_path, steps_per_epoch=1, images_per_epoch=20)
    for step, epoch in ((1, None), (2, 0), (3, 1)):
        first.step(step_record(step))
        if epoch is not None:
            first.epoch_end(epoch_stats(epoch, position=16 * step))
    first.close()
    assert curve(events(tmp_path), "by_images/loss_box_val") == [(32, 3.0), (48, 3.0)]
    assert curve(events(tmp_path), "by_images/loss_box_train")[1:] == [(32, 5.0), (48, 3.33333)]
    history = {"epoch": [1.0, 2.0], "val/box_loss": [3.0, 3.0]}
    TensorBoardWriter(
        tmp_path,
        steps_per_epoch=1,
        images_per_epoch=20,
        start_step=3,
        history=history,
        epoch_ends={1: 48},
    ).close()
    curves = curve(events(tmp_path), "by_images/loss_box_val")
    assert curves == [(20, 3.0), (48, 3.0)], "an older checkpoint does not know its first epoch's"


def test_a_resume_does_not_repeat_points_that_are_still_shown(tmp_path: Path) -> None:
    """With one image per step the numbers of both axes are the same, and nothing was hidden."""
    first = TensorBoardWriter(tmp_path, steps_per_epoch=2, images_per_epoch=2)
    first.step(step_record(1))
    first.epoch_end(epoch_stats(0, position=2))
    first.close()
    history = {"epoch": [1.0], "metrics/mAP50(B)": [0.7]}
    TensorBoardWriter(
        tmp_path, steps_per_epoch=2, images_per_epoch=2, start_step=2, history=history
    ).close()
    assert curve(events(tmp_path), "by_images/mAP50") == [(2, 0.7)]


def test_lines_of_one_step_share_a_text(tmp_path: Path) -> None:
    """TensorBoard shows one text per tag and step, so that the first line was lost."""
    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    board.text("events/stop", "stopped")
    board.text("events/stop", "to resume: x")
    board.step(step_record(1))
    board.text("events/stop", "again")
    board.close()
    shown = texts(events(tmp_path), "events/stop")
    assert shown[1:] == ["stopped  \nto resume: x", "again"]


def test_memory_of_ranks_stands_beside_the_plan(tmp_path: Path) -> None:
    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    board.start({}, "", {}, planned=[2**31])
    board.memory({0: 2**30, 1: 2**29})
    board.close()
    read = events(tmp_path)
    assert curve(read, "memory/peak_gib_rank1") == [(0, 0.5)]
    assert curve(read, "memory/planned_gib_stage0") == [(0, 2.0)]


def test_gradient_norms_have_a_histogram_per_layer_and_epoch(tmp_path: Path) -> None:
    stats = GradStats(
        names=("model.0.conv.weight", "model.0.bn.bias", "model.10.conv.weight"),
        norms=np.array([1.0, 0.01, math.inf]),
        weights=None,
        loss=(1.0,) * 3,
        instances=1,
        scale=1.0,
    )
    board = TensorBoardWriter(tmp_path, steps_per_epoch=2)
    board.step(step_record(1, grad_stats=stats))
    board.step(step_record(2))
    board.epoch_end(epoch_stats(0))
    board.epoch_end(epoch_stats(1))
    board.close()
    read = events(tmp_path)
    tags = {tag for tag in read.Tags()["tensors"] if tag.startswith("gradients")}
    assert tags == {"gradients/log10_norm_of_all", "gradients/log10_norm/model.0"}
    (layer,) = read.Tensors("gradients/log10_norm/model.0")
    assert layer.step == 2
    assert tensor_util.make_ndarray(layer.tensor_proto)[:, 2].sum() == 2, "both parameters"


def test_custom_scalars_show_only_charts_with_curves(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2

    board = TensorBoardWriter(tmp_path, steps_per_epoch=1)
    board.epoch_end(epoch_stats(0))
    board.ranks({0: 0.5, 1: 0.5})
    board.epoch_end(epoch_stats(1))
    board.epoch_end(epoch_stats(2))
    board.close()
    written = events(tmp_path).Tensors("custom_scalars__config__")
    layouts = [
        layout_pb2.Layout.FromString(tensor_util.make_ndarray(each.tensor_proto).item())
        for each in written
    ]
    assert [[each.title for each in layout.category] for layout in layouts] == [
        ["Training", "By images"],
        ["Training", "By images", "Ranks"],
    ], "again only where there is something new"
