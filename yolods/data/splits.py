"""The two data sets of a run: read, scanned once by rank 0, and opened on every rank."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from yolods.config.deepspeed.batch import DEFAULT_BATCH
from yolods.config.hyper.hyperparameters import Hyper
from yolods.config.names.data_name import stores
from yolods.data.dataset import DetectionSet, default_cache_bytes
from yolods.data.demo import ensure_demo
from yolods.data.sampler import keyed_seed
from yolods.data.scan import Scan, in_both, scan, write_problems
from yolods.data.spec import DataSpec, as_ultralytics, fetch, read_spec
from yolods.errors import UserError
from yolods.system.folders import cache_dir

if TYPE_CHECKING:
    from yolods.distributed.world import Ranks

log = logging.getLogger(__name__)

DEMO_PATH = Path("demo")
PROBLEMS_FILE = "problems.txt"


@dataclass(frozen=True)
class Split:
    """One split on this rank."""

    scan: Scan
    """Labels and what was left out."""
    dataset: DetectionSet
    """Its images."""


@dataclass(frozen=True)
class SplitOptions:
    """How a split is to be opened."""

    imgsz: int
    """Long side in pixels."""
    stride: int
    """Largest stride of the model."""
    epochs: int
    """Epochs of the run, which decide when mosaic closes."""
    workers: int
    """Loader processes a rank."""
    local_ranks: int
    """Ranks on this host, which share its memory."""
    eval_batch: int = DEFAULT_BATCH
    """Images per batch of an evaluation, over all ranks: they share one padded shape."""


def read_data(path: Path, ranks: Ranks) -> DataSpec:
    """Read the data yaml; rank 0 makes the demo or downloads first where that is asked for. A collective.

    Raises:
        UserError: on every rank, with every fault of the yaml.
    """

    def first() -> Path:
        if path != DEMO_PATH:
            spec = read_spec(path)
            if spec.needs_download:
                log.info("%s: its images are not on this machine; they are downloaded to %s", spec.yaml, stores()[0])
                fetch(spec)
            return path
        return ensure_demo(cache_dir())

    spec = read_spec(ranks.main_first(first))
    for line in spec.warnings if ranks.is_main else ():
        log.warning("%s", line)
    return spec


def open_split(
    spec: DataSpec, split: str, hyper: Hyper, options: SplitOptions, ranks: Ranks, *, augment: bool
) -> Split:
    """Scan a split on rank 0 and open it everywhere. A collective.

    Raises:
        UserError: on every rank; see `scan`.
    """

    def look(progress: bool) -> Scan:
        return scan(
            spec,
            split,
            cache=cache_dir() / "scans",
            single_cls=hyper.single_cls,
            classes=hyper.classes,
            progress=progress,
            fraction=hyper.fraction if augment else 1.0,
        )

    ranks.main_first(lambda: look(True) and None)
    found = look(False)
    for line in found.warnings if ranks.is_main else ():
        log.warning("%s", line)
    return Split(found, _dataset(found, spec, hyper, options, augment=augment))


def unaugmented(train: Split, most: int, spec: DataSpec, hyper: Hyper, options: SplitOptions) -> DetectionSet:
    """Images of the train split as an evaluation sees them.

    Args:
        most: how many; fewer than there are are drawn by the seed.
    """
    labels = train.scan.labels
    if most < len(labels):
        places = random.Random(keyed_seed("statistics", hyper.seed)).sample(range(len(labels)), most)
        labels = [labels[place] for place in sorted(places)]
    return _dataset(replace(train.scan, labels=labels), spec, hyper, options, augment=False)


def _dataset(found: Scan, spec: DataSpec, hyper: Hyper, options: SplitOptions, *, augment: bool) -> DetectionSet:
    settings = namespace(hyper, epochs=options.epochs, imgsz=options.imgsz)
    return DetectionSet(
        found,
        as_ultralytics(spec, single_cls=hyper.single_cls),
        settings,
        imgsz=options.imgsz,
        augment=augment,
        seed=hyper.seed,
        stride=options.stride,
        eval_batch=options.eval_batch,
        cache_ram=hyper.cache == "ram" and augment,
        cache_bytes=default_cache_bytes(options.local_ranks * max(options.workers, 1)),
    )


def note_problems(run_dir: Path, scans: tuple[Scan, ...]) -> list[str]:
    """Write what was skipped into the run folder; returns the lines for the screen: one a split, and one
    where a split has images of the first."""
    problems = [problem for each in scans for problem in each.problems]
    if problems:
        write_problems(run_dir / PROBLEMS_FILE, problems)
    shared = [in_both(scans[0], other) for other in scans[1:]]
    return [*(f"{each.split}: {each.summary}" for each in scans), *(line for line in shared if line)]


def most_boxes(limit: int, *splits: Split) -> int:
    """Boxes per image that are kept: ultralytics raises its default to what the data holds; another limit stays."""
    if limit != Hyper.max_det:
        return limit
    return max(limit, *(len(label["cls"]) for split in splits for label in split.scan.labels))


def namespace(hyper: Hyper, **further: Any) -> Any:
    """ultralytics' settings with our hyper-parameters in them."""
    from ultralytics.cfg import get_cfg

    return get_cfg(overrides={**hyper.as_ultralytics(), **further})


def class_weights(found: Scan, nc: int, power: float) -> torch.Tensor | None:
    """(nc,) fp32 weights of the class loss: inverse frequency to the `cls_pw`, mean 1; ultralytics detect/train.py.

    Classes without a box get the mean weight of the others.

    Raises:
        UserError: cls_pw is not 0 and there is no box to count.
    """
    if power == 0:
        return None
    counts = np.bincount(np.concatenate([label["cls"].reshape(-1) for label in found.labels]).astype(int), minlength=nc)
    if not counts.any():
        raise UserError(f"cls_pw={power}: the train set has no box to count classes by")
    present = counts > 0
    weights = (1.0 / np.where(present, counts, 1)) ** power
    weights = np.where(present, weights, weights[present].mean())
    return torch.from_numpy(weights / weights.mean()).float()
