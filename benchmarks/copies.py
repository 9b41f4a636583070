"""A copy of the data for the runs to use: ultralytics writes caches beside labels and repairs
images in place."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

from yolods.data.demo import ensure_demo
from yolods.data.images.listing import list_images
from yolods.data.spec import read_spec


def copy_of(data: str, work: Path) -> tuple[Path, int]:
    """Make or copy a data set below `work`.

    Args:
        data: a data yaml, or demo.

    Returns:
        its yaml, and the number of training images.

    Raises:
        UserError: the yaml has faults, or the demo cannot be made.
    """
    if data == "demo":
        file = ensure_demo(work / "cache")
        return file, len(list_images(read_spec(file).train))
    from ultralytics.data.utils import img2label_paths

    spec = read_spec(Path(data))
    root, counts = work / "data", {}
    for split in ("train", "val"):
        images = list_images(spec.sources(split))
        counts[split] = len(images)
        for number, (image, label) in enumerate(zip(images, img2label_paths(images), strict=True)):
            name = f"{number:07}"
            _copy(Path(image), root / "images" / split / f"{name}{Path(image).suffix}")
            if Path(label).is_file():
                _copy(Path(label), root / "labels" / split / f"{name}.txt")
    content = {"train": "images/train", "val": "images/val", "names": dict(enumerate(spec.names))}
    file = root / "data.yaml"
    file.write_text(
        yaml.safe_dump({**content, "channels": spec.channels}, sort_keys=False), encoding="utf-8"
    )
    return file, counts["train"]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
