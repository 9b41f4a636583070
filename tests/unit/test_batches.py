"""The micro-batches of a replica: where they begin, what is told of them, and the size of a step's
images."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from yolods.checkpoint.progress import Progress
from yolods.data.loader import Making
from yolods.data.sampler import BLOCK_LENGTH, Stream
from yolods.distributed.world import Ranks, Share
from yolods.training import batches as module
from yolods.training.batches import TrainBatches


class Read:
    """Batches of a stand-in for the loader."""

    def __init__(
        self,
        given: list[dict[str, Any]],
        share: Share | None = None,
        multi_scale: float = 0.0,
        partners: str = "all",
    ) -> None:
        self.given, self.asked, self.drawn = given, {}, []
        self.said: list[str] = []
        self.excluded: list[str] = []
        hyper = SimpleNamespace(seed=0, multi_scale=multi_scale, mosaic=1.0)
        config = SimpleNamespace(
            hyper=hyper, seed=7, imgsz=64, workers=0, deepspeed=SimpleNamespace(micro_batch=2)
        )
        schedule = SimpleNamespace(samples=12, batch=4)
        telemetry = SimpleNamespace(
            wants_train_images=lambda number: number == 6,
            train_images=lambda batch, number: self.drawn.append(number),
            event=lambda kind, text, warn: self.said.append(text),
        )
        ranks = Ranks(0, 1, 0, "here", torch.device("cpu"))
        source = SimpleNamespace(place=lambda image: f"/data/{image}")
        dataset = SimpleNamespace(exclude=self.excluded.extend, source=source)
        self.batches = TrainBatches(
            *(config, dataset, schedule, ranks, share or Share(1, 2), telemetry),
            stride=32,
            partners=partners,
        )

    def load(self, dataset: Any, stream: Any, **asked: Any) -> Any:
        self.asked = {"stream": stream, **asked}
        making = Making(images=2, seconds=0.1, decoding=0.05)
        return ({**batch, "making": making} for batch in self.given)


def read(run: Read, monkeypatch: pytest.MonkeyPatch, **where: int) -> list[dict[str, Any]]:
    monkeypatch.setattr(module, "train_loader", run.load)
    return list(run.batches.read(Progress(**where)))


def test_they_begin_where_the_run_stands_and_are_shown_by_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Read([{"img": 0}, {"img": 1}, {"img": 2}])
    assert read(run, monkeypatch, position=20, micro_batches=5) == run.given
    assert (run.asked["first_position"], run.asked["dp_rank"], run.asked["dp_size"]) == (20, 1, 2)
    assert run.drawn == [6]


@pytest.mark.parametrize("partners", ["all", "block"])
def test_a_loader_that_holds_the_run_back_is_said_once(
    monkeypatch: pytest.MonkeyPatch, partners: str
) -> None:
    run = Read([{}, {}], partners=partners)
    assert run.batches.loading(1.0) is None
    for _ in range(2):
        read(run, monkeypatch)
        stats = run.batches.loading(1e-6)
        assert (stats.images_per_second, stats.decode_share) == (pytest.approx(20), 0.5)
        assert stats.wait_share > 0.2
    (line,) = run.said
    assert line.startswith("the loader holds this run back") and "--imgsz 64 --raw" in line
    assert ("mosaic_partners=block" in line) == (partners == "all")


@pytest.mark.parametrize(("partners", "block"), [("all", 0), ("block", BLOCK_LENGTH)])
def test_samples_have_blocks_on_demand(
    monkeypatch: pytest.MonkeyPatch, partners: str, block: int
) -> None:
    run = Read([], partners=partners)
    read(run, monkeypatch)
    assert run.asked["stream"] == Stream(12, 7, 4, block)


def test_a_rank_that_reads_no_images_starts_no_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Read([{"img": 0}], Share(0, 1, first_stage=False))
    assert read(run, monkeypatch) == [] and run.asked == {}


def test_each_file_that_cannot_be_read_is_named_once_and_every_sample_is_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Read([{"replaced": ("b.jpg", "a.jpg", "a.jpg")}, {}, {"replaced": ("a.jpg",)}])
    with caplog.at_level(logging.WARNING):
        read(run, monkeypatch)
    said = [
        f"{file} could not be read; replaced by another sample"
        for file in ("/data/a.jpg", "/data/b.jpg")
    ]
    assert caplog.messages == said
    run.batches.tell_replaced()
    assert run.said == ["4 samples were replaced: 2 files could no longer be read"]


def test_nothing_is_told_where_every_file_could_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Read([{}])
    read(run, monkeypatch)
    run.batches.tell_replaced()
    assert run.said == []


def test_images_are_left_out_on_ranks_that_read_none_as_well() -> None:
    """Before an iterator is asked for anything: all ranks have to agree."""
    run = Read([], Share(0, 1, first_stage=False))
    run.batches.exclude(["a.jpg"])
    assert run.excluded == ["a.jpg"]


def test_the_size_is_drawn_by_step_under_multi_scale_alone() -> None:
    assert Read([]).batches.size(3) is None
    sizes = [Read([], multi_scale=0.5).batches.size(step) for step in range(40)]
    assert set(sizes) == {32, 64, 96}
    assert sizes == [
        Read([], Share(0, 2), multi_scale=0.5).batches.size(step) for step in range(40)
    ], "on every rank"
