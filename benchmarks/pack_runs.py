"""What benchmarks/pack.py does with packs: reads them as a run does, damages them, and kills their
making."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.cfg import get_cfg

from tests.packs import flip, hashes, killed_at, steps_of
from yolods.data.dataset import DetectionSet
from yolods.data.loader import train_loader
from yolods.data.pack import decode
from yolods.data.pack.command import PackRequest, pack_data
from yolods.data.pack.encode import Encoding
from yolods.data.pack.packed import PackedImages
from yolods.data.sampler import SampleId, Stream
from yolods.data.scan import scan
from yolods.data.source import Unreadable
from yolods.data.spec import as_ultralytics, read_spec

BATCH, SEED = 20, 5
HYPER = {"epochs": 100, "mosaic": 0.9, "mixup": 0.2, "degrees": 5.0}
"""Beside ultralytics' defaults; mosaic and mixup read several images for a sample."""
HD_IMAGES, HD_SHAPE = 120, (720, 1280)
WORKERS, LIMIT = 2, 300
"""Processes that encode, and seconds that ranks may take."""


@dataclass(frozen=True)
class Way:
    """How a run takes its samples."""

    ranks: int
    workers: int
    """Per rank."""
    first: int
    """Position of the first sample: a resumed run begins in the middle."""

    def __str__(self) -> str:
        begun = "resumed" if self.first else "fresh"
        return f"ranks {self.ranks}, workers {self.workers}, {begun}"


def make_hd_set(root: Path) -> Path:
    """Write photographs of nothing, of 1280x720 and about 100 kB, with 5 boxes each; returns the
    yaml."""
    for split, count in (("train", HD_IMAGES), ("val", HD_IMAGES // 10)):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(count):
            rng = np.random.default_rng([len(split), number])
            cv2.imwrite(
                str(images / f"{number:04}.jpg"), _drawn(rng), [cv2.IMWRITE_JPEG_QUALITY, 80]
            )
            rows = np.hstack([rng.uniform(0.2, 0.8, (5, 2)), rng.uniform(0.05, 0.3, (5, 2))])
            text = "".join(f"{rng.integers(3)} {' '.join(f'{v:.6f}' for v in r)}\n" for r in rows)
            (labels / f"{number:04}.txt").write_text(text)
    yaml = root / "hd.yaml"
    yaml.write_text("train: images/train\nval: images/val\nnames: [a, b, c]\n")
    return yaml


def _drawn(rng: np.random.Generator) -> np.ndarray:
    """Noise of several scales, as in photographs: the finer, the fainter."""
    height, width = HD_SHAPE
    image = np.full((height, width, 3), 110, np.float32)
    for cell, strength in ((240, 60), (80, 35), (24, 20), (8, 9), (3, 4)):
        noise = rng.standard_normal((height // cell + 2, width // cell + 2, 3), np.float32)
        image += strength * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255).astype(np.uint8)


def pack(yaml: Path, out: Path, encoding: Encoding, **more: Any) -> tuple[Path, float]:
    """Pack a set; returns the yaml of the packs, and the seconds that it took."""
    request = {"splits": ("train", "val"), "shard_bytes": 1 << 30, "workers": WORKERS}
    began = time.perf_counter()
    pack_data(
        PackRequest(str(yaml), out, encoding=encoding, overwrite=False, **{**request, **more})
    )
    return out / yaml.name, time.perf_counter() - began


def opened(yaml: Path, imgsz: int, cache: Path, hyper: Mapping[str, Any] = HYPER) -> DetectionSet:
    """The training split as a run opens it, without a cache of decoded images."""
    spec = read_spec(yaml)
    return DetectionSet(
        scan(spec, "train", cache=cache),
        as_ultralytics(spec),
        get_cfg(overrides=dict(hyper)),
        imgsz=imgsz,
        augment=True,
        seed=SEED,
        cache_bytes=0,
    )


def samples(dataset: DetectionSet, way: Way, count: int) -> dict[int, str]:
    """A checksum of every sample by its position in the stream, from `way.first` up to `count`."""
    context = multiprocessing.get_context("fork")
    ends, processes = [], []
    for rank in range(way.ranks):
        end, other = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(dataset, way, count, rank, other))
        process.start()
        other.close()
        ends.append(end)
        processes.append(process)
    found: dict[int, str] = {}
    for end, process in zip(ends, processes, strict=True):
        if not end.poll(LIMIT):
            process.kill()
            raise RuntimeError(f"{way}: a rank had no samples after {LIMIT} s")
        found |= end.recv()
        process.join()
    return found


def _rank(dataset: DetectionSet, way: Way, count: int, rank: int, end: Any) -> None:
    torch.set_num_threads(1)
    micro, found = BATCH // way.ranks, {}
    batches = train_loader(
        dataset,
        Stream(len(dataset), SEED, BATCH),
        first_position=way.first,
        dp_rank=rank,
        dp_size=way.ranks,
        micro=micro,
        workers=way.workers,
    )
    with closing(batches):
        for start in range(way.first, count, BATCH):
            batch = next(batches)
            for place in range(micro):
                found[start + rank * micro + place] = _checksum(batch, place)
    end.send(found)


def _checksum(batch: dict[str, Any], place: int) -> str:
    mine = batch["batch_idx"] == place
    digest = blake2b(digest_size=16)
    for part in (batch["img"][place], batch["cls"][mine], batch["bboxes"][mine]):
        digest.update(part.contiguous().numpy().tobytes())
    names = [batch[key][place] for key in ("im_file", "ori_shape", "sources")]
    digest.update(f"{names} {batch['replaced']}".encode())
    return digest.hexdigest()


def kills_by_step(yaml: Path, scratch: Path, points: int) -> list[str]:
    """Kill the packing of a set at so many of its changes of files, evenly spread, and go on; a
    line for each point at which the files at the end are other ones."""
    whole, work = _kill_work(yaml, scratch)
    steps = steps_of(work, scratch / "killed")
    faults = []
    for point in range(points):
        step = 1 + round(point * (steps - 1) / (points - 1))
        shutil.rmtree(scratch / "killed", ignore_errors=True)
        died = killed_at(step, work, scratch / "killed")
        work()
        if not died or hashes(scratch / "killed") != whole:
            faults.append(f"step {step} of {steps}: {'other files' if died else 'not killed'}")
    return faults


def kills_by_time(yaml: Path, scratch: Path, points: int) -> list[str]:
    """The same after so many times, evenly spread over the time that packing takes."""
    whole, work = _kill_work(yaml, scratch)
    shutil.rmtree(scratch / "killed", ignore_errors=True)
    began = time.perf_counter()
    _end_of(_forked(work))
    seconds, faults = time.perf_counter() - began, []
    for point in range(points):
        shutil.rmtree(scratch / "killed", ignore_errors=True)
        child = _forked(work)
        time.sleep(seconds * (point + 0.5) / points)
        os.kill(child, signal.SIGKILL)
        _end_of(child)
        work()
        if hashes(scratch / "killed") != whole:
            faults.append(f"after {point + 0.5:g} of {points} parts of the time: other files")
    return faults


def _kill_work(yaml: Path, scratch: Path) -> tuple[dict[str, str], Any]:
    """The files of an undisturbed packing, and what packs into the folder `killed`."""
    encoding, more = Encoding(320), {"shard_bytes": 700_000}
    if not (scratch / "whole").exists():
        pack(yaml, scratch / "whole", encoding, **more)
    return hashes(scratch / "whole"), lambda: pack(yaml, scratch / "killed", encoding, **more)


def _forked(work: Any) -> int:
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return child


def _end_of(child: int) -> None:
    os.waitpid(child, 0)


def flipped(yaml: Path, count: int, cache: Path) -> tuple[int, int]:
    """Flip one bit in each of so many stored images; returns how many were named, and how many
    others were refused."""
    source = scan(read_spec(yaml), "train", cache=cache).source
    assert isinstance(source, PackedImages)
    columns, rng = source.index.columns, np.random.default_rng(SEED)
    rows = rng.choice(len(source.index.ids), count, replace=False).tolist()
    places = {}
    for row in rows:
        file = yaml.parent / "train.pack" / f"{int(columns['shard'][row]):05}.tar"
        places[row] = file, int(columns["offset"][row] + rng.integers(columns["size"][row]))
        flip(*places[row])
    named = refused = 0
    for row, identity in enumerate(source.index.ids):
        try:
            source.read(row)
        except Unreadable as error:
            named += row in places and str(error).startswith(f"{places[row][0]}: {identity}: ")
            refused += row not in places
    for place in places.values():  # as it was
        flip(*place)
    return named, refused


def cpu_ms(dataset: DetectionSet, count: int, round_number: int) -> float:
    """CPU milliseconds of this process for one augmented sample."""
    began = time.process_time()
    for index in range(count):
        dataset[SampleId(round_number, (index * 7) % len(dataset))]
    return 1000 * (time.process_time() - began) / count


def decode_ms(source: PackedImages, rows: range) -> float:
    """CPU milliseconds to read and decode one image."""
    began = time.process_time()
    for row in rows:
        source.read(row)
    return 1000 * (time.process_time() - began) / len(rows)


@contextmanager
def without_simplejpeg() -> Iterator[None]:
    """Within, cv2 decodes every JPEG."""
    own, decode.simplejpeg = decode.simplejpeg, lambda: None
    try:
        yield
    finally:
        decode.simplejpeg = own
