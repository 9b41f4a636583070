"""The errands of CONTRIBUTING.md, each walked: a toy is put where they say, nowhere else, and a
step is trained."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.parity.small import ACCUMULATION, EPOCHS, MICRO, SIZE, micro_batch, small_engine
from tests.ranks import on_ranks
from tests.whole_shards import join_shards
from yolods.checkpoint.read import Checkpoint
from yolods.checkpoint.state import collect, recut
from yolods.clipping import POLICIES, ClipFactors, Norms, Policy, policy
from yolods.config.optimizers.supported import (
    LR,
    MOMENTUM,
    OPTIMIZERS,
    WEIGHT_DECAY,
    SupportedOptimizer,
)
from yolods.data.index.block import block_of
from yolods.data.index.builds import IndexStore
from yolods.data.index.fingerprint import samples_of
from yolods.data.index.table import Index
from yolods.data.loader import train_loader
from yolods.data.sampler import Stream
from yolods.data.scan import Opening
from yolods.data.source import SOURCES, Unreadable
from yolods.data.spec import read_spec
from yolods.data.splits import SplitOptions, open_split
from yolods.data.verify import CheckedPair
from yolods.distributed.world import Ranks
from yolods.errors import UserError
from yolods.optim.lr_schedule import Step
from yolods.parsing.rules import real, setting

ROOT = Path(__file__).resolve().parents[2]
MODEL = "yolov5[0.1,0.1]"
RATE, WARMED = 0.01, 0.5
SHARE = 0.25
GONE = 5
"""Number of an image of the toy source that cannot be read."""

pytestmark = pytest.mark.slow


@contextmanager
def toy_policy() -> Iterator[None]:
    """A policy that takes the same share of every gradient, and counts its steps."""
    with mock.patch.dict(POLICIES):

        @policy("shrink")
        class Shrink(Policy):
            uses_max_norm = False

            share: float = setting(1.0, real(0, 1, above=True))
            steps: int = 0

            def clip(self, measured: Norms) -> ClipFactors:
                self.steps += 1
                return ClipFactors(self.share)

            def state(self) -> dict[str, Any]:
                return {"steps": self.steps}

        yield


class SignDescent(torch.optim.Optimizer):
    """Moves every weight by the sign of a moving average of its gradient."""

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        momentum: float,
        weight_decay: float = 0.0,
        boost: float = 1.0,
    ):
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "boost": boost}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in (each for each in group["params"] if each.grad is not None):
                state = self.state[weight]
                if not state:
                    state |= {"taken": torch.tensor(0.0), "velocity": torch.zeros_like(weight)}
                state["taken"] += 1
                state["velocity"].lerp_(weight.grad, 1 - group["momentum"])
                weight.sub_(state["velocity"].sign(), alpha=group["lr"] * group["boost"])


def toy_optimizer() -> Any:
    """Its entry in the table, and nothing else."""
    entry = SupportedOptimizer(
        made_by=f"{__name__}:SignDescent",
        params={
            "lr": LR,
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
            "boost": real(0, above=True),
        },
        arguments=lambda momentum: {"momentum": momentum},
        groups={"bias": {"boost": 3.0}},
    )
    return mock.patch.dict(OPTIMIZERS, {"SignDescent": entry})


def _json(folder: Path, stage: int = 1, **blocks: Any) -> Path:
    file = folder / f"zero{stage}.json"
    file.write_text(json.dumps({"zero_optimization": {"stage": stage}, **blocks}), encoding="utf-8")
    return file


def _step(small: Any, momentum: float = 0.9) -> Any:
    step = Step(0, ACCUMULATION, 0, (RATE, RATE, RATE), momentum)
    return small.engine.train_step(
        step, iter([micro_batch(place) for place in range(ACCUMULATION)])
    )


def walk_policy(ranks: Ranks, folder: str) -> dict[str, Any]:
    """On a rank: a step under the toy policy, and what a wrong setting is told."""
    with toy_policy():
        right, wrong = (
            {"yolods": {"clipping": {"policy": "shrink", "share": share}}} for share in (SHARE, 2)
        )
        with (
            pytest.raises(UserError) as refused,
            small_engine(ranks, _json(Path(folder), **wrong), model=MODEL),
        ):
            pass
        with small_engine(
            ranks, _json(Path(folder), **right), model=MODEL, optimizer="SGD"
        ) as small:
            result = _step(small)
            state, settings = (
                small.engine.stability.state(),
                small.config.deepspeed.own.as_dict()["clipping"],
            )
    return {
        "share": result.norm_after / result.grad_norm,
        "state": state,
        "settings": settings,
        "refused": str(refused.value),
    }


def walk_optimizer(ranks: Ranks, folder: str) -> dict[str, Any]:
    """On a rank: a step with the toy optimizer, its state under another layout, and what a wrong
    argument is told."""
    named = {"type": "signdescent", "params": {"lr": RATE, "boost": 2}}
    with toy_optimizer():
        wrong = {"optimizer": {"type": "SignDescent", "params": {"betas": [0.9, 0.99]}}}
        with (
            pytest.raises(UserError) as refused,
            small_engine(ranks, _json(Path(folder), **wrong), model=MODEL),
        ):
            pass
        with small_engine(ranks, _json(Path(folder), optimizer=named), model=MODEL) as small:
            before = dict(small.engine.weights())
            _step(small, WARMED)
            after, groups = (
                dict(small.engine.weights()),
                small.engine.deepspeed.optimizer.param_groups,
            )
            told = [
                {key: group[key] for key in ("param_group", "momentum", "boost")}
                for group in groups
            ]
            torch.save(collect(small.engine), Path(folder, "rank0.pt"))
            Path(folder, "model.json").write_text(
                json.dumps(small.engine.layout()), encoding="utf-8"
            )
        checkpoint = Checkpoint(Path(folder))
        with small_engine(ranks, _json(Path(folder), 0, optimizer=named), model=MODEL) as small:
            small.engine.load_state(recut(checkpoint, small.engine))
            states = small.engine.masters.states()
            groups = small.engine.describe()["groups"]
    return {
        "moved": {
            name: float((after[name] - before[name]).abs().max())
            for name in before
            if "num_batches" not in name
        },
        "groups": told,
        "velocity": (
            checkpoint.moment("velocity"),
            join_shards("whole", groups, [[each["velocity"] for each in states]]),
        ),
        "taken": {float(state["taken"]) for state in states},
        "refused": str(refused.value),
    }


class Patches:
    """A source of drawn images: each is a grey one with a bright patch, by its number in a file of
    their numbers."""

    side = None

    def __init__(self, file: Path, index: Index) -> None:
        self._file, self.index = file, index

    def read(self, row: int) -> np.ndarray:
        number = int(self.index.ids[row].removeprefix("patch "))
        if number == GONE:
            raise Unreadable(self.index.ids[row])
        image = np.full((SIZE, SIZE, 3), 60 + 10 * number, np.uint8)
        image[16:48, 16:48] = 255
        return image

    def place(self, identity: str) -> str:
        return f"{self._file}, {identity}"


def open_patches(opening: Opening) -> Patches:
    """The `Opener` of files that end in .patches."""
    store, file = IndexStore(opening.folder), opening.spec.sources(opening.split)[0]
    numbers = [int(line) for line in file.read_text().split()]
    box = np.array([[0, 0.5, 0.5, 0.5, 0.5]], np.float32)
    found = [CheckedPair(f"{file}, {n}", (SIZE, SIZE), box, id=f"patch {n}") for n in numbers]
    if store.newest() is None:
        with store.build() as writer:
            writer.add(block_of(found, [(n, 0, -1, -1) for n in numbers], numbers))
    index = store.newest()
    assert index is not None
    return Patches(file, index)


def toy_source() -> Any:
    """Its line in the table, and nothing else."""
    return mock.patch.dict(SOURCES, {".patches": f"{__name__}:open_patches"})


def walk_source(ranks: Ranks, folder: str) -> dict[str, Any]:
    """On a rank: a step on samples of the toy source, and by which names they are known."""
    root = Path(folder)
    (root / "some.patches").write_text("".join(f"{number}\n" for number in range(8)))
    (root / "set.yaml").write_text(
        "train: some.patches\nval: some.patches\nnames: [cat, dog, fish]\n"
    )
    with toy_source(), small_engine(ranks, _json(root), model=MODEL, mosaic=0) as small:
        spec, hyper = read_spec(root / "set.yaml"), small.config.hyper
        opening = SplitOptions(imgsz=SIZE, stride=32, epochs=EPOCHS, workers=0, local_ranks=1)
        split = open_split(spec, "train", hyper, opening, ranks, augment=True)
        dataset, batches = split.dataset, []
        stream = Stream(len(dataset), hyper.seed, MICRO)
        loader = train_loader(
            dataset, stream, first_position=0, dp_rank=0, dp_size=1, micro=MICRO, workers=0
        )
        for batch in loader:
            batches.append(batch)
            if len(batches) == len(dataset) // MICRO:
                break
        result = small.engine.train_step(
            Step(0, ACCUMULATION, 0, (RATE, RATE, RATE), 0.9), iter(batches)
        )
        dataset.exclude(["patch 1"])
        excluded = dataset[0, 1]["im_file"]
    return {
        "grad_norm": result.grad_norm,
        "skipped": result.skipped,
        "images": [image for batch in batches for image in batch["im_file"]],
        "replaced": {image for batch in batches for image in batch["replaced"]},
        "barred": excluded,
        "summary": split.scan.summary,
        "record": samples_of(split.scan.labels).count,
        "place": dataset.source.place("patch 1"),
    }


def walk(ranks: Ranks, folder: str) -> dict[str, Any]:
    """On a rank: all of them."""
    found = {}
    for name, errand in {
        "policy": walk_policy,
        "optimizer": walk_optimizer,
        "source": walk_source,
    }.items():
        Path(folder, name).mkdir()
        found[name] = errand(ranks, str(Path(folder, name)))
    return found


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = str(tmp_path_factory.mktemp("errands"))
    return on_ranks(f"{__name__}:walk", (1,), timeout=150, folder=folder)[1][0]


def test_a_clipping_policy_is_one_class(walked: dict[str, Any]) -> None:
    found = walked["policy"]
    assert found["share"] == pytest.approx(SHARE, rel=1e-6)
    assert {"steps": 1} in found["state"].values()
    assert found["settings"] == {**found["settings"], "policy": "shrink", "share": SHARE}
    assert "clipping.share is 2: it must be a number in (0, 1]" in found["refused"]


def test_a_name_or_a_setting_of_two_policies_is_refused_at_once() -> None:
    with mock.patch.dict(POLICIES):
        with pytest.raises(ValueError, match="limit is taken"):

            @policy("other")
            class Other(Policy):
                limit: float = setting(1.0, real(0))

        with pytest.raises(ValueError, match="value is taken"):

            @policy("value")
            class Second(Policy):
                pass


def test_an_optimizer_is_one_entry(walked: dict[str, Any]) -> None:
    found = walked["optimizer"]
    boosts = {group["param_group"]: group["boost"] for group in found["groups"]}
    assert boosts == {"weight": 2, "bn": 2, "bias": 3.0}
    assert {group["momentum"] for group in found["groups"]} == {WARMED}
    moved: dict[str, float] = found["moved"]
    assert moved["model.0.conv.weight"] == pytest.approx(2 * RATE, rel=1e-3)
    assert moved["model.0.bn.bias"] == pytest.approx(3 * RATE, rel=1e-3)
    assert 'SignDescent has no "betas"' in found["refused"]


def test_an_optimizers_state_goes_on_under_another_layout(walked: dict[str, Any]) -> None:
    saved: dict[str, Tensor]
    saved, loaded = walked["optimizer"]["velocity"]
    assert walked["optimizer"]["taken"] == {1.0}
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(value, loaded[name]) for name, value in saved.items())
    assert any(value.any() for value in saved.values())


def test_a_source_of_samples_is_one_module_and_one_line(walked: dict[str, Any]) -> None:
    found = walked["source"]
    assert found["grad_norm"] > 0 and not found["skipped"]
    assert set(found["images"]) == {f"patch {number}" for number in range(8) if number != GONE}
    assert found["replaced"] == {f"patch {GONE}"}
    assert found["barred"] == "patch 2"
    assert found["summary"] == "8 images, 8 boxes, 0 backgrounds" and found["record"] == 8
    assert found["place"].endswith("some.patches, patch 1")


def test_the_files_that_contributing_names_are_there() -> None:
    errands = (
        (ROOT / "CONTRIBUTING.md")
        .read_text(encoding="utf-8")
        .split("## Errands")[1]
        .split("\n## ")[0]
    )
    named = re.findall(r"`(yolods/[\w/.]+\.py|tests/[\w/.]+\.py|docs/[\w/.]+\.md)`", errands)
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).is_file()] == []
