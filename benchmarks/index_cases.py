"""The cases of `index.py`, each run as a script in a process of its own: prints one line of JSON.

`first_scan_earlier` runs on a checkout that has no index room.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path

PICTURES = 500
"""Different pictures among the images."""
FOLDER = 10_000
"""Images of one folder."""
BLOCK = 100_000
"""Rows that are written at once."""


def make(yaml: str, count: str) -> dict[str, float]:
    """Write a set of JPEGs with two or three boxes each."""
    import cv2
    import numpy as np

    rng, root = np.random.default_rng(0), Path(yaml).parent
    pictures = []
    for _ in range(PICTURES):
        picture = cv2.resize(rng.integers(0, 255, (9, 12, 3), np.uint8), (128, 96))
        pictures.append(cv2.imencode(".jpg", picture)[1].tobytes())
    for number in range(int(count)):
        folder = f"{number // FOLDER:03}"
        if number % FOLDER == 0:
            for kind in ("images", "labels"):
                (root / kind / "train" / folder).mkdir(parents=True)
        name = f"train/{folder}/{number:08}"
        with open(root / "images" / f"{name}.jpg", "wb") as image:
            image.write(pictures[number % PICTURES])
        boxes = rng.uniform(0.2, 0.6, (2 + number % 2, 4))
        with open(root / "labels" / f"{name}.txt", "w") as label:
            for box in boxes.tolist():
                label.write(f"{number % 3} " + " ".join(f"{side:.6f}" for side in box) + "\n")
    Path(yaml).write_text("train: images/train\nval: images/train\nnames: [a, b, c]\n")
    return {}


def first_scan_earlier(yaml: str, cache: str) -> dict[str, float]:
    """Seconds of a scan as an earlier version does it, with its own number of threads."""
    from yolods.data.scan import scan
    from yolods.data.spec import read_spec

    spec = read_spec(Path(yaml))
    began = time.monotonic()
    scan(spec, "train", cache=Path(cache))
    return {"seconds": time.monotonic() - began}


def first_scan_now(yaml: str, cache: str) -> dict[str, float]:
    """Seconds of a scan with a process per core."""
    from yolods.data.index.checks import scan_workers
    from yolods.data.index.image_files import CheckOptions
    from yolods.data.scan import scan
    from yolods.data.spec import read_spec

    spec = read_spec(Path(yaml))
    began = time.monotonic()
    scan(spec, "train", cache=Path(cache), options=CheckOptions(scan_workers(1)))
    return {"seconds": time.monotonic() - began}


def cached_start(yaml: str, cache: str) -> dict[str, float]:
    """CPU time of both kinds of rank, and what a loader process holds after reading every label."""
    from yolods.config.hyper.hyperparameters import Hyper
    from yolods.data import splits
    from yolods.data.index.fingerprint import samples_of
    from yolods.data.index.image_files import CheckOptions
    from yolods.data.scan import in_both, scan
    from yolods.data.spec import read_spec

    options = splits.SplitOptions(imgsz=640, stride=32, epochs=3, workers=0, local_ranks=1)

    def start(*, trusted: bool) -> tuple[float, splits.Split]:
        began = time.process_time()
        spec = read_spec(Path(yaml))
        checks = CheckOptions(trusted=trusted)
        found = scan(spec, "train", cache=Path(cache), options=checks)
        split = splits.Split(found, splits._dataset(found, spec, Hyper(), options, augment=True))
        if not trusted:
            samples_of(found.labels)
            in_both(found, found)
        return time.process_time() - began, split

    start(trusted=True)  # imports
    start(trusted=False)  # the fingerprint is kept from here on
    first, _ = start(trusted=False)
    other, split = start(trusted=True)
    held = _in_a_fork(lambda: [split.dataset.labels[place] for place in range(1000)] and _dirty(
        lambda: _read_all(split.dataset.labels)
    ))  # fmt: skip
    return {
        "cached start of the rank that compares, s CPU": first,
        "cached start of another rank, s CPU": other,
        "private memory of a worker after a label of every image, MiB": held,
    }


def _read_all(labels: object) -> None:
    for _ in labels:  # type: ignore[attr-defined]
        pass


def rows(folder: str, count: str) -> dict[str, float]:
    """CPU time and memory of a start on a made-up index of `count` rows."""
    _write_rows(Path(folder), int(count))
    from yolods.data.index.labels import Labels
    from yolods.data.index.table import Index
    from yolods.data.sampler import Stream

    Stream(64, 0, 64).sample_ids(0, 64)  # imports
    taken: list[float] = []

    def use() -> None:
        began = time.process_time()
        index = Index(Path(folder))
        labels = Labels(index, index.kept_rows())
        stream = Stream(len(labels), 0, 64)
        for sample in stream.sample_ids(2 * len(labels) + len(labels) // 2, 64):
            labels[sample.index]
        taken.append(time.process_time() - began)

    held = _dirty(use)
    return {
        "10 million rows: open, seek to the middle of epoch 3, 64 labels, s CPU": taken[0],
        "10 million rows: private memory for that, MiB": held,
    }


def _write_rows(folder: Path, count: int) -> None:
    import numpy as np

    from yolods.data.index.block import Block
    from yolods.data.index.table import IndexWriter

    rng = np.random.default_rng(0)
    with IndexWriter(folder) as writer:
        for start in range(0, count, BLOCK):
            n = min(BLOCK, count - start)
            boxes = rng.integers(0, 5, n)
            m = int(boxes.sum())
            writer.add(
                Block(
                    ids=[f"images/train/{start + place:08}.jpg" for place in range(n)],
                    shape=np.full((n, 2), 640, np.int32),
                    boxes=boxes,
                    box=rng.random((m, 5), np.float32),
                    line=np.ones(m, np.int32),
                    points=np.zeros(m, np.int64),
                    point=np.zeros((0, 2), np.float32),
                    stat=np.zeros((n, 4), np.int64),
                    digest=np.zeros((n, 16), np.uint8),
                    place=np.arange(start, start + n, dtype=np.uint64),
                    lines_skipped=np.zeros(n, np.int32),
                    problems=[],
                )
            )


def _dirty(work: object) -> float:
    """MiB of pages that this process has written more after `work` than before."""
    before = _private()
    work()  # type: ignore[operator]
    return (_private() - before) / 1024


def _private() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search(r"Private_Dirty: *(\d+) kB", text)[1])  # type: ignore[index]


def _in_a_fork(work: object) -> float:
    """What `work` returns in a forked process, as a loader process is one."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, json.dumps(work()).encode())  # type: ignore[operator]
        os._exit(0)
    os.waitpid(child, 0)
    return json.loads(os.read(reader, 100))


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
