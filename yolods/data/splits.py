"""The data sets of a run: read, scanned by rank 0, and opened on every rank."""

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
from yolods.data.index.checks import scan_workers
from yolods.data.index.image_files import CheckOptions
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
    """The labels, and what was skipped."""
    dataset: DetectionSet
    """The images."""


@dataclass(frozen=True)
class SplitOptions:
    """Settings for `open_split`."""

    imgsz: int
    """Long side in pixels."""
    stride: int
    """Largest stride of the model in pixels."""
    epochs: int
    """Epochs of the run, which determine when mosaic ends."""
    workers: int
    """Loader processes per rank."""
    local_ranks: int
    """Number of ranks on this host, which share its memory."""
    check_data: bool = False
    """Compare every file with the last check of the data."""
    eval_batch: int = DEFAULT_BATCH
    """Images per evaluation batch over all ranks; they share one padded shape."""


def read_data(path: Path, ranks: Ranks) -> DataSpec:
    """Read the data yaml, after rank 0 made the demo or downloaded images. A collective.

    Raises:
        UserError: on every rank, with every fault of the yaml.
    """

    def first() -> Path:
        if path != DEMO_PATH:
            spec = read_spec(path)
            if spec.needs_download:
                log.info(
                    "%s: its images are not on this machine; downloading them to %s",
                    spec.yaml,
                    stores()[0],
                )
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
    """Check a split on one rank of each host and open it everywhere. A collective.

    Raises:
        UserError: on every rank; see `scan`.
    """

    def look(checks: CheckOptions) -> Scan:
        return scan(
            spec,
            split,
            cache=cache_dir() / "index",
            single_cls=hyper.single_cls,
            classes=hyper.classes,
            fraction=hyper.fraction if augment else 1.0,
            options=checks,
        )

    first = CheckOptions(
        scan_workers(options.local_ranks), every=options.check_data, progress=ranks.is_main
    )
    # One rank of each host checks the files; the others map what it has left.
    ranks.host_first(lambda: look(first))
    found = look(CheckOptions(trusted=True))
    for line in (*found.warnings, *_enlarged(found, options.imgsz)) if ranks.is_main else ():
        log.warning("%s", line)
    return Split(found, _dataset(found, spec, hyper, options, augment=augment))


def _enlarged(found: Scan, imgsz: int) -> list[str]:
    """The warning about a source that keeps images smaller than they are needed."""
    side = found.source.side
    if side is None or side >= imgsz:
        return []
    return [
        f"{found.split}: its images are kept at {side} pixels and enlarged to imgsz {imgsz}; pack "
        f"them at --imgsz {imgsz} for all of their detail"
    ]


def unaugmented(
    train: Split, most: int, spec: DataSpec, hyper: Hyper, options: SplitOptions
) -> DetectionSet:
    """Images of the train split as an evaluation sees them.

    Args:
        train: the train split.
        most: maximum number of images; fewer than all are drawn with the run's seed.
        spec: the data yaml.
        hyper: hyper-parameters.
        options: settings as for `open_split`.
    """
    labels = train.scan.labels
    if most < len(labels):
        draw = random.Random(keyed_seed("statistics", hyper.seed))
        places = sorted(draw.sample(range(len(labels)), most))
        labels = labels.chosen(np.asarray(labels.rows)[places])
    return _dataset(replace(train.scan, labels=labels), spec, hyper, options, augment=False)


def _dataset(
    found: Scan, spec: DataSpec, hyper: Hyper, options: SplitOptions, *, augment: bool
) -> DetectionSet:
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
    """Write problems.txt into the run folder; returns the lines for the screen.

    There is one line per split, and one more for each split that shares images with the first.
    """
    problems = [problem for each in scans for problem in each.problems]
    if problems:
        write_problems(run_dir / PROBLEMS_FILE, problems)
    shared = [in_both(scans[0], other) for other in scans[1:]]
    return [
        *(f"{each.split}: {each.summary}" for each in scans),
        *(line for line in shared if line),
    ]


def most_boxes(limit: int, *splits: Split) -> int:
    """Maximum boxes per image: the default rises to the data's maximum, as in ultralytics."""
    if limit != Hyper.max_det:
        return limit
    return max(limit, *(split.scan.labels.totals.most for split in splits))


def namespace(hyper: Hyper, **further: Any) -> Any:
    """ultralytics' settings with this run's hyper-parameters."""
    from ultralytics.cfg import get_cfg

    return get_cfg(overrides={**hyper.as_ultralytics(), **further})


def class_weights(found: Scan, nc: int, power: float) -> torch.Tensor | None:
    """(nc,) fp32 weights of the class loss, as in ultralytics' detect/train.py; None if `power` is
    0.

    A weight is the inverse frequency of a class to the power of `cls_pw`; the mean is 1. Classes
    without a box get the mean weight of the others.

    Raises:
        UserError: cls_pw is not 0 and there is no box to count.
    """
    if power == 0:
        return None
    counts = np.bincount(found.labels.boxes()[:, 0].astype(int), minlength=nc)
    if not counts.any():
        raise UserError(f"cls_pw={power}: the train set has no box to count classes by")
    present = counts > 0
    weights = (1.0 / np.where(present, counts, 1)) ** power
    weights = np.where(present, weights, weights[present].mean())
    return torch.from_numpy(weights / weights.mean()).float()
