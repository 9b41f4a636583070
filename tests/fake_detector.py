"""Evaluation in tests: a split opened for it, an evaluator for it, and a detector that errs in
known ways."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from yolods.config import Hyper
from yolods.data.spec import read_spec
from yolods.data.splits import Split, SplitOptions, open_split
from yolods.distributed.world import Ranks, Share
from yolods.evaluation.evaluator import Evaluator

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, 0, "here", CPU)
HYPER = Hyper()


def open_val(yaml: Path, imgsz: int = 64, eval_batch: int = 16) -> Split:
    options = SplitOptions(
        imgsz=imgsz, stride=32, epochs=1, workers=0, local_ranks=1, eval_batch=eval_batch
    )
    return open_split(read_spec(yaml), "val", HYPER, options, ALONE, augment=False)


def evaluator_of(
    split: Split,
    names: Sequence[str],
    out: Path,
    ranks: Ranks = ALONE,
    hyper: Hyper = HYPER,
    forward_batch: int = 16,
) -> Evaluator:
    share = Share(ranks.rank, ranks.size)
    return Evaluator(
        split.dataset, names, hyper, ranks, share=share, forward_batch=forward_batch, save_dir=out
    )


class FakeDetector:
    """A detector that reads the labels and errs: boxes are moved, missed, made up and taken for
    another class."""

    def __init__(self, dataset, share, nc: int) -> None:
        self._dataset, self._share, self._nc = dataset, iter(share), nc

    def predict(self, images):
        batch = next(self._share)
        height, width = images.shape[2:]
        rows = [self._guess(index, width, height) for index in batch.indices]
        decoded = torch.zeros(len(rows), 4 + self._nc, 84)  # as many cells as 64 x 64 pixels have
        for place, row in enumerate(rows):
            decoded[place, :, : len(row)] = row.T
        return decoded, {}

    def _guess(self, index: int, width: int, height: int):
        random = np.random.RandomState(index)
        sample = self._dataset[index]
        rows = []
        for box, (cls,) in zip(sample["bboxes"].numpy(), sample["cls"].numpy(), strict=True):
            # Of two boxes on one object COCO takes the surer, ultralytics the better one; NMS
            # leaves few such pairs.
            for _ in range(random.choice([0, 2, *[1] * 14])):
                x, y, w, h = box * (width, height, width, height)
                moved = (x + w * random.randn() * 0.06, y + h * random.randn() * 0.06)
                scores = np.zeros(self._nc)
                said = int(cls) if random.rand() < 0.9 else random.randint(self._nc)
                scores[said] = np.clip(random.normal(0.6, 0.2), 0.01, 0.99)
                grown = np.array([w, h]) * np.exp(random.randn(2) * 0.08)
                rows.append([*inside(sample, *moved, *grown), *scores])
        for _ in range(random.randint(0, 3)):
            scores = np.zeros(self._nc)
            scores[random.randint(self._nc)] = np.clip(random.normal(0.3, 0.2), 0.01, 0.99)
            where = random.rand(4) * (width, height, width / 3, height / 3) + (0, 0, 4, 4)
            rows.append([*inside(sample, *where), *scores])
        return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4 + self._nc)

    def score(self, raw, batch):
        return torch.zeros(4)


def inside(sample: dict, x: float, y: float, w: float, h: float) -> tuple[float, ...]:
    """A box cut off at the borders of the picture, as the JSON has it while ultralytics counts it
    whole."""
    (gain, _), (left, top) = sample["ratio_pad"]
    height, width = (side * gain for side in sample["ori_shape"])
    x1, x2 = np.clip((x - w / 2, x + w / 2), left, left + width)
    y1, y2 = np.clip((y - h / 2, y + h / 2), top, top + height)
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
