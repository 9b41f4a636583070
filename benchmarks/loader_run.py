"""One loader in a process of its own: makes samples when it is asked to, and says what CPU time
they took.

Started by loader.py, with the checkout that it measures first on PYTHONPATH. Its argument is JSON:
side, block, keep and simplejpeg of a `loader_report.Case`. Every line of its standard input is a
request as JSON: yaml, images (their number), imgsz, samples, cache (a folder). Its answers are
lines of JSON: seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

BATCH, SEED = 16, 0
EVERYTHING = 1 << 40
"""Bytes of a cache in which each set has room."""

Batches = Iterator[Any]


def main(way: SimpleNamespace) -> None:
    """Answer requests until standard input ends."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    if not way.simplejpeg:
        sys.modules["simplejpeg"] = None  # as if it were not installed
    from yolods import compat

    compat.prepare()
    compat.stand_in_for_torchvision()
    import cv2
    import torch
    from ultralytics.utils import LOGGER

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    LOGGER.disabled = True
    loader = {"yolods": _yolods, "ultralytics": _ultralytics}[way.side]
    loaders: dict[tuple[str, int], Batches] = {}
    for line in sys.stdin:
        asked = SimpleNamespace(**json.loads(line))
        key = asked.yaml, asked.imgsz
        if key not in loaders:
            loaders.clear()  # a set is asked for until it is done
            loaders[key] = loader(way, asked)
            # Where the images stay in memory, all have to be there.
            list(islice(loaders[key], -(-asked.images // BATCH) if way.keep else 2))
        began = time.process_time()
        list(islice(loaders[key], asked.samples // BATCH))
        print(json.dumps({"seconds": time.process_time() - began}), file=answers, flush=True)


def _yolods(way: SimpleNamespace, asked: SimpleNamespace) -> Batches:
    """The loader of the yolods on PYTHONPATH, which may be an old one."""
    from yolods.data.dataset import DetectionSet
    from yolods.data.loader import _prepare_worker
    from yolods.data.sampler import Stream
    from yolods.data.scan import scan
    from yolods.data.spec import as_ultralytics, read_spec

    spec = read_spec(Path(asked.yaml))
    found = scan(spec, "train", cache=Path(asked.cache))
    dataset = DetectionSet(
        found,
        as_ultralytics(spec),
        _settings(asked.imgsz),
        imgsz=asked.imgsz,
        augment=True,
        seed=SEED,
        cache_bytes=EVERYTHING if way.keep else 0,
    )
    _prepare_worker(0)
    block = default_block(found, asked.imgsz) if way.block is None else way.block
    stream = Stream(len(dataset), SEED, BATCH, *([block] if block else []))
    for k in count():
        ids = stream.batch_ids(k)
        if hasattr(dataset, "collated"):
            yield dataset.collated(ids)
        else:
            yield dataset.collate_fn([dataset[i] for i in ids])


def default_block(found: Any, imgsz: int) -> int:
    """The length of the blocks that mosaic partners come from by default in a set of the images of
    this scan, so often repeated that they are larger than a cache; 0: from the whole set."""
    import numpy as np

    from yolods.config.hyper.hyperparameters import Hyper
    from yolods.data.augment.partner_choice import KEPT_WHOLE, choose_partners, decoded_bytes
    from yolods.data.sampler import BLOCK_LENGTH

    shapes = found.labels.shapes
    times = KEPT_WHOLE // decoded_bytes(shapes, imgsz, 3) + 1
    labels = SimpleNamespace(shapes=np.tile(shapes, (times, 1)))
    large = SimpleNamespace(source=found.source, labels=labels)
    chosen = choose_partners(Hyper(), large, imgsz, 3)
    return BLOCK_LENGTH if chosen.partners == "block" else 0


def _ultralytics(way: SimpleNamespace, asked: SimpleNamespace) -> Batches:
    import numpy as np
    from ultralytics.data.dataset import YOLODataset

    from yolods.data.spec import as_ultralytics, read_spec

    spec = read_spec(Path(asked.yaml))
    dataset = YOLODataset(
        img_path=str(spec.train[0]),
        imgsz=asked.imgsz,
        cache="ram" if way.keep else False,
        augment=True,
        hyp=_settings(asked.imgsz),
        batch_size=BATCH,
        data=as_ultralytics(spec),
    )
    draw = np.random.RandomState(SEED)
    order = (i for _ in count() for i in draw.permutation(len(dataset)).tolist())
    while True:
        yield dataset.collate_fn([dataset[i] for i in islice(order, BATCH)])


def _settings(imgsz: int) -> Any:
    from ultralytics.cfg import get_cfg

    return get_cfg(overrides={"imgsz": imgsz, "epochs": 1000, "deterministic": False})


if __name__ == "__main__":
    # The modules beside this script are of another checkout than the one that is measured.
    sys.path.pop(0)
    main(SimpleNamespace(**json.loads(sys.argv[1])))
