"""Loads a rank's batches, of the endless train stream or an evaluation, with or without worker
processes.

The batches depend only on the requests, never on the number of workers.
"""

import math
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from yolods.compat import end_workers
from yolods.config.image_size import drawn_between
from yolods.data.dataset import DetectionSet
from yolods.data.sampler import SampleId, Stream, keyed_seed
from yolods.errors import OwnError, UserError
from yolods.system.allocator import keep_freed_memory
from yolods.system.interrupt import REQUESTS

Collated = dict[str, Any]


@dataclass(frozen=True)
class EvalBatch:
    """Images of one shape that share a forward pass on one rank."""

    indices: tuple[int, ...]
    """Indices in the data set."""
    real: int
    """Number of images, from the first on, that count; the others keep the ranks in step."""


def train_loader(
    dataset: DetectionSet,
    stream: Stream,
    *,
    first_position: int,
    dp_rank: int,
    dp_size: int,
    micro: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[Collated]:
    """This rank's micro-batches from `first_position` of the stream on, in order and without an
    end.

    Each is a result of DetectionSet.collate_fn: img (micro, 3, imgsz, imgsz) uint8 on the CPU. The
    workers live as long as the iterator; its close() ends them.

    Raises:
        ValueError: micro * dp_size is not stream.batch.
        UserError: a worker died, or no image can be read.
    """
    if micro * dp_size != stream.batch:
        raise ValueError(
            f"batch {stream.batch} != micro {micro} x ranks {dp_size} = {micro * dp_size}"
        )
    if stream.n != len(dataset):
        raise ValueError(f"the stream has {stream.n} images, the data set {len(dataset)}")
    requests = _Requests(stream, first_position + dp_rank * micro, stream.batch, micro)
    return _deliver(_loader(dataset, requests, workers, pin_memory))


def eval_batches(
    dataset: DetectionSet, *, dp_rank: int, dp_size: int, forward_batch: int
) -> list[EvalBatch]:
    """This rank's share of an evaluation: equally many batches per rank; each image counts exactly
    once.

    Images that share a padded shape (groups of the set's `eval_batch`) are split into batches of at
    most `forward_batch`, which are assigned to the ranks in turn. A rank that would get one fewer
    repeats a single image with real = 0, because a forward pass may be a collective.
    """
    pieces = []
    for start in range(0, len(dataset), dataset.eval_batch):
        end = min(start + dataset.eval_batch, len(dataset))
        pieces += [
            tuple(range(i, min(i + forward_batch, end))) for i in range(start, end, forward_batch)
        ]
    rounds = math.ceil(len(pieces) / dp_size)
    share = [EvalBatch(piece, len(piece)) for piece in pieces[dp_rank::dp_size]]
    return share + [EvalBatch(pieces[0][:1], 0)] * (rounds - len(share))


def eval_loader(
    dataset: DetectionSet, batches: Sequence[EvalBatch], *, workers: int, pin_memory: bool = False
) -> Iterator[Collated]:
    """The evaluation batches in order: collated samples, with `index` (tuple) and `real` (int)."""
    requests = [batch.indices for batch in batches]
    loader = _loader(dataset, requests, min(workers, len(requests)), pin_memory)
    for batch, collated in zip(batches, _deliver(loader), strict=True):
        collated["real"] = batch.real
        yield collated


def scaled_size(seed: int, step: int, imgsz: int, multi_scale: float, stride: int) -> int:
    """Side in pixels for this step under `multi_scale`: a multiple of `stride`, equal on all ranks.

    As in ultralytics, an integer is drawn uniformly between imgsz * (1 - multi_scale), at least
    `stride`, and imgsz * (1 + multi_scale) + `stride`, and rounded down to a multiple of `stride`,
    the model's largest.
    """
    if multi_scale <= 0:
        return imgsz
    low, high = drawn_between(imgsz, multi_scale, stride)
    return random.Random(keyed_seed("scale", seed, step)).randrange(low, high) // stride * stride


class _Requests:
    """Endless lists of sample ids: `micro` ids from `first` on, then `batch` positions further."""

    def __init__(self, stream: Stream, first: int, batch: int, micro: int) -> None:
        self.stream, self.first, self.batch, self.micro = stream, first, batch, micro

    def __iter__(self) -> Iterator[list[SampleId]]:
        position = self.first
        while True:
            yield self.stream.sample_ids(position, self.micro)
            position += self.batch


class Making(NamedTuple):
    """What it took a process to make a batch; the batch has it under `making`."""

    images: int
    """Samples of the batch."""
    seconds: float
    """Wall time in seconds."""
    decoding: float
    """Seconds of it for reading and decoding images."""


class _Reader(Dataset):
    """A data set whose items are collated batches.

    This way a worker can return a UserError's text as a value; torch would wrap an exception in its
    traceback.
    """

    def __init__(self, dataset: DetectionSet) -> None:
        self.dataset = dataset

    def __getitem__(self, ids: Sequence[SampleId] | Sequence[int]) -> Collated | str:
        began, decoded = time.perf_counter(), self.dataset.decode_seconds
        try:
            batch = self.dataset.collated(ids)
        except UserError as fault:
            return str(fault)
        seconds, decoding = time.perf_counter() - began, self.dataset.decode_seconds - decoded
        batch["making"] = Making(len(ids), seconds, decoding)
        return batch


def _loader(dataset: DetectionSet, requests: Any, workers: int, pin_memory: bool) -> DataLoader:
    return DataLoader(
        _Reader(dataset),
        # An item of `_Reader` is a collated batch, so torch's own batching is off.
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        # Otherwise each start of workers draws from the global generator, which a resume restores.
        generator=torch.Generator(),
        prefetch_factor=4 if workers else None,
    )


def _deliver(loader: DataLoader) -> Iterator[Collated]:
    batches = iter(loader)
    try:
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if re.search(
                    r"DataLoader worker .*(killed by signal|exited unexpectedly)", str(error)
                ):
                    raise OwnError(_death(str(error), loader.num_workers)) from error
                raise
            if isinstance(batch, str):
                raise OwnError(batch)
            yield batch
    finally:
        end_workers(batches)  # also when the consumer closes this generator


def _death(report: str, workers: int) -> str:
    shared = Path("/dev/shm")
    room = (
        f", {shutil.disk_usage(shared).free >> 20} MiB of shared memory are free"
        if shared.is_dir()
        else ""
    )
    return (
        f"a data loading process died ({report.splitlines()[0]}); the usual cause is too little "
        f"memory: try fewer --workers (now {workers} per rank{room})"
    )


def _unchanged(batch: Collated | str) -> Collated | str:
    return batch


def _prepare_worker(worker: int) -> None:
    """Use one thread per worker, keep the memory of images, and ignore requests to stop, because
    the main process ends the workers.

    Workers receive these signals too: from the terminal, and from DeepSpeed's launcher, which
    signals all processes that a rank has started.
    """
    for request in REQUESTS:
        signal.signal(request, signal.SIG_IGN)
    # Otherwise OpenCV starts a thread per core in every worker.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory()
