"""Random streams are independent: no generator that a run seeds shares its numbers with another
one.

Streams that are one show in no distribution, only in the dependence between two of them. Each
column below holds the first words of a thousand streams of one kind, 160,000 draws in all, so that
chance leaves correlations of 0.0025: the limit of 0.02 is eight times that, for any seed. What is
compared is the twisters' words themselves (their lower 24 bits, which is what torch makes a float
of), because Python, numpy and torch make their numbers of them differently.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg

from tests.tiny import make_dataset
from yolods.data import dataset as dataset_module
from yolods.data.dataset import DetectionSet
from yolods.data.loader import scaled_size
from yolods.data.sampler import SampleId, Stream, permutation
from yolods.data.scan import scan
from yolods.data.spec import as_ultralytics, read_spec
from yolods.model.initialise import initialise
from yolods.training.setup.seeding import seed_everything

pytestmark = pytest.mark.slow

LIMIT = 0.02
STREAMS, WORDS = 1000, 160
LOW = (1 << 24) - 1


def python_words(source=random) -> list[int]:
    return [source.getrandbits(32) & LOW for _ in range(WORDS)]


def numpy_words(source=np.random) -> np.ndarray:
    return source.randint(0, 1 << 32, WORDS, dtype=np.uint32) & LOW


def torch_words() -> np.ndarray:
    return np.rint(torch.rand(WORDS, dtype=torch.float32).numpy() * (1 << 24))


def correlations(columns: dict[str, Iterable]) -> dict[tuple[str, str], float]:
    """Every two columns' correlation, by their names."""
    table = np.corrcoef([np.asarray(column, np.float64).ravel() for column in columns.values()])
    names = list(columns)
    return {(names[a], names[b]): float(table[a, b]) for a, b in combinations(range(len(names)), 2)}


def assert_independent(columns: dict[str, Iterable]) -> None:
    found = {pair: r for pair, r in correlations(columns).items() if not abs(r) < LIMIT}
    assert not found, f"correlated: {found}"


class SeedsOnly:
    """Stands in for an albumentations pipeline from 1.4.21 on: keeps the seed that it is given for
    a sample."""

    def set_random_seed(self, seed: int) -> None:
        self.seed = seed

    def __call__(self) -> int:
        return self.seed & LOW


class Samples:
    """A real set whose augmentation is replaced by draws from one of the generators that it could
    draw from."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def init(albumentations, p=1.0, transforms=None, flip_idx=None):
            albumentations.p, albumentations.transform, albumentations.contains_spatial = (
                p,
                SeedsOnly(),
                False,
            )

        monkeypatch.setattr(dataset_module.Albumentations, "__init__", init)
        spec = read_spec(make_dataset(root / "set"))
        hyp = get_cfg(overrides={"epochs": 10, "close_mosaic": 0})
        found = scan(spec, "train", cache=root / "cache")
        self.set = DetectionSet(found, as_ultralytics(spec), hyp, imgsz=64, augment=True)
        self.set.get_image_and_label = lambda index: {}
        keyed = next(
            step.transform
            for step in self.set.transforms.transforms
            if isinstance(step, dataset_module.Albumentations)
        )
        self.ways: dict[str, Callable[[], Iterable]] = {
            "Python's": python_words,
            "numpy's": numpy_words,
            "torch's": torch_words,
            "albumentations'": lambda: [keyed() for _ in range(WORDS)],
        }

    def words(self, way: str, seed: int, items: Iterable[SampleId]) -> list[Iterable]:
        """A row a sample: the first words of one of its generators."""
        self.set.seed, self.set.transforms = seed, lambda label: {"words": self.ways[way]()}
        return [self.set[item]["words"] for item in items]


@pytest.fixture
def samples(tmp_path, monkeypatch) -> Samples:
    return Samples(tmp_path, monkeypatch)


@contextmanager
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Iterable]]:
    """Within: the first words of every generator that is made are noted, and it is left as it was
    seeded."""
    rows: list[Iterable] = []

    class Random(random.Random):
        def __init__(self, seed):
            super().__init__(seed)
            rows.append(python_words(random_class(seed)))

    class RandomState(np.random.RandomState):
        def __init__(self, seed):
            super().__init__(seed)
            rows.append(numpy_words(state_class(seed)))

    random_class, state_class = random.Random, np.random.RandomState
    with monkeypatch.context() as patch:
        patch.setattr(random, "Random", Random)
        patch.setattr(np.random, "RandomState", RandomState)
        yield rows


def orders(monkeypatch, seed: int, first: int) -> list[Iterable]:
    with noted(monkeypatch) as rows:
        for epoch in range(first, first + STREAMS):
            permutation(seed, epoch, 3)
    return rows


def sizes(monkeypatch, seed: int, first: int) -> list[Iterable]:
    with noted(monkeypatch) as rows:
        for step in range(first, first + STREAMS):
            scaled_size(seed, step, 640, 0.5, 32)
    return rows


def weights(seed: int, first: int) -> torch.Tensor:
    root = nn.Module()
    for number in range(first, first + STREAMS):
        root.add_module(f"layer{number}", nn.Module())
        root.get_submodule(f"layer{number}").conv = nn.Conv2d(WORDS // 8, 8, 1, bias=False)
    initialise(root, torch.tensor([8.0]), 1, seed)
    return torch.stack(
        [
            module.weight.detach().flatten()
            for module in root.modules()
            if isinstance(module, nn.Conv2d)
        ]
    )


def runs(seeds: Iterable[int]) -> dict[str, list[Iterable]]:
    """A row a run: the first words of each global generator."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    columns: dict[str, list[Iterable]] = {"Python's": [], "numpy's": [], "torch's": []}
    for seed in seeds:
        seed_everything(seed, deterministic=False)
        for name, way in zip(columns, (python_words, numpy_words, torch_words), strict=True):
            columns[name].append(way())
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    return columns


def beside(seed: int) -> dict[str, tuple[int, list[SampleId]]]:
    """Samples as rank 0 of 2 gets them, and neighbours of each: a seed and the items, by what they
    are."""
    stream = Stream(97, seed, batch=2)
    own, other = ([stream.batch_ids(k, rank, 2)[0] for k in range(STREAMS)] for rank in (0, 1))
    return {
        "": (seed, own),
        " of the next image": (seed, [SampleId(one.epoch, one.index + 1) for one in own]),
        " in the next epoch": (seed, [SampleId(one.epoch + 1, one.index) for one in own]),
        " on the other rank": (seed, other),
        " of the next run's seed": (seed + 1, own),
    }


def test_a_generator_of_a_sample_does_not_follow_another_one_nor_a_neighbouring_sample(samples):
    assert_independent(
        {
            way + neighbour: samples.words(way, seed, items)
            for neighbour, (seed, items) in beside(0).items()
            for way in samples.ways
        }
    )


def test_order_sizes_weights_and_samples_do_not_follow_each_other(samples, monkeypatch):
    columns = {}
    for name, seed, first in (("", 0, 0), (", the next", 0, 1), (", the next run's", 1, 0)):
        columns |= {
            f"order{name}": orders(monkeypatch, seed, first),
            f"sizes{name}": sizes(monkeypatch, seed, first),
            f"weights{name}": weights(seed, first),
        }
    seed, items = beside(0)[""]
    assert_independent(columns | {way: samples.words(way, seed, items) for way in samples.ways})


def test_the_generators_of_a_run_do_not_follow_each_other_nor_the_next_run_s():
    columns = runs(range(STREAMS + 1))
    own = {way: rows[:-1] for way, rows in columns.items()}
    assert_independent(own | {f"{way}, the next run's": rows[1:] for way, rows in columns.items()})


def test_the_comparison_sees_generators_that_were_seeded_alike():
    """Python's and numpy's from two words, numpy's and torch's from one: each pair is one and the
    same twister."""
    words = [7, 11]
    random.seed(words[0] | words[1] << 32)
    np.random.seed(words)
    found = correlations({"Python's": python_words(), "numpy's": numpy_words()})
    np.random.seed(5)
    torch.manual_seed(5)
    found |= correlations({"numpy's": numpy_words(), "torch's": torch_words()})
    assert all(r > 0.999999 for r in found.values()), found
