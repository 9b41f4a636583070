"""yolods.data.loader: the same batches for any number of workers and ranks, each evaluation image
once."""

import itertools
import os
import signal
from pathlib import Path

import pytest
import torch
from ultralytics.cfg import get_cfg

from tests.tiny import make_dataset
from yolods.data.dataset import DetectionSet
from yolods.data.loader import EvalBatch, eval_batches, eval_loader, scaled_size, train_loader
from yolods.data.sampler import Stream
from yolods.data.scan import scan
from yolods.data.spec import as_ultralytics, read_spec
from yolods.errors import UserError


@pytest.fixture
def sets(tmp_path):
    spec = read_spec(make_dataset(tmp_path / "set", train=7, val=21))
    hyp = get_cfg(overrides={"epochs": 20, "close_mosaic": 5, "mixup": 0.5})
    return {
        split: DetectionSet(
            scan(spec, split, cache=tmp_path / "cache"),
            as_ultralytics(spec),
            hyp,
            imgsz=64,
            augment=split == "train",
            cache_bytes=1 << 20,
        )
        for split in ("train", "val")
    }


def take(dataset, count: int, **options) -> list[dict]:
    options = {"first_position": 0, "dp_rank": 0, "dp_size": 1, "micro": 4, "workers": 0, **options}
    block = options.pop("block", 0)
    stream = Stream(len(dataset), 0, options["micro"] * options["dp_size"], block)
    batches = train_loader(dataset, stream, **options)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def same(a: dict, b: dict) -> bool:
    return (
        all(torch.equal(a[k], b[k]) for k in ("img", "cls", "bboxes", "batch_idx"))
        and a["im_file"] == b["im_file"]
    )


def test_workers_do_not_matter(sets):
    alone = take(sets["train"], 6)
    assert alone[0]["img"].shape == (4, 3, 64, 64)
    assert alone[0]["img"].dtype == torch.uint8
    for workers in (1, 2):
        assert all(map(same, alone, take(sets["train"], 6, workers=workers)))


def test_the_stream_decides_the_order(sets):
    ids = Stream(7, 0, 4).sample_ids(0, 12)
    files = [file for batch in take(sets["train"], 3) for file in batch["im_file"]]
    assert files == [sets["train"].im_files[i.index] for i in ids]


def test_ranks_split_a_batch(sets):
    whole = take(sets["train"], 4)
    parts = [take(sets["train"], 4, dp_rank=rank, dp_size=2, micro=2) for rank in (0, 1)]
    for k, batch in enumerate(whole):
        assert torch.equal(batch["img"], torch.cat([parts[0][k]["img"], parts[1][k]["img"]]))
        assert torch.equal(
            batch["bboxes"], torch.cat([parts[0][k]["bboxes"], parts[1][k]["bboxes"]])
        )


def test_it_goes_on_from_any_position(sets):
    assert all(map(same, take(sets["train"], 5)[2:], take(sets["train"], 3, first_position=8)))


def images_of(batches: list[dict]) -> torch.Tensor:
    return torch.cat([batch["img"] for batch in batches])


@pytest.mark.parametrize("micro", [1, 2, 5, 12])
def test_samples_of_blocks_depend_on_no_layout(sets, micro):
    """Blocks of 3 out of 7 images: batches of any size cross their ends, and those of epochs."""
    plain = images_of(take(sets["train"], 60, micro=1, block=3))
    assert not torch.equal(plain, images_of(take(sets["train"], 60, micro=1)))
    batches = 60 // micro
    assert torch.equal(plain, images_of(take(sets["train"], batches, micro=micro, block=3)))
    resumed = take(sets["train"], batches - 3, micro=micro, block=3, first_position=3 * micro)
    assert torch.equal(plain[3 * micro :], images_of(resumed))


def test_samples_of_blocks_on_ranks_with_workers(sets):
    plain = take(sets["train"], 8, micro=4, block=3)
    for workers in (0, 2):
        parts = [
            take(sets["train"], 8, micro=2, block=3, dp_rank=rank, dp_size=2, workers=workers)
            for rank in (0, 1)
        ]
        for whole, *pieces in zip(plain, *parts, strict=True):
            assert torch.equal(whole["img"], torch.cat([piece["img"] for piece in pieces]))
            assert torch.equal(whole["bboxes"], torch.cat([piece["bboxes"] for piece in pieces]))


def test_sizes_that_do_not_multiply_out(sets):
    with pytest.raises(ValueError, match="batch 8 != micro 3 x ranks 2 = 6"):
        train_loader(
            sets["train"],
            Stream(7, 0, 8),
            first_position=0,
            dp_rank=0,
            dp_size=2,
            micro=3,
            workers=0,
        )
    with pytest.raises(ValueError, match="the stream has 8 images, the data set 7"):
        train_loader(
            sets["train"],
            Stream(8, 0, 4),
            first_position=0,
            dp_rank=0,
            dp_size=1,
            micro=4,
            workers=0,
        )


def test_torch_generator_is_left_alone(sets):
    before = torch.get_rng_state()
    take(sets["train"], 2, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_replaced_files_are_reported(sets, workers):
    gone = sets["train"].im_files[3]
    Path(sets["train"].source.place(gone)).unlink()
    assert gone in [
        file for batch in take(sets["train"], 4, workers=workers) for file in batch["replaced"]
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_image_is_one_line(sets, workers):
    for file in sets["train"].im_files:
        Path(sets["train"].source.place(file)).unlink()
    with pytest.raises(UserError) as caught:
        take(sets["train"], 1, workers=workers)
    assert str(caught.value).startswith("none of the 7 images can be read")
    assert "\n" not in str(caught.value)


class Killed(DetectionSet):
    """Dies as a worker does that the system ends for want of memory."""

    def sample(self, item, out=None):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_one_line(sets):
    sets["train"].__class__ = Killed
    with pytest.raises(
        UserError, match=r"data loading process died .*try fewer --workers \(now 1 per rank"
    ) as caught:
        take(sets["train"], 1, workers=1)
    assert "\n" not in str(caught.value)


class Interrupted(DetectionSet):
    """Gets the Ctrl-C that a terminal sends to every process."""

    def sample(self, item, out=None):
        os.kill(os.getpid(), signal.SIGINT)
        return super().sample(item, out)


def test_workers_leave_ctrl_c_to_the_main_process(sets):
    sets["train"].__class__ = Interrupted
    assert len(take(sets["train"], 2, workers=1)) == 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("forward_batch", [1, 4, 7, 16, 64])
def test_each_evaluation_image_once_and_equal_counts(sets, ranks, forward_batch):
    shares = [
        eval_batches(sets["val"], dp_rank=r, dp_size=ranks, forward_batch=forward_batch)
        for r in range(ranks)
    ]
    assert len({len(share) for share in shares}) == 1
    counted = [i for share in shares for batch in share for i in batch.indices[: batch.real]]
    assert sorted(counted) == list(range(21))
    for batch in itertools.chain(*shares):
        assert 1 <= len(batch.indices) <= forward_batch
        assert len({i // 16 for i in batch.indices}) == 1


def test_eval_batches_literal(sets):
    def deal(rank: int) -> list[EvalBatch]:
        return eval_batches(sets["val"], dp_rank=rank, dp_size=2, forward_batch=12)

    assert deal(0) == [EvalBatch(tuple(range(12)), 12), EvalBatch(tuple(range(16, 21)), 5)]
    assert deal(1) == [EvalBatch((12, 13, 14, 15), 4), EvalBatch((0,), 0)]


def test_no_batch_reaches_over_images_of_two_shapes(sets):
    sets["val"].eval_batch = 8
    batches = eval_batches(sets["val"], dp_rank=0, dp_size=1, forward_batch=5)
    assert [batch.indices[0] for batch in batches] == [0, 5, 8, 13, 16]


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_loader(sets, workers):
    batches = eval_batches(sets["val"], dp_rank=1, dp_size=2, forward_batch=12)
    loaded = list(eval_loader(sets["val"], batches, workers=workers))
    assert [(b["index"], b["real"]) for b in loaded] == [((12, 13, 14, 15), 4), ((0,), 0)]
    assert torch.equal(loaded[0]["img"][1], sets["val"][13]["img"])


def test_scaled_size():
    sizes = [scaled_size(0, step, 640, 0.5, 32) for step in range(400)]
    assert sizes[:6] == [384, 736, 544, 608, 736, 800]
    assert set(sizes) == set(range(320, 961, 32))
    assert scaled_size(0, 3, 640, 0.0, 32) == 640
    assert sizes != [scaled_size(1, step, 640, 0.5, 32) for step in range(400)]
