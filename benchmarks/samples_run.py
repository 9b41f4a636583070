"""What the samples of a run are made of: each trainer's own loader walks through a set, and all
that is drawn is noted.

The loaders are the real ones: ultralytics' from its DetectionTrainer, ours from `train_loader`,
each in a process a rank, with its workers. What transforms draw is noted where ultralytics' classes
draw it, the same for both.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from ultralytics.cfg import get_cfg
from ultralytics.data import augment, build
from ultralytics.data.base import BaseDataset
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import init_seeds

from yolods.data import dataset as dataset_module
from yolods.data.augment.finish import Finish
from yolods.data.dataset import DetectionSet
from yolods.data.loader import train_loader
from yolods.data.sampler import Stream, keyed_seed
from yolods.data.scan import scan
from yolods.data.spec import as_ultralytics, read_spec

DRAWN = (
    *("index", "hue", "saturation", "value", "flip up-down", "flip left-right"),
    *("mosaic", "centre x", "centre y", "scale", "translation x", "translation y"),
    *("partner 1", "partner 2", "partner 3", "distance of partners", "boxes", "brightness"),
)
"""What is noted of a sample: places of images in the set; gains, scale and translation as they are
drawn; the centre in pixels of the mosaic; the mean of |partner - index|; boxes left, and the mean
of the finished image."""
COLUMN = {name: number for number, name in enumerate(DRAWN)}
PHASES = {"first": (0, 1), "late": (298, 299), "closed": (300, 301)}
"""Epochs that are looked at, of a run of 302 that closes its mosaic for the last 2."""
EPOCHS, CLOSING = 302, 2
IMGSZ, BATCH = 64, 16
HYPER = {"flipud": 0.5}
"""Beside ultralytics' defaults: the flip that they leave out."""
SIDES = ("ultralytics", "yolods", "control")
"""`control` is yolods with Python's and numpy's generators seeded from the same two words."""


@dataclass(frozen=True)
class Condition:
    """How a run loads its samples."""

    mosaic: float
    """Probability."""
    ranks: int
    workers: int
    """Per rank."""

    @property
    def seed(self) -> int:
        """Of the run, another one for each condition: ours draws the same for any ranks and
        workers."""
        return int(self.mosaic * 2) * 4 + (self.ranks - 1) * 2 + (self.workers > 0)

    def __str__(self) -> str:
        return f"mosaic {self.mosaic:g}, ranks {self.ranks}, workers {self.workers}"


@dataclass(frozen=True)
class Shown:
    """The samples of one rank in the order in which it got them."""

    epoch: np.ndarray
    """(n,) int."""
    drawn: np.ndarray
    """(n, len(DRAWN)) float64; NaN where a sample has no such thing."""


def make_set(root: Path, images: int) -> Path:
    """Write that many images of any brightness, a third of them not square, of up to 5 boxes each;
    returns the yaml."""
    folders = [root / kind / split for kind in ("images", "labels") for split in ("train", "val")]
    for folder in folders:
        folder.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for number in range(images):
        height, width = (IMGSZ * 3 // 4 if number % 3 == 2 else IMGSZ), IMGSZ
        image = (
            rng.normal(rng.randint(40, 200), 12, (height, width, 3)).clip(0, 255).astype(np.uint8)
        )
        rows = []
        for _ in range(rng.randint(6)):
            w, h = rng.randint(8, 28, 2)
            x, y = rng.randint(width - w), rng.randint(height - h)
            cv2.rectangle(
                image, (x, y), (x + w - 1, y + h - 1), tuple(map(int, rng.randint(0, 256, 3))), -1
            )
            rows.append(
                f"0 {(x + w / 2) / width:.6f} {(y + h / 2) / height:.6f} {w / width:.6f} "
                f"{h / height:.6f}\n"
            )
        name = f"{number:06}"
        cv2.imwrite(str(folders[0] / f"{name}.jpg"), image)
        (folders[2] / f"{name}.txt").write_text("".join(rows), encoding="utf-8")
    cv2.imwrite(str(folders[1] / "0.jpg"), image)
    yaml = root / "set.yaml"
    yaml.write_text("train: images/train\nval: images/val\nnames: [thing]\n", encoding="utf-8")
    return yaml


def run(side: str, yaml: Path, condition: Condition, folder: Path) -> list[Shown]:
    """What each rank was shown in the epochs of PHASES; `folder` keeps it, and is read where it has
    it already.

    Args:
        side: one of SIDES.

    Raises:
        RuntimeError: a rank failed.
    """
    files = [folder / f"{side}, {condition}, rank {rank}.npz" for rank in range(condition.ranks)]
    if not all(file.exists() for file in files):
        context = multiprocessing.get_context("fork")  # torch and ultralytics are imported already
        processes = [
            context.Process(target=_rank, args=(side, yaml, condition, rank, file))
            for rank, file in enumerate(files)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if failed := [rank for rank, process in enumerate(processes) if process.exitcode]:
            raise RuntimeError(f"{side}, {condition}: rank {failed[0]} failed, see above")
    return [Shown(**np.load(file)) for file in files]


def _rank(side: str, yaml: Path, condition: Condition, rank: int, file: Path) -> None:
    torch.set_num_threads(1)
    LOGGER.disabled = True
    walk = _ultralytics if side == "ultralytics" else _yolods
    with watched(), alike() if side == "control" else _as_they_are():
        epochs, batches = zip(*walk(yaml, condition, rank), strict=True)
    epoch = np.repeat(epochs, [len(batch) for batch in batches])
    whole = file.with_suffix(".part.npz")
    np.savez(whole, epoch=epoch, drawn=np.concatenate(batches).astype(float))
    whole.rename(file)


@contextmanager
def _as_they_are() -> Iterator[None]:
    yield


@contextmanager
def alike() -> Iterator[None]:
    """Within: a sample's generators of Python and numpy are seeded from the same two words, so that
    they are one."""

    def seeded(*key: int | str) -> None:
        seed = keyed_seed(*key)
        random.seed(seed)
        np.random.seed([seed & 0xFFFFFFFF, seed >> 32])

    theirs, dataset_module.seed_generators = dataset_module.seed_generators, seeded
    try:
        yield
    finally:
        dataset_module.seed_generators = theirs


Walk = Iterator[tuple[int, np.ndarray]]
"""An epoch, and what was drawn for samples of it: one after the other, as a rank gets them."""


def _yolods(yaml: Path, condition: Condition, rank: int) -> Walk:
    dataset = our_set(yaml, condition)
    stream = Stream(len(dataset), condition.seed, BATCH)
    for first, last in (
        (0, 1),
        (298, 301),
    ):  # a sample depends on its epoch and on nothing before it
        batches = train_loader(
            dataset,
            stream,
            first_position=first * stream.n,
            dp_rank=rank,
            dp_size=condition.ranks,
            micro=BATCH // condition.ranks,
            workers=condition.workers,
        )
        with closing(batches):
            for k in range(math.ceil((last + 1 - first) * stream.n / BATCH)):
                position = first * stream.n + k * BATCH + rank * BATCH // condition.ranks
                ids = stream.sample_ids(position, BATCH // condition.ranks)
                for sample, drawn in zip(ids, next(batches)["drawn"], strict=True):
                    if sample.epoch <= last:
                        yield sample.epoch, drawn[None]


def our_set(yaml: Path, condition: Condition) -> DetectionSet:
    """The training set as a run of ours opens it."""
    spec = read_spec(yaml)
    return DetectionSet(
        scan(spec, "train", cache=yaml.parent / "scans"),
        as_ultralytics(spec),
        _settings(yaml, condition),
        imgsz=IMGSZ,
        augment=True,
        seed=condition.seed,
    )


def _ultralytics(yaml: Path, condition: Condition, rank: int) -> Walk:
    alone = condition.ranks == 1
    if not alone:  # as the environment says in a process that ultralytics starts
        build.RANK = rank
        meeting = f"file://{yaml.parent / f'{condition}, {os.getppid()}'}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=condition.ranks)
    init_seeds(condition.seed + 1 + build.RANK)
    trainer = _Trainer(_settings(yaml, condition), as_ultralytics(read_spec(yaml)))
    loader = trainer.get_dataloader(
        trainer.data["train"], BATCH // condition.ranks, rank=build.RANK
    )
    trainer.train_loader = loader
    for epoch in (epoch for epochs in PHASES.values() for epoch in epochs):
        if not alone:
            loader.sampler.set_epoch(epoch)
        if epoch == EPOCHS - CLOSING:
            trainer._close_dataloader_mosaic()
            loader.reset()
        for batch in loader:
            for drawn in batch["drawn"]:
                yield epoch, drawn[None]
    loader.close()
    if not alone:
        dist.destroy_process_group()


class _Trainer(DetectionTrainer):
    """ultralytics' trainer, as far as it makes a loader and closes the mosaic."""

    def __init__(self, args: Any, data: dict[str, Any]) -> None:
        self.args, self.data, self.device = args, data, torch.device("cpu")
        self.model = SimpleNamespace(stride=torch.tensor([8.0, 16.0, 32.0]))


def _settings(yaml: Path, condition: Condition) -> Any:
    return get_cfg(
        overrides={
            **HYPER,
            "data": str(yaml),
            "mosaic": condition.mosaic,
            "epochs": EPOCHS,
            "close_mosaic": CLOSING,
            "imgsz": IMGSZ,
            "batch": BATCH,
            "workers": condition.workers,
            "seed": condition.seed,
        }
    )


class _Notes:
    """What has been drawn for the sample that this process is making."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self.row = np.full(len(DRAWN), np.nan)
        self["mosaic"] = 0.0

    def __setitem__(self, name: str, value: float) -> None:
        self.row[COLUMN[name]] = value

    def finished(self, sample: dict[str, Any]) -> np.ndarray:
        """The row of the sample; its images' names are their places in the set."""
        self["index"] = index = int(Path(sample["im_file"]).stem)
        partners = self.row[COLUMN["partner 1"] : COLUMN["partner 3"] + 1]
        self["distance of partners"] = np.abs(partners - index).mean()
        self["boxes"] = len(sample["cls"])
        self["brightness"] = float(sample["img"].float().mean())
        return self.row


def _sample(make: Callable, notes: _Notes) -> Callable:
    """Begin the notes of a sample, and put them into it."""

    def noted(*given: Any) -> dict[str, Any]:
        notes.begin()
        made = make(*given)
        made["drawn"] = notes.finished(made)
        return made

    return noted


def _gains(apply: Callable, notes: _Notes) -> Callable:
    """Note the gains of hue, saturation and value."""

    def noted(*given: Any) -> Any:
        state = np.random.get_state()
        drawn, after = np.random.uniform(-1, 1, 3), np.random.get_state()[2]
        np.random.set_state(state)
        done = apply(*given)
        if np.random.get_state()[2] != after:
            raise RuntimeError(
                "three gains, and nothing else, are no longer drawn by numpy's uniform"
            )
        for name, gain in zip(("hue", "saturation", "value"), drawn, strict=True):
            notes[name] = gain
        return done

    return noted


def _flip(draw: Callable, notes: _Notes) -> Callable:
    """Note whether the image is flipped."""

    def noted(flip: Any, labels: Any) -> dict[str, Any]:
        drawn = draw(flip, labels)
        notes["flip up-down" if flip.direction == "vertical" else "flip left-right"] = drawn["flip"]
        return drawn

    return noted


def _centre(draw: Callable, notes: _Notes) -> Callable:
    """Note that the sample is a mosaic, and its centre."""

    def noted(mosaic: Any, labels: Any) -> dict[str, Any]:
        drawn = draw(mosaic, labels)
        notes["mosaic"] = 1.0
        notes["centre x"], notes["centre y"] = (drawn["layout"][0][side] for side in ("x2a", "y2a"))
        return drawn

    return noted


def _partners(draw: Callable, notes: _Notes) -> Callable:
    """Note the other images of a mosaic."""

    def noted(mosaic: Any) -> list[int]:
        drawn = draw(mosaic)
        for number, index in enumerate(drawn, start=1):
            notes[f"partner {number}"] = index
        return drawn

    return noted


def _affine(draw: Callable, notes: _Notes) -> Callable:
    """Note scale and translation."""

    def noted(perspective: Any, labels: Any) -> dict[str, Any]:
        drawn = draw(perspective, labels)
        notes["scale"] = drawn["scale"]
        for axis, (name, side) in enumerate((("translation x", 1), ("translation y", 0))):
            moved = (
                drawn["M"][axis, 2] + drawn["scale"] * drawn["orig_shape"][side] / 2
            )  # without turn and shear
            notes[name] = moved / drawn["size"][axis] - 0.5
        return drawn

    return noted


_WATCHED: Sequence[tuple[type, str, Callable]] = (
    (BaseDataset, "__getitem__", _sample),
    (DetectionSet, "sample", _sample),
    (augment.RandomHSV, "apply_image", _gains),
    (Finish, "drawn_gains", _gains),
    (augment.RandomFlip, "get_params", _flip),
    (augment.Mosaic, "get_params", _centre),
    (augment.Mosaic, "get_indexes", _partners),
    (augment.RandomPerspective, "get_params", _affine),
)
"""What is watched: a class, its method, and what wraps the method with the notes."""


@contextmanager
def watched() -> Iterator[None]:
    """Within: every sample of either pipeline carries what was drawn for it under `drawn`, and is
    what it was."""
    notes = _Notes()
    originals = [owner.__dict__[name] for owner, name, _ in _WATCHED]
    for (owner, name, wrap), original in zip(_WATCHED, originals, strict=True):
        setattr(owner, name, wrap(original, notes))
    try:
        yield
    finally:
        for (owner, name, _), original in zip(_WATCHED, originals, strict=True):
            setattr(owner, name, original)
