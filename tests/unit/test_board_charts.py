"""Which curves share a chart in TensorBoard's Custom Scalars."""

from __future__ import annotations

from yolods.telemetry.board.charts import charts_of


def test_curves_that_belong_together_share_a_chart() -> None:
    charts = charts_of(["Loss/box_train", "Loss/box_val", "ranks/seconds_rank0"])
    assert list(charts) == ["Training", "Ranks"], "in the order of importance"
    assert charts["Training"] == {"box loss: train, val": ["Multiline", ["Loss/box_"]]}


def test_a_chart_without_a_curve_is_left_out() -> None:
    assert charts_of([]) == {}
    assert charts_of(["optimizer/momentum", "memory/other"]) == {}


def test_peaks_stand_beside_the_plan() -> None:
    (title,) = charts_of(["memory/planned_gib_stage0", "memory/peak_gib_rank1"])["Ranks"]
    assert "peak, planned" in title
