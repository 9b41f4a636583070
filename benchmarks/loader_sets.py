"""The sets that loaders are measured on: generated images of 1280x720 pixels, and the blood
cells."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks.cases import ROOT

HD = (1280, 720)
QUALITY = 80
SCENES = 40
"""Different images; the others are these, shifted."""
COPIES = 3
"""The blood cells are few: each is there so many times under different names."""


@dataclass(frozen=True)
class ImageSet:
    """A set below a folder that may be written to."""

    title: str
    yaml: Path
    images: int
    """Images to train on."""
    bytes: float
    """Mean size of an image file."""


def hd_set(root: Path, images: int) -> ImageSet:
    """JPEGs of about 100 kB with 2 to 12 boxes each."""
    folders = _folders(root)
    scenes = [_scene(np.random.default_rng(number)) for number in range(SCENES)]
    for number in range(images):
        rng = np.random.default_rng([1, number])
        image = np.roll(scenes[number % SCENES], tuple(rng.integers(0, 700, 2)), (0, 1))
        rows = [_box(image, rng) for _ in range(rng.integers(2, 13))]
        split = "val" if number == 0 else "train"
        name = f"{number:05}"
        cv2.imwrite(
            str(folders["images", split] / f"{name}.jpg"),
            image,
            [cv2.IMWRITE_JPEG_QUALITY, QUALITY],
        )
        (folders["labels", split] / f"{name}.txt").write_text("".join(rows), encoding="utf-8")
    return _described("HD", root, ["a", "b", "c"])


def cells_set(root: Path, source: Path) -> ImageSet:
    """The blood cells (640x480) of a folder with images/ and labels/, each several times."""
    folders = _folders(root)
    for split in ("train", "val"):
        for image in sorted((source / "images" / split).iterdir()):
            label = source / "labels" / split / f"{image.stem}.txt"
            for number in range(COPIES):
                name = f"{number}_{image.name}"
                shutil.copyfile(image, folders["images", split] / name)
                if label.exists():
                    target = (folders["labels", split] / name).with_suffix(".txt")
                    shutil.copyfile(label, target)
    return _described("BCCD", root, ["platelet", "red", "white"])


def _folders(root: Path) -> dict[tuple[str, str], Path]:
    kinds = [(kind, split) for kind in ("images", "labels") for split in ("train", "val")]
    found = {(kind, split): root / kind / split for kind, split in kinds}
    for folder in found.values():
        folder.mkdir(parents=True)
    return found


def _described(title: str, root: Path, names: Sequence[str]) -> ImageSet:
    yaml = root / "set.yaml"
    yaml.write_text(
        f"train: images/train\nval: images/val\nnames: [{', '.join(names)}]\n", encoding="utf-8"
    )
    sizes = [file.stat().st_size for file in (root / "images" / "train").iterdir()]
    return ImageSet(title, yaml, len(sizes), float(np.mean(sizes)))


def _scene(rng: np.random.Generator) -> np.ndarray:
    """Soft colours with a texture: it compresses as a photograph does."""
    colours = rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)
    soft = cv2.resize(colours, HD, interpolation=cv2.INTER_CUBIC).astype(np.float32)
    texture = rng.normal(0, 45, (HD[1], HD[0], 3)).astype(np.float32)
    return (soft + cv2.GaussianBlur(texture, (0, 0), 2.6)).clip(0, 255).astype(np.uint8)


def _box(image: np.ndarray, rng: np.random.Generator) -> str:
    """Draw a rectangle; returns its line of the label file."""
    width, height = rng.integers(30, 300, 2).tolist()
    x, y = int(rng.integers(HD[0] - width)), int(rng.integers(HD[1] - height))
    colour = tuple(rng.integers(0, 256, 3).tolist())
    cv2.rectangle(image, (x, y), (x + width, y + height), colour, -1)
    box = (x + width / 2) / HD[0], (y + height / 2) / HD[1], width / HD[0], height / HD[1]
    return f"{rng.integers(3)} {' '.join(f'{value:.6f}' for value in box)}\n"


def can_pack() -> bool:
    """Whether this checkout has `yolods pack`."""
    return importlib.util.find_spec("yolods.data.pack") is not None


def packed(source: ImageSet, out: Path, words: Sequence[str]) -> ImageSet:
    """The set as a pack in the folder `out`, made by `yolods pack` with these further words unless
    it is there.

    Raises:
        CalledProcessError: the command failed.
    """
    command = [sys.executable, "-m", "yolods", "pack", "--data", str(source.yaml)]
    if not out.exists():
        subprocess.run([*command, "--out", str(out), *words], cwd=ROOT, check=True)
    return ImageSet(source.title, next(out.glob("*.yaml")), source.images, source.bytes)
