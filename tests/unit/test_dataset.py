"""yolods.data.dataset: a sample depends on (seed, epoch, index) and on nothing else."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import YOLODataset

from tests.tiny import make_dataset
from yolods.data import dataset as dataset_module
from yolods.data.dataset import DetectionSet, default_cache_bytes
from yolods.data.sampler import SampleId, Stream
from yolods.data.scan import scan
from yolods.data.spec import as_ultralytics, read_spec
from yolods.errors import UserError

EVERYTHING = {
    "mosaic": 0.7,
    "mixup": 0.5,
    "cutmix": 0.5,
    "copy_paste": 0.5,
    "degrees": 10.0,
    "flipud": 0.5,
    "bgr": 0.3,
}


def make(
    root: Path, split: str = "train", *, train: int = 6, hyp: dict | None = None, **options
) -> DetectionSet:
    yaml = root / "set/tiny.yaml"
    if not yaml.exists():
        make_dataset(root / "set", train=train, val=60)
    spec = read_spec(yaml)
    found = scan(spec, split, cache=root / "cache")
    space = get_cfg(overrides={"epochs": 20, "close_mosaic": 5, **(hyp or {})})
    options = {"imgsz": 64, "augment": split == "train", "cache_bytes": 0, **options}
    return DetectionSet(found, as_ultralytics(spec), space, **options)


def same(a: dict, b: dict) -> bool:
    of_one = Path(b["im_file"]).match(a["im_file"])  # ultralytics has the whole path
    return all(torch.equal(a[key], b[key]) for key in ("img", "cls", "bboxes")) and of_one


def file_of(data: DetectionSet, index: int) -> Path:
    return Path(data.source.place(data.im_files[index]))


def test_a_training_sample(tmp_path):
    sample = make(tmp_path)[SampleId(0, 3)]
    assert sample["img"].shape == (3, 64, 64)
    assert sample["img"].dtype == torch.uint8
    assert sample["cls"].shape == (len(sample["bboxes"]), 1)
    assert len(sample["bboxes"]) > 0
    assert 0 <= sample["bboxes"].min() <= sample["bboxes"].max() <= 1
    assert sample["replaced"] == []


def test_samples_do_not_depend_on_what_was_loaded_before(tmp_path):
    first, second = make(tmp_path, hyp=EVERYTHING), make(tmp_path, hyp=EVERYTHING)
    wanted = [SampleId(epoch, index) for epoch in (0, 1, 17) for index in range(6)]
    forwards = {item: first[item] for item in wanted}
    backwards = {item: second[item] for item in reversed(wanted)}
    assert all(same(forwards[item], backwards[item]) for item in wanted)
    images = [forwards[item]["img"].numpy().tobytes() for item in wanted]
    assert len(set(images)) == len(images)


def test_the_seed_matters(tmp_path):
    assert not same(make(tmp_path, seed=0)[0, 1], make(tmp_path, seed=1)[0, 1])


@pytest.mark.parametrize(
    "options", [{"cache_bytes": 1 << 30}, {"cache_bytes": 30_000}, {"cache_ram": True}]
)
def test_keeping_images_changes_nothing(tmp_path, options):
    plain, kept = make(tmp_path, hyp=EVERYTHING), make(tmp_path, hyp=EVERYTHING, **options)
    for _ in range(2):
        for index in range(6):
            assert same(plain[3, index], kept[3, index])
    assert plain.images.kept == {}
    assert 0 < kept.images.kept_bytes <= options.get("cache_bytes", 1 << 30)


def test_cache_ram_reads_each_file_once(tmp_path, monkeypatch):
    loaded = make(tmp_path, cache_ram=True)
    monkeypatch.setattr(loaded.source, "read", lambda *_: pytest.fail("read again"))
    assert loaded[0, 0]["img"].shape == (3, 64, 64)


def test_cache_ram_stops_where_memory_ends(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(dataset_module, "available_memory", lambda: 31_000)
    assert same(make(tmp_path, cache_ram=True)[0, 5], make(tmp_path)[0, 5])
    assert "cache=ram: 2 of 6 images fit" in caplog.text


def test_global_generators_are_left_as_they_were(tmp_path):
    data = make(tmp_path, hyp=EVERYTHING)
    state, numpy_state, torch_state = (
        random.getstate(),
        np.random.get_state(),
        torch.get_rng_state(),
    )
    data[0, 0]
    assert random.getstate() == state
    assert all(
        np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy_state, strict=True)
    )
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_without_random_augmentation_it_is_ultralytics_own_sample(tmp_path):

    off = dict.fromkeys(("mosaic", "scale", "translate", "fliplr", "hsv_h", "hsv_s", "hsv_v"), 0.0)
    ours = make(tmp_path, hyp=off)
    theirs = YOLODataset(
        img_path=str(tmp_path / "set/images/train"),
        imgsz=64,
        augment=True,
        hyp=get_cfg(overrides=off),
        data=as_ultralytics(read_spec(tmp_path / "set/tiny.yaml")),
    )
    assert all(same(ours[0, i], theirs[i]) for i in range(6))


def test_mosaic_draws_from_the_whole_set_and_closes_by_epoch(tmp_path):
    data = make(tmp_path, train=30, hyp={"mosaic": 1.0})
    drawn = []
    load = data.load_image
    data.load_image = lambda i, **k: drawn.append(i) or load(i, **k)
    for index in range(30):
        data[14, index]
    assert len(drawn) == 120
    assert len(set(drawn[1:40])) > 15
    drawn.clear()
    data[15, 7]
    assert drawn == [7]


def decodes(data: DetectionSet, monkeypatch) -> list[int]:
    """The images that are decoded from now on."""
    found, read = [], data.source.read
    monkeypatch.setattr(data.source, "read", lambda row: found.append(row) or read(row))
    return found


def test_partners_of_a_block_are_decoded_once(tmp_path, monkeypatch):
    data = make(tmp_path, train=30, hyp={"mosaic": 1.0})
    decoded = decodes(data, monkeypatch)
    ids = Stream(30, 0, 4, 8).sample_ids(0, 30)
    for each in ids:
        assert set(data[each]["sources"]) <= {data.im_files[i] for i in each.block}
        assert len(set(data[each]["sources"])) == 4
    assert sorted(decoded) == list(range(30))
    decoded.clear()
    for each in Stream(30, 0, 4).sample_ids(0, 30):
        data[each]
    assert len(decoded) == 120


def test_mixed_images_of_a_block_come_from_it_too(tmp_path, monkeypatch):
    data = make(tmp_path, train=30, hyp={"mosaic": 0.5, "mixup": 1.0, "cutmix": 1.0})
    decoded = decodes(data, monkeypatch)
    for each in Stream(30, 0, 4, 8).sample_ids(0, 30):
        assert set(data[each]["sources"]) <= {data.im_files[i] for i in each.block}
    assert sorted(decoded) == list(range(30))


def test_a_sample_with_a_block_does_not_depend_on_what_was_made_before(tmp_path):
    first, second = (make(tmp_path, train=20, hyp=EVERYTHING) for _ in range(2))
    wanted = Stream(20, 0, 4, 8).sample_ids(0, 40)
    forwards = {item: first[item] for item in wanted}
    second.images.limit = 50_000  # some images are kept for good
    backwards = {item: second[item] for item in reversed(wanted)}
    assert all(same(forwards[item], backwards[item]) for item in wanted)


def test_a_partner_of_a_block_that_vanished_is_replaced_by_the_next_image(tmp_path):
    data = make(tmp_path, train=20, hyp={"mosaic": 1.0})
    wanted = Stream(20, 0, 4, 8).sample_ids(0, 8)
    before = [data[each] for each in wanted]
    data.images.begin(())  # which forgets what is decoded
    file_of(data, wanted[0].index).unlink()
    file, after = data.im_files[wanted[0].index], data.im_files[(wanted[0].index + 1) % 20]
    touched = 0
    for plain, each in zip(before, wanted, strict=True):
        sample = data[each]
        if file in plain["sources"]:
            touched += 1
            assert set(sample["replaced"]) == {file}
            assert after in sample["sources"] and file not in sample["sources"]
        else:
            assert same(sample, plain)
    assert touched > 1


def test_samples_that_are_made_together_are_those_that_are_made_alone(tmp_path):
    data = make(tmp_path, hyp=EVERYTHING)
    wanted = [SampleId(0, 3), SampleId(16, 1), SampleId(2, 5)]
    state = random.getstate()
    together = data.collated(wanted)
    assert random.getstate() == state
    alone = data.collate_fn([data[each] for each in wanted])
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        same_values = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
        assert same_values(together[key], value), key


def test_a_batch_is_ultralytics_own(tmp_path):
    data = make(tmp_path, hyp={"mosaic": 0.5})
    samples = [data[0, i] for i in range(6)]
    ours, theirs = data.collate_fn(samples), YOLODataset.collate_fn(samples)
    assert ours.keys() == theirs.keys()
    for key in ("img", "cls", "bboxes", "batch_idx"):
        assert torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype
    assert (ours["im_file"], ours["ori_shape"]) == (theirs["im_file"], theirs["ori_shape"])


def test_mosaic_never_closes_with_close_mosaic_0(tmp_path):
    data = make(tmp_path, hyp={"mosaic": 1.0, "close_mosaic": 0})
    assert not same(data[19, 0], data[18, 0])
    assert data._closed is None


class OwnGenerator:
    """Behaves as an albumentations pipeline from 1.4.21 on: random numbers from a generator of its
    own."""

    seed = None

    def set_random_seed(self, seed: int) -> None:
        self.seed, self.rng = seed, np.random.default_rng(seed)

    def __call__(self, image: np.ndarray) -> dict:
        return {"image": image ^ self.rng.integers(256, dtype=np.uint8)}


def test_albumentations_generator_is_keyed_by_the_sample(tmp_path, monkeypatch):
    def init(self, p=1.0, transforms=None, flip_idx=None):
        self.p, self.transform, self.contains_spatial = p, OwnGenerator(), False
        self.transform.set_random_seed(torch.initial_seed())

    monkeypatch.setattr(dataset_module.Albumentations, "__init__", init)
    off = dict.fromkeys(("mosaic", "scale", "translate", "fliplr", "hsv_h", "hsv_s", "hsv_v"), 0.0)
    data = make(tmp_path, hyp=off)
    first, other, again = data[0, 2], data[1, 2], data[0, 2]
    assert same(first, again)
    assert not same(first, other)


def test_evaluation_matches_ultralytics(tmp_path):

    ours = make(tmp_path, "val")
    theirs = YOLODataset(
        img_path=str(tmp_path / "set/images/val"),
        imgsz=64,
        augment=False,
        rect=True,
        batch_size=16,
        pad=0.5,
        hyp=get_cfg(),
        data=as_ultralytics(read_spec(tmp_path / "set/tiny.yaml")),
    )
    for i in range(60):
        a, b = ours[i], theirs[i]
        assert same(a, b)
        assert a["index"] == i
        assert (a["ori_shape"], a["ratio_pad"]) == (b["ori_shape"], b["ratio_pad"])
    assert len({tuple(ours[i]["img"].shape) for i in range(60)}) == 2


def test_a_vanished_file_is_replaced_by_the_next(tmp_path):
    off = {"mosaic": 0.0}
    whole = make(tmp_path, hyp=off)
    data = make(tmp_path, hyp=off)
    file_of(data, 2).unlink()
    file_of(data, 3).write_bytes(b"no image")
    sample = data[0, 2]
    assert sample["replaced"] == [data.im_files[2], data.im_files[3]]
    assert sample["im_file"] == data.im_files[4]
    assert data[0, 1]["replaced"] == []
    assert same(data[0, 1], whole[0, 1])


def test_a_vanished_mosaic_partner_is_replaced(tmp_path):
    data = make(tmp_path, hyp={"mosaic": 1.0})
    for index in range(1, 6):
        file_of(data, index).unlink()
    sample = data[0, 0]
    assert sample["img"].shape == (3, 64, 64)
    assert set(sample["replaced"]) <= {*data.im_files} - {data.im_files[0]}
    file_of(data, 0).unlink()
    with pytest.raises(UserError, match="none of the 6 images can be read"):
        data[0, 0]


def test_a_vanished_evaluation_image_is_blank_and_counted_nowhere(tmp_path):
    data = make(tmp_path, "val")
    file_of(data, 4).unlink()
    sample = data[4]
    assert sample["replaced"] == [data.im_files[4]]
    assert sample["img"].shape == data[3]["img"].shape
    assert sample["img"].unique().tolist() == [114]
    assert len(sample["cls"]) == 0
    assert data.collate_fn([data[3], sample])["index"] == (3, 4)
    assert data.collate_fn([sample, data[3]])["index"] == (4, 3)


def test_collate(tmp_path):
    data = make(tmp_path, hyp={"mosaic": 0.5})
    samples = [data[0, i] for i in range(6)]
    samples[1]["replaced"], samples[4]["replaced"] = ["a"], ["b", "c"]
    batch = data.collate_fn(samples)
    assert batch["img"].shape == (6, 3, 64, 64)
    assert batch["img"].dtype == torch.uint8
    assert batch["replaced"] == ["a", "b", "c"]
    assert batch["resized_shape"] == tuple(s["resized_shape"] for s in samples)
    assert torch.bincount(batch["batch_idx"].int(), minlength=6).tolist() == [
        len(s["cls"]) for s in samples
    ]
    assert torch.equal(batch["bboxes"], torch.cat([s["bboxes"] for s in samples]))


def test_nothing_is_written_beside_the_data(tmp_path, monkeypatch):
    data = make(tmp_path, hyp=EVERYTHING, cache_ram=True)
    stale = file_of(data, 0).with_suffix(".npy")
    np.save(stale, np.zeros((64, 64, 3), np.uint8))
    before = sorted((tmp_path / "set").rglob("*"))
    fresh = make(tmp_path, hyp=EVERYTHING)
    assert same(data[0, 0], fresh[0, 0])
    assert sorted((tmp_path / "set").rglob("*")) == before


def test_default_cache_is_bounded(monkeypatch):
    monkeypatch.setattr(dataset_module, "available_memory", lambda: 64 << 30)
    assert default_cache_bytes(1) == 2 << 30
    assert default_cache_bytes(16) == 512 << 20
    monkeypatch.setattr(
        dataset_module.psutil, "virtual_memory", lambda: SimpleNamespace(available=8 << 30)
    )
    monkeypatch.undo()
    assert 0 <= default_cache_bytes(4) <= 2 << 30


def test_leaving_images_out_does_not_grow_with_the_square_of_the_set():
    class Counted(list):
        read = 0

        def __iter__(self):
            Counted.read += 1
            return super().__iter__()

    given = SimpleNamespace(im_files=[str(place) for place in range(100)])
    DetectionSet.exclude(given, Counted(["3", "97"]))
    assert given._excluded == {3, 97} and Counted.read == 1
    DetectionSet.exclude(given, iter(["4", "5"]))
    assert given._excluded == {4, 5}
