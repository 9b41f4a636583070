"""Tiny data sets for tests: coloured rectangles in real image files, the same every time."""

from pathlib import Path

import cv2
import numpy as np

COLOURS = ((40, 40, 220), (40, 200, 40), (220, 80, 40), (30, 200, 220))


def make_dataset(
    root: Path, train: int = 6, val: int = 4, nc: int = 2, size: int = 64, suffix: str = "jpg"
) -> Path:
    """Write images and YOLO labels below `root`, and return the data yaml beside them.

    Images are square and `size` pixels, except every third, which is three quarters as high. Image
    i holds 1 + i % 3 rectangles, whose class is their colour; no two images are alike.
    """
    for offset, (split, count) in enumerate((("train", train), ("val", val))):
        images, labels = root / "images" / split, root / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for i in range(count):
            image, rows = _draw(np.random.RandomState([offset, i]), i, nc, size)
            ok, data = cv2.imencode(f".{suffix}", image)
            assert ok
            (images / f"{i:03}.{suffix}").write_bytes(data.tobytes())
            (labels / f"{i:03}.txt").write_text("".join(rows))
    path = root / "tiny.yaml"
    names = "".join(f"  {i}: colour{i}\n" for i in range(nc))
    path.write_text(f"train: images/train\nval: images/val\nnames:\n{names}")
    return path


def _draw(rng: np.random.RandomState, i: int, nc: int, size: int) -> tuple[np.ndarray, list[str]]:
    height, width = (size * 3 // 4 if i % 3 == 2 else size), size
    image = rng.randint(90, 130, (height, width, 3)).astype(np.uint8)
    rows = []
    for k in range(1 + i % 3):
        cls = (i + k) % nc
        w, h = rng.randint(size // 5, size // 2, 2)
        x, y = rng.randint(width - w + 1), rng.randint(height - h + 1)
        cv2.rectangle(image, (x, y), (x + w - 1, y + h - 1), COLOURS[cls % len(COLOURS)], -1)
        box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        rows.append(f"{cls} {' '.join(f'{v:.6f}' for v in box)}\n")
    return image, rows
