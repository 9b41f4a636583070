"""Wall time over all starts of a run, and images per second of an epoch."""

from __future__ import annotations

from dataclasses import replace

from yolods.data.loader import Making
from yolods.stats import LoaderStats
from yolods.training.pace import LoaderPace, Pace, loader_advice, loader_stats


def test_time_goes_on_from_earlier_starts_and_a_rate_begins_anew_each_epoch() -> None:
    now = [100.0]
    pace = Pace(50.0, clock=lambda: now[0])
    now[0] += 4.0
    pace.count(16)
    pace.count(24)
    assert (pace.seconds, pace.rate()) == (54.0, 10.0)
    now[0] += 6.0  # an evaluation
    pace.begin_epoch()
    now[0] += 2.0
    pace.count(8)
    assert (pace.seconds, pace.rate()) == (62.0, 4.0)


def test_what_loaders_make_is_added_up_over_ranks_and_processes() -> None:
    pace = LoaderPace(processes=2)
    pace.count(Making(images=8, seconds=4.0, decoding=3.0), waited=0.5)
    pace.count(Making(images=8, seconds=4.0, decoding=1.0), waited=0.5)
    share = pace.take()
    assert share == (16, 8.0, 4.0, 1.0, 2) and pace.take().images == 0
    stats = loader_stats([share, share, LoaderPace(0).take()], seconds=4.0)
    # 2 images/s of a process, two processes, two ranks that read.
    assert stats == LoaderStats(images_per_second=8.0, decode_share=0.5, wait_share=0.25)
    assert loader_stats([LoaderPace(0).take()], 4.0) is None and loader_stats([], 4.0) is None


def test_advice_is_given_where_ranks_wait_and_says_what_a_pack_brings() -> None:
    slow = LoaderStats(images_per_second=8.0, decode_share=0.5, wait_share=0.25)
    advice = loader_advice(slow, 640)
    assert "ranks waited 25% of the epoch" in advice and "`pack --imgsz 640 --raw`" in advice
    assert "which makes samples about 1.6 x as fast" in advice and "mosaic" not in advice
    assert loader_advice(replace(slow, wait_share=0.19), 640) == loader_advice(None, 640) == ""


def test_advice_names_what_applies_with_its_gain() -> None:
    slow = LoaderStats(images_per_second=8.0, decode_share=0.75, wait_share=0.5)
    both = loader_advice(slow, 640, mosaic=1.0)
    assert "--raw`), which makes samples about 2.3 x as fast; or `mosaic_partners=block`" in both
    # Of the four images of a mosaic, one remains to be decoded: 1 / (1/4 + 3/4 x 1/4).
    assert "`mosaic_partners=block`, about 2.3 x as fast" in both
    half = loader_advice(slow, 640, raw=True, mosaic=0.5)
    # Of 2.5 images, one.
    assert "pack --imgsz" not in half and "block`, about 1.8 x as fast" in half
    cached = replace(slow, decode_share=0.01)
    assert loader_advice(cached, 640, mosaic=1.0).endswith("more --workers where cores are free")
